//! The command line of `throng-bench`. What is wrong with it is said, with exit code 2, before anything starts.

mod compare;
mod diff;
mod examples;
mod hold;
mod manual;
mod memory;
mod render;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use clap::{Arg, Args, Parser, Subcommand};
use compare::CompareArgs;
use diff::{DIFF_EXAMPLES, DiffArgs};
use examples::{
    AGENT_EXAMPLES, CANARY_EXAMPLES, CHURN_EXAMPLES, EXAMPLES, FAULTS_EXAMPLES, FLOOR_EXAMPLES,
    HEARTBEAT_EXAMPLES, MERGE_EXAMPLES, REMOTE_EXAMPLES, RUN_EXAMPLES, SELFCHECK_EXAMPLES,
    TAIL_EXAMPLES,
};
use hold::{HOLD_EXAMPLES, HoldArgs};
use manual::ManualArgs;
use memory::{MEMORY_EXAMPLES, MemoryArgs};
use render::{REPORT_EXAMPLES, ReportArgs};

use crate::bare;
use crate::bare::client::BareClientArgs;
use crate::bare::server::BareArgs;
use crate::canary;
use crate::canary::flags::CanaryArgs;
use crate::churn::{self, ChurnArgs};
use crate::climb::climb;
use crate::compare::compare as measure_both;
use crate::faults;
use crate::faults::deaf;
use crate::faults::plan::FaultsArgs;
use crate::floor::{self, FloorArgs};
use crate::heartbeat::{self, HeartbeatArgs};
use crate::memory::memory as measure_memory;
use crate::merge::{self, MergeArgs};
use crate::peer::guard::{self, GuardArgs};
use crate::remote;
use crate::remote::agent::{self, AgentArgs};
use crate::remote::plan::RemoteArgs;
use crate::report::html::html;
use crate::report::{Reported, json, recorded};
use crate::run::About;
use crate::scenarios;
use crate::screen::Screen;
use crate::selfcheck::{self, SelfcheckArgs};
use crate::tail::{self, TailArgs};

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
    /// Make one report of what the parts of a fleet of clients measured
    #[command(after_help = MERGE_EXAMPLES)]
    Merge(MergeArgs),
    /// What becomes of those that nobody meant when something goes wrong: kills, floods, shortages, restarts
    #[command(after_help = FAULTS_EXAMPLES)]
    Faults(FaultsArgs),
    /// Show a report that was written before, as a page or as Markdown
    #[command(after_help = REPORT_EXAMPLES)]
    Report(ReportArgs),
    /// Hold two reports of the same command against each other
    #[command(after_help = DIFF_EXAMPLES)]
    Diff(DiffArgs),
    /// Write man pages and shell completions, for packages
    #[command(hide = true)]
    Manual(ManualArgs),
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
    /// Connect, send and never read
    #[command(hide = true)]
    DeafClient(BareClientArgs),
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
        Command::DeafClient(deaf) => deaf::run(&deaf)
            .map(|()| true)
            .map_err(|reason| (reason, 1)),
        Command::Manual(manual) => manual::run(&manual),
        Command::Report(again) => render::run(&again),
        Command::Diff(two) => diff::run(&two),
        Command::Run(_) => unreachable!("it became the command that it stands for"),
        Command::Compare(args) => {
            measure(&args.report.clone(), args.plan(), words, measure_both).map(went_well)
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
        Command::Merge(args) => {
            measure(&args.report, args.plan(), words, merge::run).map(went_well)
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
        Command::Faults(args) => measure(&args.report.clone(), args.plan(), words, faults::run)
            .and_then(|report| nothing_lost(&report)),
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
        Err(error) if error.use_stderr() => {
            let error = error.to_string();
            let error = error.strip_prefix("error: ").unwrap_or(&error);
            Err(format!("in the scenario {name}: {error}"))
        }
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

fn nothing_lost(report: &faults::result::Report) -> Result<bool, Refusal> {
    if report.about.failures.is_empty() && !report.is_good() {
        let reason = "something was lost outside a fault, or grew: see above";
        return Err((reason.to_owned(), 10));
    }
    Ok(report.is_good())
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::scenario::{Engine, Plan};

    fn parsed(args: &[&str]) -> Result<Plan, String> {
        let cli = Cli::try_parse_from([&["throng-bench"], args].concat())
            .map_err(|error| error.to_string())?;
        let compare = match cli.command {
            Some(Command::Compare(compare)) => compare,
            None => cli.compare,
            Some(other) => panic!("{other:?}"),
        };
        compare.plan()
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
    fn every_scenario_built_in_makes_a_command_line() {
        for name in scenarios::names() {
            let words = vec![name.into()];
            let cli = of_scenario(RunArgs { words }).unwrap().unwrap();
            match cli.command.unwrap() {
                Command::Compare(args) => drop(args.plan().unwrap()),
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
        assert_eq!(args.plan().unwrap(), parsed(&[]).unwrap());
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
