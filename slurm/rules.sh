# shellcheck shell=bash
# Exit codes and signals, where launchers lose them; shared by launch/*.sh and the batch scripts.
#
# The ranks exit with 0 done, 1 failed, 2 bad input, 75 preempted (requeue: it continues), 130 interrupted by
# Ctrl-C. torchrun, srun, mpirun and Accelerate lose that code; the ranks of a node write it to the file named by
# DISTCNN_EXIT_CODE_FILE, where a failure takes precedence over a stop, and a stop over success.

# exit_code STATUS [ASKED]: print the exit code of a launch whose launcher has exited with STATUS. ASKED is the code for
# the signal that was received: the ranks may have ended before writing theirs, or got another signal than the launcher.
exit_code() {
    local written
    written=$(cat "$DISTCNN_EXIT_CODE_FILE" 2> /dev/null || true)
    case "$written,$1" in
        ,0) echo 0 ;;
        ,* | 75,*) echo "${2:-${written:-$1}}" ;;
        *) echo "$written" ;;
    esac
}

# start COMMAND...: start a launcher in the background, as $launcher. It ignores USR1 and USR2: a scheduler may send them
# to every process, and a launcher without a handler would die of them and leave its ranks running
# (https://github.com/pytorch/pytorch/issues/154849).
start() {
    (
        trap '' USR1 USR2
        exec "$@" < /dev/null
    ) &
    launcher=$!
}

# await PID: wait for a child to exit, and return its exit code. `wait` alone also returns on a signal.
await() {
    wait "$1" || true
    while kill -0 "$1" 2> /dev/null; do
        wait "$1" || true
    done
    wait "$1" # bash remembers the code
}

# signal_workers SIGNAL: signal the children of $launcher every second until it exits, as $signaller, because a rank that
# has just started has no handler yet. If there are no children, end the launcher.
signal_workers() {
    [ -n "${launcher:-}" ] || exit 75 # not started yet
    [ -z "${signaller:-}" ] || return 0
    while kill -0 "$launcher"; do
        pkill "-$1" -P "$launcher" || kill -s TERM "$launcher"
        sleep 1
    done > /dev/null 2>&1 &
    signaller=$!
}
