"""distcnn doctor where ranks have GPUs, or some have: nobody waits for ever, and what is wrong names the rank and the fix.

The processes and their exchanges over gloo are real; which rank has which GPU is pretended, and so is, where a test
says so, what NCCL does.
"""

import json
import re
import socket

from tests.ranks import run_ranks

PRETEND = """
import json, os, socket, sys, time
from pathlib import Path
import torch, torch.distributed as dist
from distcnn.doctor import examine, nccl
from distcnn.doctor.devices import Gpu
from distcnn.cli import program
def own_gpu(world, host):
    name = json.loads(os.environ["GPUS"])[world.rank]
    return Gpu(host, 0, f"{name} on {host}" if name else "", os.environ.get("CUDA_VISIBLE_DEVICES"))
examine.own_gpu = own_gpu
rank = int(os.environ["RANK"])
"""
HOST = socket.gethostname()


def examined(gpus, tmp_path, nccl="", *options):
    """(exit codes, rank 0's report, the failures in it) of a doctor on so many ranks."""
    program = ["-c", f"{PRETEND}\n{nccl}\nprogram()"]
    arguments = ["doctor", "--json", "--timeout", 20, "--output-dir", tmp_path, *options]
    outcome = run_ranks(arguments, len(gpus), tmp_path, program, GPUS=json.dumps(gpus), CUDA_VISIBLE_DEVICES="")
    assert "Traceback" not in outcome.err
    reports = [json.loads(line) for line in outcome.out.splitlines() if line.startswith("{")]
    assert len(reports) == 1, outcome.out + outcome.err
    return outcome.codes, reports[0], [one for one in reports[0]["findings"] if one["status"] == "fail"]


NEVER = """
def connect(gpu):
    raise AssertionError("NCCL was tried")
nccl.connect = connect
"""


def test_ranks_without_a_gpu_of_their_own_are_named_and_all_meet_over_gloo(tmp_path):
    codes, report, (without, shared) = examined(["GPU-a", "", "GPU-a"], tmp_path, NEVER)
    assert codes == [1, 1, 1]
    assert without["name"] == shared["name"] == "gpus"
    assert without["what"] == f"rank 1 on {HOST}, CUDA_VISIBLE_DEVICES = '': no GPU to use, where others have one"
    assert "--train.device cpu" in without["fix"]
    assert shared["what"] == f"ranks 0, 2 have the same GPU, GPU-a on {HOST}"
    assert shared["fix"].startswith("start one rank per GPU (with Slurm one task per GPU: --ntasks-per-node equal to")
    assert report["backend"] == "gloo"
    assert len(report["links"]) == 6


def test_over_gloo_ranks_may_share_a_gpu(tmp_path):
    codes, report, failed = examined(["GPU-a", "GPU-a"], tmp_path, NEVER, "--backend", "gloo")
    assert (codes, failed, report["backend"]) == ([0, 0], [], "gloo")


def test_nccl_that_does_not_start_is_a_finding_with_its_own_words(tmp_path):
    """Nothing is pretended but the two GPUs: PyTorch's NCCL group finds none."""
    codes, report, (found,) = examined(["GPU-a", "GPU-b"], tmp_path)
    assert (codes, found["name"]) == ([1, 1], "nccl")
    assert re.match(f"rank 0 on {HOST}: (No CUDA GPUs|Found no NVIDIA driver)", found["what"])
    assert "NCCL_DEBUG=INFO" in found["fix"]
    assert report["backend"] == "gloo"
    assert len(report["links"]) == 2


ONE_HANGS = """
def connect(gpu):
    if rank == 0:
        while True:
            time.sleep(1)
    Path(os.environ["NCCL_DEBUG_FILE"]).write_text(
        "host:1:2 [0] NCCL INFO Bootstrap: Using eth0\\n"
        "[2026-01-01 00:00:00] host:1:2 [0] misc/socket.cc:500 NCCL WARN socketPollConnect: connect returned refused\\n"
    )
    raise RuntimeError("NCCL error in: x.cpp:1, unhandled system error\\nncclSystemError: a call failed.\\n")
nccl.connect = connect
"""


def test_where_nccl_fails_on_one_rank_the_others_do_not_wait_for_ever(tmp_path):
    codes, report, (found,) = examined(["GPU-a", "GPU-b"], tmp_path, ONE_HANGS)
    assert (codes, found["name"]) == ([1, 1], "nccl")
    text = (
        f"rank 1 on {HOST}: NCCL error in: x.cpp:1, unhandled system error; socketPollConnect: connect returned refused"
    )
    assert found["what"] == text
    assert report["backend"] == "gloo"
    assert len(report["links"]) == 2


STOPS_LATER = """
nccl.connect = lambda gpu: (torch.device("cpu"), dist.new_group(backend="gloo"))
real = dist.all_reduce
def all_reduce(data, group=None):
    while rank == 1 and group is not None and data.nbytes > 1 << 20:
        time.sleep(1)
    real(data, group=group)
dist.all_reduce = all_reduce
"""


def test_an_exchange_that_hangs_later_is_named(tmp_path):
    codes, report, (found,) = examined(["GPU-a", "GPU-b"], tmp_path, STOPS_LATER)
    assert (codes, found["name"]) == ([1, 1], "nccl")
    assert "nothing moved for 10 s in all-reduces of 16777216 bytes" in found["what"]
    assert report["backend"] == "gloo"


STANDS_IN = """
groups = []
def connect(gpu):
    groups.append(dist.new_group(backend="gloo"))
    return torch.device("cpu"), groups[0]
nccl.connect = connect
real_all_reduce, real_operation = dist.all_reduce, dist.P2POp
def all_reduce(data, group=None):
    assert group is groups[0]
    real_all_reduce(data, group=group)
def operation(kind, tensor, peer, group=None):
    assert group is groups[0]
    return real_operation(kind, tensor, peer, group)
dist.all_reduce, dist.P2POp = all_reduce, operation
"""


def test_where_each_rank_has_its_own_gpu_what_is_measured_goes_over_nccls_group(tmp_path):
    """A gloo group on the CPU stands in for it."""
    codes, report, failed = examined(["GPU-a", "GPU-b"], tmp_path, STANDS_IN)
    assert (codes, failed, report["backend"]) == ([0, 0], [], "nccl")
    assert next(one["what"] for one in report["findings"] if one["name"] == "gpus").startswith("2 ranks")
    assert len(report["all_reduce"]) == 4
    assert [(one["from"], one["to"]) for one in report["links"]] == [(0, 1), (1, 0)]
