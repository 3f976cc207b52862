"""The speed-run: its accuracy and its cost, over some seeds.

    python benchmarks/speedrun.py DIR [--seeds 5] [--ranks 1] [--section.key value ...]

DIR is CIFAR-10 as an image folder, with train/<class>/ and test/<class>/. Each seed is a run of its own of
configs/cifar10_speedrun.yaml; its seconds are those of the whole process, from the start of Python to the evaluated end.
The cost is seconds × the bfloat16 GEMM peak of the machine, measured before and after each run in processes of their own
(the larger one counts), so that runs on different machines can be compared: its unit is peak-PFLOP.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CONFIG = Path(__file__).parents[1] / "configs" / "cifar10_speedrun.yaml"
PEAK = """
import torch
from distcnn.bench.measure import gemm_peak
print(gemm_peak(torch.device("cpu"), torch.bfloat16))
"""


def peak() -> float:
    """FLOP/s of this machine, all its cores."""
    return float(subprocess.run([sys.executable, "-c", PEAK], check=True, stdout=subprocess.PIPE, text=True).stdout)


def run(root: str, seed: int, ranks: int, overrides: list[str], output: Path) -> dict[str, float]:
    """One run: its accuracy on the test images (or those held out), and its cost."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"] if ranks > 1 else []
    command = [
        sys.executable, *launcher, "-m", "distcnn", "train", str(CONFIG), "--data.source", "folder", "--data.root", root,
        "--seed", str(seed), "--name", f"seed-{seed}", "--output_dir", str(output), *overrides,
    ]  # fmt: skip
    before = peak()
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - started
    flops = max(before, peak())
    lines = (output / f"seed-{seed}" / "metrics.jsonl").read_text().splitlines()
    evaluation = [record for record in map(json.loads, lines) if record["kind"] == "eval"][-1]
    return {
        "accuracy": evaluation["accuracy"],
        "total": evaluation["total"],
        "seconds": seconds,
        "peak_gflops": flops / 1e9,
        "peak_pflop": seconds * flops / 1e15,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--ranks", type=int, default=1)
    options, overrides = parser.parse_known_args()
    found = []
    with tempfile.TemporaryDirectory() as output:
        for seed in range(options.seeds):
            found.append(run(options.root, seed, options.ranks, overrides, Path(output)))
            print(f"seed {seed}: " + "  ".join(f"{key} {value:.4f}" for key, value in found[-1].items()), flush=True)
    for key in found[0]:
        values = [one[key] for one in found]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        print(f"{key}: mean {statistics.fmean(values):.4f}, standard deviation {spread:.4f}, n = {len(values)}")


if __name__ == "__main__":
    main()
