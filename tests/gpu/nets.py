"""Networks for the checks, imported as `model.name`: one that fails when it is told to, one that takes up memory.

FAULT = "kind:rank:n" strikes in the n-th training forward of that rank, once: the file that FAULT_MARK names is made
first, with the time in it, and while it is there nothing strikes.
"""

import os
import signal
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distcnn.models.resnet import ResNet9


class Net(nn.Module):
    """A narrow resnet9 with dropout before its head."""

    def __init__(self, num_classes: int, image_size: int):
        super().__init__()
        self.body = ResNet9(num_classes, width=8)
        self.dropout = nn.Dropout(0.1)
        self.kind, rank, number = f"{os.environ.get('FAULT', 'none')}:0:0".split(":")[:3]
        self.here, self.number, self.calls = os.environ.get("RANK", "0") == rank, int(number), 0

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(self.dropout(x))
        if self.training and x.device.type != "meta":
            self.calls += 1
            if self.here and self.calls == self.number and self.kind != "none":
                self.strike(out)
        return out

    def strike(self, out: Tensor) -> None:
        mark = Path(os.environ["FAULT_MARK"])
        if mark.exists():
            return
        mark.write_text(f"{time.time()}", encoding="ascii")
        if self.kind.startswith("SIG"):
            os.kill(os.getpid(), signal.Signals[self.kind])
        elif self.kind == "backward":  # the other ranks then wait for this one's gradient
            out.register_hook(lambda _: os.kill(os.getpid(), signal.SIGKILL))
        elif self.kind == "sleep":
            time.sleep(600)
        elif self.kind == "spin":  # the host goes on, the device does not
            torch.cuda._sleep(1_000_000_000_000)  # type: ignore[no-untyped-call] # cycles: five minutes and more
        elif self.kind == "memory":
            raise torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 99.00 GiB. GPU 0 has a total capacity of 1"
            )
        else:
            raise ValueError(f"FAULT: {self.kind}")


def pressed(num_classes: int, image_size: int) -> nn.Module:
    """A resnet9 between whose gradients memory is taken, filled with NaN and let go.

    Whatever reads a buffer that has been given back too early reads NaN.
    """
    del image_size
    model = ResNet9(num_classes, width=8)

    def press(parameter: nn.Parameter) -> None:
        for size in (parameter.numel(), 4 * parameter.numel()):
            torch.full((size,), torch.nan, device=parameter.device)
            torch.full((size,), torch.nan, device=parameter.device, dtype=torch.float64)

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(press)
    return model


def seen(num_classes: int, image_size: int) -> nn.Module:
    """Writes which GPUs its process sees into a file of its own, in the folder that SEEN names."""
    file = Path(os.environ["SEEN"]) / f"{os.getpid()}"
    file.write_text(os.environ.get("CUDA_VISIBLE_DEVICES", "unset"), encoding="ascii")
    return Net(num_classes, image_size)


def compiled_graphs() -> dict[str, int]:
    """From now on every torch.compile of a module counts its graphs here: all, and those with symbolic sizes."""
    counts = {"graphs": 0, "dynamic": 0}
    compile_module = nn.Module.compile

    def counting(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        counts["graphs"] += 1
        counts["dynamic"] += any(isinstance(one, torch.SymInt) for one in inputs)
        if os.environ.get("GRAPHS_ONLY"):
            return graph.forward
        from torch._inductor.compile_fx import compile_fx

        return compile_fx(graph, inputs)

    def compile_counted(self: nn.Module, *arguments: Any, **options: Any) -> None:
        compile_module(self, *arguments, **{"backend": counting, **options})

    nn.Module.compile = compile_counted  # type: ignore[method-assign]
    return counts
