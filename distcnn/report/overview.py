"""The page's text on a single run: headlines, events, environment."""

from datetime import datetime, timedelta, timezone
from typing import Any

from distcnn.runs.history import History
from distcnn.runs.records import further_metrics
from distcnn.text import plural


def headlines(run: History) -> list[tuple[str, str, str]]:
    """Return (title, number, note) for each card at the top."""
    found = []
    plan, best = run.plan, run.best
    if best is not None:
        last = run.evaluations[-1]
        found.append(("accuracy", f"{last['accuracy']:.2%}", f"{last['correct']:,} of {last['total']:,}"))
        if best["accuracy"] > last["accuracy"]:
            found.append(("best", f"{best['accuracy']:.2%}", f"after step {best['step']:,}"))
        if last.get("loss") is not None:
            found.append((f"{last.get('split', 'test')} loss", f"{last['loss']:.4f}", "nats per image"))
        found += [
            (name, f"{value:.4f}", f"{last.get('split', 'test')} images")
            for name, value in further_metrics(last).items()
        ]
    done = f"of {plan['steps']:,}" if "steps" in plan else ""
    found.append(("steps", f"{run.step:,}", done))
    if run.images_per_s is not None:
        found.append(("images/s", f"{run.images_per_s:,.0f}", "over all ranks, median"))
    events = [record for record in run.of("event") if "time" in record]
    if len(events) > 1:
        span = timedelta(seconds=round(events[-1]["time"] - events[0]["time"]))
        resumed = len(run.starts) - 1
        found.append(("time", f"{span}", f"with {plural(resumed, 'resume')}" if resumed else ""))
    if {"world_size", "device", "parameters"} <= plan.keys():
        ranks = f"{plural(plan['world_size'], 'rank')}, {plan['device']}"
        found.append(("parameters", f"{plan['parameters']:,}", ranks))
    return found


def event(record: dict[str, Any]) -> tuple[str, int, str, str]:
    """Return (time, step, event, message) of an event record."""
    when = datetime.fromtimestamp(record["time"], timezone.utc) if "time" in record else None
    text = f"{when:%Y-%m-%d %H:%M:%S} UTC" if when else "–"
    return text, record["step"], str(record["event"]).replace("_", " "), str(record.get("message", ""))


def environment(run: History) -> list[tuple[str, str]]:
    """Return the environment and the plan of the run's last start, as (key, value)."""
    known = {key: value for key, value in run.environment.items() if key not in ("plan", "versions")}
    plan = {key: value for key, value in run.plan.items() if key != "forward_flops"}
    versions = run.environment.get("versions", {})
    return [(str(key), str(value)) for key, value in (known | versions | plan).items()]
