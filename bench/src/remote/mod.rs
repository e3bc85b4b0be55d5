//! Two hosts: the command `agent` beside a server, and the command `remote`, which loads that server from another host and
//! joins what both ends saw on one clock.
//!
//! | room | owns |
//! |---|---|
//! | [`agent`], [`whom`] | the command `agent`, and which processes it watches |
//! | [`protocol`], [`far`] | what both ends say to each other, and the bench's end of it |
//! | [`look`] | what is seen of a host and of processes on it, at either end |
//! | [`offset`], [`join`] | the other clock by this one, and both ends on it |
//! | [`plan`], [`result`] | the flags, and what was found |
//!
//! The bench looks at both ends at the same moments: the agent is asked, and answers, so that each look is a reading of
//! its clock too, and nothing piles up anywhere. Invariant: what was measured is returned, however the run ends.

pub mod agent;
pub mod far;
pub mod join;
pub mod look;
pub mod offset;
pub mod plan;
pub mod protocol;
pub mod result;
pub mod whom;

use std::time::{Duration, Instant};

use kernel_tuning::host::sysctl;
use serde_json::Value;

use crate::clock::monotonic_ns;
use crate::load::{Driven, Halt, Progress, Stage, flag_ms, follow};
use crate::remote::agent::interface_of;
use crate::remote::far::{Far, Lost};
use crate::remote::join::{Ends, Moment};
use crate::remote::look::{Look, Observer, keep_least};
use crate::remote::offset::Offset;
use crate::remote::plan::Plan;
use crate::remote::result::Report;
use crate::report;
use crate::report::Reported;
use crate::report::format::{count, join};
use crate::result::Failure;
use crate::run::Run;
use crate::runner::Child;
use crate::sample::short_of;
use crate::scenario::Placement;
use crate::screen::Screen;
use crate::stop::{Stop, TICK};

/// Connects to the agent that `plan` names.
///
/// # Errors
/// What to tell the user.
pub fn greet(plan: &Plan) -> Result<Far, String> {
    /// All waits for an agent have a shorter bound.
    const LONG: Duration = Duration::from_secs(60);
    let stop = Stop::on_signals(LONG).map_err(|cause| format!("cannot handle signals: {cause}"))?;
    Far::greet(&plan.agent, &stop)
}

/// Runs `plan` with the agent `far`, and tells of it on `screen`.
///
/// # Errors
/// When nothing could be started at all: what to tell the user.
pub fn run(
    (far, plan): (Far, Plan),
    command_line: Vec<String>,
    screen: &Screen,
) -> Result<Report, String> {
    let placement = Placement {
        server: Vec::new(),
        client: plan.cores.clone(),
    };
    let mut run = Run::begin(
        Report::COMMAND,
        placement,
        plan.nofile_hard,
        plan.estimate(),
        command_line,
        screen,
    )?;
    screen.line(&report::remote::plan(
        &plan,
        &far.hello,
        &run.about,
        screen.paint,
    ));
    let mut course = Course::new(&plan, far, run.stage.stop.clone());
    let (client, failures) = course.run(&run.stage, screen);
    run.about.partial = course.is_lost;
    for failure in failures {
        run.note(screen, failure);
    }
    let boot_id = sysctl("kernel.random.boot_id").ok();
    let (agent, joined) = course.joined();
    let mut report = Report {
        about: run.end(screen),
        is_one_host: boot_id.is_some() && boot_id == agent.hello.boot_id,
        agent: agent.hello,
        clock: joined.clock,
        day_clock_ahead_us: joined.day_clock_ahead_us,
        progress: joined.progress,
        moments: joined.moments,
        plan,
        phases: Vec::new(),
        kept: Ends::default(),
        counters: Ends::default(),
        interface: Ends::default(),
        client,
        warnings: Vec::new(),
    };
    report.conclude();
    Ok(report)
}

/// Looks at both ends from before the client until after it.
struct Course<'a> {
    plan: &'a Plan,
    far: Far,
    near: Observer,
    stop: Stop,
    /// The agent says no more.
    is_lost: bool,
    looks: Ends<Vec<Look>>,
    looked_at: Instant,
    progress: Vec<Progress>,
    /// When the client started, by this host's clock: no line of it came sooner than it was written.
    started_ns: Option<u64>,
    phase: (String, Instant),
    /// Close looks while connections rest.
    close_looks: u32,
    /// Of when the last close look was.
    looked_closely: Option<When>,
}

/// When a close look is made; of those of the same time the least counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum When {
    /// Before the client.
    Before,
    /// While its connections rest.
    Resting,
    /// After it.
    After,
}

/// Close looks before the client, and while its connections rest; the least of them counts.
const CLOSE_LOOKS: u32 = 5;

/// Questions for the time at once, of which the fastest counts.
const CLOCK_READINGS: usize = 16;

impl<'a> Course<'a> {
    fn new(plan: &'a Plan, far: Far, stop: Stop) -> Self {
        let now = Instant::now();
        Self {
            near: Observer::new(Vec::new(), interface_of(far.local.ip())),
            plan,
            far,
            stop,
            is_lost: false,
            looks: Ends::default(),
            looked_at: now,
            progress: Vec::new(),
            started_ns: None,
            phase: (String::new(), now),
            close_looks: 0,
            looked_closely: None,
        }
    }

    /// The client's summary, and what went wrong.
    fn run(&mut self, stage: &Stage, screen: &Screen) -> (Value, Vec<Failure>) {
        let during = format!(
            "{} connections to {}",
            count(self.plan.connections),
            join(&self.plan.targets)
        );
        screen.doing("looking at both hosts".to_owned());
        let mut summary = Value::Null;
        let mut failures = Vec::new();
        let looked = self.look_before();
        failures.extend(self.told(looked, &during));
        if failures.is_empty() && self.stop.cause().is_none() {
            screen.doing(during.clone());
            match self.drive(stage, &during) {
                Ok(driven) => {
                    summary = driven.summary;
                    failures.extend(driven.failure);
                }
                Err(failure) => failures.push(failure),
            }
        }
        if !self.is_lost {
            let looked = self.look_after();
            failures.extend(self.told(looked, &during));
        }
        failures.extend(self.server_gone(&during));
        (summary, failures)
    }

    fn look_before(&mut self) -> Result<(), Lost> {
        const APART: Duration = Duration::from_millis(200);
        self.far.read_clock(CLOCK_READINGS, &self.stop)?;
        for _ in 0..CLOSE_LOOKS {
            let until = Instant::now() + APART;
            while Instant::now() < until {
                if self.stop.cause().is_some() {
                    return Err(Lost::Stopped);
                }
                std::thread::sleep(TICK);
            }
            self.look(Some(When::Before))?;
        }
        Ok(())
    }

    fn look_after(&mut self) -> Result<(), Lost> {
        self.look(Some(When::After))?;
        self.far.read_clock(CLOCK_READINGS, &self.stop)
    }

    fn drive(&mut self, stage: &Stage, during: &str) -> Result<Driven, Failure> {
        let interval = flag_ms(self.plan.interval_ms);
        let ours = ["--sample-interval", &interval, "--samples", "-"].map(str::to_owned);
        let args = ours.into_iter().chain(self.plan.client.iter().cloned());
        let client = stage
            .launcher
            .start("client", args.map(Into::into).collect())?;
        self.near = Observer::new(vec![client.id()], interface_of(self.far.local.ip()));
        let time_limit = self.plan.estimate() * 3 + Duration::from_secs(60);
        Ok(follow(
            stage,
            client,
            during,
            time_limit,
            |progress, _: &Child| self.tick(progress),
        ))
    }

    fn tick(&mut self, progress: Option<&Progress>) -> Option<Halt> {
        if let Some(progress) = progress {
            self.note(progress);
        }
        if self.looked_at.elapsed() < Duration::from_millis(self.plan.interval_ms) {
            return None;
        }
        let closely = self.is_close_look_due();
        self.close_looks += u32::from(closely);
        let halt = |cause| Halt {
            cause,
            patience: Duration::ZERO,
        };
        match self.look(closely.then_some(When::Resting)) {
            Ok(()) => {
                let memory = &self.looks.server.last()?.memory;
                let short = short_of(memory)?;
                Some(halt(format!("on the server's host {short}")))
            }
            // Who follows the client sees it too.
            Err(Lost::Stopped) => None,
            Err(Lost::Gone(why)) => Some(halt(self.lost(&why))),
        }
    }

    fn note(&mut self, progress: &Progress) {
        let started_ns = monotonic_ns().saturating_sub(progress.t_ms * 1_000_000);
        self.started_ns = Some(self.started_ns.map_or(started_ns, |ns| ns.min(started_ns)));
        if progress.phase != self.phase.0 {
            self.phase = (progress.phase.clone(), Instant::now());
        }
        self.progress.push(progress.clone());
    }

    /// Evenly over the second half of the phase in which connections rest.
    fn is_close_look_due(&self) -> bool {
        let (resting, length_ms) = self.plan.resting();
        let (phase, since) = &self.phase;
        let done = u64::from(self.close_looks);
        let all = u64::from(CLOSE_LOOKS);
        let due_ms = length_ms * (all + done) / (2 * all);
        let elapsed = since.elapsed();
        *phase == resting && done < all && elapsed >= Duration::from_millis(due_ms)
    }

    fn look(&mut self, closely: Option<When>) -> Result<(), Lost> {
        self.looked_at = Instant::now();
        let mut server = self.far.look(closely.is_some(), &self.stop)?;
        let mut client = self.near.look(closely.is_some()).map_err(Lost::Gone)?;
        if closely.is_some() {
            let is_same_time = self.looked_closely == closely;
            keep_least(&mut self.looks.server, &mut server, is_same_time);
            keep_least(&mut self.looks.client, &mut client, is_same_time);
            self.looked_closely = closely;
        }
        if closely == Some(When::After) {
            // Its counters are what it is for.
            let close = [&mut server, &mut client]
                .into_iter()
                .filter_map(|look| look.closely.as_mut());
            close.for_each(|closely| closely.footprint.caches = None);
        }
        self.looks.server.push(server);
        self.looks.client.push(client);
        Ok(())
    }

    /// The failure that the loss of the agent is.
    fn told(&mut self, looked: Result<(), Lost>, during: &str) -> Option<Failure> {
        match looked {
            Ok(()) | Err(Lost::Stopped) => None,
            Err(Lost::Gone(why)) => Some(Failure {
                during: during.to_owned(),
                cause: self.lost(&why),
                stderr_tail: Vec::new(),
            }),
        }
    }

    fn lost(&mut self, why: &str) -> String {
        self.is_lost = true;
        format!(
            "lost the agent at {}: {why}; the report has what was seen until then; see what the agent said on its host, \
             and start it again",
            self.far.address
        )
    }

    fn server_gone(&self, during: &str) -> Option<Failure> {
        let count = |look: Option<&Look>| look.map_or(0, |look| look.processes.len());
        let (first, last) = (self.looks.server.first(), self.looks.server.last());
        (count(first) > 0 && count(last) == 0).then(|| Failure {
            during: during.to_owned(),
            cause: "the server's processes ended while they were watched: see what they said on their host, and its kernel \
                    log (dmesg) for the OOM killer"
                .to_owned(),
            stderr_tail: Vec::new(),
        })
    }

    /// What was seen, on one clock.
    fn joined(self) -> (Far, Joined) {
        let clock = Offset::of(&self.far.exchanges);
        let first_ns = self.looks.client.first().map(|look| look.at_ns);
        let began_ns = signed(self.started_ns.or(first_ns).unwrap_or(0));
        let since = |ns: i64| (ns - began_ns) / 1_000;
        let server = self.looks.server.into_iter().filter_map(|look| {
            let t_us = since(clock?.near_ns(look.at_ns));
            Some(Moment { t_us, look })
        });
        let client = self.looks.client.into_iter().map(|look| Moment {
            t_us: since(signed(look.at_ns)),
            look,
        });
        let moments = Ends {
            server: server.collect::<Vec<_>>(),
            client: client.collect::<Vec<_>>(),
        };
        let of_day_us = |moment: &Moment| signed(moment.look.unix_ns) / 1_000 - moment.t_us;
        let of_days = moments.server.first().zip(moments.client.first());
        let joined = Joined {
            clock,
            day_clock_ahead_us: of_days
                .map(|(server, client)| of_day_us(server) - of_day_us(client)),
            progress: self.progress,
            moments,
        };
        (self.far, joined)
    }
}

/// What was seen of both ends, on one clock.
struct Joined {
    clock: Option<Offset>,
    day_clock_ahead_us: Option<i64>,
    progress: Vec<Progress>,
    moments: Ends<Vec<Moment>>,
}

/// 292 years fit.
fn signed(ns: u64) -> i64 {
    i64::try_from(ns).unwrap_or(i64::MAX)
}
