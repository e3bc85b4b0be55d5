#!/usr/bin/env bash
# Runs every fuzz target for SECONDS each, from the kept corpus; what is new goes to a scratch directory.
# usage: fuzz/run.sh [SECONDS]
set -euo pipefail
cd "$(dirname "$0")"
seconds=${1:-10}

skip() { echo "SKIPPED: fuzzing: $*"; exit 0; }
command -v cargo-fuzz >/dev/null || skip 'cargo-fuzz is not installed (cargo install cargo-fuzz --locked)'
cargo +nightly --version >/dev/null 2>&1 || skip 'there is no nightly toolchain (rustup toolchain install nightly)'

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
for target in line echo server_config client_config report scenario; do
    echo "== fuzz $target for $seconds s"
    mkdir "$scratch/$target"
    # The first directory takes what is found.
    cargo +nightly fuzz run --sanitizer none "$target" "$scratch/$target" "corpus/$target" -- \
        -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -print_final_stats=1
done
