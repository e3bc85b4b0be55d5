#!/bin/sh
# What Throng began with: a gevent server, and a client that is a process for each connection. The server is held by
# Throng's client at CONNECTIONS, and Throng's own server beside it; then the seed's client is started PROCESSES times,
# as far as the memory allows, and what CONNECTIONS of it would take is reckoned from that, and called so.
#
#   seed.sh [CONNECTIONS [PROCESSES]]      10000 and 200
#
# Both ends are on this machine, on loopback. Nothing is left behind: no process, no file but the virtual environment.
set -eu
connections=${1:-10000}
processes=${2:-200}
every_s=10
hold_s=30
# Processes are started no further than until so much of the memory is available.
keep_free_percent=25

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../../.." && pwd)
bench=${CARGO_TARGET_DIR:-$root/target}/release/throng-bench
command -v python3 >/dev/null || { echo "skipped: no python3 here; on Debian: apt-get install python3 python3-venv"; exit 0; }
"$here/run.sh" --build
[ -x "$bench" ] || (cd "$root" && cargo build --release --locked --quiet -p throng-bench)
python=$here/venv/bin/python3

ulimit -n "$(ulimit -Hn)"
scratch=$(mktemp -d)
pids=
end_all() {
    for pid in $pids; do kill "$pid" 2>/dev/null || true; done
    for pid in $pids; do wait "$pid" 2>/dev/null || true; done
    pids=
}
trap 'end_all; rm -rf "$scratch"' EXIT
trap 'exit 1' INT TERM

free_port() {
    "$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}
is_listening() {
    "$python" -c 'import socket, sys; socket.create_connection(("127.0.0.1", int(sys.argv[1])), 1).close()' "$1" 2>/dev/null
}
until_listening() {
    for _ in $(seq 100); do
        is_listening "$1" && return
        sleep 0.1
    done
    echo "error: nobody listens on port $1 after 10 s" >&2
    exit 1
}
kib() { awk -v name="$2:" '$1 == name { print $2 }' "/proc/$1/status" 2>/dev/null || true; }
cpu_s() { awk -v hz="$(getconf CLK_TCK)" '{ sub(/.*\) /, ""); print ($12 + $13) / hz }' "/proc/$1/stat"; }
available_kib() { awk '$1 == "MemAvailable:" { print $2 }' /proc/meminfo; }
figure() { "$python" -c '
import json, sys
value = json.load(open(sys.argv[1]))
for key in sys.argv[2].split("."):
    value = value[key]
print(round(value, 2) if isinstance(value, float) else value)' "$@"; }

# held NAME SERVER_PID PORT: holds that server, and prints its row.
held() {
    empty_kib=$(kib "$2" VmRSS)
    "$bench" client "127.0.0.1:$3" --connections "$connections" --source 127.1.0.0/16 --hold "${hold_s}s" \
        --heartbeat "${every_s}s" --json "$scratch/client.json" >"$scratch/client.log" 2>&1 &
    client=$!
    pids="$pids $client"
    client_kib=0
    while kill -0 "$client" 2>/dev/null; do
        now_kib=$(kib "$client" VmHWM)
        client_kib=${now_kib:-$client_kib}
        sleep 0.5
    done
    wait "$client" || { echo "the client ended with a complaint about $1:"; tail -n 5 "$scratch/client.log"; }
    summary=$scratch/client.json
    printf '%-22s %11s %9s %10s %6s %8s %10s %10s\n' "$1" \
        "$(figure "$summary" established)" "$(figure "$summary" ramp_seconds)" \
        "$(figure "$summary" heartbeats.received)" "$(figure "$summary" heartbeats.late)" \
        "$(cpu_s "$2")" \
        "$(awk -v all="$(kib "$2" VmHWM)" -v empty="$empty_kib" -v n="$connections" 'BEGIN { printf "%.0f B", (all - empty) * 1024 / n }')" \
        "$(awk -v kib="$client_kib" 'BEGIN { printf "%.0f MiB", kib / 1024 }')"
}

echo "$connections connections held for $hold_s s by Throng's client, a heartbeat every $every_s s"
printf '%-22s %11s %9s %10s %6s %8s %10s %10s\n' server established 'ramp, s' heartbeats late 'CPU, s' 'RSS a con.' 'the client'

port=$(free_port)
"$python" "$here/tcpserver.py" "$port" "$every_s" >"$scratch/server.log" 2>&1 &
server=$!
pids="$pids $server"
until_listening "$port"
held "the seed's, gevent" "$server" "$port"
end_all

port=$(free_port)
"$bench" server --listen "127.0.0.1:$port" --heartbeat "${every_s}s" >"$scratch/server.log" 2>&1 &
server=$!
pids="$pids $server"
until_listening "$port"
held "Throng's" "$server" "$port"
end_all

# The seed's client, a process for each connection.
port=$(free_port)
"$python" "$here/tcpserver.py" "$port" "$every_s" >"$scratch/server.log" 2>&1 &
pids="$pids $!"
until_listening "$port"
total_kib=$(awk '$1 == "MemTotal:" { print $2 }' /proc/meminfo)
before_kib=$(available_kib)
began=$(date +%s.%N)
started=0
clients=
while [ "$started" -lt "$processes" ]; do
    if [ "$(available_kib)" -lt $((total_kib / 100 * keep_free_percent)) ]; then
        echo "stopped at $started processes: $keep_free_percent % of the memory is kept free"
        break
    fi
    "$python" -u "$here/tcpclient.py" "$port" >"$scratch/out$started.log" 2>&1 &
    clients="$clients $!"
    pids="$pids $!"
    started=$((started + 1))
done
greeted=0
for _ in $(seq 300); do
    greeted=$(cat "$scratch"/out*.log | grep -c Welcome || true)
    [ "$greeted" -lt "$started" ] || break
    sleep 0.2
done
took=$(date +%s.%N)
after_kib=$(available_kib)
pss_kib=0
for pid in $clients; do
    one=$(awk '$1 == "Pss:" { print $2 }' "/proc/$pid/smaps_rollup" 2>/dev/null || true)
    pss_kib=$((pss_kib + ${one:-0}))
done
end_all

echo
echo "the seed's client, a process for each connection"
awk -v n="$started" -v greeted="$greeted" -v began="$began" -v took="$took" -v pss="$pss_kib" \
    -v fell=$((before_kib - after_kib)) -v wanted="$connections" 'BEGIN {
    if (n == 0) exit
    gib = 1024 * 1024
    printf "  measured      %d processes, %d greeted, in %.1f s: %.1f MiB each (PSS), %.1f MiB each of what was available\n",
        n, greeted, took - began, pss / n / 1024, fell / n / 1024
    printf "  extrapolated  %d processes, by the same of each: %.0f GiB (PSS), %.0f s to start; not measured\n",
        wanted, pss / n * wanted / gib, (took - began) / n * wanted
}'
