# shellcheck shell=bash
# Sourced by the scripts beside it: what the launchers have in common.

# die MESSAGE: wrong use, or something that is missing.
die() {
    echo "launch/${0##*/}: $1" >&2
    exit 2
}

# check_number OPTION VALUE [LEAST]: a whole number, or the end.
check_number() {
    if ! [[ $2 =~ ^(0|[1-9][0-9]{0,5})$ ]] || [ "$2" -lt "${3:-1}" ]; then
        die "$1 $2: should be a whole number of ${3:-1} or more"
    fi
}

# count_gpus: the NVIDIA GPUs that this script's processes may use.
count_gpus() {
    case "${CUDA_VISIBLE_DEVICES-all}" in
        all) { nvidia-smi --list-gpus 2>/dev/null || true; } | grep -c '^GPU' || true ;;
        "" | -1) echo 0 ;;
        *) tr ',' '\n' <<< "$CUDA_VISIBLE_DEVICES" | wc -l ;;
    esac
}

# hosts_of HOSTFILE: a line "host slots" for each host of an Open MPI host file.
hosts_of() {
    awk '{ sub(/#.*/, "") }
         NF { host = $1; sub(/.*@/, "", host); n = 1
              for (i = 2; i <= NF; i++) if ($i ~ /^slots=[0-9]+$/) n = substr($i, 7)
              if (!(host in slots)) order[++count] = host
              slots[host] += n }
         END { for (i = 1; i <= count; i++) print order[i], slots[order[i]] }' "$1"
}

# need_mpirun: Open MPI's; the options of the others differ.
need_mpirun() {
    command -v mpirun > /dev/null || die "needs mpirun, which is not on the PATH: install Open MPI, or load its module"
    [[ $(mpirun --version 2>&1) == *"Open MPI"* ]] || die "needs Open MPI's mpirun; $(command -v mpirun) is another"
    # It gives each rank a terminal of its own. rich, which prints, would draw its progress bar into a log file.
    [ -t 1 ] || export TTY_COMPATIBLE=0 TTY_INTERACTIVE=0
}

# make_scratch: $scratch, a folder that goes when the script ends.
scratch=""
make_scratch() {
    [ -z "$scratch" ] || return 0
    scratch=$(mktemp -d "${TMPDIR:-/tmp}/distcnn-launch.XXXXXX")
    trap 'rm -rf "$scratch"' EXIT
}

# supervise COMMAND...: run a launcher, and make up for what launchers lose: the ranks' exit code and some signals.
#
# distcnn writes its exit code into the file that DISTCNN_EXIT_CODE_FILE names. Signals are handed on by hand_on.
name="" launcher="" asked="" teller=""
supervise() {
    local code=0 said
    name=$1
    if [ -z "${DISTCNN_EXIT_CODE_FILE:-}" ]; then
        make_scratch
        export DISTCNN_EXIT_CODE_FILE=$scratch/exit_code
        : > "$DISTCNN_EXIT_CODE_FILE"
    elif [ -f "$DISTCNN_EXIT_CODE_FILE" ]; then
        : > "$DISTCNN_EXIT_CODE_FILE" # what an earlier run has left
    fi
    # torchrun and Accelerate would set it, with a warning each; distcnn sets the threads of each rank itself.
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
    trap 'on_signal TERM 75' TERM HUP
    trap 'on_signal INT 130' INT
    trap 'on_signal USR1 75' USR1
    trap 'on_signal USR2 75' USR2
    # A process group of its own: else Ctrl-C on a terminal would reach the launcher twice, and the second one counts
    # as impatience. USR1 and USR2 are ignored, because a scheduler may send them to every process, and a launcher
    # without a handler would die of them and leave its ranks behind (https://github.com/pytorch/pytorch/issues/154849).
    set -m
    (
        trap '' USR1 USR2
        exec "$@" < /dev/null
    ) &
    launcher=$!
    set +m
    while kill -0 "$launcher" 2> /dev/null; do
        wait "$launcher" || true # a signal interrupts it
    done
    wait "$launcher" || code=$? # bash has kept it
    if [ -n "$teller" ]; then { kill "$teller" && wait "$teller"; } 2> /dev/null || true; fi
    said=$(cat "$DISTCNN_EXIT_CODE_FILE" 2> /dev/null || true)
    if [ "$code" != 0 ]; then
        [ "${said:-0}" = 0 ] || code=$said
        # Stopped before a rank could say so, or by USR1 in place of Ctrl-C.
        if [ -n "$asked" ] && [ "${said:-75}" = 75 ]; then code=$asked; fi
    fi
    exit "$code"
}

# on_signal SIGNAL CODE: a second Ctrl-C is "INT again".
on_signal() {
    [ -n "$launcher" ] || exit "$2"
    hand_on "$1$([ "$1$asked" != INT130 ] || echo ' again')" 2> /dev/null || true
    asked=$2
}

# hand_on SIGNAL: to all ranks, by what the launcher does with signals.
hand_on() {
    case "$name $1" in
        # mpirun hands USR1 on to all ranks, wherever they run, and waits for them. After TERM or INT it would kill them
        # in a second, which may be too short to save.
        "mpirun INT again") kill -s INT "$launcher" ;;
        mpirun*) kill -s USR1 "$launcher" ;;
        *again) pkill -INT -P "$launcher" ;;
        # torchrun hands these two on to its workers, and waits for them. The others it must not see.
        "torchrun TERM" | "torchrun INT") kill -s "$1" "$launcher" ;;
        torchrun*) keep_telling "$1" ;;
        # Accelerate's child is the one process or mpirun, or its children are its workers: USR1 is right for each.
        accelerate*) keep_telling USR1 ;;
    esac
}

# keep_telling SIGNAL: to the launcher's children, until it ends; a rank that was only just started does not listen
# yet. If there are none, nothing is lost by ending the launcher.
keep_telling() {
    [ -z "$teller" ] || return 0
    while kill -0 "$launcher"; do
        pkill "-$1" -P "$launcher" || kill -s TERM "$launcher"
        sleep 1
    done > /dev/null 2>&1 &
    teller=$!
}
