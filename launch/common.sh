# shellcheck shell=bash
# Sourced by the scripts in this folder: functions that the launchers share.
# shellcheck source-path=SCRIPTDIR source=../slurm/rules.sh
. "$(dirname "${BASH_SOURCE[0]}")/../slurm/rules.sh"

# die MESSAGE: exit with 2, for wrong usage or a missing requirement.
die() {
    echo "launch/${0##*/}: $1" >&2
    exit 2
}

# check_number OPTION VALUE [LEAST]: exit unless VALUE is a whole number of at least LEAST.
check_number() {
    if ! [[ $2 =~ ^(0|[1-9][0-9]{0,5})$ ]] || [ "$2" -lt "${3:-1}" ]; then
        die "$1 $2: should be a whole number of ${3:-1} or more"
    fi
}

# count_gpus: print the number of NVIDIA GPUs that this script's processes may use.
count_gpus() {
    case "${CUDA_VISIBLE_DEVICES-all}" in
        all) { nvidia-smi --list-gpus 2>/dev/null || true; } | grep -c '^GPU' || true ;;
        "" | -1) echo 0 ;;
        *) tr ',' '\n' <<< "$CUDA_VISIBLE_DEVICES" | wc -l ;;
    esac
}

# hosts_of HOSTFILE: print a line "host slots" for each host of an Open MPI host file.
hosts_of() {
    awk '{ sub(/#.*/, "") }
         NF { host = $1; sub(/.*@/, "", host); n = 1
              for (i = 2; i <= NF; i++) if ($i ~ /^slots=[0-9]+$/) n = substr($i, 7)
              if (!(host in slots)) order[++count] = host
              slots[host] += n }
         END { for (i = 1; i <= count; i++) print order[i], slots[order[i]] }' "$1"
}

# need_mpirun: exit unless mpirun is Open MPI's; other implementations have other options.
need_mpirun() {
    command -v mpirun > /dev/null || die "needs mpirun, which is not on the PATH: install Open MPI, or load its module"
    [[ $(mpirun --version 2>&1) == *"Open MPI"* ]] || die "needs Open MPI's mpirun; $(command -v mpirun) is another"
    # mpirun gives each rank a terminal of its own, so rich would draw its progress bar even into a log file.
    [ -t 1 ] || export TTY_COMPATIBLE=0 TTY_INTERACTIVE=0
}

# make_scratch: create the folder $scratch, which is removed when the script ends.
scratch=""
make_scratch() {
    [ -z "$scratch" ] || return 0
    scratch=$(mktemp -d "${TMPDIR:-/tmp}/distcnn-launch.XXXXXX")
    trap 'rm -rf "$scratch"' EXIT
}

# supervise COMMAND...: run a launcher; restore the ranks' exit code and forward the signals, which launchers lose.
name="" launcher="" asked="" signaller=""
supervise() {
    local code=0
    name=$1
    if [ -z "${DISTCNN_EXIT_CODE_FILE:-}" ]; then
        make_scratch
        export DISTCNN_EXIT_CODE_FILE=$scratch/exit_code
        : > "$DISTCNN_EXIT_CODE_FILE"
    elif [ -f "$DISTCNN_EXIT_CODE_FILE" ]; then
        : > "$DISTCNN_EXIT_CODE_FILE" # written by an earlier run
    fi
    # torchrun and Accelerate would set it with a warning each; distcnn sets the threads of each rank itself.
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
    trap 'on_signal TERM 75' TERM HUP
    trap 'on_signal INT 130' INT
    trap 'on_signal USR1 75' USR1
    trap 'on_signal USR2 75' USR2
    # A process group of its own: otherwise Ctrl-C on a terminal would reach the launcher twice, and a second Ctrl-C ends
    # the run at once.
    set -m
    start "$@"
    set +m
    await "$launcher" || code=$?
    if [ -n "$signaller" ]; then { kill "$signaller" && wait "$signaller"; } 2> /dev/null || true; fi
    exit "$(exit_code "$code" "$asked")"
}

# on_signal SIGNAL CODE: forward the signal; a second Ctrl-C is "INT again".
on_signal() {
    [ -n "$launcher" ] || exit "$2"
    forward_signal "$1$([ "$1$asked" != INT130 ] || echo ' again')" 2> /dev/null || true
    asked=$2
}

# forward_signal SIGNAL: signal all ranks, in the way that the launcher supports.
forward_signal() {
    case "$name $1" in
        # mpirun forwards USR1 to all ranks on all hosts, and waits for them. After TERM or INT it would kill them
        # within a second, which may be too short to save.
        "mpirun INT again") kill -s INT "$launcher" ;;
        mpirun*) kill -s USR1 "$launcher" ;;
        *again) pkill -INT -P "$launcher" ;;
        # torchrun forwards these two to its workers, and waits for them. It would die of the others.
        "torchrun TERM" | "torchrun INT") kill -s "$1" "$launcher" ;;
        torchrun*) signal_workers "$1" ;;
        # Accelerate's children are the training process, mpirun, or the workers: USR1 is right for each.
        accelerate*) signal_workers USR1 ;;
    esac
}
