//! The command `throng-server`: flags in, exit status out.

use std::ffi::OsString;
use std::io::{IsTerminal, Read, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use kernel_tuning::setting::Role;
use nix::sys::prctl::set_no_new_privs;
use nix::sys::signal::{SigSet, Signal};
use tracing::warn;

use crate::admin::{Address, Admin, Served};
use crate::canary::Responder;
use crate::config::{Protocol, Resolved, UsageError, resolve};
use crate::ctl;
use crate::engine::EngineKind;
use crate::log::{self, Log};
use crate::notify::{Manager, Word};
use crate::sandbox;
use crate::server::{Server, StartError, prepare};
use crate::summary::Summary;
use crate::watchdog;
use crate::worker::{Command, Event};

/// Runs the server, or [`ctl`] where that is the first argument. `args` begins with the program's name.
pub fn main(args: impl Iterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.collect();
    if args.get(1).is_some_and(|first| first == "ctl") {
        return ctl::main(args);
    }
    let wanted = match log::wanted() {
        Ok(wanted) => wanted,
        Err(why) => {
            eprintln!("error: {why}");
            return ExitCode::from(2);
        }
    };
    let mut resolved = match resolve(args.into_iter()) {
        Ok(resolved) => resolved,
        Err(UsageError::Flags(error)) => {
            let _ = error.print();
            return ExitCode::from(error.exit_code() as u8);
        }
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(2);
        }
    };
    let log = Log::begin(resolved.log, wanted);
    match run(&mut resolved, &log) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log.fail(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(resolved: &mut Resolved, log: &Log) -> anyhow::Result<()> {
    if let Some(why) = &resolved.fallback {
        warn!("epoll instead of io_uring: {why}");
    }
    if resolved.leaks {
        warn!(
            "this kernel does not release the sockets of closed direct descriptors (fixed in Linux 6.13): \
             a file descriptor per connection is used, and RLIMIT_NOFILE bounds them"
        );
    }
    if resolved.config.engine == EngineKind::TokioUring {
        warn!(
            "the rings of tokio-uring cannot be restricted: this engine is for comparison (docs/security.md)"
        );
    }
    let manager = Manager::of_environment()?;
    if let Some(manager) = &manager {
        manager.check(resolved.config.stall_timeout.map(watchdog::look_interval))?;
    }
    resolved.config.manager = manager.map(Arc::new);
    // Nothing that this process starts, which is nothing, may do more than it.
    set_no_new_privs().context("giving up new privileges (PR_SET_NO_NEW_PRIVS)")?;
    let brief = |connections| kernel_tuning::check::brief(Role::Server, connections);
    if let Some(line) = resolved.config.bounds.max_connections.and_then(brief) {
        warn!("{line}");
    }
    // Before any thread exists, so that all of them inherit the mask and only the waiting one gets the signals.
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGUSR1);
    signals.add(Signal::SIGUSR2);
    signals.thread_block().context("blocking signals")?;
    log.sum_up().context("starting the log's thread")?;

    if resolved.until_stdin_closes {
        // Part of a load test. Where it is refused (a read-only /proc), the server serves as well.
        let _ = kernel_tuning::process::prefer_oom_kill();
    }
    if let (Some(user), Some((control, _))) = (resolved.config.identity, &resolved.control) {
        control
            .give_to(user)
            .context("giving the control socket to --user")?;
    }
    // Ends with the server.
    let canary = resolved
        .canary_port
        .map(|port| Responder::start(resolved.config.listen.ip(), port))
        .transpose()?;
    let admin = admin(resolved)?;
    let started = Instant::now();
    let given = resolved.sockets.len();
    // It has told its causes itself, here and at the end.
    let server = serve(resolved).map_err(anyhow::Error::msg)?;
    show_panics(&server);
    let drain_timeout = resolved.config.drain_timeout;
    obey_signals(signals, &server, resolved.broadcast.clone(), drain_timeout)?;
    // Removed when the server has ended.
    let control = match resolved.control.take() {
        None => None,
        Some((control, listener)) => {
            let (publisher, admission) = (server.publisher().clone(), server.admission());
            control
                .serve(listener, publisher, admission, server.handover())
                .context("starting the control thread")?;
            Some(control)
        }
    };
    if let Some(admin) = &admin {
        admin.attach(served(resolved, &server, started));
        server.handover().offer(admin.offer());
    }
    if resolved.until_stdin_closes {
        stop_when_stdin_closes(server.stopper())?;
    }
    if resolved.sandbox {
        sandbox::enter()?;
    }
    // Nothing can fail any more.
    if let Some(predecessor) = resolved.predecessor.take() {
        predecessor.retire()?;
    }
    if let Some(control) = &control {
        control.claim();
    }
    if let Some(admin) = &admin {
        admin.open();
    }
    server.open();
    let address = server.address().to_string();
    announce(resolved, given, &address, canary.as_ref(), admin.as_ref());
    if let Some(manager) = &resolved.config.manager
        && let Err(error) = manager.say(Word::Ready)
    {
        warn!(%error, "the service manager cannot be told that this server is ready");
    }
    let ended = server.wait().map_err(anyhow::Error::msg)?;
    let mut summary = Summary::new(resolved, address, started.elapsed().as_secs_f64(), ended);
    summary.canary = canary.as_ref().map(Responder::summary);
    // A reader that has gone must not keep the summary from its file.
    let _ = write!(std::io::stdout(), "{summary}");
    if let Some((path, mut file)) = resolved.json.take() {
        let json = serde_json::to_vec_pretty(&summary)?;
        file.write_all(&json)
            .with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

/// Starts the admin side, which answers from then on that the server is starting.
fn admin(resolved: &mut Resolved) -> anyhow::Result<Option<Admin>> {
    let Some(socket) = resolved.admin.take() else {
        return Ok(None);
    };
    if let Some(user) = resolved.config.identity {
        socket
            .give_to(user)
            .context("giving the admin socket to --user")?;
    }
    let admin = Admin::start(socket).context("starting the admin side")?;
    if let Address::Tcp(address) = admin.address()
        && !address.ip().is_loopback()
    {
        warn!(
            "--admin {address} can be reached from other hosts, and asks nobody for a name: \
             whoever reaches it may list and close connections"
        );
    }
    Ok(Some(admin))
}

/// What the admin side is to know of `server`.
fn served(resolved: &Resolved, server: &Server, started: Instant) -> Served {
    Served {
        engine: resolved.config.engine.name(),
        protocol: resolved.protocol,
        listen: server.address().to_string(),
        cores: resolved.config.cores.clone(),
        started,
        started_at: SystemTime::now() - started.elapsed(),
        publisher: server.publisher().clone(),
        admission: server.admission(),
        gate: server.gate(),
        is_draining: server.is_draining(),
        pulses: server.pulses().to_vec(),
    }
}

/// Shows what a worker was doing that panics, and ends the process at once, in every build: a runtime that catches the
/// panic of a task would serve on without it.
fn show_panics(server: &Server) {
    let pulses = server.pulses().to_vec();
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        before(info);
        let thread = std::thread::current();
        let number = thread.name().and_then(|name| name.strip_prefix("worker-"));
        if let Some(number) = number.and_then(|number| number.parse::<usize>().ok())
            && let Some(state) = pulses.get(number).and_then(|pulse| pulse.state())
        {
            let _ = writeln!(std::io::stderr(), "worker {number} panicked {state}");
            std::process::abort();
        }
    }));
}

fn serve(resolved: &mut Resolved) -> Result<Server, StartError> {
    let given = std::mem::take(&mut resolved.sockets);
    match resolved.protocol {
        #[cfg(feature = "burn")]
        Protocol::Line if resolved.faults => {
            prepare(&resolved.config, given, |_| crate::faults::Faulty::default)
        }
        Protocol::Line => prepare(&resolved.config, given, |_| wire::Line::default),
        #[cfg(feature = "burn")]
        Protocol::Echo if resolved.burn > 0 => prepare(&resolved.config, given, |_| {
            crate::burn::echo(resolved.burn)
        }),
        Protocol::Echo => prepare(&resolved.config, given, |_| || wire::Echo),
    }
}

fn announce(
    resolved: &Resolved,
    given: usize,
    address: &str,
    canary: Option<&Responder>,
    admin: Option<&Admin>,
) {
    let config = &resolved.config;
    let cores: Vec<String> = config.cores.iter().map(usize::to_string).collect();
    let (protocol, heartbeat) = match (resolved.protocol, config.heartbeat) {
        (Protocol::Echo, _) => ("echo", String::new()),
        (Protocol::Line, None) => ("line", ", no heartbeat".into()),
        (Protocol::Line, Some(every)) => {
            let from = match config.heartbeat_waits {
                true => " from SIGUSR2 on",
                false => "",
            };
            let every = humantime::format_duration(every);
            ("line", format!(", heartbeat {every}{from}"))
        }
    };
    let canary = canary.map_or(String::new(), |c| format!(", canary {}", c.address()));
    let admin = admin.map_or(String::new(), |a| format!(", admin {}", a.address()));
    let given = match given {
        0 => String::new(),
        sockets => format!(", sockets given {sockets}"),
    };
    let _ = writeln!(
        std::io::stdout(),
        "ready on {address} (engine {}, workers {} on cores {}{given}, protocol {protocol}{heartbeat}{canary}{admin})",
        config.engine.name(),
        cores.len(),
        cores.join(","),
    );
}

fn obey_signals(
    signals: SigSet,
    server: &Server,
    (text, over): (Vec<u8>, Duration),
    drain_timeout: Duration,
) -> anyhow::Result<()> {
    let (stop, publisher) = (server.stopper(), server.publisher().clone());
    let (admission, timeout) = (server.admission(), drain_timeout);
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            while let Ok(signal) = signals.wait() {
                if signal == Signal::SIGUSR1 {
                    if let Err(error) = publisher.publish(text.clone(), over) {
                        warn!(%error, "nothing is broadcast");
                    }
                } else if signal == Signal::SIGUSR2 {
                    publisher.post(Command::Beat);
                } else {
                    if admission.held() > 0 && std::io::stderr().is_terminal() {
                        let time = humantime::format_duration(timeout);
                        eprintln!(
                            "{} connections have up to {time} to go; once more to end at once",
                            admission.held()
                        );
                    }
                    if stop.send(Event::Stop(signal.as_str())).is_err() {
                        return;
                    }
                }
            }
        })
        .context("starting the signal thread")?;
    Ok(())
}

fn stop_when_stdin_closes(stop: Sender<Event>) -> anyhow::Result<()> {
    std::thread::Builder::new()
        .name("stdin".into())
        .spawn(move || {
            let mut ignored = [0; 512];
            while matches!(std::io::stdin().read(&mut ignored), Ok(1..)) {}
            let _ = stop.send(Event::Stop("standard input closed"));
        })
        .context("starting the standard input thread")?;
    Ok(())
}
