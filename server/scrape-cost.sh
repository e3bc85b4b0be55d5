#!/usr/bin/env bash
# What a scrape every second costs the echo: server CPU a message with and without one, in rounds of both in random
# order, on one server. By hand: server/scrape-cost.sh [ROUNDS] [IDLE CONNECTIONS]. It takes 13 s a round, curl and 2 CPUs.
set -euo pipefail
cd "$(dirname "$0")/.."
rounds=${1:-15} idle=${2:-10000}
export PATH="$PWD/target/release:$PATH"
scratch=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; wait; rm -rf "$scratch"' EXIT

throng-server --listen 127.0.0.1:0 --cores 0 --heartbeat 0 --admin "$scratch/admin" >"$scratch/server" &
server=$!
for _ in $(seq 100); do grep -q 127.0.0.1: "$scratch/server" && break || sleep 0.1; done
address=$(grep -o '127\.0\.0\.1:[0-9]*' "$scratch/server" | head -1)
load() { throng-client "$address" --cores 1 --heartbeat 0 "$@" >"$scratch/said" 2>&1; }
load --source 127.1.0.0/16 --connections "$idle" --hold 1days &
until throng-server ctl --admin "$scratch/admin" --json status | grep -q "\"held\": $idle,"; do sleep 0.2; done

ticks() { awk '{print $14 + $15}' "/proc/$server/stat"; }
scrape() { while :; do curl -sf --unix-socket "$scratch/admin" localhost/metrics >/dev/null && echo; sleep 1; done; }

for round in $(seq "$rounds"); do
    for how in $(shuf -e without with); do
        if [ "$how" = with ]; then scrape >>"$scratch/scrapes" & scraper=$!; fi
        before=$(ticks)
        load --source 127.2.0.0/16 --connections 500 --active 500 --hold 5s --json "$scratch/client"
        after=$(ticks)
        [ "$how" = without ] || { kill "$scraper"; wait "$scraper" 2>/dev/null || true; }
        messages=$(grep -m1 -o '"completed": [0-9]*' "$scratch/client" | grep -o '[0-9]*$')
        echo "$round $how $(awk "BEGIN { print ($after - $before) * 1e6 / $(getconf CLK_TCK) / $messages }")"
    done
done | tee "$scratch/rounds"

python3 - "$scratch/rounds" <<'END'
import statistics, sys
rounds = {}
for line in open(sys.argv[1]):
    number, how, us = line.split()
    rounds.setdefault(number, {})[how] = float(us)
for how in "without", "with":
    of = sorted(one[how] for one in rounds.values())
    print(f"{how:8} {statistics.median(of):.2f} µs a message [{of[0]:.2f} – {of[-1]:.2f}]")
ratios = sorted(one["with"] / one["without"] for one in rounds.values())
print(f"with ÷ without, round by round: {statistics.median(ratios):.3f} [{ratios[0]:.3f} – {ratios[-1]:.3f}]")
END
echo "$(wc -l <"$scratch/scrapes") scrapes"
