#!/usr/bin/env bash
# distcnn on all GPUs of this node, or on two CPU ranks; or on several nodes, started once on each.
set -euo pipefail

usage() {
    cat <<EOF
usage: launch/torchrun.sh [-n RANKS_PER_NODE] [-N NODES -m HOST:PORT] CONFIG.yaml [--section.key value ...]

  -n   ranks on this node; default: one for each GPU, or 2 without a GPU
  -N   number of nodes; start this script once on each of them
  -m   host (one of the nodes) and port where the nodes meet
EOF
}

[ "${1:-}" != "--help" ] || { usage; exit 0; }
ranks="" nodes=1 meeting=""
while getopts "n:N:m:h" option; do
    case "$option" in
        n) ranks=$OPTARG ;;
        N) nodes=$OPTARG ;;
        m) meeting=$OPTARG ;;
        h) usage; exit 0 ;;
        *) usage >&2; exit 2 ;;
    esac
done
shift $((OPTIND - 1))
[ $# -ge 1 ] || { usage >&2; exit 2; }
if [ "$nodes" != 1 ] && [ -z "$meeting" ]; then
    echo "launch/torchrun.sh: -N $nodes needs -m HOST:PORT, the same on every node" >&2
    exit 2
fi
if [ -z "$ranks" ]; then
    ranks=$(nvidia-smi --list-gpus 2>/dev/null | wc -l)
    [ "$ranks" -gt 0 ] || ranks=2
fi
if [ "$nodes" = 1 ]; then
    where=(--standalone)
else
    where=(--nnodes "$nodes" --rdzv-backend c10d --rdzv-endpoint "$meeting" --rdzv-id distcnn)
fi
exec torchrun "${where[@]}" --nproc_per_node "$ranks" -m distcnn train "$@"
