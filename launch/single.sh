#!/usr/bin/env bash
# distcnn in one process: on one GPU, or on all cores of this machine.
set -euo pipefail

usage() {
    cat << EOF
usage: launch/single.sh CONFIG.yaml [--section.key value ...]

Trains in one process; "python -m distcnn train --help" lists the keys.
EOF
}

case "${1:-}" in
    -h | --help)
        usage
        exit 0
        ;;
    "" | -*)
        usage >&2
        exit 2
        ;;
esac
exec python -m distcnn train "$@"
