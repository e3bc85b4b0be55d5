#!/bin/sh
# Measures the echo servers of others (bench/peers/) beside the engines, those whose tools are here; the others are
# skipped, with a line each. Arguments go to `throng-bench compare`, of which only the echo rounds are run.
set -eu
cd "$(dirname "$0")/.."

# ready NAME TOOL HOW: builds the recipe NAME if TOOL is here.
ready() {
    if ! command -v "$2" >/dev/null; then
        echo "skipped $1: there is no $2 here; on Debian: apt-get install $3"
        return 1
    fi
    if ! "bench/peers/$1/run.sh" --build; then
        echo "skipped $1: it could not be built (see above)"
        return 1
    fi
}

compared=no
cargo build --release --locked --quiet -p throng-bench
for recipe in tokio-echo:cargo:cargo monoio-echo:cargo:cargo go-echo:go:golang-go gevent:python3:python3-venv; do
    IFS=: read -r name tool package <<-END
	$recipe
	END
    if ready "$name" "$tool" "$package"; then
        set -- "$@" --peer "$name=bench/peers/$name/run.sh {port}"
        compared=yes
    fi
done
[ "$compared" = yes ] || { echo "error: no peer could be built" >&2; exit 1; }
exec "${CARGO_TARGET_DIR:-target}/release/throng-bench" compare --connections 0 "$@"
