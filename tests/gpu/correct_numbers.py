"""T7 to T10: numbers that have to be near to others, whose bits may differ."""

import statistics

import torch
import torch.nn.functional as F

from distcnn.config.schema import OptimConfig
from distcnn.engine.base import StepOptions
from distcnn.engine.ddp import DDPEngine
from distcnn.models.build import build_model
from distcnn.optim.optimizers import make_optimizer
from tests.gpu.suite import Place, expect
from tests.gpu.suites import CORRECT
from tests.gpu.work import SLOW, apart, base, of_data, runs, step_losses, train, train_beside


@CORRECT.check(
    "T7", "one micro-batch of 512 against four of 128, simple_cnn in fp32", "losses within 1e-5 over 50 steps", 15
)
def t7(place: Place) -> str:
    batch = place.of(512, 40)
    settings = base(place, train__batch_size=batch, train__duration=place.of("50step", "6step"), optim__lr=SLOW)
    jobs = {f"by-{count}": settings | {"train.micro_batch": batch // count} for count in (1, 4)}
    train(place, jobs)
    most = max(apart(*(step_losses(runs(place) / name) for name in jobs)))
    place.note(most=most)
    expect(most < 1e-5, f"apart by {most:.1e}")
    return f"{most:.1e}"


@CORRECT.check(
    "T8", "20 steps on the GPU against the CPU, fp32", "losses within 1e-5 at the first step, 1e-3 at the last", 30
)
def t8(place: Place) -> str:
    names = place.of(("simple_cnn", "resnet9", "whitened_cnn"), ("simple_cnn",))
    there, here = {}, {}
    for name in names:
        settings = base(
            place,
            optim__lr=SLOW,
            model__name=name,
            train__duration=place.of("20step", "6step"),
            train__batch_size=place.of(128, 40),
        )
        there[f"device-{name}"] = settings
        # Without a GPU the other side is this CPU too, with another number of threads.
        here[f"cpu-{name}"] = settings | {"train.device": "cpu", "train.threads": place.of(8, 2)}
    train_beside(place, *((there, here) if place.cuda else (there | here,)))
    found = {
        name: apart(step_losses(runs(place) / f"device-{name}"), step_losses(runs(place) / f"cpu-{name}"))
        for name in names
    }
    shown = ", ".join(f"{name} {one[0]:.0e} and {one[-1]:.0e}" for name, one in found.items())
    place.note(apart=found)
    expect(all(one[0] < 1e-5 and one[-1] < 1e-3 for one in found.values()), shown)
    return shown


@CORRECT.check(
    "T9",
    "200 steps of resnet9 on CIFAR-10 in other precisions, against fp32",
    "the last 20 losses within 2 %, TF32 0.5 %",
    40,
)
def t9(place: Place) -> str:
    kinds = {"fp32": {}, "bf16": {"train.precision": "bf16"}, "bf16-master": {"train.precision": "bf16-master"}}
    if place.cuda:
        kinds |= {"fp16": {"train.precision": "fp16"}, "tf32": {"train.tf32": True}}
    settings = base(
        place, model__name="resnet9", model__args={"width": place.of(32, 8)}, train__batch_size=place.of(256, 20),
        train__micro_batch=place.of(256, 10), train__duration=place.of("200step", "6step"),
    ) | {"loss.args": {"label_smoothing": 0.1}}  # fmt: skip
    settings = of_data(place, settings)
    train(place, {name: settings | more for name, more in kinds.items()})
    last = {name: statistics.fmean(step_losses(runs(place) / name)[-20:]) for name in kinds}
    found = {name: loss / last["fp32"] - 1 for name, loss in last.items() if name != "fp32"}
    place.note(last=last)
    shown = ", ".join(f"{name} {one:+.2%}" for name, one in found.items())
    limits = {name: 0.1 if place.toy else 0.005 if name == "tf32" else 0.02 for name in found}
    expect(all(abs(one) < limits[name] for name, one in found.items()), shown)
    return shown


@CORRECT.check(
    "T10",
    "fp16: a scale of 2^24 and a gradient that is inf",
    "such steps are skipped, the scale halves, the rest trains",
    10,
)
def t10(place: Place) -> str:
    """By the engine alone, which the CPU has in fp16 too."""
    device, first = torch.device(place.device, 0) if place.cuda else torch.device("cpu"), 2.0**24
    torch.manual_seed(0)
    size, count, poisoned = place.of((64, 60, 50), (4, 16, 12))  # fp16 is slow on a CPU
    model = build_model("simple_cnn", 10, 16).to(device)
    images, labels = torch.randn(size, 3, 16, 16, device=device), torch.randint(0, 10, (size,), device=device)
    optimizer = make_optimizer(model, OptimConfig(name="sgd", lr=0.1), 0.1)
    engine = DDPEngine(model, optimizer, device, StepOptions("fp16", clip_norm=1.0, micro_batches=1))
    engine.scaler = torch.amp.GradScaler(device.type, init_scale=first)
    scales, losses, skipped = [], [], []
    for step in range(count):
        before = [p.detach().clone() for p in model.parameters()]
        with engine.autocast():
            logits = engine.forward(images)
        loss = F.cross_entropy(logits.float(), labels)
        losses.append(loss.item())
        engine.backward(loss * torch.inf if step == poisoned else loss, sync=True)
        engine.step()
        scales.append(engine.scaler.get_scale())
        if all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)):
            skipped.append(step)
    place.note(scales=scales, losses=losses, skipped=skipped)
    expect(all(torch.isfinite(p).all() for p in model.parameters()), "weights that are not finite")
    expect(poisoned in skipped and scales[poisoned] == scales[poisoned - 1] / 2, f"skipped {skipped}, scales {scales}")
    expect(scales[-1] == first / 2 ** len(skipped), f"scales {scales}, skipped {skipped}")
    expect(losses[-1] < losses[0] - place.of(0.1, 0.0), f"the loss went from {losses[0]:.2f} to {losses[-1]:.2f}")
    again = DDPEngine(model, optimizer, device, StepOptions("fp16", micro_batches=1))
    again.load_state_dict(engine.state_dict())
    expect(again.scaler.get_scale() == scales[-1], "the scale is lost in a state dict")
    return f"{len(skipped)} steps skipped, scale 2^24 to {scales[-1]:.0f}, loss {losses[0]:.2f} to {losses[-1]:.2f}"
