#!/usr/bin/env bash
# The Debian package of all programs, with units, man pages and completions: target/debian/throng_*.deb. Needs cargo-deb
# (cargo install cargo-deb). With --try, as root of a machine that is made for it, it is installed, looked at and removed.
set -euo pipefail
cd "$(dirname "$0")/../.."

cargo build --release --workspace --locked
rm -rf target/manual
target/release/throng-bench manual target/manual
cargo deb -p throng-bench --no-build --locked
package=$(ls -t target/debian/throng_*.deb | head -1)
dpkg-deb --contents "$package"
[ "${1-}" = --try ] || exit 0

dpkg -i "$package"
for program in throng-server throng-client throng-bench throng-tune; do
    "$program" --version
    [ -s "/usr/share/man/man1/$program.1.gz" ] || [ -s "/usr/share/man/man1/$program.1" ]
done
[ -s /usr/lib/systemd/system/throng.service ]
dpkg -r throng
! command -v throng-server
[ ! -e /usr/lib/systemd/system/throng.service ]
echo 'installed, and removed without a trace'
