"""A real Slurm cluster of two nodes, brought up by cluster.sh, as a user at its login node sees it."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.ranks import TIMEOUT, clean_environment

HERE = Path(__file__).parent


class Cluster:
    """Commands on the cluster."""

    def __init__(self, root: Path):
        self.root = root
        self.patient: set[str] = set()  # jobs that start when Slurm wants them to
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.environment = clean_environment() | {"SLURM_CONF": str(root / "slurm.conf"), "PATH": path}

    def power(self, what: str, *node: str) -> None:
        """`up`, `down`, `poweroff NODE` or `poweron NODE`."""
        command = [HERE / "cluster.sh", what, *node]
        # Its daemons inherit stdout: a pipe would stay open as long as they live.
        with (self.root.parent / "cluster.log").open("ab") as log:
            subprocess.run(command, env=self.environment | {"ROOT": str(self.root)}, stdout=log, stderr=log, check=True, timeout=120)  # fmt: skip

    def run(self, *command: object, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(list(map(str, command)), env=self.environment, text=True, capture_output=True, timeout=TIMEOUT)  # fmt: skip
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    def submit(self, *arguments: object) -> str:
        """`distcnn slurm …`; returns the job's number."""
        done = self.run(sys.executable, "-m", "distcnn", "slurm", *arguments)
        return done.stdout.split("submitted  job ")[1].split(",")[0].split()[0]

    def field(self, job: str, name: str) -> str:
        words = self.run("scontrol", "show", "job", job).stdout.split()
        return next(word.split("=", 1)[1] for word in words if word.startswith(f"{name}="))

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for it, as long as a hang guard allows. Requeued jobs, which Slurm lets wait, start soon."""
        deadline = time.monotonic() + TIMEOUT
        while not condition():
            if time.monotonic() > deadline:
                log = (self.root / "log" / "slurmctld.out").read_text().splitlines()[-30:]
                raise AssertionError("\n".join([f"waited in vain for {what}", self.run("squeue").stdout, *log]))
            for line in self.run("squeue", "-h", "-t", "PD", "-o", "%i %r").stdout.splitlines():
                job, reason = line.split()
                if reason == "BeginTime" and job not in self.patient:
                    self.run("scontrol", "update", f"jobid={job}", "StartTime=now", check=False)
            time.sleep(1)

    def node(self, name: str) -> str:
        """The state of a node: idle, mix, down*, …"""
        return self.run("sinfo", "-h", "-n", name, "-p", "main", "-o", "%t").stdout.strip()

    def until_idle(self) -> None:
        """Wait until both nodes are there and have nothing to do."""
        self.until(lambda: self.node("node1") == self.node("node2") == "idle", "two idle nodes")

    def finish(self, *jobs: str) -> None:
        """Wait until the jobs have ended."""
        ended = ("COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL", "TIMEOUT", "PREEMPTED")
        for job in jobs:
            self.until(lambda job=job: self.field(job, "JobState") in ended, f"job {job} to end")
