"""`distcnn` on the CPU, whose Watchdog believes in a GPU: its events are pretended, its ranks and gloo are real.

PRETEND says what goes wrong, in words such as "stuck=0" (rank 0's device never comes to what it is given after step 3),
"late=1" (rank 1 stands still on its way into the wait for it, after step 3), "leaves=1" (rank 1 stands still for 6 s
after its last step), "hidden" (no rank sees another one's process), and "cpu" (no GPU is believed in).
"""

import os
import sys
import time

import torch

import distcnn.run
from distcnn.__main__ import program
from distcnn.parallel import peers
from distcnn.parallel.watchdog import Watchdog

RANK = os.environ.get("RANK", "0")
WORDS = dict(word.partition("=")[::2] for word in os.environ["PRETEND"].split())
stuck_now = False


class Event:
    def __init__(self, enable_timing=False):
        self.at = 0.0

    def record(self):
        self.at, self.stuck = time.perf_counter(), stuck_now

    def query(self):
        return not self.stuck

    def elapsed_time(self, end):
        return 1000 * (end.at - self.at)


class Pretending(Watchdog):
    def enter(self, phase):
        global stuck_now
        super().enter(phase)
        if phase == "log" and self.step == 3:
            stuck_now = WORDS.get("stuck") == RANK
            print("rank", RANK, "logs", file=sys.stderr, flush=True)
            if WORDS.get("late") == RANK:
                time.sleep(1000)

    def __exit__(self, *error):
        if WORDS.get("leaves") == RANK:
            time.sleep(6)
        return super().__exit__(*error)


def watchdog(world, store, timeout_s, end, device, folder):
    device = device if "cpu" in WORDS else torch.device("cuda", 0)
    return Pretending(world, store, timeout_s, end, device, folder)


if __name__ == "__main__":
    torch.cuda.Event, torch.cuda.set_device = Event, lambda _: None
    distcnn.run.Watchdog = watchdog
    if "hidden" in WORDS:
        peers._seen = lambda _: None
    program()
