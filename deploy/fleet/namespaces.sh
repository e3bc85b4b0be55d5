#!/usr/bin/env bash
# A fleet on one machine: a server and three clients, each in a network namespace of its own, by deploy/fleet/pdsh.sh.
#
# As root. All of it lives in a mount and a network namespace made for it and gone with it; nothing of this host's network is
# touched. Each client has an address of 10.78.0.1-10.78.0.3, which --part gives to it alone: one that took another's would
# not get a connection.
set -euo pipefail

if [ $# -lt 1 ] || [ "${1#-}" != "$1" ]; then
    cat <<'USAGE'
deploy/fleet/namespaces.sh CONNECTIONS [DIR [FLAGS OF throng-client]]

The report goes to DIR/fleet.json [target/throng/fleet]. THRONG_BENCH names the program [target/release/throng-bench].

Examples:
  deploy/fleet/namespaces.sh 60000
  deploy/fleet/namespaces.sh 60000 /tmp/fleet --active 300 --message-rate 3000 --hold 20s
USAGE
    exit 2
fi

if [ "${FLEET_INSIDE-}" != yes ]; then
    FLEET_INSIDE=yes exec unshare --net --mount --kill-child -- bash "$0" "$@"
fi

here=$(cd "$(dirname "$0")" && pwd)
bench=$(realpath "${THRONG_BENCH:-target/release/throng-bench}")
connections=$1
out=${2:-target/throng/fleet}
shift $(($# < 2 ? $# : 2))
[ $# -gt 0 ] || set -- --hold 5s

# Where `ip netns add` keeps names; seen in here alone.
mount -t tmpfs tmpfs /run
mkdir -p "$out"
out=$(realpath "$out")

ip netns add server
ip -n server link set lo up
ip -n server addr add 10.77.0.1/32 dev lo
for part in 1 2 3; do
    name=client$part
    ip netns add "$name"
    ip -n "$name" link set lo up
    ip -n server link add "to$part" type veth peer name eth0 netns "$name"
    ip -n server addr add "10.77.$part.1/30" dev "to$part"
    ip -n server link set "to$part" up
    ip -n "$name" addr add "10.77.$part.2/30" dev eth0
    ip -n "$name" link set eth0 up
    ip -n "$name" addr add "10.78.0.$part/32" dev lo
    ip -n "$name" route add 10.77.0.1/32 via "10.77.$part.1"
    ip -n server route add "10.78.0.$part/32" via "10.77.$part.2"
done

# A thin throng-client, as it is on a host where it is installed.
printf '#!/bin/sh\nexec %q client "$@"\n' "$bench" >/run/throng-client
chmod 755 /run/throng-client

# It ends with the namespace, at the latest.
ip netns exec server "$bench" server --listen 10.77.0.1:7000 --heartbeat 2s --drain-timeout 300ms >"$out/server.log" 2>&1 &
server=$!
for _ in $(seq 100); do
    ! grep -q '^ready on' "$out/server.log" || break
    sleep 0.1
done
grep '^ready on' "$out/server.log" || {
    cat "$out/server.log" >&2
    exit 1
}
code=0
"$here/pdsh.sh" -b netns -w 'client[1-3]' -o "$out" -c /run/throng-client -m "$bench" -s 3 -- \
    10.77.0.1:7000 --connections "$connections" --source 10.78.0.1-10.78.0.3 --heartbeat 2s "$@" || code=$?
kill -TERM "$server" 2>/dev/null || true
wait "$server" || true
exit "$code"
