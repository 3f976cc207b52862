# shellcheck shell=bash
# The body of a batch script: start the ranks, forward the scheduler's warning to them, requeue the job. "$@" is
# CONFIG.yaml [--section.key value ...], or several configs for an array. The lines above it set
#   mode             srun, torchrun or elastic
#   ranks_per_node   for torchrun and elastic
#   element          the array's element; empty: no array
#   asked            the signal received so far; empty: none
set -u
export PYTHON=${PYTHON:-python}
steps=()
# srun forwards a signal to its tasks; the ranks agree on a step to stop after, and save it.
# shellcheck disable=SC2329 # called by the traps
on_warning() {
    asked=$1
    [ "${#steps[@]}" = 0 ] || kill -s "$1" "${steps[@]}"
}
trap 'on_warning USR1' USR1
trap 'on_warning USR2' USR2
# Slurm sends TERM to the steps as well: wait until they have saved.
trap : TERM
# since Slurm 22.05, srun does not inherit it from sbatch
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}

# With one config, an array's element i trains it with seed i, as NAME-seed<i>; with several, it trains the i-th.
configs=()
while [ $# -gt 0 ] && [ "${1#--}" = "$1" ]; do
    configs+=("$1")
    shift
done
index=0
[ -z "$element" ] || [ "${#configs[@]}" = 1 ] || index=$element
if [ "${#configs[@]}" -le "$index" ] || { [ -z "$element" ] && [ "${#configs[@]}" != 1 ]; }; then
    echo "distcnn: ${#configs[@]} configs${element:+, none for element $element}: sbatch SCRIPT CONFIG.yaml" \
        "[--section.key value ...]; an array takes a config for each element, from 0" >&2
    exit 2
fi
if [ -n "$element" ] && [ "${#configs[@]}" = 1 ]; then
    name=$(basename "${configs[0]}" .yaml) option=
    for word in "$@"; do
        [ "$option" != --name ] || name=$word
        [ "${word#--name=}" = "$word" ] || name=${word#--name=}
        option=$word
    done
    set -- "$@" --seed "$element" --name "$name-seed$element"
fi
set -- train "${configs[$index]}" --checkpoint.resume auto "$@"
DISTCNN_EXIT_CODE_FILE=$(mktemp) && export DISTCNN_EXIT_CODE_FILE

# A torchrun agent would die of the warning, and its workers, in sessions of their own, would not get it: this shields the
# agent and signals the workers. Exported, because bash runs it on the nodes.
# shellcheck disable=SC2154,SC2329 # `start` sets launcher; called by name, on the nodes
agent() {
    trap 'signal_workers USR1' USR1
    trap 'signal_workers USR2' USR2
    trap : TERM
    start "$PYTHON" -m torch.distributed.run "$@"
    await "$launcher"
}
export -f agent start await signal_workers

# A node that has just come back may not accept a step yet.
for _ in 1 2 3 4 5 6; do
    timeout 20 srun --ntasks-per-node=1 true && break
    sleep 5
done
# The agents meet on this node, the first one, at a port that is free now.
head=${SLURMD_NODENAME:-$(hostname)}
port=$("$PYTHON" -c 'import socket; print(socket.create_server(("", 0)).getsockname()[1])')
rendezvous=(--nproc-per-node="${ranks_per_node:-1}"
    --rdzv-backend=c10d --rdzv-endpoint="$head:$port" --rdzv-id="$SLURM_JOB_ID")
case "${mode:?}" in
    srun)
        srun --kill-on-bad-exit=1 "$PYTHON" -m distcnn "$@" &
        steps+=($!)
        ;;
    torchrun)
        srun --kill-on-bad-exit=1 bash -c 'agent "$@"' agent \
            --nnodes="$SLURM_JOB_NUM_NODES" "${rendezvous[@]}" -m distcnn "$@" &
        steps+=($!)
        ;;
    elastic)
        # One step per node, the first node first: a single step over all nodes would hang if one is lost.
        for node in "$head" $(scontrol show hostnames "$SLURM_JOB_NODELIST" | grep -vx "$head"); do
            srun --nodes=1 --ntasks=1 --nodelist="$node" bash -c 'agent "$@"' agent \
                --nnodes="1:$SLURM_JOB_NUM_NODES" "${rendezvous[@]}" --max-restarts=3 \
                --rdzv-conf=last_call_timeout=5,keep_alive_interval=2,keep_alive_max_attempt=3 -m distcnn "$@" &
            steps+=($!)
        done
        ;;
esac
# A signal received before there were steps to forward it to.
[ -z "$asked" ] || kill -s "$asked" "${steps[@]}"

# srun waits forever for the tasks of a dead node. It is killed 90 s after rank 0 has exited, which is longer than Slurm's
# KillWait for living tasks. (If torchrun restarts rank 0, the file is emptied.)
(
    ended=0
    while [ "$ended" -lt 90 ]; do
        sleep 1
        if [ -s "$DISTCNN_EXIT_CODE_FILE" ]; then ended=$((ended + 1)); else ended=0; fi
    done
    [ "$(cat "$DISTCNN_EXIT_CODE_FILE")" = 0 ] || echo 75 > "$DISTCNN_EXIT_CODE_FILE"
    kill -KILL "${steps[0]}"
) &
watch=$!
await "${steps[0]}"
code=$(exit_code "$?" "${asked:+75}")
kill "$watch" 2> /dev/null
rm -f "$DISTCNN_EXIT_CODE_FILE"
# A failure after the warning, such as a rank that has lost another, is retried as well.
[ -z "$asked" ] || [ "$code" = 0 ] || [ "$code" = 2 ] || code=75
# 75: preempted and saved, or a node was lost. Requeue this job or, in an array, only this element.
if [ "$code" = 75 ] && command -v scontrol > /dev/null; then
    # An array's last element has the array's own number, which would requeue the entire array.
    job=$SLURM_JOB_ID
    [ -z "${SLURM_ARRAY_JOB_ID:-}" ] || job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
    echo "distcnn: requeueing $job"
    trap - TERM
    scontrol requeue "$job" && sleep 60 # until the requeue ends it: a script that exits now may end the job too
fi
exit "$code"
