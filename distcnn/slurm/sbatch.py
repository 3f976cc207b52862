"""The batch scripts, as text: `distcnn slurm` submits them; slurm/*.sbatch are the same, to be edited by hand."""

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Launcher = Literal["srun", "torchrun", "elastic"]


@dataclass(frozen=True)
class Job:
    """What a batch script asks Slurm for, and what it starts."""

    launcher: Launcher = "srun"
    name: str = "distcnn"
    nodes: int = 2
    ranks_per_node: int = 4
    gpus_per_node: int = 4
    cpus_per_rank: int | None = 8
    time: str | None = "04:00:00"
    signal: str = "USR1"
    grace: int = 120  # seconds from the signal to the time limit
    array: str | None = None  # as sbatch takes it: 0-3
    options: tuple[str, ...] = ()  # further sbatch options, without the dashes
    output: str = "%x-%j.out"
    python: str = '"${PYTHON:-python}"'  # as the shell reads it
    configs: tuple[str, ...] = ()  # none: those of the script's own command line
    arguments: tuple[str, ...] = ()  # --section.key value


def script(job: Job) -> str:
    """The whole text of a batch script."""
    arguments = ARRAY_ARGUMENTS if job.array else ARGUMENTS
    head, given = "\n".join(_header(job)), "\n".join(_given(job))
    parts = [head, BEGIN, given + arguments if given else arguments, STEPS[job.launcher], END]
    text = "\n\n".join(part.strip("\n") for part in parts) + "\n"
    values = {
        "SIGNAL": job.signal,
        "PYTHON": job.python,
        "RANKS": str(job.ranks_per_node),
        "GRACE": str(job.grace),
    }
    for name, value in values.items():
        text = text.replace(f"@{name}@", value)
    return text


def _header(job: Job) -> Iterator[str]:
    yield "#!/bin/bash"
    yield (
        "# distcnn under Slurm: "
        + {
            "srun": "one task for each rank, no agent.",
            "torchrun": "one torchrun agent on each node.",
            "elastic": "torchrun on the nodes that there are. When one is lost, but not the first, the others go on.",
        }[job.launcher]
    )
    if not job.configs:
        file, many = ("array", " [CONFIG.yaml ...]") if job.array else (job.launcher, "")
        yield f"#   sbatch slurm/{file}.sbatch CONFIG.yaml{many} [--section.key value ...]"
    if job.array:
        yield "# With one config, element i trains it with seed i, as NAME-seed<i>; with several, it trains the i-th."
    yield "# Requeued, or submitted again, it continues the run of that name; give --name for another run."
    per_rank = 1 if job.launcher == "srun" else job.ranks_per_node
    lines = {
        "job-name": job.name,
        "nodes": f"1-{job.nodes}" if job.launcher == "elastic" else job.nodes,
        # With it, Slurm is content with the least number of nodes.
        "ntasks-per-node": job.ranks_per_node // per_rank if job.launcher != "elastic" else None,
        "gpus-per-node": job.gpus_per_node or None,
        "cpus-per-task": job.cpus_per_rank and job.cpus_per_rank * per_rank,
        "time": job.time,
        "array": job.array,
        "output": job.output,
        "open-mode": "append",
    }
    yield from (f"#SBATCH --{key}={shlex.quote(str(value))}" for key, value in lines.items() if value is not None)
    yield "#SBATCH --requeue"
    if job.launcher == "elastic":
        yield "#SBATCH --no-kill"
    yield "# So many seconds before the time limit, to this shell alone (B:), and at a preemption if the cluster has"
    yield "# preempt_send_user_signal. It should cover two steps, an evaluation and a save."
    yield f"#SBATCH --signal=B:{job.signal}@{job.grace}"
    yield from (f"#SBATCH --{option}" for option in job.options)


def _given(job: Job) -> Iterator[str]:
    """The command line that a script without one of its own is for."""
    if job.configs:
        yield "set -- " + " ".join(shlex.quote(word) for word in (*job.configs, *job.arguments))


BEGIN = """
set -u
steps=() asked=
# srun passes the signal on to its tasks; the ranks agree after which step they save and end.
trap 'asked=1; [ "${#steps[@]}" = 0 ] || kill -@SIGNAL@ "${steps[@]}"' @SIGNAL@
# Slurm sends TERM to the steps as well: wait until they have saved.
trap : TERM
# srun does not take it from sbatch since Slurm 22.05
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
# Rank 0 says here how it has ended: torchrun and srun do not tell.
DISTCNN_EXIT_CODE_FILE=$(mktemp) && export DISTCNN_EXIT_CODE_FILE
export DISTCNN_GRACE=@GRACE@ # seconds: the run warns where a step and a save take longer
# An array's last element bears the array's own number: by that, all of it would be requeued.
job=$SLURM_JOB_ID
[ -z "${SLURM_ARRAY_JOB_ID:-}" ] || job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID

# `wait` returns for a signal too: ask again until the process has ended.
await() {
    wait "$1"
    while kill -0 "$1" 2>/dev/null; do wait "$1"; done
    wait "$1"
}
export -f await
"""

ARGUMENTS = """
config=${1:?give a config: sbatch SCRIPT CONFIG.yaml [--section.key value ...]}
shift
set -- train "$config" --checkpoint.resume auto "$@"
"""

ARRAY_ARGUMENTS = """
configs=()
while [ $# -gt 0 ] && [ "${1#--}" = "$1" ]; do
    configs+=("$1")
    shift
done
if [ "${#configs[@]}" = 1 ]; then
    name=$(basename "${configs[0]}" .yaml)
    for ((i = 1; i < $#; i++)); do
        j=$((i + 1))
        [ "${!i}" != --name ] || name=${!j}
    done
    set -- "${configs[0]}" "$@" --seed "$SLURM_ARRAY_TASK_ID" --name "$name-seed$SLURM_ARRAY_TASK_ID"
else
    set -- "${configs[$SLURM_ARRAY_TASK_ID]:?this element has no config}" "$@"
fi
config=$1
shift
set -- train "$config" --checkpoint.resume auto "$@"
"""

_READY = """
# A node that has just come back may not take a step yet.
for _ in 1 2 3 4 5 6; do
    timeout 20 srun --ntasks-per-node=1 true && break
    sleep 5
done
"""

# The port is free now, on this node, which is the first one: the agents meet here.
_MEETING = """
head=${SLURMD_NODENAME:-$(hostname)}
port=$(@PYTHON@ -c 'import socket; print(socket.create_server(("", 0)).getsockname()[1])')
"""

# Exported, for bash to run on the nodes.
_AGENT = """
# A torchrun agent has no handler for the signal and would die of it, and leave its workers, which are in sessions of
# their own, behind: the agent is kept from it, and the workers get it.
# shellcheck disable=SC2329 # it is called by name, on the nodes
agent() {
    # There may be no workers yet: torchrun starts them when all the agents have met.
    trap 'until pkill -@SIGNAL@ -P "$pid" || ! kill -0 "$pid" 2>/dev/null; do sleep 0.2; done' @SIGNAL@
    trap : TERM
    (
        trap "" @SIGNAL@
        exec @PYTHON@ -m torch.distributed.run "$@"
    ) &
    pid=$!
    await "$pid"
}
export -f agent
"""

STEPS: dict[Launcher, str] = {
    "srun": _READY
    + """srun --kill-on-bad-exit=1 @PYTHON@ -m distcnn "$@" &
steps+=($!)
""",
    "torchrun": _MEETING
    + _AGENT
    + _READY
    + """srun --kill-on-bad-exit=1 bash -c 'agent "$@"' agent \\
    --nnodes="$SLURM_JOB_NUM_NODES" --nproc-per-node=@RANKS@ \\
    --rdzv-backend=c10d --rdzv-endpoint="$head:$port" --rdzv-id="$SLURM_JOB_ID" -m distcnn "$@" &
steps+=($!)
""",
    "elastic": _MEETING
    + _AGENT
    + _READY
    + """# A step for each node, the first one first: a step over all of them would hang when one is lost.
for node in "$head" $(scontrol show hostnames "$SLURM_JOB_NODELIST" | grep -vx "$head"); do
    srun --nodes=1 --ntasks=1 --nodelist="$node" bash -c 'agent "$@"' agent \\
        --nnodes="1:$SLURM_JOB_NUM_NODES" --nproc-per-node=@RANKS@ --max-restarts=3 \\
        --rdzv-backend=c10d --rdzv-endpoint="$head:$port" --rdzv-id="$SLURM_JOB_ID" \\
        --rdzv-conf=last_call_timeout=5,keep_alive_interval=2,keep_alive_max_attempt=3 -m distcnn "$@" &
    steps+=($!)
done
""",
}

END = """
# Asked before there was anybody to pass it on to.
[ -z "$asked" ] || kill -@SIGNAL@ "${steps[@]}"
# srun waits without end for the tasks of a node that has died. It gets 90 s after rank 0's end, more than Slurm's own
# KillWait, which is for tasks that live. (torchrun may start rank 0 again: then the file is empty again.)
(
    ended=0
    while [ "$ended" -lt 90 ]; do
        sleep 1
        if [ -s "$DISTCNN_EXIT_CODE_FILE" ]; then ended=$((ended + 1)); else ended=0; fi
    done
    [ "$(cat "$DISTCNN_EXIT_CODE_FILE")" = 0 ] || echo 75 >"$DISTCNN_EXIT_CODE_FILE"
    kill -KILL "${steps[0]}"
) &
watch=$!
await "${steps[0]}"
status=$?
kill "$watch" 2>/dev/null
code=$(cat "$DISTCNN_EXIT_CODE_FILE")
code=${code:-$status}
rm -f "$DISTCNN_EXIT_CODE_FILE"
# A signal that came before the ranks could catch it has ended them without a word.
[ -z "$asked" ] || [ "$code" = 0 ] || [ "$code" = 2 ] || code=75
# 75: saved, to make room, or a node was lost. This job, or this element of an array alone, is queued again.
if [ "$code" = 75 ] && command -v scontrol >/dev/null; then
    echo "distcnn: $job goes back into the queue"
    trap - TERM
    scontrol requeue "$job" && sleep 60 # to be ended by it: a script that ends by itself now may take the job along
fi
exit "$code"
"""
