"""Trains one job after another in this process, by the Python API: python -m tests.gpu.trainings JOBS.json

A job is {"settings": {…}, "group": "" or a backend, "port": a port}. With `group` the process is the only rank of a
real group, so that the engine exchanges with nobody, but by all its code. `port` is where the ranks of this job meet:
each has one of its own. What a job leaves behind is its run folder, and a line of JSON with what was compiled.
"""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.nn.functional  # before there is a group: its functions would hold it for good

import distcnn
from tests.gpu.nets import compiled_graphs


@contextmanager
def alone_in_a_group(backend: str) -> Iterator[None]:
    """A group of this process alone, over NCCL or gloo; none for the empty name."""
    if not backend:
        yield
        return
    cuda = backend == "nccl"
    if cuda:
        torch.cuda.set_device(0)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if cuda else "gloo", store=dist.HashStore(), rank=0, world_size=1,
        device_id=torch.device("cuda", 0) if cuda else None,
    )  # fmt: skip
    try:
        yield
    finally:
        dist.destroy_process_group()


def main() -> None:
    counts = compiled_graphs()
    for job in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        if "port" in job and "WORLD_SIZE" in os.environ:
            os.environ["MASTER_PORT"] = str(job["port"])
        before = dict(counts)
        with alone_in_a_group(job.get("group", "")):
            result = distcnn.train(job["settings"])
        compiled = {key: counts[key] - before[key] for key in counts}
        memory = torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else 0
        print(json.dumps({"name": result.folder.name, "peak_memory": memory, **compiled}), flush=True)


if __name__ == "__main__":
    main()
