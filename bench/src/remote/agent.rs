//! The command `agent`: sits beside a server, whichever it is, and tells one bench on another host what it sees of it.
//!
//! Owns the listening socket and one connection at a time. Invariant: it only reads, and only what [`Ask`] names; whoever
//! asks anything else, or asks too much, is turned away, and the next one is served.

use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use clap::{ArgGroup, Args};
use kernel_tuning::host::{LOOPBACK, environment, interface_addresses, sysctl};

use crate::clock::monotonic_ns;
use crate::remote::look::Observer;
use crate::remote::protocol::{
    Answer, Ask, Hello, LONGEST_ASK, Lines, Times, Unheard, VERSION, Watched, understood,
};
use crate::remote::whom::Whom;
use crate::report::format::join;
use crate::stop::{Stop, TICK};

/// The flags of `throng-bench agent`.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("whom").required(true))]
pub struct AgentArgs {
    /// Where the bench of the other host reaches it; port 0: one of the kernel's choice
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: SocketAddr,
    /// Watch the processes that listen on this port, and their children
    #[arg(long, group = "whom", value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
    /// Watch this process, and its children
    #[arg(long, group = "whom")]
    pid: Option<u32>,
    /// End when standard input closes
    #[arg(long)]
    until_stdin_closes: bool,
}

/// A bench may wait for another run on its host before it begins. One whose host has gone is found out by TCP keepalive.
const ASKS_WITHIN: Duration = Duration::from_secs(600);

/// Runs it until it is told to end.
///
/// # Errors
/// Why it cannot begin: what to tell the user.
pub fn run(args: &AgentArgs) -> Result<(), String> {
    /// Nobody lives longer.
    const FOR_EVER: Duration = Duration::from_secs(100 * 365 * 24 * 3_600);
    let whom = match (args.pid, args.port) {
        (Some(pid), _) => Whom::Pid(pid),
        (None, Some(port)) => Whom::Port(port),
        // Never so: the group is required.
        (None, None) => return Err("name the server with --port or --pid".to_owned()),
    };
    let found = whom.find()?;
    let stop =
        Stop::on_signals(FOR_EVER).map_err(|cause| format!("cannot handle signals: {cause}"))?;
    let (listener, address) = listen(args.listen).map_err(|cause| {
        format!(
            "cannot listen on {}: {cause}; choose an address of this host (ip addr) and a free port",
            args.listen
        )
    })?;
    if args.until_stdin_closes {
        stop.on_stdin_end();
    }
    tell(&format!("ready on {address} (agent of {})", names(&found)));
    if is_public(address.ip()) {
        tell(
            "anyone who reaches this address may ask how this host does: there is no authentication; use a private one",
        );
    }
    serve(&listener, whom, &stop);
    Ok(())
}

fn listen(address: SocketAddr) -> io::Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

/// A reader that went away is no reason to end.
fn tell(line: &str) {
    let mut out = io::stdout();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

fn names(found: &[Watched]) -> String {
    const SHOWN: usize = 3;
    let named = |one: &Watched| format!("{} {}", one.name, one.pid);
    let mut names: Vec<String> = found.iter().take(SHOWN).map(named).collect();
    if found.len() > SHOWN {
        names.push(format!("{} more", found.len() - SHOWN));
    }
    join(&names)
}

/// Whether others than this host and its own network may reach it.
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => !(v4.is_loopback() || v4.is_private() || v4.is_link_local()),
        IpAddr::V6(v6) => !(v6.is_loopback() || v6.is_unique_local() || v6.is_unicast_link_local()),
    }
}

/// Serves one bench at a time; others are told so.
fn serve(listener: &TcpListener, whom: Whom, stop: &Stop) {
    let mut served: Option<(SocketAddr, JoinHandle<()>)> = None;
    while stop.cause().is_none() {
        served = served.filter(|(_, session)| !session.is_finished());
        let (stream, peer) = match listener.accept() {
            Ok(accepted) => accepted,
            // Nobody there; or one that has gone again, or too many files for the moment.
            Err(_) => {
                std::thread::sleep(TICK);
                continue;
            }
        };
        if let Some((other, _)) = &served {
            tell(&format!("turned {peer} away: {other} is served"));
            let reason =
                format!("it serves {other} already, and one at a time; wait for that run's end");
            if let Ok(mut lines) = Lines::new(stream, LONGEST_ASK) {
                // It may have gone.
                let _ = lines.say(&Answer::Refused { reason });
            }
            continue;
        }
        let stop = stop.clone();
        let session = std::thread::spawn(move || {
            let ended = session(stream, whom, &stop);
            let how = ended.map_or_else(|why| why, |()| "done".to_owned());
            tell(&format!("{peer}: {how}"));
        });
        served = Some((peer, session));
    }
    if let Some((_, session)) = served {
        // It asks `stop` too; what it panicked with was told then.
        let _ = session.join();
    }
}

/// Answers until the bench has gone.
fn session(stream: TcpStream, whom: Whom, stop: &Stop) -> Result<(), String> {
    let local = stream.local_addr().map_err(|error| error.to_string())?;
    let mut lines = Lines::new(stream, LONGEST_ASK).map_err(|error| error.to_string())?;
    let turn_away = |lines: &mut Lines, reason: String| {
        // It may have gone.
        let _ = lines.say(&Answer::Refused {
            reason: reason.clone(),
        });
        Err(format!("turned away: {reason}"))
    };
    let hello = match begin(&mut lines, local.ip(), whom, stop) {
        Ok(hello) => hello,
        Err(reason) => return turn_away(&mut lines, reason),
    };
    let roots = hello.processes.iter().map(|one| one.pid).collect();
    let observer = Observer::new(roots, hello.interface.clone());
    let said = lines.say(&Answer::Hello(Box::new(hello)));
    said.map_err(|why| why.to_string())?;
    let mut looked_at = Instant::now();
    loop {
        let line = match lines.hear(ASKS_WITHIN, stop) {
            Ok(line) => line,
            Err(Unheard::Closed) => return Ok(()),
            Err(why) => return turn_away(&mut lines, why.to_string()),
        };
        let received_ns = monotonic_ns();
        let times = || Times {
            received_ns,
            sent_ns: monotonic_ns(),
        };
        let answer = match understood(&line) {
            Ok(Ask::Clock) => Answer::Clock(times()),
            Ok(Ask::Look { closely }) => {
                pause(&mut looked_at);
                match observer.look(closely).map(Box::new) {
                    Ok(look) => Answer::Look {
                        times: times(),
                        look,
                    },
                    Err(reason) => return turn_away(&mut lines, reason),
                }
            }
            Ok(Ask::Hello { .. }) => {
                return turn_away(&mut lines, "it was greeted before".to_owned());
            }
            Err(why) => return turn_away(&mut lines, format!("{why}: that is no question")),
        };
        lines.say(&answer).map_err(|why| why.to_string())?;
    }
}

/// The greeting of a bench that speaks as this does.
fn begin(lines: &mut Lines, local: IpAddr, whom: Whom, stop: &Stop) -> Result<Hello, String> {
    const GREETS_WITHIN: Duration = Duration::from_secs(5);
    let line = lines.hear(GREETS_WITHIN, stop);
    let ask = line.and_then(|line| understood(&line));
    let mine = env!("CARGO_PKG_VERSION");
    match ask.map_err(|why| format!("{why}: that is no bench of Throng"))? {
        Ask::Hello {
            version: VERSION, ..
        } => {}
        Ask::Hello {
            version,
            throng_version,
        } => {
            return Err(format!(
                "version {version} of the protocol, of Throng {throng_version}, is not spoken here, but version \
                 {VERSION}, of Throng {mine}: run the same Throng on both hosts"
            ));
        }
        other => return Err(format!("{other:?} before a greeting")),
    }
    Ok(Hello {
        version: VERSION,
        throng_version: mine.to_owned(),
        environment: environment(),
        boot_id: sysctl("kernel.random.boot_id").ok(),
        interface: interface_of(local),
        // Anew, for the server may have been started again since.
        processes: whom.find()?,
    })
}

/// The interface that has `address`.
pub fn interface_of(address: IpAddr) -> Option<String> {
    let all = interface_addresses().ok()?;
    let of = all
        .into_iter()
        .find(|(_, other)| *other == address.to_canonical());
    let loopback = || address.is_loopback().then(|| LOOPBACK.to_owned());
    of.map(|(name, _)| name).or_else(loopback)
}

/// Whoever asks without a pause does not get the CPU that the server needs.
fn pause(looked_at: &mut Instant) {
    const LEAST: Duration = Duration::from_millis(10);
    std::thread::sleep(LEAST.saturating_sub(looked_at.elapsed()));
    *looked_at = Instant::now();
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_address_of_everybody_is_public() {
        for private in ["127.0.0.1", "10.77.0.2", "192.168.1.5", "::1", "fd00::5"] {
            assert!(!is_public(private.parse().unwrap()), "{private}");
        }
        for public in ["0.0.0.0", "8.8.8.8", "::", "2001:db8::1"] {
            assert!(is_public(public.parse().unwrap()), "{public}");
        }
    }

    #[test]
    fn many_processes_are_named_by_the_first() {
        let found = |count: u32| -> Vec<Watched> {
            let one = |pid| Watched {
                pid,
                name: "nginx".to_owned(),
            };
            (1..=count).map(one).collect()
        };
        assert_eq!(names(&found(1)), "nginx 1");
        assert_eq!(names(&found(5)), "nginx 1, nginx 2, nginx 3 and 2 more");
    }
}
