#!/usr/bin/env bash
# What the settings of the whole host are worth (tcp_mem, tcp_max_orphans, tcp_max_tw_buckets, netdev_max_backlog), shown by
# hand and never by a test: it CHANGES SETTINGS OF THIS HOST for some minutes and takes them back, however it ends. The same
# connections are held and closed twice, before and after `throng-tune apply`, and the kernel's counters compared.
#
#   cargo build --release --workspace
#   sudo kernel-tuning/by-hand.sh 1000000
#
# BIN names another directory with throng-bench and throng-tune.
set -euo pipefail
cd "$(dirname "$0")/.."
connections=${1:-500000}
bin=${BIN:-target/release}
scratch=$(mktemp -d)
state=$scratch/tune.json
# What could not be taken back stays on the disk.
trap '"$bin/throng-tune" revert --state "$state" && rm -rf "$scratch"' EXIT
echo "if this is killed: throng-tune revert --state $state"

# Names and values, a line each.
counters() {
    awk '/^TcpExt:/ { if (!names) { names = split($0, name) } else { split($0, value); for (i = 2; i <= names; i++) print name[i], value[i] } }' \
        /proc/net/netstat | grep -E '^(TCPMemoryPressures|TCPMemoryPressuresChrono|TCPAbortOnMemory|TCPTimeWaitOverflow|TCPSynRetrans|ListenOverflows|ListenDrops|TCPBacklogDrop) '
    local sum=0 processed dropped rest
    while read -r processed dropped rest; do sum=$((sum + 16#$dropped)); done </proc/net/softnet_stat
    echo "SoftnetDropped $sum"
}

# Until the sockets of the round before are gone.
settle() {
    for _ in $(seq 120); do
        [ "$(awk '/^TCP:/ { print ($5 + $7 < 1000) }' /proc/net/sockstat)" = 1 ] && return
        sleep 1
    done
    echo 'error: the sockets of another load are still there: try again later'
    return 1
}

round() {
    printf '\n== %s: hold %s connections and close them\n' "$1" "$connections"
    settle
    counters >"$scratch/before"
    "$bin/throng-bench" hold --connections "$connections" --hold 10s --heartbeat 10s --report "$scratch/hold.json"
    settle
    counters | paste -d ' ' "$scratch/before" - |
        awk '{ printf "  %-28s %d\n", $1, $4 - $2 }'
}

round 'as the host is'
printf '\n== throng-tune apply\n'
"$bin/throng-tune" apply --connections "$connections" --role both --state "$state" || [ $? = 10 ]
round 'as throng-tune wants it'
