"""`distcnn` on ranks with a pretended GPU each: those in FULL find it filled by another process, those in BLIND see none.

The others have it only where they look whether there is one; then they go on to the rendezvous, on the CPU.
"""

import os

import torch

import distcnn.distributed.device
import distcnn.training.run
from distcnn.cli import program

RANK = os.environ.get("RANK", "0")
full, blind = (RANK in os.environ.get(name, "") for name in ("FULL", "BLIND"))
device = torch.device("cuda", 0) if full else torch.device("cpu")

if __name__ == "__main__":
    distcnn.distributed.device.host_has_gpus = lambda: True
    torch.cuda.is_available = lambda: not blind
    torch.cuda.mem_get_info = lambda _: (1024, 80 * 2**30)
    distcnn.training.run.set_up_device = lambda *_: (device, 1)
    program()
