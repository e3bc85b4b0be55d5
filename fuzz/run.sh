#!/usr/bin/env bash
# Runs every fuzz target for SECONDS each, from the kept corpus; what is new goes to a scratch directory. What fails is
# kept in artifacts/, and ends the run.
# usage: fuzz/run.sh [SECONDS]
set -euo pipefail
cd "$(dirname "$0")"
seconds=${1:-10}

skip() { echo "SKIPPED: fuzzing: $*"; exit 0; }
command -v cargo-fuzz >/dev/null || skip 'cargo-fuzz is not installed (cargo install cargo-fuzz --locked)'
cargo +nightly --version >/dev/null 2>&1 || skip 'there is no nightly toolchain (rustup toolchain install nightly)'

# Without a sanitizer: what is fuzzed forbids unsafe code.
build=(--sanitizer none --codegen-units 16)
cargo +nightly fuzz build "${build[@]}"

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
for target in line echo server_config client_config report scenario; do
    echo "== fuzz $target for $seconds s"
    # The first directory takes what is found.
    mkdir "$scratch/$target"
    corpus=("$scratch/$target" "corpus/$target")
    case $target in
        report) corpus+=(../bench/testdata) ;;
        scenario) corpus+=(../bench/scenarios) ;;
    esac
    cargo +nightly fuzz run "${build[@]}" "$target" "${corpus[@]}" -- \
        -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -verbosity=0 -print_final_stats=1 2>&1 |
        grep -v '# Uses:\|# Dictionary\|^###### '
done
