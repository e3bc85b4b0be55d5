//! The command `faults`: what becomes of those that nobody meant, and of the server, when something goes wrong.
//!
//! | room | owns |
//! |---|---|
//! | [`fault`] | the faults: names, and whom each hits |
//! | [`plan`] | the flags, and what they come to |
//! | [`scene`], [`holder`] | a server and the connections outside the fault |
//! | [`ends`], [`shortage`], [`network`] | how each fault is brought about |
//! | [`deaf`] | a client that does not read |
//! | [`result`] | what was found |
//!
//! A server holds connections, of which some exchange messages; then the fault comes, over and over, and each time it is
//! waited for until all is as it was. Those that the fault was not meant for must lose nothing, and nothing may grow.
//! Invariant: what was measured is returned, however a fault ends, and nothing of a fault is left: no process, no stopped
//! process, no group, no namespace.

pub mod deaf;
pub mod ends;
pub mod fault;
pub mod holder;
pub mod network;
pub mod plan;
pub mod result;
pub mod scene;
pub mod shortage;

use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use kernel_tuning::process::Nofile;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use serde_json::Value;

use crate::faults::fault::{Fault, Kind};
use crate::faults::plan::{Plan, Soak};
use crate::faults::result::{Cycle, Faulted, NotDone, Outside, Report};
use crate::faults::scene::{Scene, Setting, WRITE_TIMEOUT};
use crate::faults::shortage::Group;
use crate::netns::{Joined, SERVER_ADDRESS};
use crate::report;
use crate::report::Reported;
use crate::report::format::count;
use crate::result::Failure;
use crate::run::Run;
use crate::runner::Launcher;
use crate::scenario::Engine;
use crate::screen::Screen;

/// Runs `plan` and tells of it on `screen`.
///
/// # Errors
/// When nothing could be started at all: what to tell the user.
pub fn run(plan: Plan, command_line: Vec<String>, screen: &Screen) -> Result<Report, String> {
    let mut run = Run::begin(
        Report::COMMAND,
        plan.placement.clone(),
        plan.nofile_hard,
        plan.estimate(),
        command_line,
        screen,
    )?;
    screen.line(&report::faults::plan(&plan, &run.about, screen.paint));
    let (mut faulted, mut skipped) = (Vec::new(), Vec::new());
    let faults = match plan.soak {
        Some(_) => &plan.faults[..1],
        None => &plan.faults,
    };
    for fault in faults {
        if run.stage.stop.cause().is_some() {
            break;
        }
        match Place::find(*fault, &plan) {
            Err(why) => {
                screen.line(&report::faults::skipped_line(*fault, &why));
                let fault = *fault;
                skipped.push(NotDone { fault, why });
            }
            Ok(place) => {
                let (one, failures) = place.hit(&mut run, &plan, screen);
                if let Some(mut one) = one {
                    let mut report = Report {
                        about: run.about.clone(),
                        plan: plan.clone(),
                        faulted: vec![one],
                        skipped: Vec::new(),
                        warnings: Vec::new(),
                    };
                    report.conclude();
                    // It is the one that was put in.
                    one = report.faulted.remove(0);
                    screen.line(&report::faults::fault_line(&one, screen.paint));
                    faulted.push(one);
                }
                for failure in failures {
                    run.note(screen, failure);
                }
            }
        }
    }
    let mut report = Report {
        about: run.end(screen),
        plan,
        faulted,
        skipped,
        warnings: Vec::new(),
    };
    report.conclude();
    Ok(report)
}

/// Tables that a worker makes at most, and the slots each has at least.
const TABLES: u64 = 256;
const LEAST_SLOTS: u64 = 64;

/// For a server of slow readers. Of a peer that takes nothing the kernel keeps up to 4 MiB (net.ipv4.tcp_wmem) before the server
/// knows, and what it keeps it goes on offering to the peer after the server has closed, for minutes.
const STRICT: [&str; 4] = ["--send-buffer", "16", "--user-timeout", WRITE_TIMEOUT];

/// What a fault needs besides a server and clients.
struct Place {
    fault: Fault,
    engine: Engine,
    victims: u64,
    held: u64,
    flags: Vec<String>,
    /// Words before those of the server's command line.
    through: Vec<String>,
    joined: Option<Joined>,
    group: Option<Group>,
    files: tempfile::TempDir,
}

impl Place {
    /// What there is here for `fault`.
    ///
    /// # Errors
    /// Why it cannot be brought about here.
    fn find(fault: Fault, plan: &Plan) -> Result<Self, String> {
        let engine = fault
            .engine(plan.engine)
            .ok_or_else(|| format!("it is nothing to the {} engine", plan.engine))?;
        let files = tempfile::tempdir().map_err(|error| format!("no directory: {error}"))?;
        let mut connections = plan.connections;
        if engine == Engine::Epoll {
            // One process, with a descriptor for each connection.
            connections = connections.min(plan.nofile_hard / 20 * 17);
        }
        let victims = match plan.soak {
            // The same of each.
            Some(_) => connections / 10,
            None => fault.victims(connections),
        };
        let held = match fault.kind() {
            Kind::All => connections,
            Kind::Some => connections - victims,
        };
        let mut place = Self {
            fault,
            engine,
            victims,
            held,
            flags: Vec::new(),
            through: Vec::new(),
            joined: None,
            group: None,
            files,
        };
        match plan.soak {
            Some(_) => place.flags = STRICT.map(str::to_owned).to_vec(),
            None => place.furnish()?,
        }
        Ok(place)
    }

    fn furnish(&mut self) -> Result<(), String> {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        let room = self.held + self.victims / 2;
        match self.fault {
            Fault::HalfOpen => {
                self.joined = Some(Joined::make().map_err(|why| why.to_string())?);
                self.flags = words(&network::FLAGS);
            }
            Fault::SlowReaders => self.flags = words(&STRICT),
            Fault::AcceptQueue => self.flags = words(&["--backlog", "16"]),
            Fault::TinyCq => self.flags = words(&["--cq-entries", "64"]),
            Fault::FewBuffers => self.flags = words(&["--recv-buffers", "2"]),
            Fault::TableFull => {
                let slots = room.div_ceil(TABLES);
                if slots < LEAST_SLOTS {
                    let least = count(TABLES * LEAST_SLOTS / 3 * 4 + TABLES);
                    return Err(format!(
                        "a worker makes up to {TABLES} tables of at least {LEAST_SLOTS} slots: it takes --connections {least}"
                    ));
                }
                self.flags = words(&["--table-slots", &slots.to_string()]);
            }
            Fault::Files => {
                let nofile = Nofile::read().map_err(|error| error.to_string())?.hard;
                // Its own files are some dozens.
                let limit = room + 64;
                if limit > nofile {
                    return Err(format!("it takes {limit} open files of {nofile}"));
                }
                let limit = format!("--nofile={limit}:{limit}");
                self.through = words(&["prlimit", &limit]);
            }
            Fault::MemoryGroup => {
                let group = Group::make()?;
                self.through = words(&["sh", "-c", &group.join(), "sh"]);
                self.group = Some(group);
            }
            Fault::ClockStep => {
                let library = faketime()?;
                let clock = self.clock_file();
                std::fs::write(&clock, "+0s\n").map_err(|error| error.to_string())?;
                self.through = words(&[
                    "env",
                    &format!("LD_PRELOAD={library}"),
                    &format!("FAKETIME_TIMESTAMP_FILE={}", clock.display()),
                    "FAKETIME_NO_CACHE=1",
                    "FAKETIME_DONT_FAKE_MONOTONIC=1",
                ]);
            }
            Fault::LogDiskFull => {
                // Every write to it fails as on a full disk (full(4)).
                let script = "RUST_LOG=trace exec \"$@\" 2>/dev/full";
                self.through = words(&["sh", "-c", script, "sh"]);
            }
            _ => {}
        }
        Ok(())
    }

    fn clock_file(&self) -> std::path::PathBuf {
        self.files.path().join("clock")
    }

    /// Brings it about, again and again. What was found is there also when it failed in the middle.
    fn hit(&self, run: &mut Run, plan: &Plan, screen: &Screen) -> (Option<Faulted>, Vec<Failure>) {
        let begun = self.begin(run, plan, screen);
        let mut scene = match begun {
            Ok(scene) => scene,
            Err(failure) => return (None, vec![failure]),
        };
        let mut failures = Vec::new();
        let before = scene.footing();
        let mut cycles = Vec::new();
        let went = match plan.soak {
            Some(soak) => self.soak(&mut scene, plan, soak, &mut cycles),
            None => self.repeat(&mut scene, plan, &mut cycles),
        };
        failures.extend(went.err());
        let (client, servers, of_ends) = scene.end();
        failures.extend(of_ends);
        let faulted = Faulted {
            fault: plan.soak.is_none().then_some(self.fault),
            engine: self.engine,
            held: self.held,
            victims: self.victims,
            before,
            cycles,
            outside: outside(self.fault, &client),
            wrong: Vec::new(),
            client,
            servers,
        };
        (Some(faulted), failures)
    }

    fn begin<'a>(
        &self,
        run: &'a mut Run,
        plan: &'a Plan,
        screen: &'a Screen,
    ) -> Result<Scene<'a>, Failure> {
        let failed = |cause| Failure {
            during: self.fault.to_string(),
            cause,
            stderr_tail: Vec::new(),
        };
        let launcher = || Launcher::new().map_err(failed);
        let (mut server, mut client) = (launcher()?, launcher()?);
        if let Some(joined) = &self.joined {
            server = server.within(joined.server.clone(), SERVER_ADDRESS);
            client = client.within(joined.client.clone(), SERVER_ADDRESS);
        }
        let through: Vec<&str> = self.through.iter().map(String::as_str).collect();
        run.stage.launcher = client;
        let setting = Setting {
            engine: self.engine,
            launcher: Rc::new(server.through(&through)),
            echoes: plan.soak.is_some() || self.fault.fills_accept_queue(),
            flags: self.flags.clone(),
            files: self.files.path().to_owned(),
        };
        let source = self.joined.as_ref().map(|_| network::OUTSIDE_SOURCE);
        Scene::start(
            &run.stage, plan, screen, self.fault, setting, self.held, source,
        )
    }

    fn repeat(
        &self,
        scene: &mut Scene<'_>,
        plan: &Plan,
        cycles: &mut Vec<Cycle>,
    ) -> Result<(), Failure> {
        for number in 1..=plan.cycles {
            scene.doing(&format!("{number} of {}", plan.cycles));
            cycles.push(scene.cycle(|scene| self.once(scene, self.fault, number))?);
        }
        Ok(())
    }

    /// Faults that any server can go through, in random order, until the time is up.
    fn soak(
        &self,
        scene: &mut Scene<'_>,
        plan: &Plan,
        soak: Soak,
        cycles: &mut Vec<Cycle>,
    ) -> Result<(), Failure> {
        let random = &mut StdRng::seed_from_u64(soak.seed);
        let until = Instant::now() + Duration::from_millis(soak.for_ms);
        while Instant::now() < until {
            let Some(fault) = plan.faults.choose(random) else {
                break;
            };
            scene.fault = *fault;
            scene.doing(&format!("fault {} of a soak", cycles.len() + 1));
            cycles.push(scene.cycle(|scene| self.once(scene, *fault, 0))?);
        }
        Ok(())
    }

    fn once(&self, scene: &mut Scene<'_>, fault: Fault, number: u64) -> ends::Took {
        let victims = self.victims;
        match fault {
            Fault::ClientKill => ends::client_kill(scene, victims),
            Fault::Resets | Fault::LogDiskFull => ends::resets(scene, victims),
            Fault::TinyCq => ends::resets_met_at_once(scene, victims),
            Fault::FewBuffers => ends::resets_while_talking(scene, victims),
            Fault::Storm => ends::storm(scene, victims),
            Fault::Stopped => ends::stopped(scene),
            Fault::ServerKill => ends::server_kill(scene),
            Fault::Drain => ends::drain(scene),
            Fault::Takeover => ends::takeover(scene),
            Fault::SlowReaders => shortage::slow_readers(scene, victims),
            Fault::AcceptQueue => shortage::accept_queue(scene, victims),
            Fault::TableFull | Fault::Files => shortage::full(scene, victims),
            Fault::MemoryGroup => match &self.group {
                Some(group) => shortage::memory_group(scene, victims, group),
                None => Err(scene.failure("there is no group".to_owned())),
            },
            Fault::HalfOpen => match &self.joined {
                Some(joined) => network::half_open(scene, victims, joined),
                None => Err(scene.failure("there are no namespaces".to_owned())),
            },
            Fault::ClockStep => step_clock(scene, &self.clock_file(), number),
        }
    }
}

/// The wall clock steps an hour ahead, and the next time back.
fn step_clock(scene: &mut Scene<'_>, clock: &Path, number: u64) -> ends::Took {
    let offset = match number % 2 {
        1 => "+3600s\n",
        _ => "-3600s\n",
    };
    let began = Instant::now();
    std::fs::write(clock, offset).map_err(|error| scene.failure(error.to_string()))?;
    scene.talk()?;
    Ok((began.elapsed(), None))
}

/// Where libfaketime is, which gives a process another wall clock and touches no other.
fn faketime() -> Result<String, String> {
    let places = ["x86_64-linux-gnu", "aarch64-linux-gnu", "faketime", ""];
    let paths = places.iter().flat_map(|place| {
        ["/usr/lib", "/usr/lib64", "/usr/local/lib"]
            .map(|root| format!("{root}/{place}/faketime/libfaketime.so.1").replace("//", "/"))
    });
    let mut there = paths.into_iter().filter(|path| Path::new(path).exists());
    there.next().ok_or_else(|| {
        "a process's clock is stepped by libfaketime, which is not there: install faketime"
            .to_owned()
    })
}

/// What those lost that were not to be hit, by the summary of their client.
fn outside(fault: Fault, client: &Value) -> Outside {
    let figure = |pointer: &str| client.pointer(pointer).and_then(Value::as_u64).unwrap_or(0);
    let lost = figure("/lost_while_held");
    let failed = client
        .pointer("/reconnects/failed")
        .and_then(Value::as_object);
    let refused = failed.map_or(0, |failed| failed.values().filter_map(Value::as_u64).sum());
    match fault.kind() {
        Kind::Some => Outside {
            connections: lost,
            mismatched: figure("/messages/mismatched"),
            unanswered: figure("/messages/unanswered"),
            greetings: figure("/greetings_missing"),
            heartbeats: figure("/heartbeats/missing"),
            refused: 0,
        },
        // Whoever is cut off in the middle loses what was under way: that is in the fault.
        Kind::All => Outside {
            connections: match fault {
                Fault::ServerKill => figure("/reconnects/still_lost"),
                _ => lost - figure("/announced").min(lost) + figure("/reconnects/still_lost"),
            },
            mismatched: figure("/messages/mismatched"),
            unanswered: 0,
            greetings: figure("/greetings_missing"),
            heartbeats: figure("/heartbeats/missing"),
            refused: match fault {
                Fault::Takeover => refused,
                _ => 0,
            },
        },
    }
}
