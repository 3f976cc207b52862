# shellcheck shell=bash
# Sourced by the scripts beside it: what the launchers have in common.
# shellcheck source-path=SCRIPTDIR source=../slurm/rules.sh
. "$(dirname "${BASH_SOURCE[0]}")/../slurm/rules.sh"

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
name="" launcher="" asked="" teller=""
supervise() {
    local code=0
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
    # as impatience.
    set -m
    start "$@"
    set +m
    await "$launcher" || code=$?
    if [ -n "$teller" ]; then { kill "$teller" && wait "$teller"; } 2> /dev/null || true; fi
    exit "$(exit_code "$code" "$asked")"
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
