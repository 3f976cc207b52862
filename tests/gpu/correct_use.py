"""T0, T1, T11 to T14: the commands as a user gives them, memory, and what is compiled."""

import gc
import json
import re
import statistics
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import torch
from PIL import Image

from tests.gpu.suite import ROOT, Place, expect
from tests.gpu.suites import CORRECT
from tests.gpu.work import base, command, config, environment, good, rate, runs, step_losses, train
from tests.ranks import clean_environment
from tests.records import metrics

WARNINGS = """
import json, warnings
with warnings.catch_warnings(record=True) as imported:
    warnings.simplefilter("always")
    import distcnn.training.train
    from distcnn.distributed.device import set_up_device
    from distcnn.distributed.world import World
    from distcnn.config.settings import Settings
with warnings.catch_warnings(record=True) as started:
    warnings.simplefilter("always")
    set_up_device(Settings().update({"train.device": DEVICE, "train.tf32": DEVICE == "cuda"}).check(1), World())
print(json.dumps([[f"{one.category.__name__}: {one.message}" for one in found] for found in (imported, started)]))
"""


def python(place: Place, code: str) -> str:
    """What a program prints."""
    known = clean_environment() | environment(place)
    done = subprocess.run([sys.executable, "-c", code], env=known, capture_output=True, text=True, check=False)
    expect(done.returncode == 0, done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "no word")
    return done.stdout


@CORRECT.check(
    "T0",
    "distcnn doctor, and the warnings of a start",
    "doctor ends with 0, no warning once all is imported",
    15,
    first=True,
)
def t0(place: Place) -> str:
    outcome = command(place, "doctor", "--json", "--output-dir", str(place.home))
    place.note(doctor=outcome.out[-4000:])
    imported, started = json.loads(python(place, f"DEVICE = {place.device!r}{WARNINGS}").splitlines()[-1])
    place.note(warnings_of_imports=imported)  # of libraries, which differ from machine to machine
    expect(outcome.codes == [0], f"doctor ended with {outcome.codes}")
    expect(not started, "; ".join(started))
    return f"0, none; {len(imported)} of the imports"


@CORRECT.check(
    "T1",
    "distcnn train configs/digits.yaml",
    "at least 98 % (without scikit-learn, of made-up images, 90 %), steps in 15 s",
    20,
)
def t1(place: Place) -> str:
    """98.9 % on a CPU; the made-up images reached 100 % there."""
    digits = find_spec("sklearn") is not None
    few = (
        {"train.duration": "2ep", "data.max_train": 640, "data.max_test": 100, "train.threads": 1} if place.toy else {}
    )
    settings = {"train.device": place.device, "output_dir": str(runs(place)), "tracking.wandb": "disabled"} | few
    if not digits:
        settings["data.source"] = "synthetic"
    words = [f"--{key}={value}" for key, value in settings.items()]
    good(command(place, "train", str(ROOT / "configs" / "digits.yaml"), *words), "distcnn train")
    folder = runs(place) / "digits"
    (*_, last), lines = metrics(folder, "eval"), metrics(folder, "train")
    seconds = sum(64 / line["images_per_s"] for line in lines)
    place.note(accuracy=last["accuracy"], seconds=seconds, source="digits" if digits else "synthetic")
    found = f"{last['accuracy']:.1%} of {last['total']} {'digits' if digits else 'made-up images'}, steps in {seconds:.1f} s"
    expect(last["accuracy"] >= (0.5 if place.toy else 0.98 if digits else 0.9), found)
    expect(place.toy or seconds < 15, found)
    return found


@CORRECT.check(
    "T11",
    "memory: resnet18 in bf16 by batch; images that do not fit",
    "2 to 8 GiB at 512; bad input that names data.loader",
    30,
)
def t11(place: Place) -> str:
    place.needs_cuda()
    from tests.gpu.correct_bits import steps_of

    peaks = {}
    for loader, batch in (("resident", 512), ("streaming", 512), ("resident", 1024)):
        size = place.of(batch, batch // 16)
        settings = base(place, model__name=place.of("resnet18", "resnet9"), train__precision="bf16", train__batch_size=size,
                        train__micro_batch=size, data__loader=loader, data__workers=place.of(4, 0))  # fmt: skip
        steps = steps_of(settings)
        torch.cuda.reset_peak_memory_stats()
        [steps.step() for _ in range(place.of(12, 3))]
        peaks[f"{loader} {batch}"] = torch.cuda.max_memory_allocated() / 2**30
        steps.close()
        del steps  # its images and buffers
        gc.collect()
        torch.cuda.empty_cache()
    place.note(peaks=peaks)
    free, _ = torch.cuda.mem_get_info()
    blocker = torch.empty(max(0, free - 1024 * 2**20), dtype=torch.uint8, device=place.device)  # 1 GiB is left
    big = base(place, data__image_size=128, data__args__train=place.of(12_000, 300))  # 563 MiB
    outcome = command(place, *config(place, big))
    del blocker
    shown = ", ".join(f"{name}: {one:.1f} GiB" for name, one in peaks.items())
    refused = outcome.codes == [2] and "data.loader" in outcome.err
    expect(refused, f"{shown}; too many images: exit {outcome.codes}, {outcome.err.strip().splitlines()[-1:]}")
    expect(2 < peaks["resident 512"] < 8 and peaks["streaming 512"] < peaks["resident 512"] + 1, shown)
    return f"{shown}; too many images: exit 2"


@CORRECT.check(
    "T12",
    "a run that goes CPU, GPU, CPU; then evaluate, predict and export",
    "accuracies within one image; exported within 1e-4",
    50,
)
def t12(place: Place) -> str:
    legs = (("cpu", 1), (place.device, 2), ("cpu", 3))
    jobs = []
    for name in place.of(("sgd", "adam", "adamw", "muon"), ("muon",)):
        jobs.append(base(place, model__name="resnet9", model__args={"width": 8}, optim__name=name, name=f"leg-{name}",
                         checkpoint__resume="auto", train__threads=place.of(8, 1), optim__lr=0.003))  # fmt: skip
    for device, leg in place.of(legs, legs[1:]):
        part = {"train.device": device, "train.duration": f"{leg * place.of(10, 2)}step"}
        train(place, {str(job["name"]): job | part for job in jobs})
    off = {}
    for job in jobs:
        folder = runs(place) / str(job["name"])
        steps = [line["step"] for line in metrics(folder, "train")]
        expect(steps == [*range(1, len(steps) + 1)] and len(steps) == legs[-1][1] * place.of(10, 2), f"steps {steps}")
        expect(all(0 < loss < 20 for loss in step_losses(folder)), f"losses {step_losses(folder)}")
        if place.toy:
            continue
        outcome = good(command(place, "evaluate", str(folder), "--train.device", place.device), "evaluate")
        there, here = json.loads(outcome.out.splitlines()[-1]), metrics(folder, "eval")[-1]
        off[str(job["name"])] = abs(there["correct"] - here["correct"])
    place.note(images_apart=off)
    photos = place.home / "photos"
    photos.mkdir()
    for i in range(5):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (40, 40, 3), np.uint8)).save(photos / f"{i}.png")
    folder = runs(place) / str(jobs[0]["name"])
    outcome = good(
        command(place, "predict", str(folder), str(photos), "--device", place.device, "--format", "jsonl"), "predict"
    )
    expect(outcome.out.count(".png") == 5, f"predict: {outcome.out[:200]}")
    outcome = good(command(place, "export", str(folder), "--format", "torch-export", "--count", "50"), "export")
    place.note(export=outcome.out[-500:])
    expect(all(one <= 1 for one in off.values()), f"images apart: {off}")
    return f"{len(jobs)} optimizers, images apart {max(off.values(), default=0)}, predict and export ended with 0"


@CORRECT.check(
    "T13",
    "model.compile over 3 epochs with a short last batch",
    "one graph a size and mode, none with symbolic sizes",
    60,
)
def t13(place: Place) -> str:
    size = place.of(256, 40)
    images = 5 * size * place.of(4, 1) + size // 2
    settings = base(place, model__name="resnet9", model__args={"width": place.of(64, 4)}, train__precision="bf16",
                    data__args__train=images, data__args__test=place.of(500, 60), train__duration="3ep",
                    train__micro_batch=size // 2, eval__every="1ep", eval__batch_size=place.of(500, 60))  # fmt: skip
    settings["train.micro_batch"] = size
    jobs = {"eager": settings, "compiled": settings | {"model.compile": True}}
    eager, compiled = train(place, jobs, **({"GRAPHS_ONLY": "1"} if place.toy else {}))
    place.note(eager=eager, compiled=compiled, rates={name: rate(runs(place) / name) for name in jobs})
    ends = [statistics.fmean(step_losses(runs(place) / name)[-3:]) for name in jobs]
    shown = f"{compiled['graphs']} graphs, {compiled['dynamic']} with symbolic sizes"
    # Of the whole batch, of the short one, and of the evaluation.
    expect(eager["graphs"] == 0 and compiled["graphs"] == 3 and compiled["dynamic"] == 0, shown)
    expect(abs(ends[1] / ends[0] - 1) < 0.1, f"last losses {ends}")
    return shown + (
        "" if place.toy else f"; {rate(runs(place) / 'compiled') / rate(runs(place) / 'eager'):.2f} × the eager rate"
    )


@CORRECT.check(
    "T14",
    "a batch that does not fit into memory",
    "exit code 1, one message that names train.micro_batch, no traceback",
    15,
)
def t14(place: Place) -> str:
    """Without a GPU the network says that memory is out."""
    batch = place.of(20_000, 40)
    settings = base(place, train__batch_size=batch, train__micro_batch=batch, data__args__train=batch)
    if place.cuda:
        settings["model.name"] = "resnet18"
    else:
        settings |= {"model.name": "tests.gpu.nets:Net"}
    outcome = command(place, *config(place, settings), FAULT="none" if place.cuda else "memory:0:2",
                      FAULT_MARK=str(place.home / "mark"))  # fmt: skip
    said = outcome.err.strip().splitlines()
    place.note(said=said[-10:])
    expect(outcome.codes == [1], f"exit {outcome.codes}: {said[-1:]}")
    expect("Traceback" not in outcome.err and re.search("train.micro_batch", outcome.err), f"exit 1: {said[-1:]}")
    return f"exit 1: {said[1].strip() if len(said) > 1 else said}"
