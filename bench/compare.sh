#!/bin/sh
# Builds in release and compares io_uring with the epoll baseline; arguments go to `throng-bench compare`.
set -eu
cd "$(dirname "$0")/.."
exec cargo run --release -p throng-bench -- compare "$@"
