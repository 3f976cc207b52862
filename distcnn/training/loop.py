"""The training loop. Read `fit` from top to bottom: epochs, steps, micro-batches."""

from collections.abc import Iterator

import torch

from distcnn.data.loaders.batch import Batch
from distcnn.distributed.signals import stopped
from distcnn.optim.optimizers import set_lr
from distcnn.training.evaluate import Evaluation
from distcnn.training.run import Run
from distcnn.training.step_log import StepLog


def fit(run: Run) -> Evaluation:
    """Train from `run.progress` to the last step of the plan, and return the evaluation after it.

    A collective: all ranks must call it. After a signal to any rank, all ranks save the current step and raise
    StoppedError. Raises NonFiniteLossError on all ranks.
    """
    plan, progress, log = run.plan, run.progress, StepLog(run)
    run.engine.compute_model.train()
    while progress.step < plan.steps:
        epoch, first_step = divmod(progress.step, plan.steps_per_epoch)
        batches = run.loader.epoch(epoch, first_step)
        for _ in range(first_step, plan.steps_per_epoch):
            log.add(train_step(run, batches))

            last = progress.step == plan.steps
            evaluating = last or progress.step % plan.eval_every == 0
            run.watch.enter("agreement")
            signal, due = run.stop.agreed(run.writer.due())
            saving = last or bool(signal) or due or progress.step % plan.checkpoint_every == 0
            if evaluating or saving or log.count == run.config.tracking.log_every:
                run.watch.enter("log")
                log.flush()  # before saving: raises on all ranks if a loss was not finite
            improved = evaluating and evaluate(run)
            problem = ""
            if saving or improved:
                run.watch.enter("checkpoint")
                problem = run.save(best=improved, wait=last or bool(signal))
            if evaluating or saving:
                log.restart_clock()
            if last:
                break
            if signal:
                raise stopped(signal, f"after step {progress.step} of {plan.steps}, which {problem or 'is saved'}")
    run.statistics.close()
    return run.evaluation or run.evaluate()  # no step was left: the checkpoint was the final one


def train_step(run: Run, batches: Iterator[Batch]) -> torch.Tensor:
    """Make one update from one global batch; `batches` yields this rank's micro-batches of it.

    Returns this rank's part of the mean loss, [] float32, on the device; the parts of all ranks add up to it.
    """
    engine, watch = run.engine, run.watch
    loss_part = torch.zeros((), device=run.device)
    engine.begin()
    watch.enter("data")
    for batch in batches:
        watch.enter("forward")
        # Dropout depends on the position in the epoch alone, not on the rank or on earlier batches.
        seed_generators(batch.seed, run.device)
        with engine.accumulate(sync=batch.last):
            with run.autocast():
                logits = engine.forward(batch.images)  # [n, classes]
            loss = run.loss(logits.float(), batch.labels) * batch.weight
            watch.enter("backward")
            engine.backward(loss, sync=batch.last)
        watch.enter("statistics")
        run.statistics.add(batch.weight)
        loss_part += loss.detach()
        if batch.last:
            break
        watch.enter("data")
    run.statistics.end()
    update(run)
    return loss_part


def update(run: Run) -> None:
    """Step the optimizer, at the scheduled learning rate, and update the averages of the weights."""
    progress = run.progress
    run.watch.enter("optimizer")
    set_lr(run.optimizer, run.schedule.lr_at(progress.step))
    run.engine.step()
    progress.step += 1
    run.watch.steps_done(progress.step)
    run.averages.after_step(progress.step, last=progress.step == run.plan.steps)


def evaluate(run: Run) -> bool:
    """Evaluate and log the result; return whether it is the best so far. A collective."""
    progress = run.progress
    run.watch.enter("evaluation")
    found = run.evaluate()
    improved = found.accuracy > progress.best_accuracy
    if improved:
        progress.best_accuracy, progress.best_step = found.accuracy, progress.step
    at = {"kind": "eval", "split": found.split, "step": progress.step, "epoch": run.plan.epoch_of(progress.step)}
    run.log(at | found.record())
    return improved


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed the generators of the CPU and `device` only: `torch.manual_seed` seeds all backends, in over 0.1 ms."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
