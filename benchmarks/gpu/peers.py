"""S3: distcnn's step beside a plain loop, Accelerate and Lightning, the same network, batch and images."""

import importlib.util
import logging
import statistics
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.gpu.timing import block_s, spread
from distcnn.models.build import build_model
from tests.gpu.correct_bits import steps_of
from tests.gpu.suite import Place, expect
from tests.gpu.suites import SPEED
from tests.gpu.work import base

PADDING = 4


def images_of(place: Place) -> tuple[Tensor, Tensor]:
    """[N, 3, H, W] uint8 and labels [N]; what they show is of no concern to the clock."""
    size = place.of(32, 16)
    return (torch.randint(0, 256, (place.of(20_480, 200), 3, size, size), dtype=torch.uint8),
            torch.randint(0, 10, (place.of(20_480, 200),)))  # fmt: skip


def augmented(images: Tensor) -> Tensor:
    """As a careful user writes it for a batch [n, 3, H, W] uint8 on the device: normalised, mirrored, one crop for all."""
    x = images.to(torch.bfloat16).div_(127.5).sub_(1)
    mirrored = torch.rand(len(x), 1, 1, 1, device=x.device) < 0.5
    x = F.pad(torch.where(mirrored, x.flip(3), x), (PADDING,) * 4)
    top, left = torch.randint(0, 2 * PADDING + 1, (2,)).tolist()  # on the host
    height, width = images.shape[2:]
    return x[:, :, top : top + height, left : left + width].contiguous(memory_format=torch.channels_last)


def resident(place: Place, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """All images on the device."""
    images, labels = (tensor.to(place.device) for tensor in images_of(place))
    while True:
        order = torch.randperm(len(images), device=place.device)
        for begin in range(0, len(images) - batch + 1, batch):
            rows = order[begin : begin + batch]
            yield augmented(images[rows]), labels[rows]


def loaded(place: Place, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """torchvision's transforms in DataLoader workers, an image at a time."""
    from torchvision.transforms import v2

    size = place.of(32, 16)
    one = v2.Compose([v2.RandomCrop(size, padding=PADDING), v2.RandomHorizontalFlip(),
                      v2.ToDtype(torch.float32, scale=True), v2.Normalize((0.5,) * 3, (0.5,) * 3)])  # fmt: skip

    class Transformed(TensorDataset):
        def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
            image, label = super().__getitem__(index)
            return one(image), label

    workers = place.of(12, 0)
    loader = DataLoader(Transformed(*images_of(place)), batch, shuffle=True, drop_last=True, num_workers=workers,
                        pin_memory=place.cuda, persistent_workers=workers > 0)  # fmt: skip
    while True:
        for images, labels in loader:
            yield (images.to(place.device, non_blocking=True).contiguous(memory_format=torch.channels_last),
                   labels.to(place.device, non_blocking=True))  # fmt: skip


def network(place: Place, name: str) -> tuple[nn.Module, torch.optim.Optimizer]:
    """The same for all."""
    model = build_model(name, 10, place.of(32, 16)).to(place.device, memory_format=torch.channels_last).train()
    return model, torch.optim.SGD(model.parameters(), 0.001, momentum=0.9, nesterov=True, fused=True)


def plain(place: Place, name: str, batches: Iterator[tuple[Tensor, Tensor]]) -> Callable[[], None]:
    """The loop that a careful user writes."""
    model, optimizer = network(place, name)

    def step() -> None:
        images, labels = next(batches)
        with torch.autocast(place.device, torch.bfloat16):
            loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def accelerated(place: Place, name: str, batches: Iterator[tuple[Tensor, Tensor]]) -> Callable[[], None]:
    """The same by Accelerate."""
    from accelerate import Accelerator

    accelerator = Accelerator(mixed_precision="bf16", cpu=not place.cuda)
    model, optimizer = accelerator.prepare(*network(place, name))

    def step() -> None:
        images, labels = next(batches)
        loss = F.cross_entropy(model(images), labels)
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()

    return step


def fabric(place: Place, name: str, batches: Iterator[tuple[Tensor, Tensor]]) -> Callable[[], None]:
    """The same by Lightning's Fabric."""
    from lightning.fabric import Fabric
    from lightning.fabric.plugins.environments import LightningEnvironment

    logging.getLogger("lightning.fabric").setLevel(logging.ERROR)
    made = Fabric(accelerator=place.device, devices=1, precision="bf16-mixed", plugins=[LightningEnvironment()])
    model, optimizer = made.setup(*network(place, name))

    def step() -> None:
        images, labels = next(batches)
        loss = F.cross_entropy(model(images), labels)
        made.backward(loss)
        optimizer.step()
        optimizer.zero_grad()

    return step


def ours(place: Place, name: str, batch: int) -> Callable[[], object]:
    """distcnn's."""
    settings = base(place, model__name=name, train__precision="bf16", train__batch_size=batch, train__micro_batch=batch,
                    data__args__train=place.of(20_480, 200))  # fmt: skip
    return steps_of(settings, 0.001).step


@SPEED.check(
    "S3",
    "distcnn beside its peers, bf16, flip and crop, images/s",
    "at least 0.97 of the plain loop with images on the device",
    100,
)
def s3(place: Place) -> str:
    shown, wrong = [], []
    for name, batch in place.of((("resnet18", 512), ("simple_cnn", 512)), (("simple_cnn", 40),)):
        kinds = {
            "distcnn": ours(place, name, batch), "plain": plain(place, name, resident(place, batch)),
            "plain, DataLoader": plain(place, name, loaded(place, batch)),
        }  # fmt: skip
        if importlib.util.find_spec("accelerate"):
            kinds["Accelerate"] = accelerated(place, name, resident(place, batch))
        if importlib.util.find_spec("lightning"):
            kinds["Fabric"] = fabric(place, name, resident(place, batch))
        found: dict[str, list[float]] = {kind: [] for kind in kinds}
        for step in kinds.values():
            block_s(place, step, 5)
        for turn in range(place.of(6, 2)):
            for kind in kinds if turn % 2 else reversed(kinds):
                found[kind].append(batch / block_s(place, kinds[kind], place.of(30, 3)))
        place.note(**{name: found})
        ratio = statistics.median(a / b for a, b in zip(found["distcnn"], found["plain"], strict=True))
        if ratio < 0.97:
            wrong.append(f"{name}: {ratio:.2f} of plain")
        rates = "; ".join(f"{kind} {spread(values, 0)}" for kind, values in found.items())
        shown.append(f"{name} {batch}: {rates}; distcnn {ratio:.2f} of plain")
    expect(place.toy or not wrong, "; ".join([*wrong, *shown]))
    return "; ".join(shown)
