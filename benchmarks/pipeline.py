"""The input pipeline alone, images/s: python -m benchmarks.pipeline DIR [--n 5] [--seconds 3].

Flip, crop after padding by 4, normalisation, channels_last; nobody takes the batches. torchvision's transforms one
image at a time under a DataLoader, timm's loader, and distcnn's resident loader, on the same images.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import trials

BATCH, MICRO_BATCH = 512, 128
WARMUP_S = 1.0
LABELS = {
    **{f"pil {count}": f"DataLoader, {count} workers, transforms on PIL images" for count in (0, 1, 2)},
    **{f"v2 {count}": f"DataLoader, {count} workers, transforms.v2 on tensors" for count in (0, 1, 2)},
    **{f"timm {count}": f"timm's loader, {count} workers" for count in (0, 1, 2)},
    "distcnn fp32": f"distcnn, float32, micro-batches of {MICRO_BATCH}",
    "distcnn bf16": f"distcnn, bfloat16, micro-batches of {MICRO_BATCH}",
}


def torchvision(root: str, workers: int, kind: str) -> Iterator[Tensor]:
    from benchmarks import images

    dataset = (
        images.InMemory(root, images.on_pil(True))
        if kind == "pil"
        else images.InMemory(root, images.on_tensor(), images.as_tensor)
    )
    for batch, _ in images.endless(images.batches(dataset, BATCH, workers)):
        yield batch.to(memory_format=torch.channels_last)


def timm(root: str, workers: int) -> Iterator[Tensor]:
    from benchmarks.contenders.timm import loader
    from benchmarks.images import endless

    for batch, _ in endless(loader(root, BATCH, workers)):
        yield batch.to(memory_format=torch.channels_last)


def distcnn(root: str, dtype: torch.dtype) -> Iterator[Tensor]:
    from benchmarks.images import MEAN, PADDING, STD
    from distcnn.config.schema import DataConfig
    from distcnn.data.augment.crop import Crop
    from distcnn.data.augment.flip import Flip
    from distcnn.data.augment.pipeline import Pipeline
    from distcnn.data.loaders.resident import ResidentLoader
    from distcnn.data.normalize import Normalize
    from distcnn.data.preprocess import Preprocess
    from distcnn.data.samplers import MicroBatchSampler
    from distcnn.data.sources.load import load

    data = load(DataConfig(source="folder", root=root), "train")
    sampler = MicroBatchSampler(len(data), batch_size=BATCH, micro_batch=MICRO_BATCH, drop_last=True)
    preprocess = Preprocess(Normalize(MEAN, STD), torch.device("cpu"), dtype=dtype)
    loader = ResidentLoader(data, sampler, preprocess, Pipeline([Crop(PADDING), Flip()]), seed=0)
    epoch = 0
    while True:
        for batch in loader.epoch(epoch):
            yield batch.images
        epoch += 1


def batches_of(name: str, root: str) -> Iterable[Tensor]:
    kind, variant = name.split()
    if kind == "distcnn":
        return distcnn(root, torch.bfloat16 if variant == "bf16" else torch.float32)
    return timm(root, int(variant)) if kind == "timm" else torchvision(root, int(variant), kind)


def images_per_s(batches: Iterable[Tensor], seconds: float, now: Callable[[], float] = time.monotonic) -> float:
    """Of what comes after WARMUP_S, over about so many seconds and whole batches; epochs follow one another."""
    begun, started, count = now(), None, 0
    for batch in batches:
        if started is not None:
            count += len(batch)
            if now() - started >= seconds:
                return count / (now() - started)
        elif now() - begun >= WARMUP_S:
            started = now()
    raise RuntimeError("the pipeline came to an end")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", metavar="DIR")
    parser.add_argument("--n", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3, help="measured in each trial")
    parser.add_argument("--out", type=Path, default=trials.RESULTS)
    parser.add_argument("--only", choices=LABELS, help=argparse.SUPPRESS)  # the trial itself
    options = parser.parse_args()
    if options.only:
        torch.set_num_threads(trials.THREADS)
        rate = images_per_s(batches_of(options.only, options.root), options.seconds)
        print("\n" + json.dumps({"images_per_s": rate}))
        return
    every = {
        name: ["-m", "benchmarks.pipeline", options.root, "--seconds", options.seconds, "--only", name]
        for name in LABELS
    }
    results = trials.column(trials.interleave(every, options.n), "images_per_s")
    trials.keep(options.out, "pipeline", "alone", {"images_per_s": results}, options.root)


if __name__ == "__main__":
    main()
