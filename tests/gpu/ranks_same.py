"""R1 to R4 and R8 to R10: the same numbers at every number of ranks, over NCCL and gloo, and the tools beside."""

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec

import torch

from tests.gpu.suite import Place, Skip, expect
from tests.gpu.suites import RANKS
from tests.gpu.work import (
    SLOW,
    Settings,
    apart,
    base,
    command,
    config,
    environment,
    good,
    needs_shared_gpu,
    runs,
    same,
    step_losses,
    train,
)  # fmt: skip
from tests.ranks import clean_environment, run_ranks
from tests.records import weights


@RANKS.check(
    "R1", "two ranks: each collective that distcnn uses", "exact sums, in float32, float64 and int64", 30, first=True
)
def r1(place: Place) -> str:
    needs_shared_gpu(place)
    outcome = run_ranks([place.device], 2, place.home, ("-m", "tests.gpu.exchanges"), **environment(place, shared=True))
    good(outcome, "the exchanges")
    expect(outcome.out.count("exact") == 2, outcome.out)
    return f"exact over {'NCCL' if place.cuda else 'gloo'}"


def at_sizes(place: Place, sizes: tuple[int, ...], **more: object) -> str:
    """Three networks at each number of ranks: with float64 sums the same weights, to the bit, with float32 sums losses
    within 1e-3 at a slow rate.

    A loss, which is logged, is a float32 sum over micro-batches: its last bit is that of the order of the sum.
    """
    steps = {"train.duration": place.of("40step", "4step")} | {key.replace("__", "."): v for key, v in more.items()}
    muon: Settings = {"model.name": "whitened_cnn", "optim.name": "muon", "optim.lr": 0.01, "train.precision": "bf16"}
    master: Settings = {"model.name": "resnet9", "model.args": {"width": 8}, "train.precision": "bf16-master"}
    kinds = {"simple": base(place) | steps, "master": base(place) | steps | master, "muon": base(place) | steps | muon}
    if place.toy:
        del kinds["muon"]
    kinds["fp32-sums"] = base(place) | steps | {"train.gradient_sum": "fp32", "optim.lr": SLOW}
    for size in sizes:
        train(place, {f"{name}-{size}": job for name, job in kinds.items()}, size)
    wrong, most = [], 0.0
    for name in kinds:
        first = runs(place) / f"{name}-{sizes[0]}"
        for size in sizes[1:]:
            other = runs(place) / f"{name}-{size}"
            if name == "fp32-sums":
                most = max(most, *apart(step_losses(other), step_losses(first)))
            elif weights(first) != weights(other) or max(apart(step_losses(other), step_losses(first))) > 1e-6:
                wrong.append(f"{name} at {size}")
    place.note(wrong=wrong, float32_apart=most)
    expect(not wrong, f"other weights: {', '.join(wrong)}")
    expect(most < 1e-3, f"float32 sums are apart by {most:.1e}")
    return f"{len(kinds) - 1} networks equal at {', '.join(map(str, sizes))} ranks; float32 sums within {most:.0e}"


@RANKS.check(
    "R2",
    "the same run on 1, 2 and 4 ranks over NCCL",
    "equal weights with float64 sums, to the bit; float32 within 1e-3",
    120,
    first=True,
)
def r2(place: Place) -> str:
    needs_shared_gpu(place)
    return at_sizes(place, place.of((1, 2, 4), (1, 2)))


@RANKS.check("R3", "the same over gloo, with tensors on the GPU", "as R2", 60)
def r3(place: Place) -> str:
    place.needs_cuda()  # on the CPU it is R2
    return at_sizes(place, place.of((1, 2, 4), (1, 2)), train__backend="gloo")


@RANKS.check(
    "R4",
    "SyncBatchNorm on 2 ranks, with a short last batch and without",
    "bad input that names it; then finite losses",
    40,
)
def r4(place: Place) -> str:
    place.needs_cuda()  # on the CPU SyncBatchNorm itself is refused
    needs_shared_gpu(place)
    uneven = base(place, model__name="resnet9", model__args={"width": 8}, model__sync_batchnorm=True,
                  data__args__train=place.of(4096 + 64, 210))  # fmt: skip
    outcome = run_ranks(config(place, uneven, "uneven"), 2, place.home, **environment(place, shared=True))
    refused = set(outcome.codes) == {2} and "an epoch's last batch" in outcome.err
    expect(refused, f"{outcome.codes}: {outcome.err[-300:]}")
    train(place, {"even": uneven | {"train.drop_last": True, "train.duration": "20step"}}, 2)
    losses = step_losses(runs(place) / "even")
    expect(all(0 < loss < 20 for loss in losses), f"{losses}")
    return f"exit 2; with drop_last {len(losses)} steps, loss {losses[0]:.2f} to {losses[-1]:.2f}"


@RANKS.check(
    "R8",
    "distcnn doctor on 2 ranks, with leave to share the GPU and without",
    "names the two ranks and their GPU; with leave 0 and no warning",
    40,
)
def r8(place: Place) -> str:
    doctor = ["doctor", "--json", "--output-dir", str(place.home), "--timeout", "60"]
    refused = ""
    if place.cuda:
        outcome = run_ranks(doctor, 2, place.home, **environment(place))
        place.note(doctor=outcome.out[-4000:], err=outcome.err[-1000:])
        told = outcome.out + outcome.err
        expect("ranks 0, 1 have the same GPU" in told, f"it says nothing of the shared GPU: {told[-300:]}")
        expect(outcome.codes[0] == 1, f"exit {outcome.codes} without leave")
        refused = f"exit {outcome.codes}, with leave "
    needs_shared_gpu(place)
    allowed = run_ranks(doctor, 2, place.home, **environment(place, shared=True))
    place.note(allowed=allowed.out[-4000:], allowed_err=allowed.err[-1000:])
    good(allowed, "doctor with leave")
    expect("Warning" not in allowed.out + allowed.err, f"a warning: {allowed.err[-300:]}")
    return f"{refused}{allowed.codes}"


@RANKS.check("R9", "accelerate launch, and its engine on 2 ranks", "the bits of distcnn's own engine", 60)
def r9(place: Place) -> str:
    if find_spec("accelerate") is None:
        raise Skip("no accelerate")
    kinds: dict[str, Settings] = {"fp32": {}}
    if not place.toy:
        kinds |= {"bf16": {"train.precision": "bf16"}, "fp16": {"train.precision": "fp16"}}
    settings = base(place, model__name="resnet9", model__args={"width": 8})
    found = {}
    train(place, {f"ddp-{name}": settings | more for name, more in kinds.items()})
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", "--num_machines", "1",
                "--mixed_precision", "no", "--dynamo_backend", "no", *(() if place.cuda else ("--cpu",))]  # fmt: skip
    for name, more in kinds.items():
        chosen = config(place, settings | more, f"accelerate-{name}")
        known = clean_environment() | environment(place)
        done = subprocess.run([*launcher, "-m", "distcnn", *chosen], env=known, cwd=place.home, capture_output=True,
                              text=True, check=False)  # fmt: skip
        expect(done.returncode == 0, f"accelerate launch, {name}: {done.stderr.strip().splitlines()[-1:]}")
        found[name] = same(runs(place) / f"ddp-{name}", runs(place) / f"accelerate-{name}")
    place.note(equal=found)
    expect(found["fp32"], f"equal bits: {found}")
    needs_shared_gpu(place)
    train(place, {"ddp-2": settings, "accelerate-2": settings | {"engine": "accelerate"}}, 2)
    found["fp32, 2 ranks"] = same(runs(place) / "ddp-2", runs(place) / "accelerate-2")
    place.note(equal=found)
    expect(found["fp32, 2 ranks"], f"equal bits: {found}")
    return ", ".join(f"{name} {'equal' if one else 'other bits'}" for name, one in found.items())


@RANKS.check("R10", "two trials at once where CUDA_VISIBLE_DEVICES holds the GPU's UUID", "both see that UUID", 40)
def r10(place: Place) -> str:
    uuid = "GPU-00000000-0000-0000-0000-000000000000"
    if place.cuda:
        own = os.environ.get("CUDA_VISIBLE_DEVICES", "").partition(",")[0]  # a part of a GPU has a name only there
        uuid = own if own.startswith(("GPU-", "MIG-")) else f"GPU-{torch.cuda.get_device_properties(0).uuid}"
    folder = place.home / "seen"
    folder.mkdir()
    _, file, *rest = config(place, base(place, model__name="tests.gpu.nets:seen", train__duration="2step"))
    rest = rest[2:]  # a trial names its runs itself
    outcome = command(place, "trials", file, "-n", "2", "--parallel", "2", "--json", *rest,
                      SEEN=str(folder), CUDA_VISIBLE_DEVICES=uuid)  # fmt: skip
    good(outcome, "trials")
    shown = [path.read_text(encoding="ascii") for path in folder.iterdir()]
    last = json.loads(outcome.out.strip().splitlines()[-1])
    place.note(seen=shown, trials=str(last)[:1000])
    expect(len(shown) >= 2 and set(shown) == {uuid}, f"they see {shown}")
    shutil.rmtree(folder)
    return "both"
