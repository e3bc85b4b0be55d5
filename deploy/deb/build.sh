#!/usr/bin/env bash
# The Debian package of all programs, with units, profiles, man pages and completions. Needs cargo-deb
# (cargo install cargo-deb --locked).
set -euo pipefail

if [ $# -gt 2 ] || { [ $# -gt 0 ] && [[ ! "$*" =~ ^(--try|--dev|--dev --try|--try --dev)$ ]]; }; then
    cat <<'USAGE'
deploy/deb/build.sh [--dev] [--try]

  --dev  of the programs as cargo build makes them: quick, and not for use
  --try  as root, of a machine where throng is not installed: install the package, use what it brought, and remove it

The package goes to target/debian.
USAGE
    exit 2
fi
cd "$(dirname "$0")/../.."
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
target=${CARGO_TARGET_DIR:-target}
case " $* " in
*' --dev '*) profile=dev built=$target/debug pack=(--fast) ;;
*) profile=release built=$target/release pack=() ;;
esac

cargo build --profile "$profile" --workspace --locked
rm -rf "$built/manual"
"$built/throng-bench" manual "$built/manual"
# Whichever they are, they are taken for those of a release.
ln -s "$(realpath "$built")" "$scratch/release"
package=$(CARGO_TARGET_DIR=$scratch cargo deb -p throng-bench --no-build --no-dbgsym --strip --locked "${pack[@]}" \
    -o "$target/debian/" | tail -1)
printf '%s\n' "$package"
[[ " $* " = *' --try '* ]] || exit 0

refuse() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}
[ "$(id -u)" = 0 ] || refuse 'a package is installed as root'
! dpkg-query -W throng 2>/dev/null || refuse 'throng is installed here already: apt-get remove throng'
trap 'dpkg -P throng >/dev/null 2>&1 || true; rm -rf "$scratch"' EXIT
dpkg -i "$package"
dpkg -L throng | while read -r path; do [ -d "$path" ] || printf '%s\n' "$path"; done >"$scratch/files"

for program in throng-server throng-client throng-bench throng-tune; do
    "/usr/bin/$program" --version
    zcat -f "/usr/share/man/man1/$program.1"* | grep -q "^\.TH $program 1" || refuse "$program has no man page"
    bash -c '. "/usr/share/bash-completion/completions/$1.bash" && complete -p "$1"' bash "$program"
done
for path in systemd/system/throng.service systemd/system/throng.socket; do
    [ -s "/usr/lib/$path" ] || refuse "/usr/lib/$path is missing"
done
if command -v systemd-analyze >/dev/null && command -v man >/dev/null; then
    systemd-analyze verify throng.service throng.socket
fi

# What was installed, together: a server, and connections to it.
/usr/bin/throng-server --listen 127.0.0.1:0 >"$scratch/server" 2>&1 &
server=$!
for _ in $(seq 100); do
    ! grep -q '^ready on' "$scratch/server" || break
    sleep 0.1
done
address=$(sed -n 's/^ready on \([^ ]*\).*/\1/p' "$scratch/server")
/usr/bin/throng-client "${address:?the server did not start: $(cat "$scratch/server")}" --connections 100 --hold 0s 2>&1 |
    grep 'established'
kill -TERM "$server"
wait "$server"

dpkg -P throng
while read -r path; do
    [ ! -e "$path" ] || refuse "$path is still there"
done <"$scratch/files"
printf 'installed, used, and removed: of %d files none is left\n' "$(wc -l <"$scratch/files")"
