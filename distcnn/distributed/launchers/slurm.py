"""A task of a Slurm step: `srun python -m distcnn`. https://slurm.schedmd.com/srun.html, "output environment"."""

import re

from distcnn.distributed.launchers.base import Variables, with_address
from distcnn.distributed.world import Environment, World

_SRUN = "start distcnn with srun, which sets"


class Slurm:
    """`srun`. A batch script has SLURM_JOB_ID and SLURM_NTASKS too, but is a single process, not a step."""

    rank_names = ("SLURM_PROCID",)
    local_rank_names = ("SLURM_LOCALID",)

    def detect(self, environment: Environment) -> bool:
        """Whether the process belongs to a step."""
        return any(name in environment for name in ("SLURM_STEP_NUM_TASKS", "SLURM_STEP_ID", "SLURM_STEPID"))

    def world(self, environment: Environment) -> World:
        """Return the World. Rank 0 is on the step's first node, at a port derived from the step's id."""
        variables = Variables(environment)
        size = variables.number("SLURM_STEP_NUM_TASKS", least=1)
        rank, local_rank = variables.number("SLURM_PROCID"), variables.number("SLURM_LOCALID")
        node = variables.number("SLURM_NODEID", 0)
        job, step = variables.number("SLURM_JOB_ID", least=1), variables.number("SLURM_STEP_ID", 0)
        text = environment.get("SLURM_STEP_TASKS_PER_NODE", str(size))
        counts = _tasks_per_node(text)
        local_size = counts[node] if node < len(counts) else size
        hosts = environment.get("SLURM_STEP_NODELIST", environment.get("SLURM_JOB_NODELIST", ""))
        variables.check({
            f"SLURM_STEP_TASKS_PER_NODE = {text!r}: should look like 4(x2),3; is it exported from another job? Unset "
            "it": not counts,
            f"SLURM_PROCID = {rank} in the environment: should be below SLURM_STEP_NUM_TASKS = {size}; {_SRUN} both":
                rank >= size,
            f"SLURM_STEP_TASKS_PER_NODE = {text}, SLURM_STEP_NUM_TASKS = {size}: they should add up; {_SRUN} both":
                sum(counts) != size,
            f"SLURM_NODEID = {node}, but SLURM_STEP_TASKS_PER_NODE = {text} lists {len(counts)} nodes; {_SRUN} "
            "both": node >= len(counts),
            f"SLURM_LOCALID = {local_rank} in the environment: should be below the {local_size} tasks that "
            f"SLURM_STEP_TASKS_PER_NODE gives this node; {_SRUN} both": local_rank >= local_size,
            f"SLURM_STEP_NODELIST = {hosts!r}: should name the step's nodes, like node[1-4]; {_SRUN} it":
                size > 1 and not _first_host(hosts),
        })  # fmt: skip
        cluster, restarts = environment.get("SLURM_CLUSTER_NAME", ""), environment.get("SLURM_RESTART_COUNT", "0")
        world = World(rank, size, local_rank, local_size, node, len(counts), "srun")
        return with_address(world, (_first_host(hosts),), job=f"slurm-{cluster}-{job}.{step}.{restarts}")


def _first_host(nodelist: str) -> str:
    """`gpu[07-09,12],login` → `gpu07`: Slurm's hostlist syntax; the first entry of each bracket."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodelist)
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", first[0]) if first else ""


def _tasks_per_node(text: str) -> list[int]:
    """`2(x3),1` → [2, 2, 2, 1]; empty if it is not of that form."""
    counts: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if match is None:
            return []
        counts += [int(match[1])] * int(match[2] or 1)
    return counts
