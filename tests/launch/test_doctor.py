"""distcnn doctor: real faults, planted one by one, are each found and named with a fix; where all is well it is silent."""

import json
import re
import subprocess

import pytest

from distcnn.doctor.links import link_findings, slow_links
from distcnn.doctor.network import chosen_pairs
from tests.hosts import run_on_hosts
from tests.needs import require
from tests.ranks import bare, free_port, run_ranks, run_torchrun, start

DOCTOR = ["doctor", "--json"]


def told(out):
    """The findings that are not well, by what they are about."""
    findings = json.loads(next(line for line in out.splitlines() if line.startswith("{")))["findings"]
    assert all(finding["fix"] for finding in findings if finding["status"] != "ok")
    return {finding["name"]: finding for finding in findings if finding["status"] != "ok"}


def diagnosed(shell="", *, before=(), cwd, code=0, **environment):
    """What one process finds in an environment, or inside a shell that has changed something for it."""
    within = [*before, "sh", "-c", f'{shell} && exec "$@"', "sh"] if shell else ()
    outcome = run_ranks(DOCTOR, cwd=cwd, within=within, **environment)
    assert outcome.codes == [code], outcome.out + outcome.err
    return told(outcome.out)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_healthy_machine_gets_no_warning(tmp_path, ranks):
    outcome = run_torchrun(["doctor", "--json", "--output-dir", tmp_path], ranks)
    assert outcome.codes == [0], outcome.err
    assert told(outcome.out) == {}
    found = json.loads(next(line for line in outcome.out.splitlines() if line.startswith("{")))
    if ranks == 2:
        assert [one["size"] for one in found["all_reduce"]] == [1 << 10, 1 << 15, 1 << 20, 1 << 24]
        assert [(one["from"], one["to"]) for one in found["links"]] == [(0, 1), (1, 0)]
    assert list(tmp_path.iterdir()) == []


def test_tables_are_for_people(tmp_path):
    outcome = run_torchrun(["doctor", "--output-dir", tmp_path], 2)
    for text in ("✓ ok  versions", "all-reduce, gloo", "links in MB/s", "0 warn, 0 fail"):
        assert text in outcome.out


def test_threads_that_get_into_each_others_way(tmp_path):
    found = diagnosed(cwd=tmp_path, OMP_NUM_THREADS="64")
    assert found.keys() == {"threads"}
    assert "unset OMP_NUM_THREADS" in found["threads"]["fix"]


def test_ranks_that_share_a_core(tmp_path):
    require("taskset")
    outcome = run_ranks(DOCTOR, 2, cwd=tmp_path, within=["taskset", "-c", "0"])
    assert outcome.codes == [0, 0], outcome.err
    assert "taskset" in told(outcome.out)["cores"]["fix"]


def test_few_open_files(tmp_path):
    found = diagnosed("ulimit -n 64", cwd=tmp_path)
    assert "ulimit -n 4096" in found["ulimit -n"]["fix"]


@pytest.mark.parametrize(
    ("size", "status", "text"),
    [("size=30m", "fail", "make room"), ("size=400m", "warn", "make room"), ("nr_inodes=3", "fail", "remove some")],
)
def test_a_disk_that_is_full_or_has_no_room_for_files(tmp_path, size, status, text):
    require("unshare", root=True)
    (tmp_path / "runs").mkdir()
    mount = f"mount -t tmpfs -o {size} none runs"
    found = diagnosed(mount, before=["unshare", "--mount"], cwd=tmp_path, code=1 if status == "fail" else 0)
    assert found["output_dir"]["status"] == status
    assert text in found["output_dir"]["fix"]


def test_a_disk_that_cannot_be_written(tmp_path):
    require("unshare", root=True)
    (tmp_path / "runs").mkdir()
    mount = "mount -t tmpfs none runs && mount -o remount,ro runs"
    found = diagnosed(mount, before=["unshare", "--mount"], cwd=tmp_path, code=1)
    assert "cannot be written" in found["output_dir"]["what"]
    cache = diagnosed(cwd=tmp_path, code=1, DISTCNN_CACHE="/proc/nothing")
    assert "$DISTCNN_CACHE" in cache["cache"]["fix"]


def test_shared_memory_as_small_as_dockers(tmp_path):
    require("unshare", root=True)
    mount = "mount -t tmpfs -o size=64m none /dev/shm"
    found = diagnosed(mount, before=["unshare", "--mount"], cwd=tmp_path)
    assert "--shm-size" in found["/dev/shm"]["fix"]


def test_a_slurm_job_started_without_srun_and_fewer_cores_than_asked_for(tmp_path):
    alone = diagnosed(cwd=tmp_path, SLURM_NTASKS="4", SLURM_JOB_ID="7")
    assert alone["launcher"]["fix"] == "start distcnn with srun"
    step = {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_JOB_ID": "7"}
    cores = diagnosed(cwd=tmp_path, **step, SLURM_CPUS_PER_TASK="999")
    assert "SRUN_CPUS_PER_TASK" in cores["cores"]["fix"]


def test_two_launchers_that_disagree(tmp_path):
    torch = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "a", "MASTER_PORT": "1234"}
    found = diagnosed(cwd=tmp_path, code=2, **torch, SLURM_STEP_NUM_TASKS="4", SLURM_PROCID="3")
    assert "Unset RANK and WORLD_SIZE" in found["launcher"]["what"] + found["launcher"]["fix"]


def test_a_rank_that_never_comes(tmp_path):
    outcome = run_ranks([*DOCTOR, "--timeout", "3"], bare(2)[:1], cwd=tmp_path)
    assert outcome.codes == [1], outcome.err
    assert "are all ranks started" in told(outcome.out)["rendezvous"]["fix"]


def test_a_tracker_that_cannot_be_reached(tmp_path):
    found = diagnosed(cwd=tmp_path, WANDB_API_KEY="x" * 40, WANDB_BASE_URL=f"http://127.0.0.1:{free_port()}")
    assert "WANDB_MODE=offline" in found["wandb"]["fix"]


def test_packages_that_differ_between_ranks_and_do_not_belong_together(tmp_path):
    def pretend(name):
        folder = tmp_path / "elsewhere" / f"{name}-0.1.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1\n")

    pretend("numpy")
    one, other = bare(2)
    outcome = run_ranks(DOCTOR, [one, other | {"PYTHONPATH": str(tmp_path / "elsewhere")}], cwd=tmp_path)
    found = told(outcome.out)
    assert "rank 1" in found["versions"]["what"]
    assert "one environment" in found["versions"]["fix"]
    pretend("torchvision")
    alone = diagnosed(cwd=tmp_path, code=1, PYTHONPATH=str(tmp_path / "elsewhere"))
    assert "pip install 'torchvision==0." in alone["versions"]["fix"]


AHEAD = """
import sys, time
real = time.time
time.time = lambda: real() + 90  # libfaketime would do it for all of the process, and makes waits of gloo's end early
from distcnn.cli import main
sys.exit(main(["doctor", "--json"]))
"""


def test_a_clock_that_is_ahead(tmp_path):
    one, other = bare(2)
    with start(DOCTOR, [one], cwd=tmp_path) as first, start([], [other], ["-c", AHEAD], cwd=tmp_path) as second:
        assert first.wait() + second.wait() == [0, 0], first.err() + second.err()
        found = told(first.out())
    assert found.keys() == {"clocks"}
    assert "rank 1" in found["clocks"]["what"]
    (ahead,) = re.findall(r"is \+([\d.]+) s from rank 0", found["clocks"]["what"])
    assert float(ahead) == pytest.approx(90, abs=5)  # a busy machine's answers take a while
    assert "chrony" in found["clocks"]["fix"]


def test_a_rank_with_half_the_bandwidth(hosts, tmp_path):
    require("tc")
    for host, rate in zip(hosts, ("800mbit", "400mbit"), strict=True):
        limit = ["tc", "qdisc", "add", "dev", "eth0", "root", "tbf", "rate", rate, "burst", "64kb", "latency", "100ms"]
        subprocess.run(["ip", "netns", "exec", host, *limit], check=True, capture_output=True)
    outcome = run_on_hosts(hosts, DOCTOR)
    assert outcome.codes == [0, 0], outcome.err
    found = told(outcome.out)
    assert found.keys() == {"links"}
    assert f"rank 1 on {hosts[1]} sends" in found["links"]["what"]
    assert "tc qdisc" in found["links"]["fix"]


def test_one_slow_link_is_told_from_a_slow_rank():
    hosts = [f"host{i}" for i in range(4)]
    links = dict.fromkeys(chosen_pairs(4), 100000000.0)
    assert slow_links(links, hosts) == []
    links[1, 2] = 50e6
    (finding,) = link_findings(links, slow_links(links, hosts), hosts)
    assert finding.what.startswith("rank 1 on host1 to rank 2 on host2: 50 MB/s")
    links |= {(3, i): 40e6 for i in range(3)}
    found = [finding.what for finding in link_findings(links, slow_links(links, hosts), hosts)]
    assert found[0] == "rank 3 on host3 sends 40 MB/s, the others 100"
    assert len(found) == 2
    # Within a host is another kind of link than between two.
    quick = {(0, 1): 2e9, (1, 0): 2e9, **{(i, j): 1e8 for i in (0, 1) for j in (2, 3)}}
    assert slow_links(quick, ["a", "a", "b", "b"]) == []


def test_many_ranks_are_tried_in_part():
    pairs = chosen_pairs(64)
    assert len(pairs) == 4 * 64
    assert {i for i, _ in pairs} == {j for _, j in pairs} == set(range(64))
