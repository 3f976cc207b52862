"""The tutorial's own script against `distcnn train configs/simple_cnn.yaml`, in turn, on the same images.

    python benchmarks/vs_tutorial.py DIR [--epochs 2] [--runs 3] [--ranks 1] [--quick 10000]

DIR is an image folder with train/<class>/ and test/<class>/. Each run is a process of its own; what is compared is
the time of the epochs themselves, without set-up: for the tutorial, around its training loop; for distcnn, from the
images/s of metrics.jsonl. Prints every run, the medians, and their ratio.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CONFIG = Path(__file__).parents[1] / "configs" / "simple_cnn.yaml"


def tutorial(root: str, epochs: int, quick: int | None) -> None:
    """The tutorial: per-sample transforms, DataLoader without workers, batch 32, Adam 1e-3, fp32, defaults."""
    import torch
    from PIL import Image
    from torch import nn
    from torch.utils.data import DataLoader, Dataset
    from torchvision import transforms

    from distcnn.config import DataConfig
    from distcnn.data.sources import ImageSet, load
    from distcnn.models.simple import SimpleCNN

    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.5,), (0.5,))])

    class InMemory(Dataset):
        """As torchvision's CIFAR10: decoded images in memory, made a PIL image and transformed one at a time."""

        def __init__(self, data: ImageSet):
            self.data, self.targets = data.images, data.labels.tolist()

        def __len__(self) -> int:
            return len(self.targets)

        def __getitem__(self, index: int):
            return transform(Image.fromarray(self.data[index])), self.targets[index]

    config = DataConfig(source="folder", root=root, max_train=quick)
    train_loader = DataLoader(InMemory(load(config, "train")), batch_size=32, shuffle=True)
    test_loader = DataLoader(InMemory(load(config, "test")), batch_size=32)
    model, criterion = SimpleCNN(), nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.001)
    seconds, accuracies = 0.0, []
    for _ in range(epochs):
        started, running_loss = time.perf_counter(), 0.0
        for images, labels in train_loader:
            optimizer.zero_grad()
            loss = criterion(model(images), labels)
            loss.backward()
            optimizer.step()
            running_loss += loss.item()
        seconds += time.perf_counter() - started
        correct = total = 0
        with torch.no_grad():
            for images, labels in test_loader:
                correct += (model(images).argmax(1) == labels).sum().item()
                total += len(labels)
        accuracies.append(correct / total)
    images_per_s = epochs * len(train_loader.dataset) / seconds
    print(json.dumps({"images_per_s": images_per_s, "accuracies": accuracies}))


def distcnn(root: str, epochs: int, quick: int | None, ranks: int) -> dict:
    """The same training by distcnn; images/s over the whole epochs."""
    with tempfile.TemporaryDirectory() as folder:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"] if ranks > 1 else []
        command = [sys.executable, *launcher, "-m", "distcnn", "train", CONFIG, "--data.source", "folder",
                   "--data.root", root, "--train.duration", f"{epochs}ep", "--output_dir", folder,
                   "--checkpoint.every", f"{epochs}ep", "--tracking.wandb", "disabled"]  # fmt: skip
        command += ["--data.max_train", str(quick)] if quick else []
        subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        lines = [json.loads(line) for line in (Path(folder) / "simple_cnn" / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["kind"] == "train"]
    seconds_per_image = statistics.fmean(1 / line["images_per_s"] for line in steps)
    accuracies = [line["accuracy"] for line in lines if line["kind"] == "eval"]
    return {"images_per_s": 1 / seconds_per_image, "accuracies": accuracies}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--quick", type=int, help="use only so many training images")
    parser.add_argument("--tutorial", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.tutorial:
        tutorial(options.root, options.epochs, options.quick)
        return
    rates: dict[str, list[float]] = {"tutorial": [], "distcnn": []}
    for run in range(options.runs):
        again = [sys.executable, __file__, *sys.argv[1:], "--tutorial"]
        output = subprocess.run(again, check=True, stdout=subprocess.PIPE, text=True, env=dict(os.environ)).stdout
        for name, result in (
            ("tutorial", json.loads(output)),
            ("distcnn", distcnn(options.root, options.epochs, options.quick, options.ranks)),
        ):
            rates[name].append(result["images_per_s"])
            shown = " ".join(f"{accuracy:.2%}" for accuracy in result["accuracies"])
            print(f"run {run + 1} {name:>8}: {result['images_per_s']:7,.0f} img/s, test accuracy {shown}", flush=True)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    for name, values in rates.items():
        print(
            f"{name:>8}: median {medians[name]:,.0f} img/s (n = {len(values)}, {min(values):,.0f} to {max(values):,.0f})"
        )
    print(f"ratio of medians: {medians['distcnn'] / medians['tutorial']:.2f}")


if __name__ == "__main__":
    main()
