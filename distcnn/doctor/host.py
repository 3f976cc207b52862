"""The resources of a rank: launcher, cores, threads, memory, limits."""

import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

import psutil

from distcnn.distributed.cores import cores
from distcnn.doctor.findings import Finding, ok, warn
from distcnn.doctor.situation import Situation

GB, MB = 1e9, 1e6


def launcher(situation: Situation) -> Iterator[Finding]:
    """Report this rank, and whether a Slurm job's other tasks are unused."""
    world, tasks = situation.world, situation.environment.get("SLURM_NTASKS", "1")
    text = f"{world.launcher}: rank {world.rank} of {world.size}, node {world.node} of {world.nodes}"
    if world.launcher == "single" and tasks.isdecimal() and int(tasks) > 1:
        yield warn("launcher", f"{text}; the Slurm job has {tasks} tasks", "start distcnn with srun")
    else:
        yield ok("launcher", text)


def cores_of_ranks(situation: Situation) -> Iterator[Finding]:
    """Check that each rank has a core, and that a Slurm step has the cores it asked for."""
    here, world = cores(), situation.world
    asked = situation.environment.get("SLURM_CPUS_PER_TASK", "")
    if world.local_size > here:
        fix = "start fewer ranks, or let them use more cores: srun --cpus-per-task, taskset, mpirun --bind-to none"
        yield warn("cores", f"{world.local_size} ranks on this node may use {here} cores", fix)
    elif asked.isdecimal() and world.launcher == "srun" and int(asked) > here:
        fix = "srun --cpus-per-task, or export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK: srun does not inherit it"
        yield warn("cores", f"SLURM_CPUS_PER_TASK = {asked}, but {here} cores may be used", fix)
    else:
        yield ok("cores", f"{here} cores, {world.local_size} ranks on this node")


def threads(situation: Situation) -> Iterator[Finding]:
    """Check that no variable asks for more threads than there are cores."""
    here, ranks = cores(), situation.world.local_size
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        value = situation.environment.get(name, "")
        if value.isdecimal() and int(value) * ranks > max(here, ranks):
            text = f"{name} = {value}, {ranks} ranks, {here} cores: more threads than cores"
            yield warn("threads", text, f"unset {name}: by default train.threads is cores / ranks")


def memory(situation: Situation) -> Iterator[Finding]:
    """Check that each rank has 1 GB of memory."""
    free = _available_memory() / situation.world.local_size
    text = f"{free / GB:.1f} GB available per rank"
    if free < 1 * GB:
        yield warn("memory", text, "start fewer ranks on this node, or ask for more: --mem, docker --memory")
    else:
        yield ok("memory", text)


def _available_memory() -> float:
    """Return the available bytes of the machine, or of the cgroup if fewer."""
    free = float(psutil.virtual_memory().available)
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return free
    return min(free, int(limit) - used) if limit.isdecimal() else free


def open_files(_: Situation) -> Iterator[Finding]:
    """Check the limit on open files."""
    files, _most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files != resource.RLIM_INFINITY and files < 1024:
        fix = "ulimit -n 4096 before the start; permanently in /etc/security/limits.conf"
        yield warn("ulimit -n", f"{files} open files: DataLoader workers and many ranks need more", fix)
    else:
        yield ok("ulimit -n", f"{files} open files")


def locked_memory(_: Situation) -> Iterator[Finding]:
    """Check the limit on locked memory if there is InfiniBand."""
    locked, _most = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    infiniband = Path("/sys/class/infiniband")
    if infiniband.is_dir() and any(infiniband.iterdir()) and locked != resource.RLIM_INFINITY and locked < 64 * MB:
        fix = "ulimit -l unlimited: NCCL over InfiniBand locks its buffers"
        yield warn("ulimit -l", f"{locked} bytes of locked memory", fix)


def shared_memory(_: Situation) -> Iterator[Finding]:
    """Check the free space in /dev/shm, through which DataLoader workers pass batches."""
    path = Path("/dev/shm")
    if not path.is_dir():
        return
    usage = shutil.disk_usage(path)
    text = f"{usage.free / MB:,.0f} MB free of {usage.total / MB:,.0f}"
    if usage.free < 256 * MB:
        fix = "docker run --shm-size=2g, or remove other jobs' leftovers from /dev/shm; else data.workers: 0"
        yield warn("/dev/shm", text, fix)
    else:
        yield ok("/dev/shm", text)
