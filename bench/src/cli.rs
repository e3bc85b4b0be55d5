//! The command line of `throng-bench`. What is wrong with it is said, with exit code 2, before anything starts.

mod diff;
mod hold;
mod memory;
mod render;

use std::ffi::OsString;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Arg, Args, Parser, Subcommand};
use diff::{DIFF_EXAMPLES, DiffArgs};
use hold::{HOLD_EXAMPLES, HoldArgs};
use memory::{MEMORY_EXAMPLES, MemoryArgs};
use render::{REPORT_EXAMPLES, ReportArgs};

use crate::bare;
use crate::bare::client::BareClientArgs;
use crate::bare::server::BareArgs;
use crate::canary;
use crate::canary::plan::CanaryArgs;
use crate::churn::{self, ChurnArgs};
use crate::climb::climb;
use crate::clock::millis;
use crate::compare::compare;
use crate::floor::{self, FloorArgs};
use crate::heartbeat::{self, HeartbeatArgs};
use crate::memory::memory as measure_memory;
use crate::peer::guard::{self, GuardArgs};
use crate::remote;
use crate::remote::agent::{self, AgentArgs};
use crate::remote::plan::RemoteArgs;
use crate::report::html::html;
use crate::report::{Reported, json, recorded};
use crate::run::About;
use crate::scenario::{EchoPlan, Engine, HoldPlan, Plan};
use crate::scenarios;
use crate::screen::Screen;
use crate::selfcheck::{self, SelfcheckArgs};
use crate::tail::{self, TailArgs};
use crate::usage::{PeerArgs, RoundsArgs, distinct, this_host, within};

const EXAMPLES: &str = "\
Examples:
  throng-bench                                        the whole comparison
  throng-bench compare --connections 20000 --hold 5s  a smaller hold
  throng-bench compare --connections 0 --rounds 15    only the echo rounds, more of them
  throng-bench compare --rounds 0 --engines uring     only the hold, of one engine
  throng-bench hold --connections 1000000             how many this machine holds, and what stops it
  throng-bench canary                                 does a ping, does a new connect, suffer meanwhile
  throng-bench selfcheck                              is the method sound on this machine
  throng-bench memory                                 what an idle connection costs above a bare socket
  throng-bench report target/throng/report.json       shows a report again
  throng-bench server --help                          the server it starts
  throng-bench client --help                          the client it starts

Exit codes: 0 all was measured, 1 something failed or was interrupted, 2 bad usage.";

const RUN_EXAMPLES: &str = "\
Examples:
  throng-bench run                                    lists the scenarios
  throng-bench run echo
  throng-bench run tail --engines uring,epoll --idle 0,100000
  throng-bench run tail --help                        the flags of its command
  throng-bench run mine.toml                          one of yours; those built in are in bench/scenarios

Exit codes: those of the scenario's command.";

const FLOOR_EXAMPLES: &str = "\
Examples:
  throng-bench floor                                  floor, uring and epoll, 15 rounds
  throng-bench floor --active 500 --idle 0,100000     is the cost flat in idle connections?
  throng-bench floor --engines uring --table-slots 1000

Exit codes: 0 all was measured, 1 something failed or was interrupted, 2 bad usage.";

const TAIL_EXAMPLES: &str = "\
Examples:
  throng-bench tail                                   three engines, beside 0, 100,000 and 1,000,000 idle
  throng-bench tail --idle 0 --load 50 --rounds 15    one case, more rounds
  throng-bench tail --engines uring,epoll --idle 0,100000

Exit codes: 0 all was measured, 1 something failed or was interrupted, 2 bad usage.";

const CHURN_EXAMPLES: &str = "\
Examples:
  throng-bench churn                                  uring and epoll, 64 at a time, 15 rounds
  throng-bench churn --churn 1000 --rounds 7

Exit codes: 0 all was measured, 1 something failed or was interrupted, 2 bad usage.";

const HEARTBEAT_EXAMPLES: &str = "\
Examples:
  throng-bench heartbeat                              uring and epoll, 100,000 connections, five rounds
  throng-bench heartbeat --connections 10000 --heartbeat 1s --exchange 5s

Exit codes: 0 all was measured, 1 something failed or was interrupted, 2 bad usage.";

const SELFCHECK_EXAMPLES: &str = "\
Examples:
  throng-bench selfcheck                              ten runs of 15 pairs, uring against uring
  throng-bench selfcheck --engine epoll --active 10000
  throng-bench selfcheck --runs 20 --until-width 3 --at-most 2m

The method holds where the 95 % interval of B ÷ A has 1.00 in it, and is no wider than ±8 %, in nine of ten runs.

Exit codes: 0 it holds, 1 something failed or was interrupted, 2 bad usage, 10 it does not hold on this machine.";

const CANARY_EXAMPLES: &str = "\
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

const AGENT_EXAMPLES: &str = "\
Examples:
  throng-bench agent --listen 10.0.0.2:7070 --port 7000   beside the server on port 7000, whichever it is
  throng-bench agent --listen 10.0.0.2:7070 --pid 4711    beside this process and its children

It reads and tells, to one bench at a time: memory, CPU time, sockets, network counters and settings of this host, and CPU \
time, memory, threads and open files of the processes. It runs nothing and changes nothing. There is no authentication: \
bind it to an address that only your own hosts reach. It ends with Ctrl-C or SIGTERM.

Run it as the server's user or as root: only they may read PSS and find a process by its port, and only root the slab caches.

Exit codes: 0 it ended when told to, 2 it could not begin.";

const REMOTE_EXAMPLES: &str = "\
Examples:
  throng-bench remote --agent 10.0.0.2:7070 10.0.0.2:7000 --connections 20000 --hold 30s
  throng-bench remote --agent 10.0.0.2:7070 10.0.0.2:7000 -n 20000 --quiet-for 20s --active 500 --hold 20s
  throng-bench remote --agent 10.0.0.2:7070 10.0.0.2:7000 -n 200000 --source 10.0.1.1-10.0.1.4 --message-rate 5000 --active 500

All that follows TARGET is for the client: see throng-client --help. Memory is looked at closely while connections rest: in \
the time of --quiet-for, or of --hold where there is none.

Exit codes: 0 all was measured, 1 something failed, was lost or interrupted, 2 bad usage, or no agent answers.";

/// Compares io_uring with epoll on this machine: 100,000 held connections, then echo rounds.
#[derive(Debug, Parser)]
#[command(name = "throng-bench", version, after_help = EXAMPLES, args_conflicts_with_subcommands = true, mut_arg("rounds", rounds_or_none))]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    compare: CompareArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Compare the engines (this is what happens without a command)
    #[command(after_help = EXAMPLES, mut_arg("rounds", rounds_or_none))]
    Compare(CompareArgs),
    /// Run a scenario by its name: a command and its flags, from a file
    #[command(after_help = RUN_EXAMPLES, disable_help_flag = true)]
    Run(RunArgs),
    /// Bring very many connections up and hold them, as far as this machine goes
    #[command(after_help = HOLD_EXAMPLES)]
    Hold(HoldArgs),
    /// Does a ping, does a new connect, suffer while very many connections are held?
    #[command(after_help = CANARY_EXAMPLES)]
    Canary(CanaryArgs),
    /// Measure what an idle connection takes of the kernel's memory, by slab cache
    #[command(after_help = MEMORY_EXAMPLES)]
    Memory(MemoryArgs),
    /// Hold the engines against what the TCP stack alone costs for the same messages
    #[command(after_help = FLOOR_EXAMPLES)]
    Floor(FloorArgs),
    /// Latency in open loop, at a share of saturation, beside idle connections
    #[command(after_help = TAIL_EXAMPLES, mut_arg("rounds", five_rounds))]
    Tail(TailArgs),
    /// What a heartbeat costs, and how late it comes, on connections that are held
    #[command(after_help = HEARTBEAT_EXAMPLES, mut_arg("rounds", five_rounds), mut_arg("exchange", ten_seconds))]
    Heartbeat(HeartbeatArgs),
    /// Connections that come, exchange a message and go
    #[command(after_help = CHURN_EXAMPLES)]
    Churn(ChurnArgs),
    /// Is the method sound on this machine: does it find the same engine to be the same?
    #[command(after_help = SELFCHECK_EXAMPLES)]
    Selfcheck(SelfcheckArgs),
    /// Sit beside a server on its host, and tell the bench of another host what is seen of it
    #[command(after_help = AGENT_EXAMPLES)]
    Agent(AgentArgs),
    /// Load a server on another host, watch both hosts, and join what was seen on one clock
    #[command(after_help = REMOTE_EXAMPLES)]
    Remote(RemoteArgs),
    /// Show a report that was written before, as a page or as Markdown
    #[command(after_help = REPORT_EXAMPLES)]
    Report(ReportArgs),
    /// Hold two reports of the same command against each other
    #[command(after_help = DIFF_EXAMPLES)]
    Diff(DiffArgs),
    /// The floor's own server
    #[command(hide = true, disable_help_flag = true)]
    FloorServer(Forwarded),
    /// The floor's own client
    #[command(hide = true, disable_help_flag = true)]
    FloorClient(Forwarded),
    /// Start a peer, and end it
    #[command(hide = true)]
    PeerGuard(GuardArgs),
    /// Accept and keep connections, and do nothing else
    #[command(hide = true)]
    Bare(BareArgs),
    /// Connect and keep connections, and do nothing else
    #[command(hide = true)]
    BareClient(BareClientArgs),
    /// Run the server, as throng-server does
    #[command(disable_help_flag = true)]
    Server(Forwarded),
    /// Run the client, as throng-client does
    #[command(disable_help_flag = true)]
    Client(Forwarded),
}

#[derive(Debug, Args)]
struct RunArgs {
    /// Which: one of those listed without a name, or a file that ends with .toml. Then flags of the scenario's command,
    /// which take the place of the scenario's own; NAME --help shows them
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "NAME [FLAGS]"
    )]
    words: Vec<OsString>,
}

/// Fewer rounds than where a ratio is all that is wanted.
fn five_rounds(arg: Arg) -> Arg {
    arg.default_value("5")
}

/// Long enough for some heartbeats.
fn ten_seconds(arg: Arg) -> Arg {
    arg.default_value("10s")
}

fn rounds_or_none(arg: Arg) -> Arg {
    five_rounds(arg).help("Rounds, each with everything that is compared; 0 leaves the echo out")
}

#[derive(Debug, Args)]
struct Forwarded {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<OsString>,
}

#[derive(Debug, Args)]
struct CompareArgs {
    /// Engines to compare: uring (direct descriptors), epoll (the baseline), tokio-uring
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "uring,epoll",
        hide_possible_values = true,
        help_heading = "What is compared"
    )]
    engines: Vec<Engine>,

    #[command(flatten)]
    peers: PeerArgs,

    /// Connections to hold; 0 leaves the hold out
    #[arg(
        long,
        value_name = "N",
        default_value_t = 100_000,
        help_heading = "The hold"
    )]
    connections: u64,
    /// How long they are held
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = humantime::parse_duration, help_heading = "The hold")]
    hold: Duration,
    /// Interval of the server's heartbeat on each connection, 0: none
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = humantime::parse_duration, help_heading = "The hold")]
    heartbeat: Duration,

    /// Connections that exchange messages at the same time
    #[arg(
        long,
        value_name = "N,N",
        value_delimiter = ',',
        default_value = "500,10000",
        help_heading = "The echo"
    )]
    active: Vec<u64>,
    /// Bytes of a message
    #[arg(
        long,
        value_name = "BYTES,BYTES",
        value_delimiter = ',',
        default_value = "64",
        help_heading = "The echo"
    )]
    message_bytes: Vec<u64>,

    #[command(flatten)]
    rounds: RoundsArgs,

    /// Where to write the report as JSON: all that is printed and more; a page for the browser goes beside it, as .html
    #[arg(
        long,
        value_name = "FILE",
        default_value = "target/throng/report.json",
        help_heading = "Output"
    )]
    report: PathBuf,
}

/// Runs `throng-bench` with `args`, the first of which is its name.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.into_iter().collect();
    let cli = match Cli::try_parse_from(&args) {
        Ok(cli) => cli,
        Err(error) => {
            // The text has nowhere else to go when the terminal is gone.
            let _ = error.print();
            return if error.use_stderr() {
                ExitCode::from(2)
            } else {
                ExitCode::SUCCESS
            };
        }
    };
    let named =
        |name: &str, rest: Forwarded| std::iter::once(OsString::from(name)).chain(rest.args);
    let cli = match cli.command {
        Some(Command::Run(run)) => match of_scenario(run) {
            Ok(Some(cli)) => cli,
            Ok(None) => return ExitCode::SUCCESS,
            Err(refusal) => return exit_code(Err(bad_usage(refusal))),
        },
        _ => cli,
    };
    let words: Vec<String> = args
        .iter()
        .map(|arg| arg.to_string_lossy().into_owned())
        .collect();
    let command = cli.command.unwrap_or(Command::Compare(cli.compare));
    let outcome = match command {
        Command::Server(rest) => return server::cli::main(named("throng-bench server", rest)),
        Command::Client(rest) => return client::cli::main(named("throng-bench client", rest)),
        Command::FloorServer(rest) => return floor::ends::server(named("floor-server", rest)),
        Command::FloorClient(rest) => return floor::ends::client(named("floor-client", rest)),
        Command::PeerGuard(args) => guard::run(&args)
            .map(|()| true)
            .map_err(|reason| (reason, 1)),
        Command::Bare(bare) => bare::server::run(&bare)
            .map(|()| true)
            .map_err(|reason| (reason, 1)),
        Command::BareClient(bare) => bare::client::run(&bare)
            .map(|()| true)
            .map_err(|reason| (reason, 1)),
        Command::Report(again) => render::run(&again),
        Command::Diff(two) => diff::run(&two),
        Command::Run(_) => unreachable!("it became the command that it stands for"),
        Command::Compare(args) => {
            measure(&args.report.clone(), plan(args), words, compare).map(went_well)
        }
        Command::Hold(args) => measure(&args.report, args.plan(), words, climb).map(went_well),
        Command::Canary(args) => {
            measure(&args.report, args.plan(), words, canary::run).map(went_well)
        }
        Command::Agent(agent) => agent::run(&agent).map(|()| true).map_err(bad_usage),
        Command::Remote(args) => {
            let plan = args
                .plan()
                .and_then(|plan| Ok((remote::greet(&plan)?, plan)));
            measure(&args.report, plan, words, remote::run).map(went_well)
        }
        Command::Memory(args) => {
            measure(&args.report, args.plan(), words, measure_memory).map(went_well)
        }
        Command::Floor(args) => {
            measure(&args.report.clone(), args.plan(), words, floor::run).map(went_well)
        }
        Command::Tail(args) => {
            measure(&args.report.clone(), args.plan(), words, tail::run).map(went_well)
        }
        Command::Heartbeat(args) => {
            measure(&args.report.clone(), args.plan(), words, heartbeat::run).map(went_well)
        }
        Command::Churn(args) => {
            measure(&args.report.clone(), args.plan(), words, churn::run).map(went_well)
        }
        Command::Selfcheck(args) => {
            measure(&args.report.clone(), args.plan(), words, selfcheck::run)
                .and_then(|report| verdict(&report))
        }
    };
    exit_code(outcome)
}

/// The command line that a scenario stands for; `None` where it was enough to list them.
fn of_scenario(run: RunArgs) -> Result<Option<Cli>, String> {
    let Some((name, flags)) = run.words.split_first() else {
        let screen = Screen::new();
        for name in scenarios::names() {
            let about = scenarios::find(name)?.about;
            screen.line(&format!("  {name:<10} {about}"));
        }
        return Ok(None);
    };
    let name = name.to_string_lossy();
    let arguments = match &*name {
        "-h" | "--help" => vec!["help".into(), "run".into()],
        name => scenarios::find(name)?.arguments(flags)?,
    };
    match Cli::try_parse_from(std::iter::once("throng-bench".into()).chain(arguments)) {
        Ok(cli) => Ok(Some(cli)),
        Err(error) if error.use_stderr() => Err(format!("in the scenario {name}: {error}")),
        Err(help) => {
            let _ = help.print();
            Ok(None)
        }
    }
}

/// What to tell the user, and the exit code that goes with it.
type Refusal = (String, u8);

/// Runs a command whose report goes to `path`, a page for the browser beside it, and shows what came of it. Gives the
/// report.
fn measure<Plan, R: Reported>(
    path: &Path,
    plan: Result<Plan, String>,
    command_line: Vec<String>,
    run: impl FnOnce(Plan, Vec<String>, &Screen) -> Result<R, String>,
) -> Result<R, Refusal> {
    let plan = plan.map_err(bad_usage)?;
    let page = recorded::page_beside(path).map_err(bad_usage)?;
    for written in std::iter::once(path).chain(page.as_deref()) {
        json::check_writable(written).map_err(bad_usage)?;
    }
    let failed = |reason| (reason, 1);
    let screen = Screen::new();
    let report = run(plan, command_line, &screen).map_err(failed)?;
    screen.line(&report.text(screen.paint));
    json::write(&report, path).map_err(failed)?;
    screen.line(&format!("report: {}", path.display()));
    if let Some(page) = page {
        recorded::write(&page, &html(&report.page()).map_err(failed)?).map_err(failed)?;
        screen.line(&format!("page:   {}", page.display()));
    }
    Ok(report)
}

fn went_well(report: impl AsRef<About>) -> bool {
    report.as_ref().failures.is_empty()
}

fn verdict(report: &selfcheck::result::Report) -> Result<bool, Refusal> {
    let is_good = report.about.failures.is_empty();
    if is_good && !report.verdict.holds {
        let reason =
            "the method does not hold on this machine; use more --rounds, on a quieter one";
        return Err((reason.to_owned(), 10));
    }
    Ok(is_good)
}

fn bad_usage(reason: String) -> Refusal {
    (reason, 2)
}

fn exit_code(outcome: Result<bool, Refusal>) -> ExitCode {
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err((reason, code)) => {
            eprintln!("error: {reason}");
            ExitCode::from(code)
        }
    }
}

/// The plan that the flags ask for, on this machine.
fn plan(args: CompareArgs) -> Result<Plan, String> {
    let (engines, peers) = args.peers.beside(args.engines)?;
    distinct("--active", &args.active)?;
    if args.active.contains(&0) {
        return Err("--active must be above 0".to_owned());
    }
    /// The client's bound.
    const MOST_MESSAGE_BYTES: u64 = 65_536;
    distinct("--message-bytes", &args.message_bytes)?;
    for bytes in &args.message_bytes {
        within("--message-bytes", *bytes, 1..=MOST_MESSAGE_BYTES)?;
    }
    if args.connections == 0 && args.rounds.rounds == 0 {
        return Err("with --connections 0 and --rounds 0 nothing is left to measure".to_owned());
    }
    /// Below this the client's samples, one a second, would not see the hold.
    const SHORTEST_HOLD: Duration = Duration::from_secs(3);
    /// The client's bound.
    const LONGEST_HOLD: Duration = Duration::from_secs(30 * 24 * 3_600);
    if args.connections > 0 && !(SHORTEST_HOLD..=LONGEST_HOLD).contains(&args.hold) {
        return Err(format!(
            "--hold must be between {} (to be sampled) and {}",
            humantime::format_duration(SHORTEST_HOLD),
            humantime::format_duration(LONGEST_HOLD)
        ));
    }
    /// Bounds of the server and of the client.
    const HEARTBEATS: RangeInclusive<Duration> =
        Duration::from_millis(10)..=Duration::from_secs(24 * 3_600);
    if !args.heartbeat.is_zero() && !HEARTBEATS.contains(&args.heartbeat) {
        return Err("--heartbeat must be between 10ms and 24h, or 0 for none".to_owned());
    }
    let hold = HoldPlan {
        connections: args.connections,
        hold_ms: millis(args.hold),
        heartbeat_ms: millis(args.heartbeat),
    };
    let echo = match args.rounds.rounds {
        0 => None,
        _ => {
            let (rounds, until, times) = args.rounds.plan()?;
            Some(EchoPlan {
                active: args.active,
                message_bytes: args.message_bytes,
                rounds,
                until,
                times,
            })
        }
    };
    let (placement, nofile_hard) = this_host()?;
    Ok(Plan {
        engines,
        peers,
        hold: (args.connections > 0).then_some(hold),
        echo,
        placement,
        nofile_hard,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parsed(args: &[&str]) -> Result<Plan, String> {
        let cli = Cli::try_parse_from([&["throng-bench"], args].concat())
            .map_err(|error| error.to_string())?;
        let compare = match cli.command {
            Some(Command::Compare(compare)) => compare,
            None => cli.compare,
            Some(other) => panic!("{other:?}"),
        };
        plan(compare)
    }

    #[test]
    fn the_flags_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn no_command_is_the_comparison() {
        let plan = parsed(&[]).unwrap();
        assert_eq!(plan, parsed(&["compare"]).unwrap());
        assert_eq!(plan.engines, [Engine::Uring, Engine::Epoll]);
        assert_eq!(plan.hold.unwrap().connections, 100_000);
        assert_eq!(plan.echo.unwrap().active, [500, 10_000]);
    }

    #[test]
    fn a_part_can_be_left_out_but_not_all() {
        assert!(
            parsed(&["compare", "--connections", "0"])
                .unwrap()
                .hold
                .is_none()
        );
        assert!(parsed(&["--rounds", "0"]).unwrap().echo.is_none());
        assert!(
            parsed(&["--rounds", "0", "--connections", "0"])
                .unwrap_err()
                .contains("nothing is left")
        );
    }

    #[test]
    fn every_scenario_built_in_makes_a_command_line() {
        for name in scenarios::names() {
            let words = vec![name.into()];
            let cli = of_scenario(RunArgs { words }).unwrap().unwrap();
            match cli.command.unwrap() {
                Command::Compare(args) => drop(plan(args).unwrap()),
                Command::Tail(args) => drop(args.plan().unwrap()),
                Command::Floor(args) => drop(args.plan().unwrap()),
                Command::Churn(args) => drop(args.plan().unwrap()),
                Command::Heartbeat(args) => drop(args.plan().unwrap()),
                Command::Canary(_) => {}
                other => panic!("{other:?}"),
            }
        }
        let words = vec!["compare".into()];
        let compare = of_scenario(RunArgs { words });
        let Some(Command::Compare(args)) = compare.unwrap().unwrap().command else {
            panic!("not compare")
        };
        assert_eq!(plan(args).unwrap(), parsed(&[]).unwrap());
    }

    #[test]
    fn bad_usage_is_refused_with_the_flag_named() {
        let bad = [
            (vec!["--engines", "kqueue"], "--engines"),
            (vec!["--engines", "epoll,epoll"], "--engines"),
            (vec!["--active", "0"], "--active"),
            (vec!["--active", "500,500"], "--active"),
            (vec!["--hold", "1s"], "--hold"),
            (vec!["--hold", "soon"], "--hold"),
            (vec!["--hold", "31days"], "--hold"),
            (vec!["--heartbeat", "9999us"], "--heartbeat"),
            (vec!["--heartbeat", "100us"], "--heartbeat"),
            (vec!["--heartbeat", "25h"], "--heartbeat"),
            (vec!["--message-bytes", "0"], "--message-bytes"),
            (vec!["--message-bytes", "65537"], "--message-bytes"),
        ];
        for (args, flag) in bad {
            assert!(parsed(&args).unwrap_err().contains(flag), "{args:?}");
        }
    }

    #[test]
    fn what_the_server_and_the_client_take_at_most_is_taken() {
        for heartbeat in ["0", "10ms", "24h"] {
            parsed(&["--heartbeat", heartbeat]).unwrap();
        }
        let plan = parsed(&["--message-bytes", "65536"]).unwrap();
        assert_eq!(plan.echo.unwrap().message_bytes, [65_536]);
    }

    #[test]
    fn flags_of_the_server_pass_untouched() {
        let args = [
            "throng-bench",
            "server",
            "--help",
            "--listen",
            "127.0.0.1:0",
        ];
        match Cli::try_parse_from(args).unwrap().command {
            Some(Command::Server(rest)) => {
                assert_eq!(rest.args, ["--help", "--listen", "127.0.0.1:0"])
            }
            other => panic!("{other:?}"),
        }
    }
}
