//! From arguments to an exit code: parse, run, report.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, anyhow};
use kernel_tuning::host::NetCounters;
use kernel_tuning::limit::{self, Cause, Context, Evidence};
use tracing_subscriber::EnvFilter;

use crate::config::Config;
use crate::dial::{self, Failure};
use crate::display::{self, Progress};
use crate::interrupts::Interrupts;
use crate::outlook::Outlook;
use crate::run::{self, Watchers};
use crate::samples::Samples;
use crate::source::{Plan, Source};
use crate::summary::{Summary, errno_name};
use crate::tui::{Screen, View};

const FLAWED: u8 = 1;
const BAD_USAGE: u8 = 2;
/// Source addresses tried before the start, spread over all in use: some milliseconds' worth.
const MOST_CHECKED: u64 = 4096;

/// Runs the client with `args`, the program's name first.
///
/// Exit code: 0 when all wanted connections were established, none was lost and every byte was right; 1 for
/// anything short of that; 2 where nothing was started: bad usage, or no io_uring here.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let (config, plan) = match Config::parse(args) {
        Ok(parsed) => parsed,
        Err(error) => {
            // `--help` and `--version` come this way too, with exit code 0. Nobody to tell when this fails.
            let _ = error.print();
            return ExitCode::from(error.exit_code() as u8);
        }
    };
    let screen = Arc::<Screen>::default();
    init_logs(&screen, config.tui);
    let outputs = match check(&config, &plan) {
        Ok(outputs) => outputs,
        Err(error) => return fail(&error, BAD_USAGE),
    };
    match run(&config, &plan, outputs, &screen) {
        Ok(summary) if summary.is_flawless() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::from(FLAWED),
        Err(error) => fail(&error, FLAWED),
    }
}

/// Where the results go.
struct Outputs {
    json: Option<Box<dyn Write>>,
    samples: Option<Box<dyn Write>>,
    hlog: Option<Box<dyn Write>>,
}

/// What only the host can say about a configuration, asked before anything starts.
fn check(config: &Config, plan: &Plan) -> anyhow::Result<Outputs> {
    let stride = plan.addresses().div_ceil(MOST_CHECKED) as usize;
    for source in plan.sources().step_by(stride) {
        dial::check_source(source).map_err(|Failure { step, errno, .. }| {
            let given = config.source_of(source);
            let context = Context {
                source: Some(source),
                source_networks: given.map(Source::networks).unwrap_or_default(),
                source_interface: given.and_then(Source::interface).map(str::to_owned),
                address: config.targets.first().copied(),
                ..Context::new(step)
            };
            let evidence = Evidence::read(&NetCounters::default());
            let diagnosis = limit::diagnose(Cause::Errno(errno), &context, &evidence);
            anyhow!(
                "cannot connect from {source} ({}): {diagnosis}",
                errno_name(errno)
            )
        })?;
    }
    ring::probe()?;
    if config.tui {
        Screen::check(config.samples.as_deref().is_some_and(is_dash))
            .map_err(|why| anyhow!(why))?;
    }
    let open = |path: &Option<std::path::PathBuf>| path.as_deref().map(output).transpose();
    Ok(Outputs {
        json: open(&config.json)?,
        samples: open(&config.samples)?,
        hlog: open(&config.hlog)?,
    })
}

fn run(
    config: &Config,
    plan: &Plan,
    outputs: Outputs,
    screen: &Arc<Screen>,
) -> anyhow::Result<Summary> {
    let interrupts = Interrupts::new(config.until_stdin_closes, Arc::clone(screen))?;
    if config.until_stdin_closes {
        // Part of a load test. Where it is refused (a read-only /proc), the client works as well.
        let _ = kernel_tuning::process::prefer_oom_kill();
    }
    let mut watchers = Watchers {
        progress: Progress::new(config),
        view: None,
        samples: outputs.samples.map(Samples::new),
        hlog: outputs.hlog,
    };
    let outlook = Outlook::of_host(config, plan);
    // Nobody to tell when this fails.
    let _ = writeln!(io::stderr(), "plan: {outlook}");
    if config.tui {
        let view = View::open(config, screen);
        watchers.view = Some(view.context("the terminal cannot be had for --tui")?);
    }
    let result = run::run(config, plan, &interrupts, &mut watchers);
    drop(watchers);
    screen.close();
    let mut summary = result?;
    summary.plan = Some(outlook);
    show(config, &summary);
    if let Some(mut json) = outputs.json {
        serde_json::to_writer_pretty(&mut json, &summary)?;
        json.write_all(b"\n")
            .and_then(|()| json.flush())
            .context("cannot write the summary")?;
    }
    Ok(summary)
}

/// The summary for a person: on stdout, unless a program reads that.
fn show(config: &Config, summary: &Summary) {
    let is_stdout_taken = [&config.json, &config.samples, &config.hlog]
        .into_iter()
        .flatten()
        .any(|path| is_dash(path));
    // A reader that went away is no failure of the run.
    let _ =
        match is_stdout_taken {
            true => io::stderr()
                .write_all(display::summary(summary, has_colour(&io::stderr())).as_bytes()),
            false => io::stdout()
                .write_all(display::summary(summary, has_colour(&io::stdout())).as_bytes()),
        };
}

fn has_colour(output: &impl IsTerminal) -> bool {
    output.is_terminal() && std::env::var_os("NO_COLOR").is_none()
}

fn output(path: &Path) -> anyhow::Result<Box<dyn Write>> {
    if is_dash(path) {
        return Ok(Box::new(io::stdout()));
    }
    let file = File::create(path).with_context(|| {
        format!(
            "cannot write {}: name a file in a directory that exists",
            path.display()
        )
    })?;
    Ok(Box::new(io::BufWriter::new(file)))
}

fn is_dash(path: &Path) -> bool {
    path.as_os_str() == "-"
}

fn init_logs(screen: &Arc<Screen>, is_view: bool) {
    let screen = Arc::clone(screen);
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    // A caller that has its own logs keeps them.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(screen)
        .with_ansi(!is_view && has_colour(&io::stderr()))
        // A log that nobody reads any more is no reason to panic.
        .log_internal_errors(false)
        .try_init();
}

fn fail(error: &anyhow::Error, code: u8) -> ExitCode {
    // Nobody to tell when this fails.
    let _ = writeln!(io::stderr(), "error: {error:#}");
    ExitCode::from(code)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_source_in_the_middle_that_is_not_local_is_refused_before_the_start() {
        let args = "throng-client 127.0.0.1:7000 --connections 15000 \
                    --source 127.1.0.1 --source 192.0.2.77 --source 127.1.0.2";
        let (config, plan) = Config::parse(args.split_whitespace().map(OsString::from)).unwrap();
        let error = check(&config, &plan).err().unwrap().to_string();
        assert!(
            error.contains("192.0.2.77 is not configured here")
                && error.ends_with("ip addr add 192.0.2.77/32 dev lo"),
            "{error}"
        );
    }
}
