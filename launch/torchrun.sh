#!/usr/bin/env bash
# Start distcnn by torchrun: on all GPUs of this node, or on two CPU ranks; or on several nodes, started once on each.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
    cat << EOF
usage: launch/torchrun.sh [-n RANKS] [-r RESTARTS] [-N NODES -m HOST:PORT] CONFIG.yaml [--section.key value ...]

  -n   ranks on this node; default: one per GPU, or 2 without a GPU
  -N   number of nodes; start this script once on each of them. MIN:MAX for an elastic job, which continues when nodes
       join or leave
  -m   host (one of the nodes) and port where the nodes meet
  -r   how often to restart the ranks when one has failed; default 0

Give --checkpoint.resume auto with -r or MIN:MAX, so that restarted ranks continue where they stopped.

Exit code: that of distcnn, which torchrun itself hides: 0 done, 1 failed, 2 bad input, 75 preempted by TERM, HUP, USR1
or USR2 with its progress saved, 130 interrupted by Ctrl-C. After 2, 75 and 130 the ranks are not restarted.
EOF
}

[ "${1:-}" != "--help" ] || { usage; exit 0; }
ranks="" nodes=1 rendezvous="" restarts=0
while getopts "n:N:m:r:h" option; do
    case "$option" in
        n) ranks=$OPTARG ;;
        N) nodes=$OPTARG ;;
        m) rendezvous=$OPTARG ;;
        r) restarts=$OPTARG ;;
        h) usage; exit 0 ;;
        *) usage >&2; exit 2 ;;
    esac
done
shift $((OPTIND - 1))
[ $# -ge 1 ] || { usage >&2; exit 2; }

[ -n "$ranks" ] || ranks=$(count_gpus)
[ "$ranks" != 0 ] || ranks=2
check_number -n "$ranks"
check_number -r "$restarts" 0
[[ $nodes =~ ^[1-9][0-9]*(:[1-9][0-9]*)?$ ]] || die "-N $nodes: should be a number of nodes, or MIN:MAX"
if [ "$nodes" = 1 ]; then
    where=(--standalone)
else
    [[ $rendezvous =~ ^.+:[0-9]+$ ]] || die "-N $nodes needs -m HOST:PORT, the same on every node"
    # The id separates Slurm jobs that use the same host and port.
    where=(--nnodes "$nodes" --rdzv-backend c10d --rdzv-endpoint "$rendezvous" --rdzv-id "distcnn-${SLURM_JOB_ID:-0}")
    # torchrun compares HOST with the address of this host's own name, which on Debian is 127.0.1.1 and does not match
    # the address that the other nodes use. Whether an address is this host's is found by listening on it.
    if python -c 'import socket, sys; socket.create_server((sys.argv[1], 0)).close()' "${rendezvous%:*}" 2> /dev/null; then
        where+=(--rdzv-conf is_host=true)
    fi
fi

# Seconds for the ranks to finish their step and save before torchrun kills them: its default of 30 can be too short.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-300}
supervise torchrun "${where[@]}" --nproc_per_node "$ranks" --max-restarts "$restarts" -m distcnn train "$@"
