"""R5 to R7: a rank dies, stops, or is told to; the others say so, and soon."""

import re
import signal
import time
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

from tests.gpu.suite import Place, Wrong, expect
from tests.gpu.suites import RANKS
from tests.gpu.work import Settings, base, config, ended_s, environment, needs_shared_gpu, runs
from tests.ranks import Ranks, start, torchrun
from tests.records import steps

# Of the watchdog's report, {} being the step of the fault.
SPUN = r"rank 1 on [^\n]*the device has done step \d+ and has not finished the gradients of step {}"
UNENDED = r"NCCL's collective \d+ of group .* has not ended"


def endless(place: Place, **more: object) -> Settings:
    """A training of resnet9 that only a fault ends."""
    return base(place, model__name="tests.gpu.nets:Net", train__duration="100000step", tracking__log_every=1) | {
        key.replace("__", "."): value for key, value in more.items()
    }


def struck(place: Place, name: str, fault: str, held: ExitStack, **more: object) -> tuple[Ranks, Path]:
    """Two ranks, one of them under the fault, and the file that says when it struck."""
    mark = place.home / f"{name}.mark"
    known = environment(place, shared=True, FAULT=fault, FAULT_MARK=str(mark))
    return held.enter_context(start(config(place, endless(place, **more), name), 2, cwd=place.home, **known)), mark


def wait_for(ranks: Ranks, limit_s: float) -> list[int | None]:
    """Exit codes; None for a rank that still runs after it."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end and any(process.poll() is None for process in ranks):
        time.sleep(0.05)
    return [process.poll() for process in ranks]


@RANKS.check(
    "R5",
    "one of 2 ranks killed: after a log point, and while the other waits for the device",
    "the other ends within 5 s and 10 s, train.timeout being 600",
    50,
)
def r5(place: Place) -> str:
    needs_shared_gpu(place)
    number = place.of(2 * 20, 2 * 3) + 1  # forwards; two micro-batches a step and rank
    kinds = {"after a log point": f"SIGKILL:1:{number}", "in a backward": f"backward:1:{number + 1}"}
    with ExitStack() as held:
        started = {
            name: struck(
                place, name.replace(" ", "-"), fault, held, train__timeout=600.0, train__micro_batch=place.of(64, 10)
            )
            for name, fault in kinds.items()
        }
        took = ended_s(started, 120)
        for name, (ranks, _) in started.items():
            expect(ranks[0].poll() == 1, f"{name}: exit {ranks[0].poll()}")
            expect("distcnn: failed" in ranks.err(0) and "Traceback" not in ranks.err(0), ranks.err(0)[-500:])
    place.note(seconds=took)
    shown = ", ".join(f"{name} {one:.1f} s" for name, one in took.items())
    expect(place.toy or (took["after a log point"] < 5 and took["in a backward"] < 10), shown)
    return shown


@RANKS.check(
    "R6",
    "a rank stopped, a rank asleep, a device that spins",
    "each report names rank 1, and what NCCL waits for; the last one where in its step the device stands",
    60,
)
def r6(place: Place) -> str:
    needs_shared_gpu(place)
    step, wrong, said = place.of(20, 2), [], {}  # the one in whose second of two forwards a rank the fault is
    number = 2 * step
    kinds = {"stopped": f"SIGSTOP:1:{number}", "asleep": f"sleep:1:{number}"}
    if place.cuda:
        kinds["spinning"] = f"spin:1:{number}"
    with ExitStack() as held:
        limit = place.of(20, 12)
        started = {
            name: struck(place, name, fault, held, train__timeout=float(limit))[0] for name, fault in kinds.items()
        }
        for name, ranks in started.items():
            codes = wait_for(ranks, place.of(90, 100))
            said[name] = ranks.err()[-3000:]
            named = re.search(r"rank 1 on \S+, process \d+: (no sign of life|alive, but behind)", ranks.err())
            if None in codes or 0 in codes or not named:
                wrong.append(f"{name}: codes {codes}{'' if named else ', does not name rank 1'}")
            elif name == "spinning" and not re.search(SPUN.format(step), ranks.err()):
                wrong.append(f"{name}: not where the device of rank 1 stands")
            if place.cuda and not re.search(UNENDED, ranks.err()):
                wrong.append(f"{name}: no collective that has not ended")
    place.note(said=said)
    if place.cuda:
        traces = sorted(path.name for path in runs(place).glob("*/nccl_trace_rank*.json"))
        place.note(traces=traces)
        if not traces:
            wrong.append("no nccl_trace_rank*.json in the run folders")
    expect(not wrong, "; ".join(wrong))
    return f"{len(kinds)} of {len(kinds)} name rank 1"


@RANKS.check(
    "R7",
    "USR1 to rank 1 under torchrun, TERM to rank 1, Ctrl-C twice in a step that does not end",
    "75, 75, 130, each within 10 s",
    40,
)
def r7(place: Place) -> str:
    needs_shared_gpu(place)
    number, took, wrong = place.of(40, 4), {}, []
    code = place.home / "code"
    code.write_text("", encoding="ascii")
    with ExitStack() as held:
        known = environment(place, shared=True, DISTCNN_EXIT_CODE_FILE=str(code))
        agent = held.enter_context(start(config(place, endless(place), "usr1"), 1, torchrun(2), place.home, **known))
        term, _ = struck(place, "term", "none", held)
        stuck, mark = struck(place, "stuck", f"sleep:0:{number}", held)
        agent.until(lambda: steps(runs(place) / "usr1") > number)
        began = time.monotonic()
        workers = [one for one in agent.children() if ("-m", "distcnn") in pairwise(one.cmdline())]
        if len(workers) != 2:
            raise Wrong(f"torchrun has {len(workers)} workers")
        workers[1].send_signal(signal.SIGUSR1)
        expect(wait_for(agent, 60) != [None], "torchrun still runs")
        took["USR1"] = time.monotonic() - began
        if code.read_text(encoding="ascii") != "75" or "is saved; exit code 75" not in agent.err():
            wrong.append(f"USR1: {code.read_text(encoding='ascii')!r}")
        term.until(lambda: steps(runs(place) / "term") > number)
        began = time.monotonic()
        term[1].send_signal(signal.SIGTERM)
        codes = wait_for(term, 60)
        took["TERM"] = time.monotonic() - began
        if codes != [75, 75]:
            wrong.append(f"TERM: {codes}")
        stuck.until(mark.exists)
        began = time.monotonic()
        for _ in range(2):
            stuck[0].send_signal(signal.SIGINT)
            time.sleep(0.5)
        while stuck[0].poll() is None and time.monotonic() < began + 60:
            time.sleep(0.02)
        took["Ctrl-C"] = time.monotonic() - began
        if stuck[0].poll() != 130:
            wrong.append(f"Ctrl-C: {stuck[0].poll()}")
    place.note(seconds=took)
    shown = ", ".join(f"{name} {one:.1f} s" for name, one in took.items())
    expect(not wrong, f"{'; '.join(wrong)} ({shown})")
    expect(place.toy or max(took.values()) < 10, shown)
    return f"75, 75, 130: {shown}"
