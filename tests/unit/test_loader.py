"""Resident and streaming batches: the same bits in the same order, whatever the rank, the worker or the start."""

from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from distcnn.data.augment.progressive_resize import ProgressiveResize
from distcnn.data.augment.randaugment import RandAugment
from distcnn.data.keyed import keyed
from distcnn.data.loaders.evaluation import EvaluationLoader
from distcnn.data.loaders.resident import check_resident, resident_bytes
from distcnn.data.loaders.streaming import _copy_ahead
from distcnn.data.preprocess import Preprocess
from distcnn.distributed.world import World
from distcnn.errors import DeviceError
from tests.loaders import ALL, AUGMENTED, CPU, CUTMIX, MIXUP, NORMALIZE, SIZE, Cutout, data, drawn, loader, places, same


@pytest.mark.parametrize("name", AUGMENTED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_streaming_gives_the_resident_batches_to_the_bit(name, dtype):
    resident, streaming = (loader(workers, AUGMENTED[name], dtype=dtype) for workers in (None, 0))
    for epoch in (0, 1):
        pairs = list(zip(resident.epoch(epoch), streaming.epoch(epoch), strict=True))
        assert len(pairs) == 9
        assert all(same(a, b) for a, b in pairs)
        assert all(a.images.dtype == dtype for a, _ in pairs)


@pytest.mark.parametrize(
    ("workers", "operations"),
    [(None, ALL), (0, ALL), (None, [CUTMIX]), (0, [RandAugment(2, 15)])],
    ids=["resident", "streaming", "cutmix", "randaugment"],
)
def test_batches_do_not_depend_on_the_world_size(workers, operations):
    def batches(world):
        dealt = [list(loader(workers, operations, rank, world).epoch(1)) for rank in range(world)]
        return {b.seed: b for one in dealt for b in one if b.weight}

    alone = batches(1)
    assert len(alone) == 9  # each place in the epoch has a seed of its own
    for world in (2, 3):
        other = batches(world)
        assert other.keys() == alone.keys()
        assert all(torch.equal(other[seed].images, alone[seed].images) for seed in alone)
        assert all(torch.equal(other[seed].labels, alone[seed].labels) for seed in alone)


@pytest.mark.parametrize("workers", [None, 0])
def test_a_start_in_mid_epoch_gives_the_tail(workers):
    one = loader(workers, ALL)
    whole = list(one.epoch(3))
    assert all(same(a, b) for a, b in zip(whole[4:], one.epoch(3, first_step=1), strict=True))
    assert not any(torch.equal(a.images, b.images) for a, b in zip(whole, one.epoch(4), strict=True))


def test_a_batch_is_the_chosen_images_normalised():
    one, images = loader(), data()
    (first, *_) = one.epoch(0)
    rows = one.sampler.order()[:3].numpy()
    expected = (images.images[rows] / 255 - NORMALIZE.mean) / NORMALIZE.std
    np.testing.assert_allclose(first.images.permute(0, 2, 3, 1), expected, atol=1e-5)
    assert first.labels.tolist() == images.labels[rows].tolist()
    assert (first.weight, first.last) == (3 / 12, False)
    assert 0 <= first.seed < 2**63
    assert first.images.is_contiguous(memory_format=torch.channels_last)
    (contiguous, *_) = loader(channels_last=False).epoch(0)
    assert contiguous.images.is_contiguous()
    assert torch.equal(contiguous.images, first.images)


def resized(sizes):
    """For the first five steps."""
    return ProgressiveResize(SimpleNamespace(batch_size=12, steps_per_epoch=3, steps=9), SIZE, sizes, "5step")


@pytest.mark.parametrize("workers", [None, 0])
def test_images_are_small_until_a_step_in_mid_epoch(workers):
    """Three steps an epoch: the first five are small, those of the first epoch smaller."""
    one, full = loader(workers, [*ALL, resized((4, 6))]), loader(None, ALL)
    for epoch, small_steps in ((0, 3), (1, 2), (2, 0)):
        size = 4 if epoch == 0 else 6
        step = 0
        for small, large in zip(one.epoch(epoch), full.epoch(epoch), strict=True):
            expected = large.images
            if step < small_steps:
                expected = F.interpolate(expected, (size, size), mode="bilinear", antialias=True)
                torch.testing.assert_close(small.images, expected, rtol=0, atol=2e-6)
            assert small.images.shape == expected.shape
            assert small.images.is_contiguous(memory_format=torch.channels_last)
            assert step < small_steps or torch.equal(small.images, expected)
            step += small.last
    tail, whole = list(one.epoch(1, first_step=1)), list(one.epoch(1))
    assert all(same(a, b) for a, b in zip(whole[4:], tail, strict=True))
    assert {batch.images.shape[-1] for batch in tail} == {6, SIZE}


def test_small_images_do_not_depend_on_the_world_size():
    def batches(world):
        dealt = [loader(None, [*ALL, resized((6,))], rank, world).epoch(1) for rank in range(world)]
        return {b.seed: b.images for one in dealt for b in one if b.weight}

    alone, shared = batches(1), batches(2)
    assert alone.keys() == shared.keys()
    assert all(torch.equal(alone[seed], shared[seed]) for seed in alone)


@pytest.mark.parametrize("mix", [MIXUP, CUTMIX], ids=["mixup", "cutmix"])
def test_images_and_labels_are_mixed_within_a_micro_batch(mix):
    (mixed, *_), (plain, *_) = loader(None, [mix]).epoch(0), loader().epoch(0)
    images, labels = mix(plain.images.permute(0, 2, 3, 1), plain.labels, drawn(mix, places(3)), 0)
    assert torch.equal(mixed.images, images.permute(0, 3, 1, 2))
    assert not torch.equal(mixed.images, plain.images)
    assert torch.equal(mixed.labels, labels)


def test_cutout_leaves_the_mean_colour():
    cutout = Cutout(3)
    (first, *_) = loader(None, [cutout]).epoch(0)
    mask = cutout.mask(drawn(cutout, places(3)), SIZE, SIZE).expand(-1, 3, -1, -1)
    (plain, *_) = loader().epoch(0)
    assert torch.equal(first.images, plain.images.masked_fill(mask, 0))


def test_streamed_batches_are_copied_by_a_stream_of_their_own(monkeypatch):
    """The order of calls on CUDA, of which there is none here: copied beside the computation, which waits for it."""
    calls = []

    class Stream:
        def __init__(self, name):
            self.name = name

        def wait_stream(self, other):
            calls.append(f"{self.name} waits for {other.name}")

    class Tensor:
        def to(self, device, non_blocking):
            calls.append(f"copy to {device.type} in {current[-1].name}, non_blocking={non_blocking}")
            return self

        def record_stream(self, stream):
            calls.append(f"kept for {stream.name}")

    @contextmanager
    def stream(chosen):
        current.append(chosen)
        yield
        current.pop()

    current = [Stream("main")]
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current[-1])
    for _ in _copy_ahead([[Tensor()], [Tensor()]], torch.device("cuda", 0), Stream("side")):
        calls.append(f"used in {current[-1].name}")
    one = ["copy to cuda in side, non_blocking=True", "main waits for side", "kept for main", "used in main"]
    assert calls == one * 2


def test_the_global_generators_are_left_alone():
    torch.manual_seed(1)
    np.random.seed(1)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    for workers in (None, 0):
        assert len(list(loader(workers, ALL).epoch(0))) == 9
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == np.random.get_state()[1].tolist()


def test_dropout_seeds_are_not_those_of_the_augmentation():
    assert next(loader().epoch(0)).seed not in {keyed(5, epoch) >> 1 for epoch in range(10)}


@pytest.mark.parametrize("world", [1, 2, 5])
def test_evaluation_streams_each_image_once_unaugmented(world):
    preprocess = Preprocess(NORMALIZE, CPU)
    streams = [list(EvaluationLoader(data(), 9, preprocess, rank, world)) for rank in range(world)]
    batches = sorted((batch for one in streams for batch in one), key=lambda batch: batch[0])
    assert [number for number, _, _ in batches] == [0, 1, 2]
    images = torch.cat([images for _, images, _ in batches]).permute(0, 2, 3, 1)
    np.testing.assert_allclose(images, (data().images / 255 - NORMALIZE.mean) / NORMALIZE.std, atol=1e-5)
    assert torch.cat([labels for *_, labels in batches]).tolist() == data().labels.tolist()


@pytest.mark.parametrize("world", [1, 2])
def test_every_pass_of_an_evaluation_is_the_same_and_keeps_nothing_on_the_cpu(world):
    one = EvaluationLoader(data(), 9, Preprocess(NORMALIZE, CPU), world - 1, world)
    first, second = list(one), list(one)
    assert len(first) == len(one.batches) > 0
    for (number, images, labels), (again, others, same_labels) in zip(first, second, strict=True):
        assert (number, labels.tolist()) == (again, same_labels.tolist())
        assert torch.equal(images, others)
    assert one.kept == []


GPU = torch.device("cuda", 1)


def gpu_memory(monkeypatch, free, *, reserved=0, allocated=0, peak=0):
    """Pretend figures of the second GPU, in bytes."""

    def of(figure):
        def ask(device):
            assert device == GPU
            return figure

        return ask

    monkeypatch.setattr(torch.cuda, "mem_get_info", of((free, 10**12)))
    monkeypatch.setattr(torch.cuda, "memory_reserved", of(reserved))
    monkeypatch.setattr(torch.cuda, "memory_allocated", of(allocated))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", of(peak))


@pytest.mark.parametrize(
    ("free", "peak", "keep", "uploads"),
    [(4534, 0, True, 1), (4533, 0, True, 3), (5534, 1000, True, 1), (5533, 1000, True, 3), (10**9, 0, False, 3)],
    ids=["fits", "too little", "fits beside the training's peak", "too little beside it", "not asked for"],
)
def test_on_cuda_test_images_that_fit_are_uploaded_once(monkeypatch, free, peak, keep, uploads):
    """17 images of 192 bytes and labels of 8 are to be kept, 3,400 bytes; a quarter of the memory is not theirs."""
    preprocess = Preprocess(NORMALIZE, CPU)
    preprocess.device = GPU  # all that it does on it is patched
    copied = []
    monkeypatch.setattr(preprocess, "to_device", lambda host: copied.append(host) or host)
    gpu_memory(monkeypatch, free, peak=peak)
    one = EvaluationLoader(data(), 9, preprocess, 0, 2, keep=keep)
    expected = list(EvaluationLoader(data(), 9, Preprocess(NORMALIZE, CPU), 0, 2))
    for _ in range(3):
        for (number, images, labels), (right, others, right_labels) in zip(one, expected, strict=True):
            assert number == right
            assert torch.equal(images, others)
            assert torch.equal(labels, right_labels)
    assert len(copied) == uploads * 2 * len(expected)  # images and labels of each batch


def test_a_pass_that_was_broken_off_is_not_kept(monkeypatch):
    preprocess = Preprocess(NORMALIZE, CPU)
    preprocess.device = GPU
    monkeypatch.setattr(preprocess, "to_device", lambda host: host)
    gpu_memory(monkeypatch, 10**9)
    one = EvaluationLoader(data(), 9, preprocess)
    next(iter(one))
    assert one.kept == []
    assert [number for number, *_ in one] == [number for number, *_ in one] == [0, 1, 2]


def test_resident_images_that_would_fill_the_gpu_are_bad_input(monkeypatch):
    """26 images of 192 bytes, labels of 8."""
    assert resident_bytes(data()) == 5200
    check_resident(data(), CPU, World())  # asks no GPU
    gpu_memory(monkeypatch, 6934)
    check_resident(data(), GPU, World(1, 2, 1, 2))
    gpu_memory(monkeypatch, 6933)
    with pytest.raises(
        DeviceError,
        match=r"^rank 1 on .*: data\.loader = resident: .* need 5\.1 KiB .* 6\.8 KiB are free there.* set data\.loader streaming",
    ):
        check_resident(data(), GPU, World(1, 2, 1, 2))
    gpu_memory(monkeypatch, 6833, reserved=200, allocated=99)  # what PyTorch holds unused is free as well
    check_resident(data(), GPU, World())


def test_the_constants_of_a_row_are_made_once_for_each_width():
    preprocess = Preprocess(NORMALIZE, CPU)
    images = torch.from_numpy(data().images)
    first = preprocess.input(images)
    (made,) = preprocess.rows.values()
    assert torch.equal(preprocess.input(images), first)
    assert preprocess.rows[SIZE] is made
    assert preprocess.input(images[:, :, :5]).shape[-1] == 5
    assert torch.equal(preprocess.input(images[:, :, :5]), first[..., :5])
