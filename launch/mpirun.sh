#!/usr/bin/env bash
# distcnn by Open MPI's mpirun: on this machine, or on the hosts of a host file.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
    cat << EOF
usage: launch/mpirun.sh [-n RANKS] [-f HOSTFILE] CONFIG.yaml [--section.key value ...]

  -n   ranks in all; default: one for each slot of the host file; without one, one for each GPU, or 2
  -f   host file, a line "HOST slots=RANKS" for each host. Python, distcnn, the data and the run's folder must lie at
       the same path on each

As root, Open MPI needs OMPI_ALLOW_RUN_AS_ROOT=1 and OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 in the environment.
Exit code: that of distcnn: 0 done, 1 failed, 2 bad input, 75 stopped by TERM, HUP, USR1 or USR2 with the last step
saved, 130 stopped by Ctrl-C.
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
    # Rank 0 runs on the first host. "localhost" would be another machine to each of the others; distcnn then takes
    # the addresses of mpirun's own node.
    case "${hosts%% *}" in
        localhost | 127.*) ;;
        *) where+=(-x "MASTER_ADDR=${hosts%% *}") ;;
    esac
else
    where=(--oversubscribe) # more ranks than cores, if asked for
fi
[ -n "$ranks" ] || ranks=$(count_gpus)
[ "$ranks" != 0 ] || ranks=2
check_number -n "$ranks"
need_mpirun

# Each rank takes its share of the node's cores by itself; bound to one core, all its threads would share that one.
supervise mpirun -np "$ranks" "${where[@]}" --bind-to none "$(command -v python)" -m distcnn train "$@"
