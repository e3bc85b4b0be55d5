#!/bin/sh
# go-echo: builds it, which is done at once where nothing changed, and listens on 127.0.0.1:PORT.
#   run.sh --build        builds only
#   run.sh PORT
set -eu
cd "$(dirname "$0")"
go build -buildvcs=false -o target/go-echo .
[ "$1" = --build ] || exec target/go-echo "$@"
