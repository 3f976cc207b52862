"""`distcnn` on the CPU, whose Watchdog believes in a GPU: its events are pretended, its ranks and gloo are real.

PRETEND says what goes wrong, in words such as "stuck=0" (rank 0's device never comes to what it is given after step 3),
"spins=1" (rank 1's device never ends the forward of step 4, so that the others' wait for its gradients), "saves=6" (a
checkpoint takes 6 s to be written),
"late=1" (rank 1 stands still on its way into the wait for it, after step 3), "leaves=1" (rank 1 stands still for 6 s
after its last step), "slow=1" (rank 1's device takes a thousand times as long), "hidden" (no rank sees another one's
process), "nccl" (which has recorded that rank 1 has not begun an exchange), and "cpu" (no GPU is believed in).
"""

import json
import os
import sys
import time

import torch

import distcnn.training.run
import distcnn.training.start_and_end
from distcnn.checkpoint.file import Checkpoints
from distcnn.cli import program
from distcnn.distributed.process import RankProcess
from distcnn.distributed.watchdog import Watchdog

RANK = os.environ.get("RANK", "0")
WORDS = dict(word.partition("=")[::2] for word in os.environ["PRETEND"].split())
stuck_now = False


class Event:
    def __init__(self, enable_timing=False):
        self.at = 0.0

    def record(self, stream=None):
        self.at, self.stuck = time.perf_counter(), stuck_now

    def query(self):
        return not self.stuck

    def elapsed_time(self, end):
        return 1000 * (end.at - self.at) * (1000 if WORDS.get("slow") == RANK else 1)


class Pretending(Watchdog):
    def enter(self, phase):
        global stuck_now
        super().enter(phase)
        if self.step == 3 and phase == ("forward" if WORDS.get("spins") == RANK else "gradient sync"):
            stuck_now = "spins" in WORDS
        if phase == "log" and self.step == 3:
            stuck_now = WORDS.get("stuck") == RANK
            print("rank", RANK, "logs", file=sys.stderr, flush=True)
            if WORDS.get("late") == RANK:
                time.sleep(1000)

    def __exit__(self, *error):
        if WORDS.get("leaves") == RANK:
            time.sleep(6)
        return super().__exit__(*error)


class Slow(Checkpoints):
    def save(self, *arguments, **options):
        print("rank", RANK, "saves", file=sys.stderr, flush=True)
        time.sleep(float(WORDS["saves"]))
        return super().save(*arguments, **options)


def trace():
    time.sleep(0.7 if RANK == "1" else 0)  # rank 0, which speaks, waits for it
    entries = [
        {"process_group": ["0", "default_pg"], "collective_seq_id": number, "is_p2p": False, "time_created_ns": number,
         "profiling_name": "nccl:all_reduce", "state": "completed" if number < 8 else "started", "input_sizes": [[5]]}
        for number in range(5, 8 if RANK == "1" else 9)
    ]  # fmt: skip
    return json.dumps({"entries": entries}).encode()


def watchdog(world, store, timeout_s, end, device, folder, log):
    device = device if "cpu" in WORDS else torch.device("cuda", 0)
    return Pretending(world, store, timeout_s, end, device, folder, log)


if __name__ == "__main__":
    torch.cuda.Event, torch.cuda.set_device = Event, lambda _: None
    distcnn.training.run.Watchdog = watchdog
    if "nccl" in WORDS:
        torch._C._distributed_c10d._dump_nccl_trace_json = trace
    if "saves" in WORDS:
        distcnn.training.start_and_end.Checkpoints = Slow
    if "hidden" in WORDS:
        RankProcess.found = lambda _: None
    program()
