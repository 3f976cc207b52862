# shellcheck shell=bash
# Exit codes and signals: what launchers do not do for their ranks. launch/*.sh and the batch scripts have it in common.
#
# The ranks end with 0 done, 1 failed, 2 bad input, 75 stopped and saved (start it again), 130 interrupted by Ctrl-C.
# torchrun, srun, mpirun and Accelerate lose that code; the ranks of a node write it into the file that
# DISTCNN_EXIT_CODE_FILE names, where a failure stands above a stop, and a stop above success.

# exit_code STATUS [ASKED]: print the code of a launch whose launcher has ended with STATUS. ASKED is the code of the
# signal it was sent: the ranks may have ended before they could write, or for another signal than the launcher got.
exit_code() {
    local said
    said=$(cat "$DISTCNN_EXIT_CODE_FILE" 2> /dev/null || true)
    case "$said,$1" in
        ,0) echo 0 ;;
        ,* | 75,*) echo "${2:-${said:-$1}}" ;;
        *) echo "$said" ;;
    esac
}

# start COMMAND...: a launcher in the background, as $launcher. USR1 and USR2 are ignored: a scheduler may send them to
# every process, and a launcher without a handler would die of them and leave its ranks behind
# (https://github.com/pytorch/pytorch/issues/154849).
start() {
    (
        trap '' USR1 USR2
        exec "$@" < /dev/null
    ) &
    launcher=$!
}

# await PID: wait for the end of a child, and return its exit code. `wait` alone returns for a signal too.
await() {
    wait "$1" || true
    while kill -0 "$1" 2> /dev/null; do
        wait "$1" || true
    done
    wait "$1" # bash has kept the code
}

# keep_telling SIGNAL: to the children of $launcher, every second until it ends, as $teller; a rank that has only just
# been started does not listen yet. If there are none, nothing is lost by ending the launcher.
keep_telling() {
    [ -n "${launcher:-}" ] || exit 75 # before its start
    [ -z "${teller:-}" ] || return 0
    while kill -0 "$launcher"; do
        pkill "-$1" -P "$launcher" || kill -s TERM "$launcher"
        sleep 1
    done > /dev/null 2>&1 &
    teller=$!
}
