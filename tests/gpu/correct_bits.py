"""T3 to T6: no wait for the device, and the same bits: again, after a fault, through NCCL."""

from itertools import product

from distcnn.bench.measure import FixedRate, Steps
from distcnn.config.settings import Settings as Parsed
from distcnn.distributed.watch import Watch
from distcnn.distributed.world import World
from distcnn.training.run import Run
from tests.gpu.suite import Place, expect
from tests.gpu.suites import CORRECT
from tests.gpu.work import (
    OWN_NETS,
    Settings,
    base,
    config,
    environment,
    no_host_sync,
    runs,
    same,
    train,
    train_beside,
    words,
)
from tests.ranks import start


def steps_of(settings: Settings, rate: float = 0.0) -> Steps:
    """The training steps of a run, in this process; nobody takes their time."""
    chosen = Parsed().read_arguments(words(settings | {"train.drop_last": True})).check(1)
    steps = Steps(Run(chosen, World()))
    steps.run.watch, steps.run.schedule = Watch(steps.run.device), FixedRate(rate)
    return steps


def synced(place: Place, settings: Settings) -> str:
    """What made the host wait in three steps after the first; nothing, as it should be."""
    steps = steps_of(settings, 0.01)
    steps.step()  # makes the epoch's order on the host, and the optimizer's state
    try:
        with no_host_sync(place):
            for _ in range(3):
                steps.step()
    except Exception as error:
        return str(error).strip().splitlines()[0]
    finally:
        steps.close()
    return ""


@CORRECT.check("T3", "no step makes the host wait for the device", "none of all kinds", 40, first=True)
def t3(place: Place) -> str:
    precisions = ["fp32", "bf16", "bf16-master", *(["fp16"] if place.cuda else [])]
    micro = place.of((256, 64), (40, 20))
    kinds = list(product(("sgd", "adamw", "muon"), precisions, ("resident", "streaming"), micro))
    kinds = [kind for kind in kinds if kind[:2] != ("muon", "fp16")]
    if place.toy:
        kinds = [kinds[0], kinds[5], kinds[-4]]
    found = {}
    for optimizer, precision, loader, size in kinds:
        settings = base(
            place, model__name="resnet9", model__args={"width": 8}, optim__name=optimizer, train__precision=precision,
            data__loader=loader, data__workers=place.of(2, 0), train__micro_batch=size, train__clip_norm=1.0,
            data__args__train=place.of(1024, 200),
        )  # fmt: skip
        if problem := synced(place, settings):
            found[f"{optimizer} {precision} {loader} {size}"] = problem
    place.note(kinds=len(kinds), synced=found)
    expect(not found, f"{len(found)} of {len(kinds)} wait; {next(iter(found.items()), '')}")
    return f"0 of {len(kinds)} kinds"


@CORRECT.check("T4", "the same run twice, each in a new process", "equal bits where deterministic", 60, first=True)
def t4(place: Place) -> str:
    jobs: dict[str, Settings] = {}
    for name, precision in product(place.of(OWN_NETS, OWN_NETS[:1]), place.of(("fp32", "bf16"), ("fp32",))):
        jobs[f"{name}-{precision}"] = base(place, model__name=name, train__precision=precision)
    if not place.toy:
        jobs["resnet50-bf16"] = base(place, model__name="resnet50", train__precision="bf16")
        jobs["not-deterministic-resnet9"] = base(place, model__name="resnet9", train__deterministic=False)
        jobs["not-deterministic-resnet50"] = base(place, model__name="resnet50", train__deterministic=False)
    strict = {"strict-resnet9": base(
        place, model__name="tests.gpu.nets:Net", train__precision="bf16", train__deterministic="strict")}  # fmt: skip
    if not place.toy:  # beside the others, as it takes its time to compile
        strict["compiled-resnet9"] = base(place, model__name="resnet9", train__precision="bf16", model__compile=True)
    batches = [{f"{name}-{turn}": job for name, job in part.items()} for part in (jobs, strict) for turn in (1, 2)]
    if place.toy:  # one process after all the jobs, thus the strict ones too
        batches = [batches[0] | batches[2], batches[1] | batches[3]]
    train_beside(place, *batches)
    equal = {name: same(runs(place) / f"{name}-1", runs(place) / f"{name}-2") for name in [*jobs, *strict]}
    place.note(equal=equal)
    told = [name for name in equal if name.startswith(("not", "compiled"))]  # nothing is promised of them
    wrong = [name for name, one in equal.items() if not one and name not in told]
    expect(not wrong, f"other bits: {', '.join(wrong)}")
    own = len(equal) - len(told)
    return f"{own} of {own} equal" + "".join(f"; {one}: {'equal' if equal[one] else 'other bits'}" for one in told)


@CORRECT.check(
    "T5", "killed, or stopped by USR1, in mid-epoch, and resumed", "equal bits; exit code 75 for USR1", 40, first=True
)
def t5(place: Place) -> str:
    number = place.of(4 * 37, 4 * 3)  # forwards; four a step
    often = {"checkpoint.every": place.of("10step", "2step"), "checkpoint.resume": "auto", "tracking.log_every": 1}
    resident = base(place, model__name="tests.gpu.nets:Net", optim__name="adamw", train__ema=0.9) | often
    streaming = resident | {"data.loader": "streaming", "data.workers": place.of(4, 1)}
    kinds = {"straight": (resident, "none", 0), "killed": (resident, "SIGKILL", -9), "usr1": (resident, "SIGUSR1", 75),
             "streamed": (streaming, "SIGKILL", -9)}  # fmt: skip
    expected = {name: code for name, (_, _, code) in kinds.items()}
    if place.toy:
        kinds, expected = ({name: one[name] for name in ("straight", "streamed")} for one in (kinds, expected))

    def all_at_once(names: list[str]) -> dict[str, int]:
        started = {}
        try:
            for name in names:
                settings, fault, _ = kinds[name]
                known = environment(place, FAULT=f"{fault}:0:{number}", FAULT_MARK=str(place.home / f"{name}.mark"))
                started[name] = start(config(place, settings, name), cwd=place.home, **known)
            return {name: ranks.wait(3600)[0] for name, ranks in started.items()}
        finally:
            for ranks in started.values():
                ranks.close()

    codes = all_at_once(list(kinds))
    expect(codes == expected, f"first exit codes {codes}")
    hit = [name for name in kinds if name != "straight"]
    codes = all_at_once(hit)
    expect(set(codes.values()) == {0}, f"resumed exit codes {codes}")
    wrong = [name for name in hit if not same(runs(place) / name, runs(place) / "straight")]
    expect(not wrong, f"other bits: {', '.join(wrong)}")
    return f"{len(hit)} of {len(hit)} equal" + "; USR1 ended with 75" * ("usr1" in hit)


@CORRECT.check(
    "T6", "a group of one rank over NCCL, against no group", "equal bits; memory pressed, still finite", 30, first=True
)
def t6(place: Place) -> str:
    group, kinds = "nccl" if place.cuda else "gloo", {}
    for precision, sums in (("fp32", "fp64"), ("fp32", "fp32"), ("bf16-master", "fp64")):
        settings = base(place, model__name="resnet9", model__args={"width": 8}, train__precision=precision)
        kinds[f"{precision}-{sums}"] = settings | {"train.gradient_sum": sums}
    pressed = base(place, model__name="tests.gpu.nets:pressed", train__duration=place.of("200step", "6step"))
    kinds["pressed"] = pressed
    alone = {f"alone-{name}": job for name, job in kinds.items()}
    grouped = {f"group-{name}": job for name, job in kinds.items()}
    train(place, alone | grouped, group=dict.fromkeys(grouped, group))
    equal = {name: same(runs(place) / f"alone-{name}", runs(place) / f"group-{name}") for name in kinds}
    place.note(equal=equal, backend=group)
    expect(all(equal.values()), f"other bits: {', '.join(name for name, one in equal.items() if not one)}")
    return f"{len(equal)} of {len(equal)} equal over {group}"
