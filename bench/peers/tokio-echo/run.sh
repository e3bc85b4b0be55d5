#!/bin/sh
# tokio-echo: builds it where that was not done yet, and listens on 127.0.0.1:PORT.
#   run.sh --build        builds only
#   run.sh PORT [FLAGS]
set -eu
cd "$(dirname "$0")"
cargo build --release --locked --quiet
[ "$1" = --build ] || exec "${CARGO_TARGET_DIR:-target}/release/tokio-echo" "$@"
