//! What the help of each command ends with: examples and exit codes.

pub(super) const EXAMPLES: &str = "\
Examples:
  throng-bench                                        the whole comparison
  throng-bench compare --connections 20000 --hold 5s  a smaller hold
  throng-bench compare --connections 0 --rounds 15    only the echo rounds, more of them
  throng-bench compare --rounds 0 --engines uring     only the hold, of one engine
  throng-bench compare --connections 0 --peer go='./go-echo {port}'
                                                      another server in the same rounds, see bench/peers
  throng-bench hold --connections 1000000             how many this machine holds, and what stops it
  throng-bench canary                                 does a ping, does a new connect, suffer meanwhile
  throng-bench selfcheck                              is the method sound on this machine
  throng-bench memory                                 what an idle connection costs above a bare socket
  throng-bench report target/throng/report.json       shows a report again
  throng-bench server --help                          the server it starts
  throng-bench client --help                          the client it starts

Exit codes: 0 all was measured, 1 something failed or was interrupted, 2 bad usage.";

pub(super) const RUN_EXAMPLES: &str = "\
Examples:
  throng-bench run                                    lists the scenarios
  throng-bench run echo
  throng-bench run tail --engines uring,epoll --idle 0,100000
  throng-bench run tail --help                        the flags of its command
  throng-bench run mine.toml                          one of yours; those built in are in bench/scenarios

Exit codes: those of the scenario's command.";

pub(super) const FLOOR_EXAMPLES: &str = "\
Examples:
  throng-bench floor                                  floor, uring and epoll, 15 rounds
  throng-bench floor --active 500 --idle 0,100000     is the cost flat in idle connections?
  throng-bench floor --engines uring --table-slots 1000

Exit codes: 0 all was measured, 1 something failed or was interrupted, 2 bad usage.";

pub(super) const TAIL_EXAMPLES: &str = "\
Examples:
  throng-bench tail                                   three engines, beside 0, 100,000 and 1,000,000 idle
  throng-bench tail --idle 0 --load 50 --rounds 15    one case, more rounds
  throng-bench tail --engines uring,epoll --idle 0,100000

Exit codes: 0 all was measured, 1 something failed or was interrupted, 2 bad usage.";

pub(super) const CHURN_EXAMPLES: &str = "\
Examples:
  throng-bench churn                                  uring and epoll, 64 at a time, 15 rounds
  throng-bench churn --churn 1000 --rounds 7

Exit codes: 0 all was measured, 1 something failed or was interrupted, 2 bad usage.";

pub(super) const FAULTS_EXAMPLES: &str = "\
Examples:
  throng-bench faults                                 all of them at 100,000 connections, 20 times each
  throng-bench faults --connections 1000 --cycles 2   small, in a minute
  throng-bench faults --only storm,server-kill
  throng-bench faults --soak 30m --seed 7             random faults, one server

Needs root for half-open (network namespaces) and memory-group; what cannot be done here is told, with the reason.

Exit codes: 0 nothing was lost outside a fault and nothing grew, 1 something failed or was interrupted, 2 bad usage,
10 something was lost or grew.";

pub(super) const HEARTBEAT_EXAMPLES: &str = "\
Examples:
  throng-bench heartbeat                              uring and epoll, 100,000 connections, five rounds
  throng-bench heartbeat --connections 10000 --heartbeat 1s --exchange 5s

Exit codes: 0 all was measured, 1 something failed or was interrupted, 2 bad usage.";

pub(super) const SELFCHECK_EXAMPLES: &str = "\
Examples:
  throng-bench selfcheck                              ten runs of 15 pairs, uring against uring
  throng-bench selfcheck --engine epoll --active 10000
  throng-bench selfcheck --runs 20 --until-width 3 --at-most 2m

The method holds where the 95 % interval of B ÷ A has 1.00 in it, and is no wider than ±8 %, in nine of ten runs.

Exit codes: 0 it holds, 1 something failed or was interrupted, 2 bad usage, 10 it does not hold on this machine.";

pub(super) const CANARY_EXAMPLES: &str = "\
Examples:
  throng-bench canary                                 100,000 connections, over veth where that can be made
  throng-bench canary --connections 100000,200000 --path veth
  throng-bench canary --connections 1000000 --steps 1000,10000,100000 --fit --engines uring,epoll --path loopback,veth
  unshare -r throng-bench canary --path veth          as an ordinary user, where user namespaces are allowed
  throng-bench canary --connections 20000 --hold 10s --storm 5 --storm-over 1s

Over veth, server and client run in network namespaces made for the run and gone with it, and a third is the neighbour;
nothing of this host's network is touched. Of --path loopback,veth what cannot be made is left out, and
said. Pings need CAP_NET_RAW or net.ipv4.ping_group_range; what cannot be measured is said.

Exit codes: 0 all was measured, whatever it says; 1 something failed, was lost or interrupted; 2 bad usage, or the path
asked for cannot be made.";

pub(super) const AGENT_EXAMPLES: &str = "\
Examples:
  throng-bench agent --listen 10.0.0.2:7070 --port 7000   beside the server on port 7000, whichever it is
  throng-bench agent --listen 10.0.0.2:7070 --pid 4711    beside this process and its children

It reads and tells, to one bench at a time: memory, CPU time, sockets, network counters and settings of this host, and CPU \
time, memory, threads and open files of the processes. It runs nothing and changes nothing. There is no authentication: \
bind it to an address that only your own hosts reach. It ends with Ctrl-C or SIGTERM.

Run it as the server's user or as root: only they may read PSS and find a process by its port, and only root the slab caches.

Exit codes: 0 it ended when told to, 2 it could not begin.";

pub(super) const REMOTE_EXAMPLES: &str = "\
Examples:
  throng-bench remote --agent 10.0.0.2:7070 10.0.0.2:7000 --source 10.0.0.1 --connections 20000 --hold 30s
  throng-bench remote --agent 10.0.0.2:7070 10.0.0.2:7000 --source eth1 -n 20000 --quiet-for 20s --active 500 --hold 20s
  throng-bench remote --agent 10.0.0.2:7070 10.0.0.2:7000 --source 10.0.0.5-10.0.0.9 -n 200000 --active 500 --message-rate 5000

All that follows TARGET is for the client: see throng-client --help. Memory is looked at closely while connections rest: in \
the time of --quiet-for, or of --hold where there is none.

Exit codes: 0 all was measured, 1 something failed, was lost or interrupted, 2 bad usage, or no agent answers.";

pub(super) const MERGE_EXAMPLES: &str = "\
Examples:
  throng-bench merge part-*.json
  throng-bench merge part-*.json --clocks clocks --report fleet.json
  throng-bench merge part-1.json part-3.json --partial

Each part is what throng-client --part I/N --json FILE wrote. Counts and histograms are added up, never averaged; times count \
from the common start (--start-at). Parts that failed, are missing, come twice or are of another run are named, and nothing is \
merged without --partial.

Exit codes: 0 all parts are there, and none lost anything; 1 something was lost or failed in a part, or is missing; 2 bad \
usage, or these files cannot be merged.";
