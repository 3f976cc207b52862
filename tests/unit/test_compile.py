"""What torch.compile makes of a network whose batches are not all of one size, counted in graphs."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from distcnn.config.schema import Config, ModelConfig, TrainConfig
from distcnn.training.build import place


@pytest.fixture
def graphs(monkeypatch) -> Iterator[list[torch.fx.GraphModule]]:
    """The graph of each call of a compiled network, in the order of the calls; none of them is made into code."""
    ran: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _: object):
        def run(*inputs: object):
            ran.append(graph)
            return graph.forward(*inputs)

        return run

    compile = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: compile(self, backend=backend, **options))
    torch._dynamo.reset()
    counters.clear()
    with torch._dynamo.config.patch(recompile_limit=8), torch._inductor.config.patch(deterministic=False):
        yield ran
    torch._dynamo.reset()
    counters.clear()


def network(**train: object) -> nn.Module:
    config = Config(train=TrainConfig(**train), model=ModelConfig(compile=True))
    return place(nn.Linear(4, 2), config, torch.device("cpu"), compile=True)


def test_full_batches_run_one_graph_whatever_comes_between(graphs):
    """By default a second size makes a graph for any size, which full batches run from then on."""
    model = network()
    for size in (8, 8, 5, 8, 8, 5):  # an epoch of two and a last, smaller one; and another epoch
        model(torch.zeros(size, 4))
    full, last = graphs[0], graphs[2]
    assert full is not last
    assert graphs == [full, full, last, full, full, last]


def test_every_size_is_compiled(graphs):
    """Sizes of batch and image, in training and evaluation: more than the eight after which PyTorch gives up."""
    model = network()
    for size in range(2, 14):
        model(torch.zeros(size, 4))
    assert len(set(graphs)) == 12
    assert counters["stats"]["unique_graphs"] == 12


@pytest.mark.parametrize("deterministic", [True, False, "strict"])
@pytest.mark.usefixtures("graphs")
def test_the_compiler_chooses_by_timing_only_where_it_may(deterministic):
    network(deterministic=deterministic)
    assert torch._inductor.config.deterministic is bool(deterministic)
