"""The same step on Hugging Face Accelerate, for those whose cluster is set up by `accelerate config`.

Accelerate prepares the model and the optimizer. Order of images, schedule, evaluation and checkpoints stay distcnn's,
and so does the sum of the gradients: the losses are those of the native engine, to the bit in fp32.
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

# `accelerate launch` hands over its configuration in the environment: what it says of the run's own keys …
PRECISIONS = {"no": None, "fp16": "fp16", "bf16": "bf16"}
# … and what it cannot do with distcnn, which trains with DistributedDataParallel.
_FOREIGN = {
    "ACCELERATE_USE_FSDP": "use_fsdp",
    "ACCELERATE_USE_DEEPSPEED": "use_deepspeed",
    "ACCELERATE_USE_MEGATRON_LM": "use_megatron_lm",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "parallelism_config",
}


def defaults(environment: Environment) -> dict[str, Any]:
    """What Accelerate's configuration says of the run's keys, for those that the run's own does not give."""
    found: dict[str, Any] = {}
    if precision := PRECISIONS.get(environment.get("ACCELERATE_MIXED_PRECISION", "no")):
        found["train.precision"] = precision
    if _backend(environment):
        found["model.compile"] = True
    if environment.get("ACCELERATE_USE_CPU", "").lower() == "true":
        found["train.device"] = "cpu"
    return found


def problems(config: Config, environment: Environment) -> Iterator[Problem]:
    """Where the run's config and Accelerate's contradict each other."""
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
            f"ACCELERATE_MIXED_PRECISION = {said}: distcnn has no {said}; set mixed_precision to bf16",
        )
    elif PRECISIONS[said] not in (None, wanted):
        yield (
            ("train.precision",),
            f"Accelerate's config says mixed_precision: {said} (ACCELERATE_MIXED_PRECISION); say the same in both, or "
            "set mixed_precision: 'no' there to leave it to the run",
        )
    if (steps := environment.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")) != "1":
        yield (
            ("train.micro_batch",),
            f"ACCELERATE_GRADIENT_ACCUMULATION_STEPS = {steps}: in distcnn global batch, ranks and train.micro_batch "
            "decide the accumulation; take gradient_accumulation_steps out of Accelerate's config",
        )
    if (backend := _backend(environment)) and not config.model.compile:
        yield (
            ("model.compile",),
            f"Accelerate's config says dynamo_backend: {backend}; set model.compile true, or 'no' there",
        )
    if environment.get("ACCELERATE_USE_CPU", "").lower() == "true" and config.train.device == "cuda":
        yield ("train.device",), "Accelerate's config says use_cpu: true; set train.device cpu, or use_cpu: false there"


def _backend(environment: Environment) -> str | None:
    """The torch.compile backend that Accelerate's config asks for."""
    backend = environment.get("ACCELERATE_DYNAMO_BACKEND", "NO").lower()
    return None if backend == "no" else backend


def compiles(environment: Environment) -> bool:
    """Whether Accelerate compiles the model, with the backend and mode of its own config."""
    return _backend(environment) is not None


class AccelerateEngine(Engine):
    """Wraps, scales and steps through an `Accelerator`. Call it inside the process group, which it takes over."""

    def wrap(self) -> nn.Module:
        """As Accelerate prepares it: placed, cast, in DistributedDataParallel, compiled by its own config."""
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState
        from accelerate.utils import DistributedDataParallelKwargs

        world = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
        AcceleratorState._reset_state(reset_partial_state=True)  # one of an earlier training in this process
        own = {"LOCAL_RANK": f"{self.device.index}"} if self.device.type == "cuda" and world > 1 else {}
        # Without a number of threads it sets one of its own, and warns. Of a GPU it knows by the local rank alone.
        with _told({"OMP_NUM_THREADS": f"{torch.get_num_threads()}"} | own):
            self.accelerator = Accelerator(
                # Passed explicitly: without it, `accelerate launch --multi_gpu` on a machine without a GPU starts ranks
                # that each believe they are alone.
                cpu=self.device.type == "cpu",
                mixed_precision="no" if self.precision == "fp32" else self.precision.removesuffix("-master"),
                kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
            )
        count = self.accelerator.num_processes
        assert count == world, f"Accelerate counts {count} processes, the process group {world}"
        forward: nn.Module = self.accelerator.prepare_model(self.compute_model)
        self.prepared = self.accelerator.prepare_optimizer(self.optimizer)
        if (ddp := distributed_part(forward)) is not None:
            setattr(ddp, buffers_option(), False)  # its keyword has two names, of which Accelerate knows one
        return forward

    @cached_property
    def scaler(self) -> torch.amp.GradScaler:
        """Accelerate's own in fp16."""
        return self.accelerator.scaler or torch.amp.GradScaler(self.device.type, enabled=False)

    def autocast(self) -> AbstractContextManager[Any]:
        """Accelerate's."""
        context: AbstractContextManager[Any] = self.accelerator.autocast()
        return context

    def scaled_backward(self, loss: Tensor) -> None:
        """Accelerate scales the loss."""
        self.accelerator.backward(loss)

    def update(self) -> None:
        """Accelerate's optimizer steps and updates the scale."""
        self.prepared.step()


@contextmanager
def _told(said: Mapping[str, str]) -> Iterator[None]:
    """Within, these variables are set."""
    before = {name: os.environ.get(name) for name in said}
    os.environ.update(said)
    try:
        yield
    finally:
        for name, text in before.items():
            if text is None:
                del os.environ[name]
            else:
                os.environ[name] = text


def distributed_part(model: nn.Module) -> DistributedDataParallel | None:
    """The DistributedDataParallel in a model, below torch.compile's wrapper if there is one."""
    inner = getattr(model, "_orig_mod", model)
    return inner if isinstance(inner, DistributedDataParallel) else None
