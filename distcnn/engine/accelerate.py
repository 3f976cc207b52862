"""The engine on Hugging Face Accelerate, for clusters set up by `accelerate config`.

Accelerate prepares the model and the optimizer. The order of images, schedule, evaluation, checkpoints and the sum of
the gradients remain distcnn's: the losses equal those of the native engine, bit for bit in fp32.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from distcnn.config.schema import Config
from distcnn.distributed.world import Environment
from distcnn.engine.base import Engine
from distcnn.engine.ddp import buffers_option
from distcnn.registry import Problem
from distcnn.text import missing

# `accelerate launch` passes its configuration in the environment.
PRECISIONS = {"no": None, "fp16": "fp16", "bf16": "bf16"}
# Features that exclude distcnn's DistributedDataParallel: variable → key of Accelerate's config.
_FOREIGN = {
    "ACCELERATE_USE_FSDP": "use_fsdp",
    "ACCELERATE_USE_DEEPSPEED": "use_deepspeed",
    "ACCELERATE_USE_MEGATRON_LM": "use_megatron_lm",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "parallelism_config",
}


def defaults(environment: Environment) -> dict[str, Any]:
    """Return the run's keys that Accelerate's configuration sets: defaults for those that the run leaves out."""
    found: dict[str, Any] = {}
    if precision := PRECISIONS.get(environment.get("ACCELERATE_MIXED_PRECISION", "no")):
        found["train.precision"] = precision
    if _backend(environment):
        found["model.compile"] = True
    if environment.get("ACCELERATE_USE_CPU", "").lower() == "true":
        found["train.device"] = "cpu"
    return found


def problems(config: Config, environment: Environment) -> Iterator[Problem]:
    """Yield contradictions between the run's config and Accelerate's."""
    if needs := missing("accelerate", "accelerate"):
        yield ("engine",), f"{needs}, or engine: ddp"
    for name, key in _FOREIGN.items():
        if environment.get(name, "").lower() == "true":
            yield (
                ("engine",),
                f"{name} = true ({key} in Accelerate's config), but distcnn trains with DDP: set {key}: false",
            )
    said, wanted = environment.get("ACCELERATE_MIXED_PRECISION", "no"), config.train.precision.removesuffix("-master")
    if said not in PRECISIONS:
        yield (
            ("train.precision",),
            f"ACCELERATE_MIXED_PRECISION = {said}: distcnn does not support {said}; set mixed_precision to bf16",
        )
    elif PRECISIONS[said] not in (None, wanted):
        yield (
            ("train.precision",),
            f"Accelerate's config says mixed_precision: {said} (ACCELERATE_MIXED_PRECISION); set the same in both, or "
            "set mixed_precision: 'no' there to leave it to the run",
        )
    if (steps := environment.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")) != "1":
        yield (
            ("train.micro_batch",),
            f"ACCELERATE_GRADIENT_ACCUMULATION_STEPS = {steps}: in distcnn global batch, ranks and train.micro_batch "
            "determine the accumulation; remove gradient_accumulation_steps from Accelerate's config",
        )
    if (backend := _backend(environment)) and not config.model.compile:
        yield (
            ("model.compile",),
            f"Accelerate's config says dynamo_backend: {backend}; set model.compile true, or 'no' there",
        )
    if environment.get("ACCELERATE_USE_CPU", "").lower() == "true" and config.train.device == "cuda":
        yield ("train.device",), "Accelerate's config says use_cpu: true; set train.device cpu, or use_cpu: false there"


def _backend(environment: Environment) -> str | None:
    """Return the torch.compile backend of Accelerate's config, or None."""
    backend = environment.get("ACCELERATE_DYNAMO_BACKEND", "NO").lower()
    return None if backend == "no" else backend


def compiles(environment: Environment) -> bool:
    """Whether Accelerate compiles the model, with its config's backend and mode."""
    return _backend(environment) is not None


class AccelerateEngine(Engine):
    """Wraps, scales and steps through an `Accelerator`. Construct it inside the process group, which it adopts."""

    def wrap(self) -> nn.Module:
        """Return the model as Accelerate prepares it: placed, cast, in DistributedDataParallel, perhaps compiled."""
        from accelerate import Accelerator, DistributedDataParallelKwargs
        from accelerate.state import AcceleratorState

        world = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
        AcceleratorState._reset_state(reset_partial_state=True)  # of an earlier training in this process
        own = {"LOCAL_RANK": f"{self.device.index}"} if self.device.type == "cuda" and world > 1 else {}
        # Otherwise it sets a number of threads itself, with a warning. It finds the GPU by LOCAL_RANK alone.
        with _environment({"OMP_NUM_THREADS": f"{torch.get_num_threads()}"} | own):
            self.accelerator = Accelerator(
                # Explicit: otherwise ranks of `accelerate launch --multi_gpu` on a machine without GPUs each assume
                # world size 1.
                cpu=self.device.type == "cpu",
                mixed_precision="no" if self.precision == "fp32" else self.precision.removesuffix("-master"),
                kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
            )
        count = self.accelerator.num_processes
        assert count == world, f"Accelerate counts {count} processes, the process group {world}"
        forward: nn.Module = self.accelerator.prepare_model(self.compute_model)
        self.prepared = self.accelerator.prepare_optimizer(self.optimizer)
        if (ddp := distributed_part(forward)) is not None:
            setattr(ddp, buffers_option(), False)  # Accelerate knows only one of the option's two names
        return forward

    @cached_property
    def scaler(self) -> torch.amp.GradScaler:
        """Accelerate's scaler in fp16, else a disabled one."""
        return self.accelerator.scaler or torch.amp.GradScaler(self.device.type, enabled=False)

    def autocast(self) -> AbstractContextManager[Any]:
        """Return Accelerate's context of a forward."""
        context: AbstractContextManager[Any] = self.accelerator.autocast()
        return context

    def scaled_backward(self, loss: Tensor) -> None:
        """Run the backward of one loss, which Accelerate scales."""
        self.accelerator.backward(loss)

    def update(self) -> None:
        """Step the optimizer and update the scale."""
        self.prepared.step()


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables within the block."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, text in before.items():
            if text is None:
                del os.environ[name]
            else:
                os.environ[name] = text


def distributed_part(model: nn.Module) -> DistributedDataParallel | None:
    """Return the DistributedDataParallel of a model, inside torch.compile's wrapper if there is one; else None."""
    inner = getattr(model, "_orig_mod", model)
    return inner if isinstance(inner, DistributedDataParallel) else None
