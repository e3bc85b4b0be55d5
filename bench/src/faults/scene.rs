//! What a fault happens to: a server, and a client whose connections nobody means to hit.
//!
//! Invariant: every wait ends, with a failure that says what was waited for and how all stood.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kernel_tuning::host::{Memory, NetCounters, Sockstat};
use serde_json::Value;

use super::fault::{Fault, Kind};
use super::holder::Holder;
use super::plan::Plan;
use super::result::{Cycle, Footing};
use crate::clock::millis;
use crate::load::Stage;
use crate::result::Failure;
use crate::runner::Launcher;
use crate::sample::{memory_is_short, settle, sockets_settle};
use crate::scenario::Engine;
use crate::screen::Screen;
use crate::servers::{Servers, core_list};

/// Interval of the server's heartbeat on each connection.
const HEARTBEAT: &str = "5s";
/// A peer that takes nothing for so long is given up.
pub const WRITE_TIMEOUT: &str = "2s";
/// How long any state may take to come about.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// Those of 100,000 connections are gone in a tenth of this.
const SETTLES_WITHIN: Duration = Duration::from_secs(10);
/// Where the connections come from that nobody means to hit.
const OUTSIDE_SOURCE: &str = "127.1.0.0/16";
/// Where those come from that are hit, by turns: ports of the last ones may not be free yet.
const VICTIM_SOURCES: [&str; 4] = [
    "127.2.0.0/16",
    "127.3.0.0/16",
    "127.4.0.0/16",
    "127.5.0.0/16",
];

/// How the server of a scene is started.
#[derive(Debug, Clone)]
pub struct Setting {
    /// The engine.
    pub engine: Engine,
    /// Starts it, in its place and with its limits.
    pub launcher: std::rc::Rc<Launcher>,
    /// Whether clients speak first, and the server only answers.
    pub echoes: bool,
    /// Further flags.
    pub flags: Vec<String>,
    /// A directory for its control socket.
    pub files: PathBuf,
}

impl Setting {
    /// How both ends speak, as their flags have it.
    fn speaks(&self) -> Vec<String> {
        let words: &[&str] = match self.echoes {
            true => &["--protocol", "echo"],
            false => &["--protocol", "line", "--heartbeat", HEARTBEAT],
        };
        words.iter().map(|word| (*word).to_owned()).collect()
    }
}

/// A server with its connections.
#[derive(Debug)]
pub struct Scene<'a> {
    /// What all measurements stand on.
    pub stage: &'a Stage,
    /// The run.
    pub plan: &'a Plan,
    screen: &'a Screen,
    /// What happens.
    pub fault: Fault,
    /// How the server was started.
    pub setting: Setting,
    /// The server.
    pub server: Servers,
    /// The client whose connections nobody means to hit, or all of them where all are.
    pub outside: Holder,
    /// How many those are.
    pub held: u64,
    /// Where the server takes commands.
    control: PathBuf,
    /// The summaries of servers that have ended.
    pub ended: Vec<Value>,
    /// The host's sockets when all connections were there, and no more.
    steady: Option<Sockstat>,
    sources: usize,
}

impl<'a> Scene<'a> {
    /// Starts the server of `setting`, and the client that holds `held` connections; waits until all are there.
    ///
    /// # Errors
    /// When that does not come about.
    pub fn start(
        stage: &'a Stage,
        plan: &'a Plan,
        screen: &'a Screen,
        fault: Fault,
        setting: Setting,
        held: u64,
        source: Option<&str>,
    ) -> Result<Self, Failure> {
        screen.doing(format!("{fault}: connecting"));
        settle(&stage.base, Duration::from_secs(30), &stage.stop);
        let listen = SocketAddr::new(setting.launcher.address(), 0);
        let control = setting.files.join("control");
        let server = start_server(stage, &setting, listen, &control, &[])?;
        let active = plan.active.min(held);
        let mut flags = setting.speaks();
        flags.extend([
            "--active".to_owned(),
            active.to_string(),
            "--message-rate".to_owned(),
            plan.message_rate.to_string(),
        ]);
        if fault.kind() == Kind::All {
            flags.extend(["--reconnect".to_owned(), "20ms..1s".to_owned()]);
        }
        if fault == Fault::AcceptQueue {
            // They are not to find it full.
            flags.extend(["--concurrency".to_owned(), "8".to_owned()]);
        }
        let source = source.unwrap_or(OUTSIDE_SOURCE);
        let outside = Holder::start(stage, &server, held, source, &flags)?;
        let mut scene = Self {
            stage,
            plan,
            screen,
            fault,
            setting,
            server,
            outside,
            held,
            control,
            ended: Vec::new(),
            steady: None,
            sources: 0,
        };
        scene.wait("all connections are there", |scene| {
            scene.outside.has_ramped() && scene.holds(held)
        })?;
        scene.talk()?;
        scene.steady = Sockstat::read().ok();
        Ok(scene)
    }

    /// What goes on now, for the screen.
    pub fn doing(&self, what: &str) {
        self.screen.doing(format!("{}: {what}", self.fault));
    }

    /// A client of `count` connections that are to be hit.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn victims(&mut self, count: u64, more: &[&str]) -> Result<Holder, Failure> {
        self.sources += 1;
        let source = VICTIM_SOURCES[self.sources % VICTIM_SOURCES.len()];
        let mut flags = self.setting.speaks();
        flags.extend(more.iter().map(|word| (*word).to_owned()));
        Holder::start(self.stage, &self.server, count, source, &flags)
    }

    /// As [`Scene::victims`], all connecting at once, and each says something within `within_s` seconds from when the client has
    /// them all, which finishes its handshake ([`Fault::fills_accept_queue`]).
    ///
    /// # Errors
    /// As there.
    pub fn crowd(&mut self, count: u64, within_s: u64) -> Result<Holder, Failure> {
        let (all, rate) = (count.to_string(), count.div_ceil(within_s).to_string());
        let flags = [
            ["--concurrency", &all],
            ["--connect-timeout", "60s"],
            ["--active", &all],
            ["--message-rate", &rate],
        ];
        self.victims(count, &flags.concat())
    }

    /// As [`Scene::victims`], and waits until all of them are connected.
    ///
    /// # Errors
    /// When that does not come about.
    pub fn connected(&mut self, count: u64, more: &[&str]) -> Result<Holder, Failure> {
        let mut victims = self.victims(count, more)?;
        self.wait("those are connected that are to be hit", |_| {
            victims.has_ramped() && victims.last().established == count
        })?;
        // A client may be ahead of the server.
        self.wait("the server holds them too", |scene| {
            scene.holds(scene.held + count)
        })?;
        Ok(victims)
    }

    /// Waits until `is_so`; gives how long that took.
    ///
    /// # Errors
    /// It is not so in time, memory is short, the server or the client ended, or the run is to end.
    pub fn wait(
        &mut self,
        what: &str,
        mut is_so: impl FnMut(&mut Self) -> bool,
    ) -> Result<Duration, Failure> {
        let began = Instant::now();
        let mut looked = began;
        loop {
            let late = if is_so(self) {
                return Ok(began.elapsed());
            } else if let Some(cause) = self.stage.stop.cause() {
                cause.to_string()
            } else if !self.server.are_running() {
                "the server ended".to_owned()
            } else if self.outside.has_ended() {
                "the client ended whose connections nobody meant to hit".to_owned()
            } else if began.elapsed() > PATIENCE {
                format!("not so after {} s", PATIENCE.as_secs())
            } else if looked.elapsed() > Duration::from_millis(500)
                && let Some(short) = memory_is_short()
            {
                short
            } else {
                if looked.elapsed() > Duration::from_millis(500) {
                    looked = Instant::now();
                }
                std::thread::sleep(Duration::from_millis(5));
                continue;
            };
            let state = self.outside.state();
            return Err(self.failure(format!("waiting until {what}: {late}; {state}")));
        }
    }

    /// Waits until those outside exchange messages.
    ///
    /// # Errors
    /// As [`Scene::wait`].
    pub fn talk(&mut self) -> Result<Duration, Failure> {
        // About what all of them say in a quarter of a second.
        let more = self.plan.message_rate.div_ceil(4);
        let enough = self.outside.last().messages + more;
        self.wait("messages come back", |scene| {
            scene.outside.last().messages >= enough
        })
    }

    /// Waits until the server holds no more than `most` connections, by its own count.
    ///
    /// # Errors
    /// As [`Scene::wait`].
    pub fn held_at_most(&mut self, most: u64) -> Result<Duration, Failure> {
        self.wait("the server holds no more than the others", |scene| {
            held(&scene.control).is_some_and(|held| held <= most)
        })
    }

    /// Another server of the same setting on the same port: it takes the sockets of the one that runs over, or has its own.
    ///
    /// # Errors
    /// When it does not start.
    pub fn another(&mut self, takes_over: bool) -> Result<Servers, Failure> {
        let mut more = Vec::new();
        if takes_over {
            more = vec!["--takeover".to_owned(), self.control.display().to_string()];
        } else {
            // The other one may still answer at its own.
            self.control = self
                .setting
                .files
                .join(format!("control-{}", self.ended.len()));
        }
        let listen = self.server.address();
        start_server(self.stage, &self.setting, listen, &self.control, &more)
    }

    /// What is in use now.
    pub fn footing(&self) -> Footing {
        let (sockets, memory) = (Sockstat::read().ok(), Memory::read().ok());
        Footing {
            sockets: sockets.as_ref().map_or(0, |now| now.alloc),
            queued_pages: sockets.as_ref().map_or(0, |now| now.mem_pages),
            slab_bytes: memory.map_or(0, |now| now.slab_bytes),
            server_rss_bytes: self.server.usage().map_or(0, |now| now.rss_bytes),
        }
    }

    /// Does `act`, and notes what it took: it gives how long recovery took, and how long another server.
    ///
    /// # Errors
    /// Those of `act`.
    pub fn cycle(
        &mut self,
        act: impl FnOnce(&mut Self) -> Result<(Duration, Option<Duration>), Failure>,
    ) -> Result<Cycle, Failure> {
        let before = NetCounters::read().ok();
        let (recovered, ready) = act(self)?;
        self.talk()?;
        // What a client left is taken down some time after it has gone. That of others on this host is not waited for.
        if let Some(steady) = &self.steady {
            sockets_settle(steady, SETTLES_WITHIN, &self.stage.stop);
        }
        let overflows = before.zip(NetCounters::read().ok());
        Ok(Cycle {
            fault: self.fault,
            recover_ms: millis(recovered),
            ready_ms: ready.map(millis),
            listen_overflows: overflows
                .and_then(|(before, now)| now.since(&before).get("ListenOverflows"))
                .unwrap_or(0),
            after: self.footing(),
        })
    }

    /// Puts `server` in the place of the one that was, waits until all have come to it, and until the other has ended by
    /// itself; keeps its summary. Gives the first of these times.
    ///
    /// # Errors
    /// As [`Scene::wait`], or the other server did not end well, where it was not killed.
    pub fn move_to(&mut self, server: Servers, was_killed: bool) -> Result<Duration, Failure> {
        let old = std::mem::replace(&mut self.server, server);
        let took = self.wait("all have come to the other server", |scene| {
            scene.holds(scene.held) && scene.outside.last().established == scene.held
        });
        let (summaries, failures) = old.end_after(PATIENCE, &self.fault.to_string());
        self.ended.extend(summaries);
        match failures.into_iter().next() {
            Some(failure) if !was_killed => Err(failure),
            _ => took,
        }
    }

    /// Whether the server holds that many connections, by its own count. A client's may be higher: of a full accept queue the
    /// kernel drops the last part of a handshake, and repeats its own.
    pub fn holds(&self, connections: u64) -> bool {
        held(&self.control) == Some(connections)
    }

    /// Ends all; gives the summaries of the client and of the servers.
    pub fn end(self) -> (Value, Vec<Value>, Vec<Failure>) {
        self.doing("closing");
        let (client, how) = self.outside.end();
        // All ends have been noticed, and the last operations on the last slots are over.
        let until = Instant::now() + SETTLES_WITHIN;
        while held(&self.control).is_some_and(|held| held > 0) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(20));
        }
        std::thread::sleep(Duration::from_millis(500));
        let mut failures = Vec::new();
        if client.is_null() {
            failures.push(Failure {
                during: self.fault.to_string(),
                cause: how,
                stderr_tail: Vec::new(),
            });
        }
        let (summaries, of_servers) = self.server.end(&self.fault.to_string());
        failures.extend(of_servers);
        let mut servers = self.ended;
        servers.extend(summaries);
        (client, servers, failures)
    }

    /// A failure of this fault.
    pub fn failure(&self, cause: String) -> Failure {
        Failure {
            during: self.fault.to_string(),
            cause,
            stderr_tail: Vec::new(),
        }
    }
}

fn start_server(
    stage: &Stage,
    setting: &Setting,
    listen: SocketAddr,
    control: &Path,
    more: &[String],
) -> Result<Servers, Failure> {
    let (listen, cores) = (listen.to_string(), core_list(&stage.placement.server));
    let flags = [
        ["--listen", &listen],
        ["--cores", &cores],
        ["--engine", setting.engine.name()],
        ["--write-timeout", WRITE_TIMEOUT],
        ["--control", &control.display().to_string()],
    ];
    let flags = flags.into_iter().flatten().map(OsString::from);
    let speaks = setting.speaks();
    let more = speaks.iter().chain(&setting.flags).chain(more);
    let more = more.map(OsString::from);
    Servers::of_role(
        &setting.launcher,
        "server",
        flags.chain(more).collect(),
        &stage.stop,
    )
}

/// How many connections the server holds that takes commands at `control`; `None` where it does not say.
fn held(control: &Path) -> Option<u64> {
    let mut stream = UnixStream::connect(control).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(1))).ok()?;
    stream.write_all(b"held\n").ok()?;
    let mut said = String::new();
    BufReader::new(stream).read_line(&mut said).ok()?;
    said.trim().parse().ok()
}
