"""What is said where memory is not enough: which rank, what it asked for, which settings of this run need less."""

import os
from queue import Queue

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

import distcnn
from distcnn.distributed import memory, rendezvous
from distcnn.distributed.exit import lost_contact, print_once
from distcnn.distributed.memory import (
    evaluation_fixes,
    explain_out_of_memory,
    first_out_of_memory_of_all_ranks,
    fits,
    format_bytes,
    prediction_fixes,
    resident_problem,
    training_fixes,
)
from distcnn.distributed.world import World
from distcnn.errors import DistcnnError, InputError, OutOfMemoryError
from tests.records import metrics

CPU, GPU = torch.device("cpu"), torch.device("cuda", 1)
GIB = 2**30
CUDA_WORDS = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 1 has a total capacity of 79.11 GiB of which 1.50 GiB is "
    "free. Including non-PyTorch memory, this process has 77.60 GiB memory in use."
)
NCCL_WORDS = (
    "NCCL error in: ../torch/csrc/distributed/c10d/ProcessGroupNCCL.cpp:3690, unhandled cuda error (run with "
    "NCCL_DEBUG=INFO for details), NCCL version 2.28.9\nncclUnhandledCudaError: Call to CUDA function failed.\n"
    "Last error:\nCuda failure 2 'out of memory'"
)
RUN = {
    "data": {"source": "synthetic", "args": {"train": 96, "test": 32}, "image_size": 8},
    "train": {"duration": "2step", "batch_size": 48, "threads": 1}, "model": {"name": "resnet9", "args": {"width": 4}},
    "tracking": {"wandb": "disabled", "console": False, "report": False},
}  # fmt: skip


@pytest.mark.parametrize(
    ("needed", "free", "problem"),
    [
        (75, 100, ""),
        (76, 100, "76 bytes"),
        (0, 0, ""),
        # ImageNet at 128 pixels on a card of 80 GB, and at 224, which no such card holds.
        (int(58.6 * GIB), int(78.5 * GIB), ""),
        (
            int(179.6 * GIB),
            int(78.5 * GIB),
            "data.loader = resident: the training images need 180 GiB on each rank's GPU; 78.5 GiB are free there, of "
            "which 25% is reserved for the model: set data.loader streaming",
        ),
    ],
)
def test_images_may_take_three_quarters_of_what_is_free(needed, free, problem):
    found = resident_problem(needed, free)
    assert problem in found
    assert bool(found) == bool(problem) == (not fits(needed, free))


def test_settings_that_need_less_are_named_with_this_runs_numbers():
    assert training_fixes(512, 512) == [
        "train.micro_batch is 512: smaller divisors of each rank's batch are 256, 128, 64"
    ]
    assert training_fixes(5, 15) == ["train.micro_batch is 5: smaller divisors of each rank's batch are 3, 1"]
    assert training_fixes(1, 15) == ["train.micro_batch is 1 already: use a smaller model or smaller images"]
    assert training_fixes(2, 2, 150 * 2**20)[1] == (
        "data.loader is resident: streaming keeps the 150 MiB of images on the host"
    )
    assert "eval.batch_size is 1000: 250 gives the same numbers" in evaluation_fixes(1000)[0]
    assert "eval.batch_size is 2: 1 gives" in evaluation_fixes(2)[0]
    assert "--batch-size 128, or that many per call" in prediction_fixes(256)[0]
    assert "smaller model" in evaluation_fixes(1)[0]
    assert "smaller model" in prediction_fixes(1)[0]


@pytest.mark.parametrize(
    ("size", "words"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (1024, "1.0 KiB"), (200 * 2**20, "200 MiB"), (3 * 2**40, "3.0 TiB")],
)
def test_bytes_are_formatted(size, words):
    assert format_bytes(size) == words


def lack(error, device=CPU, fixes=("a fix", "another")):
    """The message that an error becomes."""
    with pytest.raises(OutOfMemoryError) as raised, explain_out_of_memory(device, lambda: fixes):
        raise error
    assert raised.value.__cause__ is error
    assert raised.value.own
    return str(raised.value).splitlines()


def test_a_gpu_without_memory_is_described(monkeypatch):
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (GIB * 3 // 2, 80 * GIB) if device == GPU else 0)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 70 * GIB if device == GPU else 0)
    first, *fixes = lack(torch.OutOfMemoryError(CUDA_WORDS), GPU)
    assert first.startswith(f"rank 3 on {os.uname().nodename} ran out of memory on cuda:1: it asked for 2.00 GiB, ")
    assert first.endswith(", 1.5 GiB of 80.0 GiB were free, its own tensors held 70.0 GiB")
    assert fixes == ["a fix", "another"]


def test_a_gpu_that_does_not_even_tell_its_memory(monkeypatch):
    def fail(_):
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(torch.cuda, "mem_get_info", fail)
    assert lack(RuntimeError("CUDA error: out of memory"), GPU)[0].endswith("on cuda:1: it asked for some")


def test_the_hosts_memory_is_named_as_such():
    with pytest.raises(RuntimeError) as real:
        torch.empty(10**15, dtype=torch.float64)
    first, *_ = lack(real.value, GPU)
    assert "ran out of memory on cpu: it asked for 7276 TiB, " in first
    assert first.endswith(" were available")


def test_numpys_lack_of_memory_is_the_hosts():
    with pytest.raises(MemoryError) as real:
        np.empty(10**15)
    first, *fixes = lack(real.value, GPU)
    assert "ran out of memory on cpu: it asked for 7.11 PiB, " in first
    assert fixes == ["a fix", "another"]
    assert "on cpu: it asked for some, " in lack(MemoryError(), GPU)[0]


@pytest.mark.parametrize(
    ("words", "device"),
    [
        ("CUDA out of memory. Tried to allocate 2 GiB", GPU),
        ("CUDA driver error: out of memory", GPU),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`", GPU),
        ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", GPU),
        ("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED", GPU),
        (NCCL_WORDS, GPU),
        ("Caught _ArrayMemoryError in DataLoader worker process 0.\nOriginal Traceback ...", CPU),
        ("Caught OutOfMemoryError in pin memory thread for device 1.\nOriginal Traceback ...", GPU),
    ],
)
def test_other_words_for_it(monkeypatch, words, device):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (0, GIB))
    assert f"ran out of memory on {device}: " in lack(RuntimeError(words), GPU)[0]


@pytest.mark.parametrize(
    ("words", "lost"),
    [
        (NCCL_WORDS, False),
        (
            NCCL_WORDS.replace("Cuda failure 2 'out of memory'", "socketProgress: Connection closed by remote peer"),
            True,
        ),
        ("[../gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1", True),
        ("CUDA out of memory. Tried to allocate 2 GiB", False),
    ],
)
def test_nccl_without_memory_is_no_lost_rank(words, lost):
    assert lost_contact(RuntimeError(words)) is lost


def test_nccl_without_memory_where_the_ranks_meet_is_no_missing_rank(monkeypatch):
    def fail(*_, **__):
        raise dist.DistBackendError(NCCL_WORDS)

    for name in ("connect", "group_store", "check_devices", "rank_device"):
        monkeypatch.setattr(rendezvous, name, lambda *_: None)
    monkeypatch.setattr(dist, "init_process_group", fail)
    for name in ("TORCH_NCCL_TRACE_BUFFER_SIZE", "TORCH_NCCL_DUMP_ON_TIMEOUT", "GLOO_SOCKET_IFNAME"):
        monkeypatch.setenv(name, "")
    world = World(1, 2, 1, 2, master_addrs=("127.0.0.1",), master_port=29500)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (0, GIB))
    with (
        pytest.raises(OutOfMemoryError, match=r"ran out of memory on cuda:1: .*\nNCCL .* which other processes use it"),
        rendezvous.process_group(world, device=GPU, backend="nccl", timeout_s=1),
    ):
        pass


def test_what_is_no_lack_of_memory_passes():
    def never():
        raise AssertionError("nobody asks for fixes")

    for error in (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("x"), InputError("y")):
        with pytest.raises(type(error)) as raised, explain_out_of_memory(CPU, never):
            raise error
        assert raised.value is error


def test_all_ranks_raise_the_message_of_the_first():
    store = dist.HashStore()
    own = OutOfMemoryError("rank 1 had too little\ncure")
    with pytest.raises(OutOfMemoryError) as first, first_out_of_memory_of_all_ranks(store):
        raise own
    assert first.value is own
    for error in (OutOfMemoryError("rank 2 too"), RuntimeError("gloo/transport: Connection closed by peer")):
        with (
            pytest.raises(OutOfMemoryError, match="rank 1 had too little\ncure") as raised,
            first_out_of_memory_of_all_ranks(store),
            first_out_of_memory_of_all_ranks(store),
        ):
            raise error
        assert not raised.value.own
        assert raised.value.__cause__ is not None
    for error in (ValueError("of the user"), DistcnnError("said already")):
        with pytest.raises(type(error)) as other, first_out_of_memory_of_all_ranks(store):
            raise error
        assert other.value is error


def test_where_nobody_lacked_memory_a_lost_contact_stays_one(monkeypatch):
    class Gone:
        def check(self, _):
            raise dist.DistNetworkError("Connection reset by peer")

    class Silent:
        def check(self, _):
            left.get()

    left: Queue[None] = Queue()
    monkeypatch.setattr(memory, "_STORE_TIMEOUT_S", 0.05)
    lost = RuntimeError("gloo/transport: Connection closed by peer")
    for store in (None, dist.HashStore(), Gone(), Silent()):
        with pytest.raises(RuntimeError) as raised, first_out_of_memory_of_all_ranks(store):
            raise lost
        assert raised.value is lost
    left.put(None)  # the thread that asked ends


class Greedy(nn.Linear):
    """Has too little memory, in training or in evaluation."""

    trains = True

    def forward(self, x):
        if self.training == self.trains and x.device.type != "meta":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB.")
        return super().forward(x)


@pytest.mark.parametrize(
    ("trains", "fix"),
    [
        (True, "train.micro_batch is 48: smaller divisors of each rank's batch are 24, 16, 12"),
        (False, "it was evaluating, eval.batch_size is 16: 4 gives the same numbers"),
    ],
    ids=["training", "evaluation"],
)
def test_a_training_ends_with_one_error_which_its_log_holds(tmp_path, monkeypatch, trains, fix):
    monkeypatch.setattr(nn, "Linear", Greedy)
    monkeypatch.setattr(Greedy, "trains", trains)
    with pytest.raises(OutOfMemoryError) as raised:
        distcnn.train(RUN, {"output_dir": str(tmp_path), "name": "run", "eval.batch_size": 16})
    first, second = str(raised.value).splitlines()
    assert "rank 0 on" in first
    assert "it asked for 3.00 GiB" in first
    assert second == fix
    (failed,) = [line for line in metrics(tmp_path / "run") if line.get("event") == "failed"]
    assert failed["message"] == f"OutOfMemoryError: {first}; {second}"


def test_evaluate_predict_and_load_say_it_too(tmp_path, monkeypatch):
    result = distcnn.train(RUN, {"output_dir": str(tmp_path), "name": "run"})
    predictor = distcnn.Predictor(result.folder)
    images = torch.zeros(6, 8, 8, 3, dtype=torch.uint8).numpy()

    def lack_memory(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB.")

    monkeypatch.setattr("distcnn.training.evaluate.evaluate", lack_memory)
    with pytest.raises(OutOfMemoryError, match=r"it was evaluating, eval\.batch_size is "):
        distcnn.evaluate(result.folder)
    monkeypatch.setattr(predictor.trained.model, "forward", lack_memory)
    with pytest.raises(OutOfMemoryError, match="predicting 6 images at once: --batch-size 3"):
        predictor.probabilities(images)
    for home in ("training.build", "inference.model"):
        monkeypatch.setattr(f"distcnn.{home}.place", lack_memory)
    with pytest.raises(OutOfMemoryError, match=r"train\.device cpu"):
        distcnn.load_model(result.folder)
    with pytest.raises(OutOfMemoryError, match="is another process using the device"):
        distcnn.train(RUN, {"output_dir": str(tmp_path), "name": "other"})
    assert not (tmp_path / "other").exists()


def test_resident_images_that_do_not_fit_are_found_before_the_ranks_meet(tmp_path, monkeypatch):
    """The GPU is a pretence: nothing is to be asked of it before its memory."""
    monkeypatch.setattr("distcnn.training.run.set_up_device", lambda *_: (GPU, 1))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (20_000, 80 * GIB) if device == GPU else 0)

    def too_late(*_, **__):
        raise AssertionError

    monkeypatch.setattr("distcnn.training.run.process_group", too_late)
    overrides = {"output_dir": str(tmp_path), "name": "run"}
    with pytest.raises(InputError, match=r"need 18\.8 KiB .* 19\.5 KiB are free there.* set data\.loader streaming"):
        distcnn.train(RUN, overrides)
    assert list(tmp_path.iterdir()) == []
    # Streamed, it goes on, to what needs the GPU.
    monkeypatch.setattr("distcnn.training.build.build_model", lambda *_: (_ for _ in ()).throw(LookupError("built")))
    with pytest.raises(LookupError, match="built"):
        distcnn.train(RUN, overrides | {"data.loader": "streaming"})


@pytest.mark.parametrize(
    ("own", "said", "waits"), [(True, "distcnn: out of memory\n  rank 1 …\n  a fix\n", []), (False, "", [2])]
)
def test_the_rank_that_lacks_memory_speaks_at_once_whatever_its_number(monkeypatch, capsys, own, said, waits):
    """The others wait meanwhile: a launcher ends all when one has ended."""
    waited = []
    monkeypatch.setattr("distcnn.distributed.exit.time.sleep", waited.append)
    for name, value in (("RANK", "1"), ("LOCAL_RANK", "1"), ("TORCHELASTIC_RUN_ID", "x")):
        monkeypatch.setenv(name, value)
    print_once(OutOfMemoryError("rank 1 …\na fix", own=own))
    assert (capsys.readouterr().err, waited) == (said, waits)


@pytest.mark.parametrize(
    ("place", "fix"),
    [
        ("distcnn.training.run.make_optimizer", "is another process using the device"),
        ("distcnn.engine.ddp.DDPEngine.wrap", "train.micro_batch is 48"),
        ("distcnn.training.build.training_loader", "train.micro_batch is 48"),
        ("distcnn.training.run.EvaluationLoader", "train.micro_batch is 48"),
        ("distcnn.training.run.Averages", "train.micro_batch is 48"),
        ("distcnn.engine.base.Engine.load_state_dict", "train.micro_batch is 48"),
        ("distcnn.training.run.Averages.load_state_dict", "train.micro_batch is 48"),
    ],
)
def test_wherever_a_resumed_run_lacks_memory_it_says_so(tmp_path, monkeypatch, place, fix):
    overrides = {"output_dir": str(tmp_path), "name": "run", "train.ema": 0.9, "checkpoint.resume": "auto"}
    distcnn.train(RUN, overrides)

    def lack_memory(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB.")

    monkeypatch.setattr(place, lack_memory)
    with pytest.raises(OutOfMemoryError, match=f"it asked for 3.00 GiB.*\n.*{fix}"):
        distcnn.train(RUN, overrides)


@pytest.mark.parametrize(
    ("place", "fix"),
    [
        ("distcnn.inference.evaluate.EvaluationLoader", "eval.batch_size is "),
        ("distcnn.inference.model.Averages", "train.device cpu"),
    ],
)
def test_wherever_an_evaluation_lacks_memory_it_says_so(tmp_path, monkeypatch, place, fix):
    result = distcnn.train(RUN, {"output_dir": str(tmp_path), "name": "run"})

    def lack_memory(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB.")

    monkeypatch.setattr(place, lack_memory)
    with pytest.raises(OutOfMemoryError, match=fix):
        distcnn.evaluate(result.folder)
