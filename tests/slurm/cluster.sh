#!/usr/bin/env bash
# Two Slurm nodes on this one host, from Debian's packages (apt-get install slurmctld slurmd slurm-client munge). Needs root.
#   cluster.sh up | down | poweroff NODE | poweron NODE
# Each node has namespaces of its own (PID, mount, UTS, network): a hostname, an address, a /dev/shm, and a first process
# whose end is a power cut. Everything lies in $ROOT; a client needs only SLURM_CONF=$ROOT/slurm.conf.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
ROOT=${ROOT:-/tmp/distcnn-slurm}
NET=${NET:-10.77.0}
BRIDGE=${BRIDGE:-slbr0}
export ROOT NET BRIDGE SLURM_CONF=$ROOT/slurm.conf LC_ALL=C

alive() { # a zombie is not; kill -0 says it is
    local state
    state=$(ps -o stat= -p "$1") && [[ $state != Z* ]]
}
dead() { ! alive "$1"; }
await() { # until a command succeeds, up to 20 s
    for _ in $(seq 400); do
        if "$@"; then return; fi
        sleep .05
    done
    echo "cluster.sh: gave up on: $*" >&2
    tail -n 20 "$ROOT"/log/* >&2
    return 1
}
start() { # NAME COMMAND: in the background, its pid in $ROOT/NAME.pid
    local name=$1
    shift
    setsid "$@" </dev/null >>"$ROOT/log/$name.out" 2>&1 &
    echo $! >"$ROOT/$name.pid"
}
stop() { # NAME PID
    rm -f "$ROOT/$1.pid"
    if dead "$2"; then return; fi
    kill -TERM "$2"
    for _ in $(seq 100); do
        if dead "$2"; then return; fi
        sleep .05
    done
    kill -KILL "$2" || true
}
first_process() { # of a node, seen from outside
    local pid
    pid=$(cat "$ROOT/$1.pid" 2>/dev/null) || return 1
    tr -s ' ' '\n' <"/proc/$pid/task/$pid/children" 2>/dev/null | grep -m1 .
}
both_idle() { [ "$(sinfo -h -N -p main -o '%t' 2>/dev/null | grep -c '^idle$')" = 2 ]; }
controller_up() { scontrol ping 2>/dev/null | grep -q UP; }

boot() { # the node, and its cable to the bridge
    local node=$1 pid
    start "$node" unshare --net --uts --mount --pid --fork --kill-child --mount-proc "$here/cluster.sh" _node "$node"
    await first_process "$node" >/dev/null
    pid=$(first_process "$node")
    ip link del "slv${node#node}" 2>/dev/null || true
    ip link add "slv${node#node}" type veth peer name eth0 netns "$pid"
    ip link set "slv${node#node}" master "$BRIDGE" up
}

case ${1:-} in
up)
    if [ -e "$ROOT/munged.pid" ]; then
        echo "cluster.sh: $ROOT is in use; first: $0 down" >&2
        exit 1
    fi
    rm -rf "$ROOT"
    mkdir -p "$ROOT"/{munge,state,spool/node1,spool/node2,log}
    chmod 755 "$ROOT"
    chmod 711 "$ROOT/munge"
    (umask 077 && head -c 1024 /dev/urandom >"$ROOT/munge/key")
    mknod "$ROOT/gpu0" c 1 3 # two GPUs on each node, which are /dev/null, for Slurm to count
    mknod "$ROOT/gpu1" c 1 3
    echo "NodeName=node[1-2] Name=gpu File=$ROOT/gpu[0-1]" >"$ROOT/gres.conf"
    ip link add "$BRIDGE" type bridge
    ip addr add "$NET.254/24" dev "$BRIDGE"
    ip link set "$BRIDGE" up
    { cat /etc/hosts && echo "$NET.1 node1" && echo "$NET.2 node2"; } >"$ROOT/hosts"
    # Where the kernel has cgroup v1's freezer, Slurm can end every process of a step; else not those that left it.
    track=linuxproc
    if mkdir /sys/fs/cgroup/freezer/distcnn-try 2>/dev/null; then
        rmdir /sys/fs/cgroup/freezer/distcnn-try
        track=cgroup
        printf '%s\n' CgroupPlugin=cgroup/v1 CgroupAutomount=no CgroupMountpoint=/sys/fs/cgroup ConstrainCores=no \
            ConstrainRAMSpace=no ConstrainDevices=no >"$ROOT/cgroup.conf"
    fi
    sed "s#@ROOT@#$ROOT#g; s#@NET@#$NET#g; s#@TRACK@#$track#" "$here/slurm.conf.in" >"$SLURM_CONF"
    start munged munged --foreground --key-file="$ROOT/munge/key" --socket="$ROOT/munge/socket" \
        --pid-file="$ROOT/munge/pid" --seed-file="$ROOT/munge/seed"
    await test -S "$ROOT/munge/socket"
    start slurmctld slurmctld -D -c -f "$SLURM_CONF"
    await controller_up
    boot node1
    boot node2
    await both_idle
    ;;
down)
    [ -d "$ROOT" ] || exit 0
    if timeout 5 scontrol ping 2>/dev/null | grep -q UP; then
        timeout 5 scancel --user="$(id -un)" 2>/dev/null || true
        for _ in $(seq 100); do
            [ -n "$(timeout 5 squeue -h -t R,CG 2>/dev/null)" ] || break
            sleep .1
        done
    fi
    for node in node1 node2; do
        if pid=$(first_process "$node"); then stop "$node" "$pid"; fi
    done
    for daemon in slurmctld munged; do
        if [ -s "$ROOT/$daemon.pid" ]; then stop "$daemon" "$(cat "$ROOT/$daemon.pid")"; fi
    done
    for link in slv1 slv2 "$BRIDGE"; do ip link del "$link" 2>/dev/null || true; done
    for node in node1 node2; do
        find "/sys/fs/cgroup/freezer/slurm_$node" -depth -type d -exec rmdir {} \; 2>/dev/null || true
    done
    rm -rf "$ROOT"
    ;;
poweroff)
    pid=$(first_process "$2")
    kill -KILL "$pid"
    await dead "$pid"
    rm -f "$ROOT/$2.pid"
    ;;
poweron) boot "$2" ;;
_node) # the first process of a node: slurmd, started again whenever it ends
    ulimit -c 0
    hostname "$2"
    mount --bind "$ROOT/hosts" /etc/hosts
    mount -t tmpfs tmpfs /dev/shm
    await ip link show eth0 >/dev/null 2>&1
    ip link set lo up
    ip link set eth0 address "02:00:00:00:77:0${2#node}" # the same after a power cut: others remember it
    ip addr add "$NET.${2#node}/24" dev eth0
    ip link set eth0 up
    slurmd=
    trap '[ -z "$slurmd" ] || { kill -TERM $slurmd; wait $slurmd; }; exit 0' TERM
    while :; do
        slurmd -D -N "$2" -f "$SLURM_CONF" &
        slurmd=$!
        wait $slurmd || true
        sleep .2
    done
    ;;
*)
    sed -n 2,6p "$0"
    exit 2
    ;;
esac
