//! The command line of `throng-bench`. What is wrong with it is said, with exit code 2, before anything starts.

mod hold;
mod memory;
mod render;

use std::ffi::OsString;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use hold::{HOLD_EXAMPLES, HoldArgs};
use memory::{MEMORY_EXAMPLES, MemoryArgs};
use render::{REPORT_EXAMPLES, ReportArgs};
use serde::Serialize;

use crate::bare::{self, BareArgs};
use crate::canary;
use crate::canary::plan::CanaryArgs;
use crate::churn::{self, ChurnArgs};
use crate::climb::climb;
use crate::clock::millis;
use crate::compare::compare;
use crate::floor::{self, FloorArgs};
use crate::memory::memory as measure_memory;
use crate::peer::guard::{self, GuardArgs};
use crate::report::{self, json, recorded, text};
use crate::run::About;
use crate::scenario::{EchoPlan, Engine, HoldPlan, Plan};
use crate::screen::{Paint, Screen};
use crate::selfcheck::{self, SelfcheckArgs};
use crate::tail::{self, TailArgs};
use crate::usage::{PeerArgs, distinct, this_host};

const EXAMPLES: &str = "\
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
  unshare -r throng-bench canary --path veth          as an ordinary user, where user namespaces are allowed
  throng-bench canary --connections 20000 --hold 10s --storm 5 --storm-over 1s

Over veth, server and client run in network namespaces made for the run and gone with it, and a third is the neighbour;
nothing of this host's network is touched. Pings need CAP_NET_RAW or net.ipv4.ping_group_range; what cannot be measured is said.

Exit codes: 0 all was measured, whatever it says; 1 something failed, was lost or interrupted; 2 bad usage, or the path
asked for cannot be made.";

/// Compares io_uring with epoll on this machine: 100,000 held connections, then echo rounds.
#[derive(Debug, Parser)]
#[command(name = "throng-bench", version, after_help = EXAMPLES, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    compare: CompareArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Compare the engines (this is what happens without a command)
    #[command(after_help = EXAMPLES)]
    Compare(CompareArgs),
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
    #[command(after_help = TAIL_EXAMPLES)]
    Tail(TailArgs),
    /// Connections that come, exchange a message and go
    #[command(after_help = CHURN_EXAMPLES)]
    Churn(ChurnArgs),
    /// Is the method sound on this machine: does it find the same engine to be the same?
    #[command(after_help = SELFCHECK_EXAMPLES)]
    Selfcheck(SelfcheckArgs),
    /// Show a report that was written before, as a page or as Markdown
    #[command(after_help = REPORT_EXAMPLES)]
    Report(ReportArgs),
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
    /// Run the server, as throng-server does
    #[command(disable_help_flag = true)]
    Server(Forwarded),
    /// Run the client, as throng-client does
    #[command(disable_help_flag = true)]
    Client(Forwarded),
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

    /// Rounds, each with every count and every engine; 0 leaves the echo out
    #[arg(long, value_name = "N", default_value_t = 5, help_heading = "The echo")]
    rounds: usize,
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
        value_name = "BYTES",
        default_value_t = 64,
        help_heading = "The echo"
    )]
    message_bytes: u64,

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
    let words = || args.iter().map(|arg| arg.to_string_lossy().into_owned());
    match cli.command {
        Some(Command::Server(rest)) => server::cli::main(named("throng-bench server", rest)),
        Some(Command::Client(rest)) => client::cli::main(named("throng-bench client", rest)),
        Some(Command::Floor(floor)) => exit_code(run_rounds(
            &floor.report.clone(),
            floor.plan(),
            words().collect(),
            floor::run,
            report::floor::results,
        )),
        Some(Command::Tail(tail)) => exit_code(run_rounds(
            &tail.report.clone(),
            tail.plan(),
            words().collect(),
            tail::run,
            report::tail::results,
        )),
        Some(Command::Churn(churn)) => exit_code(run_rounds(
            &churn.report.clone(),
            churn.plan(),
            words().collect(),
            churn::run,
            report::churn::results,
        )),
        Some(Command::Selfcheck(selfcheck)) => {
            exit_code(run_selfcheck(selfcheck, words().collect()))
        }
        Some(Command::FloorServer(rest)) => floor::ends::server(named("floor-server", rest)),
        Some(Command::FloorClient(rest)) => floor::ends::client(named("floor-client", rest)),
        Some(Command::PeerGuard(args)) => exit_code(
            guard::run(&args)
                .map(|()| true)
                .map_err(|reason| (reason, 1)),
        ),
        Some(Command::Bare(bare)) => exit_code(
            bare::run(&bare)
                .map(|()| true)
                .map_err(|reason| (reason, 1)),
        ),
        Some(Command::Hold(hold)) => exit_code(run_hold(&hold, words().collect())),
        Some(Command::Canary(canary)) => exit_code(run_canary(&canary, words().collect())),
        Some(Command::Memory(memory)) => exit_code(run_memory(&memory, words().collect())),
        Some(Command::Report(again)) => exit_code(render::run(&again)),
        Some(Command::Compare(compare)) => exit_code(run(compare, words().collect())),
        None => exit_code(run(cli.compare, words().collect())),
    }
}

/// What to tell the user, and the exit code that goes with it.
type Refusal = (String, u8);

fn run(args: CompareArgs, command_line: Vec<String>) -> Result<bool, Refusal> {
    let (path, plan) = plan(args).map_err(bad_usage)?;
    let page = recorded::page_beside(&path).map_err(bad_usage)?;
    page.iter()
        .try_for_each(|page| json::check_writable(page))
        .map_err(bad_usage)?;
    let is_good = measure(
        &path,
        |screen| compare(plan, command_line, screen),
        |report, paint| (text::results(report, paint), report.failures.is_empty()),
    )?;
    if let Some(page) = page {
        recorded::write_html(&path, &page).map_err(|reason| (reason, 1))?;
        Screen::new().line(&format!("page:   {}", page.display()));
    }
    Ok(is_good)
}

fn run_hold(args: &HoldArgs, command_line: Vec<String>) -> Result<bool, Refusal> {
    let plan = args.plan().map_err(bad_usage)?;
    measure(
        &args.report,
        |screen| climb(plan, command_line, screen),
        |report, paint| {
            let text = report::climb::results(report, paint);
            (text, report.failures.is_empty())
        },
    )
}

fn run_canary(args: &CanaryArgs, command_line: Vec<String>) -> Result<bool, Refusal> {
    let (plan, way) = args.plan().map_err(bad_usage)?;
    measure(
        &args.report,
        |screen| canary::run(plan, &way, command_line, screen),
        |report, paint| {
            let text = report::canary::results(report, paint);
            (text, report.about.failures.is_empty())
        },
    )
}

fn run_memory(args: &MemoryArgs, command_line: Vec<String>) -> Result<bool, Refusal> {
    let plan = args.plan().map_err(bad_usage)?;
    measure(
        &args.report,
        |screen| measure_memory(plan, command_line, screen),
        |report, paint| {
            let text = report::memory::results(report, paint);
            (text, report.failures.is_empty())
        },
    )
}

/// Runs one of the measurements in rounds.
fn run_rounds<Plan, Report: Serialize + AsRef<About>>(
    path: &Path,
    plan: Result<Plan, String>,
    command_line: Vec<String>,
    run: fn(Plan, Vec<String>, &Screen) -> Result<Report, String>,
    results: fn(&Report, Paint) -> String,
) -> Result<bool, Refusal> {
    let plan = plan.map_err(bad_usage)?;
    measure(
        path,
        |screen| run(plan, command_line, screen),
        |report, paint| {
            let text = results(report, paint);
            (text, report.as_ref().failures.is_empty())
        },
    )
}

fn run_selfcheck(args: SelfcheckArgs, command_line: Vec<String>) -> Result<bool, Refusal> {
    let path = args.report.clone();
    let plan = args.plan().map_err(bad_usage)?;
    let mut holds = false;
    let is_good = measure(
        &path,
        |screen| selfcheck::run(plan, command_line, screen),
        |report, paint| {
            holds = report.verdict.holds;
            let text = report::selfcheck::results(report, paint);
            (text, report.about.failures.is_empty())
        },
    )?;
    if is_good && !holds {
        let reason =
            "the method does not hold on this machine; use more --rounds, on a quieter one";
        return Err((reason.to_owned(), 10));
    }
    Ok(is_good)
}

/// Runs something whose report goes to `path`, and shows it. Says whether all of it went well, as `show` does.
fn measure<R: Serialize>(
    path: &Path,
    run: impl FnOnce(&Screen) -> Result<R, String>,
    show: impl FnOnce(&R, Paint) -> (String, bool),
) -> Result<bool, Refusal> {
    json::check_writable(path).map_err(bad_usage)?;
    let screen = Screen::new();
    let failed = |reason| (reason, 1);
    let report = run(&screen).map_err(failed)?;
    let (text, is_good) = show(&report, screen.paint);
    screen.line(&text);
    json::write(&report, path).map_err(failed)?;
    screen.line(&format!("report: {}", path.display()));
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
fn plan(args: CompareArgs) -> Result<(PathBuf, Plan), String> {
    let (engines, peers) = args.peers.beside(args.engines)?;
    distinct("--active", &args.active)?;
    if args.active.contains(&0) {
        return Err("--active must be above 0".to_owned());
    }
    /// The client's bound.
    const MOST_MESSAGE_BYTES: u64 = 65_536;
    if !(1..=MOST_MESSAGE_BYTES).contains(&args.message_bytes) {
        return Err(format!(
            "--message-bytes must be between 1 and {MOST_MESSAGE_BYTES}"
        ));
    }
    if args.connections == 0 && args.rounds == 0 {
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
    let echo = EchoPlan {
        active: args.active,
        message_bytes: args.message_bytes,
        rounds: args.rounds,
        exchange_ms: 1_500,
        warm_up_ms: 300,
        sample_interval_ms: 100,
    };
    let (placement, nofile_hard) = this_host()?;
    let plan = Plan {
        engines,
        peers,
        hold: (args.connections > 0).then_some(hold),
        echo: (args.rounds > 0).then_some(echo),
        placement,
        nofile_hard,
    };
    Ok((args.report, plan))
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
        Ok(plan(compare)?.1)
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
        assert_eq!(plan.echo.unwrap().message_bytes, 65_536);
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
