# shellcheck shell=bash
# The body of a batch script: start the ranks, pass the scheduler's warning on to them, queue the job again. "$@" is
# CONFIG.yaml [--section.key value ...], or several configs for an array. The lines above it have set
#   mode             srun, torchrun or elastic
#   ranks_per_node   for torchrun and elastic
#   element          the array's element; empty: no array
#   asked            a signal that has come already; empty: none
set -u
export PYTHON=${PYTHON:-python}
steps=()
# srun passes a signal on to its tasks; the ranks agree after which step they save and end.
# shellcheck disable=SC2329 # it is called by the traps
on_warning() {
    asked=$1
    [ "${#steps[@]}" = 0 ] || kill -s "$1" "${steps[@]}"
}
trap 'on_warning USR1' USR1
trap 'on_warning USR2' USR2
# Slurm sends TERM to the steps as well: wait until they have saved.
trap : TERM
# srun does not take it from sbatch since Slurm 22.05
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

# A torchrun agent would die of the warning, and its workers, which are in sessions of their own, would not get it: the
# agent is kept from it, and the workers get it. Exported, for bash to run on the nodes.
# shellcheck disable=SC2154,SC2329 # `start` sets launcher; called by name, on the nodes
agent() {
    trap 'keep_telling USR1' USR1
    trap 'keep_telling USR2' USR2
    trap : TERM
    start "$PYTHON" -m torch.distributed.run "$@"
    await "$launcher"
}
export -f agent start await keep_telling

# A node that has just come back may not take a step yet.
for _ in 1 2 3 4 5 6; do
    timeout 20 srun --ntasks-per-node=1 true && break
    sleep 5
done
# The agents meet on this node, which is the first one, at a port that is free now.
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
        # A step for each node, the first one first: a step over all of them would hang when one is lost.
        for node in "$head" $(scontrol show hostnames "$SLURM_JOB_NODELIST" | grep -vx "$head"); do
            srun --nodes=1 --ntasks=1 --nodelist="$node" bash -c 'agent "$@"' agent \
                --nnodes="1:$SLURM_JOB_NUM_NODES" "${rendezvous[@]}" --max-restarts=3 \
                --rdzv-conf=last_call_timeout=5,keep_alive_interval=2,keep_alive_max_attempt=3 -m distcnn "$@" &
            steps+=($!)
        done
        ;;
esac
# Asked before there were steps to pass it on to.
[ -z "$asked" ] || kill -s "$asked" "${steps[@]}"

# srun waits without end for the tasks of a node that has died. It gets 90 s after rank 0's end, more than Slurm's own
# KillWait, which is for tasks that live. (torchrun may start rank 0 again: then the file is empty again.)
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
# What fails after the warning, such as a rank that has lost another, is tried again as well.
[ -z "$asked" ] || [ "$code" = 0 ] || [ "$code" = 2 ] || code=75
# 75: saved, to make room, or a node was lost. This job, or this element of an array alone, is queued again.
if [ "$code" = 75 ] && command -v scontrol > /dev/null; then
    # An array's last element bears the array's own number: by that, all of it would be requeued.
    job=$SLURM_JOB_ID
    [ -z "${SLURM_ARRAY_JOB_ID:-}" ] || job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
    echo "distcnn: $job goes back into the queue"
    trap - TERM
    scontrol requeue "$job" && sleep 60 # to be ended by it: a script that ends by itself now may take the job along
fi
exit "$code"
