#!/usr/bin/env bash
# Start distcnn by Open MPI's mpirun: on this machine, or on the hosts of a host file.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
    cat << EOF
usage: launch/mpirun.sh [-n RANKS] [-f HOSTFILE] CONFIG.yaml [--section.key value ...]

  -n   total number of ranks; default: one per slot of the host file; without a host file, one per GPU, or 2
  -f   host file with lines "HOST slots=RANKS". Python, distcnn, the data and the run's folder must have the same paths
       on all hosts

As root, Open MPI needs OMPI_ALLOW_RUN_AS_ROOT=1 and OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 in the environment.
Exit code: that of distcnn: 0 done, 1 failed, 2 bad input, 75 preempted by TERM, HUP, USR1 or USR2 with its progress
saved, 130 interrupted by Ctrl-C.
EOF
}

[ "${1:-}" != "--help" ] || { usage; exit 0; }
ranks="" hostfile=""
while getopts "n:f:h" option; do
    case "$option" in
        n) ranks=$OPTARG ;;
        f) hostfile=$OPTARG ;;
        h) usage; exit 0 ;;
        *) usage >&2; exit 2 ;;
    esac
done
shift $((OPTIND - 1))
[ $# -ge 1 ] || { usage >&2; exit 2; }

if [ -n "$hostfile" ]; then
    [ -f "$hostfile" ] || die "-f $hostfile: no such file"
    hosts=$(hosts_of "$hostfile")
    [ -n "$hosts" ] || die "-f $hostfile: names no host"
    [ -n "$ranks" ] || ranks=$(awk '{ n += $2 } END { print n }' <<< "$hosts")
    where=(--hostfile "$hostfile")
    # Rank 0 runs on the first host. "localhost" would mean another machine on each of the others; distcnn then uses
    # the addresses of mpirun's own node.
    case "${hosts%% *}" in
        localhost | 127.*) ;;
        *) where+=(-x "MASTER_ADDR=${hosts%% *}") ;;
    esac
else
    where=(--oversubscribe) # allows more ranks than cores
fi
[ -n "$ranks" ] || ranks=$(count_gpus)
[ "$ranks" != 0 ] || ranks=2
check_number -n "$ranks"
need_mpirun

# Not bound: distcnn divides the node's cores among the ranks; bound to one core, all threads of a rank would share it.
supervise mpirun -np "$ranks" "${where[@]}" --bind-to none "$(command -v python)" -m distcnn train "$@"
