#!/usr/bin/env bash
# One fleet of throng-client over many hosts, by pdsh, and one report of it.
#
# Each host of -w takes part I/N, in the order in which pdsh lists them. All begin at the same time; before that the clock of
# each is compared with this host's. What each writes comes here, and `throng-bench merge` adds it up.
set -euo pipefail

usage() {
    cat <<'USAGE'
deploy/fleet/pdsh.sh -w HOSTS [OPTIONS] -- TARGET... [FLAGS OF throng-client]

  -w HOSTS       as pdsh takes them: client[1-3], or a,b,c
  -o DIR         where part-I.json, clocks and fleet.json go [default: target/throng/fleet]; it is made, and emptied of these
  -b ssh|netns   how a host is reached: by ssh, which must ask for nothing, or as a network namespace of that name [ssh]
  -c PATH        throng-client on the hosts [throng-client]
  -m PATH        throng-bench on this host [throng-bench]
  -s SECONDS     from now until all begin: enough to reach every host [10]

Examples:
  deploy/fleet/pdsh.sh -w client[1-3] -- 10.0.0.1:7000 --connections 3000000 --source eth1 --rate 60000 --hold 5m
  deploy/fleet/namespaces.sh 60000       a rehearsal on this machine

--part, --start-at and --json are given by this script. Exit codes: those of throng-bench merge.
USAGE
}

refuse() {
    printf 'error: %s\n' "$*" >&2
    exit 2
}

# Runs a command on a host: reach HOST WORD...
reach() {
    local host=$1
    shift
    case $FLEET_BY in
    # What comes there is read by a shell.
    ssh) ssh -o BatchMode=yes "$host" "$(printf '%q ' "$@")" </dev/null ;;
    netns) ip netns exec "$host" "$@" </dev/null ;;
    esac
}

# How far the clock of a host is ahead of this one's, and how wrong that may be: half of what the fastest of five questions
# took, however unlike the ways there and back.
clock() {
    local part=$(($1 + 1)) host=$2 least=-1 ahead=0 before there after took
    for _ in 1 2 3 4 5; do
        before=$(date +%s%N)
        there=$(reach "$host" date +%s%N)
        after=$(date +%s%N)
        took=$((after - before))
        if ((least < 0 || took < least)); then
            least=$took
            ahead=$((there - before - took / 2))
        fi
    done
    printf '%d %d %d\n' "$part" $((ahead / 1000)) $((least / 2000 + 1)) >"$FLEET_OUT/clock-$part"
}

# Part by part, each in a process of its own that pdsh starts: this script with the host's rank and name.
client() {
    local part=$(($1 + 1)) host=$2
    shift 2
    reach "$host" "$FLEET_CLIENT" "$@" --part "$part/$FLEET_OF" --start-at "$FLEET_START" --json - >"$FLEET_OUT/part-$part.json"
}

case ${1-} in
--clock | --client)
    what=${1#--}
    shift
    "$what" "$@"
    exit
    ;;
-h | --help)
    usage
    exit
    ;;
esac

hosts='' out=target/throng/fleet by=ssh client=throng-client merge=throng-bench seconds=10
while getopts w:o:b:c:m:s: flag; do
    case $flag in
    w) hosts=$OPTARG ;;
    o) out=$OPTARG ;;
    b) by=$OPTARG ;;
    c) client=$OPTARG ;;
    m) merge=$OPTARG ;;
    s) seconds=$OPTARG ;;
    *) usage >&2 && exit 2 ;;
    esac
done
shift $((OPTIND - 1))
[ -n "$hosts" ] || refuse '-w HOSTS is missing; see --help'
[ $# -gt 0 ] || refuse 'the TARGET and the flags of throng-client are missing: give them after --'
case $by in ssh | netns) ;; *) refuse "-b $by: ssh or netns" ;; esac
[[ $seconds =~ ^[0-9]+$ ]] || refuse "-s $seconds: whole seconds"
command -v pdsh >/dev/null || refuse 'pdsh is not here: apt-get install pdsh'
command -v "$merge" >/dev/null || refuse "$merge is not here: cargo install --path bench, or name it with -m"

# The remote shells of pdsh do not tell a command its rank; its module exec does, and starts a local command for each host.
each() { pdsh -S -R exec -f "$of" -w "$hosts" "$@"; }
of=1
of=$(pdsh -N -R exec -w "$hosts" echo %h | wc -l)
[ "$of" -gt 0 ] || refuse "-w $hosts names no host"

mkdir -p "$out"
rm -f "$out"/part-*.json "$out"/clock-* "$out"/clocks
export FLEET_BY=$by FLEET_OUT=$out FLEET_CLIENT=$client FLEET_OF=$of
each "$0" --clock %n %h || refuse 'a host was not reached: see above'
cat "$out"/clock-* >"$out/clocks"
FLEET_START=$(($(date +%s) + seconds))
export FLEET_START
printf 'fleet: %d parts on %s, all begin at %s\n' "$of" "$hosts" "$(date -u -d "@$FLEET_START" +%FT%TZ)"

# A % of the client's flags is its own.
each "$0" --client %n %h "${@//%/%%}" || printf 'fleet: a part did not go well; its own output is above\n' >&2
exec "$merge" merge "$out"/part-*.json --clocks "$out/clocks" --report "$out/fleet.json"
