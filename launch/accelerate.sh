#!/usr/bin/env bash
# Start distcnn by `accelerate launch`, on Accelerate's engine: on one GPU, all GPUs, several nodes, or CPU ranks.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
    cat << EOF
usage: launch/accelerate.sh [-n RANKS] [-f HOSTFILE] [-c ACCELERATE.yaml] CONFIG.yaml [--section.key value ...]
       launch/accelerate.sh [-n RANKS] -N NODES -i INDEX -m HOST:PORT CONFIG.yaml [--section.key value ...]

  -n   ranks, with -N per node; default: one per GPU; without a GPU, one per slot of -f, or 2
  -f   Open MPI's host file with lines "HOST slots=RANKS", to start CPU ranks on these hosts
  -N   number of nodes; start this script once on each of them
  -i   index of this node, from 0
  -m   the node of index 0, and a free port on it
  -c   a file made by "accelerate config", instead of one of launch/accelerate

Without a GPU, several ranks need Open MPI's mpirun; as root that needs OMPI_ALLOW_RUN_AS_ROOT=1 and
OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 in the environment.
Exit code: that of distcnn, which Accelerate itself hides: 0 done, 1 failed, 2 bad input, 75 preempted by TERM, HUP,
USR1 or USR2 with its progress saved, 130 interrupted by Ctrl-C.
EOF
}

[ "${1:-}" != "--help" ] || { usage; exit 0; }
ranks="" hostfile="" config="" nodes=1 index="" rendezvous=""
while getopts "n:f:c:N:i:m:h" option; do
    case "$option" in
        n) ranks=$OPTARG ;;
        f) hostfile=$OPTARG ;;
        c) config=$OPTARG ;;
        N) nodes=$OPTARG ;;
        i) index=$OPTARG ;;
        m) rendezvous=$OPTARG ;;
        h) usage; exit 0 ;;
        *) usage >&2; exit 2 ;;
    esac
done
shift $((OPTIND - 1))
[ $# -ge 1 ] || { usage >&2; exit 2; }

[ -z "$ranks" ] || check_number -n "$ranks"
check_number -N "$nodes"
[ -z "$config" ] || [ -f "$config" ] || die "-c $config: no such file"
[ -z "$hostfile" ] || [ -f "$hostfile" ] || die "-f $hostfile: no such file"
[ -z "$hostfile" ] || [ "$nodes" = 1 ] || die "-f and -N: mpirun starts the ranks on all hosts; leave one out"
command -v accelerate > /dev/null || die "needs Accelerate: pip install 'distcnn[accelerate]'"
gpus=$(count_gpus)
own=$(dirname "${BASH_SOURCE[0]}")/accelerate
options=()

if [ "$nodes" != 1 ]; then
    [[ $rendezvous =~ ^.+:[0-9]+$ ]] || die "-N $nodes needs -m HOST:PORT, the same on every node"
    [ -n "$index" ] || die "-N $nodes needs -i INDEX, a different one on every node, from 0"
    check_number -i "$index" 0
    [ "$index" -lt "$nodes" ] || die "-i $index: should be below -N $nodes; the first node is 0"
    [ -n "$ranks" ] || ranks=$((gpus > 0 ? gpus : 2))
    config=${config:-$own/several_nodes.yaml}
    options=(--num_processes $((ranks * nodes)) --num_machines "$nodes" --machine_rank "$index"
        --main_process_ip "${rendezvous%:*}" --main_process_port "${rendezvous##*:}")
elif [ -n "$config" ] && [ -z "$hostfile" ]; then
    [ -z "$ranks" ] || options=(--num_processes "$ranks")
elif [ "$gpus" -gt 0 ] && [ -z "$hostfile" ]; then
    ranks=${ranks:-$gpus}
    config=$own/$([ "$ranks" = 1 ] && echo one_gpu || echo all_gpus).yaml
    options=(--num_processes "$ranks")
else
    hosts="localhost 2"
    [ -z "$hostfile" ] || hosts=$(hosts_of "$hostfile")
    [ -n "$hosts" ] || die "-f $hostfile: names no host"
    [ -n "$ranks" ] || ranks=$(awk '{ n += $2 } END { print n }' <<< "$hosts")
    config=${config:-$own/cpu.yaml}
    options=(--cpu --num_processes "$ranks")
    if [ "$ranks" -gt 1 ] || [ -n "$hostfile" ]; then
        # Without a host file, `accelerate launch --cpu --num_processes 2` silently starts only one process.
        need_mpirun
        if [ -z "$hostfile" ]; then
            make_scratch
            hostfile=$scratch/hosts
            echo "localhost slots=$ranks" > "$hostfile"
        fi
        options+=(--mpirun_hostfile "$hostfile")
    fi
    machines=$(wc -l <<< "$hosts")
    if [ "$machines" -gt 1 ]; then
        [ $((ranks % machines)) = 0 ] || die "-n $ranks: should be a multiple of $machines: Accelerate divides ranks evenly over the hosts"
        options+=(--num_machines "$machines" --main_process_ip "${hosts%% *}" --main_process_port 29500)
        # Accelerate passes its configuration by environment variables, which mpirun does not export to other hosts.
        names="MASTER_ADDR;MASTER_PORT;ACCELERATE_USE_CPU;ACCELERATE_MIXED_PRECISION;ACCELERATE_DYNAMO_BACKEND"
        names+=";ACCELERATE_DYNAMO_MODE;ACCELERATE_DYNAMO_USE_FULLGRAPH;ACCELERATE_DYNAMO_USE_DYNAMIC"
        names+=";ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION"
        export OMPI_MCA_mca_base_env_list="${OMPI_MCA_mca_base_env_list:+$OMPI_MCA_mca_base_env_list;}$names"
    fi
fi

supervise accelerate launch --quiet --config_file "$config" "${options[@]}" -m distcnn train "$@"
