"""Training steps beside the peers, images/s: python -m benchmarks.peers DIR [--n 5] [--scenarios resnet18 …].

DIR is an image folder with train/<class>/ and test/<class>/. What is timed are whole steps after a warm-up.
"""

import argparse
import statistics
from pathlib import Path

from benchmarks import trials
from benchmarks.scenarios import SCENARIOS, SETTINGS

WORKERS = (0, 1, 2)  # of the peers' DataLoader; the best is taken
PROBE = "plain bf16"  # the peer that has to wait for data the most


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", metavar="DIR")
    parser.add_argument("--n", type=int, default=5)
    parser.add_argument("--scenarios", nargs="+", choices=SCENARIOS, default=[*SCENARIOS])
    parser.add_argument("--out", type=Path, default=trials.RESULTS)
    parser.add_argument("--steps", type=int, help="timed steps a trial; default: those of scenarios.py")
    options = parser.parse_args()
    for name in options.scenarios:
        print(SCENARIOS[name].title, flush=True)
        steps = options.steps or SCENARIOS[name].steps
        probed = _probe(name, options.root, steps, min(options.n, 3))
        workers = max(probed, key=lambda count: statistics.median(probed[count])) if probed else 0
        chosen = {
            contender: _trial(name, contender, options.root, workers, steps) for contender in SCENARIOS[name].contenders
        }
        results = trials.column(trials.interleave(chosen, options.n), "images_per_s")
        found = {
            "steps": steps, "settings": SETTINGS[name], "workers": workers, "probe": probed, "images_per_s": results,
        }  # fmt: skip
        trials.keep(options.out, "peers", name, found, options.root)


def _probe(name: str, root: str, steps: int, n: int) -> dict[int, list[float]]:
    """images/s of one peer by the number of DataLoader workers; the tutorial's script has none, as it stands."""
    if PROBE not in SCENARIOS[name].contenders:
        return {}
    by_name = {f"{PROBE}, {count} workers": _trial(name, PROBE, root, count, steps) for count in WORKERS}
    results = trials.column(trials.interleave(by_name, n), "images_per_s")
    return dict(zip(WORKERS, results.values(), strict=True))


def _trial(name: str, contender: str, root: str, workers: int, steps: int) -> list[object]:
    return ["-m", "benchmarks.contender", name, *contender.split(), root, workers, steps]


if __name__ == "__main__":
    main()
