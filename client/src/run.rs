//! The phases of a run, and its ends.
//!
//! Touches the workers' threads, and those who watch. Invariant: no phase lasts without a bound, whatever the server
//! does; however a run ends, workers end with it and what was measured is returned.

use std::io::Write;
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, anyhow, bail};
use kernel_tuning::host::{self, NetCounters};
use kernel_tuning::limit::Evidence;

use crate::canary::{self, Canaries, Stage};
use crate::config::{Close, Config};
use crate::counters::{Causes, Counts, Order, Phase, Shared};
use crate::diagnosis::diagnose;
use crate::display::{Length, Lengths, Progress};
use crate::hlog::IntervalLog;
use crate::interrupts::{Interrupts, TICK};
use crate::mergeable::{Began, Mergeable};
use crate::phases::Watch;
use crate::samples::Samples;
use crate::shape::{Leg, Rise};
use crate::source::Plan;
use crate::start::{self, Start};
use crate::summary::{Course, Ended, Report, Step, Storm, Summary};
use crate::tally::Tally;
use crate::tui::{Scene, View};
use crate::worker::{self, Job};

/// After the last loss of a server that is gone, or the last echo: how long to wait for more.
pub(crate) const GRACE: Duration = Duration::from_secs(1);
/// A run ends rather than take this last memory of the host.
const MEMORY_FLOOR_BYTES: u64 = 256 << 20;
/// How long a close of all connections may take: an orderly one before the rest are closed with the rings, and the kernel's
/// before the canaries' recovery is said to begin.
const LONGEST_CLOSE: Duration = Duration::from_secs(30);

/// Those who watch a run.
pub(crate) struct Watchers {
    pub(crate) progress: Progress,
    pub(crate) view: Option<View>,
    pub(crate) samples: Option<Samples>,
    /// Where the interval log goes.
    pub(crate) hlog: Option<Box<dyn Write>>,
}

impl Watchers {
    fn sample(&mut self, now: Duration, order: &Order, counts: &Counts) {
        if let Some(samples) = &mut self.samples
            && let Err(error) = samples.take(now, order, counts)
        {
            // The run is worth more than its samples.
            tracing::warn!(%error, "samples cannot be written; there are none from here on");
            self.samples = None;
        }
    }

    /// Shows the canaries while there are no connections.
    fn show_canaries(&mut self, stage: Stage, length: Length, canaries: &Canaries, after: &Counts) {
        if let Some(view) = &mut self.view {
            view.show(|| Scene {
                stage: stage.name(),
                length,
                is_closed: stage != Stage::Baseline,
                counts: *after,
                causes: Causes::default(),
                slowest: Duration::ZERO,
                canaries: canaries.news().collect(),
                trouble: None,
            });
        }
    }
}

/// Runs `config` and says what came of it.
///
/// # Errors
/// A worker could not start, or its ring broke.
pub(crate) fn run(
    config: &Config,
    plan: &Plan,
    interrupts: &Interrupts,
    watchers: &mut Watchers,
) -> anyhow::Result<Summary> {
    let before = NetCounters::read().unwrap_or_default();
    let nofile = kernel_tuning::process::raise_nofile()?;
    let table_slots = nofile.soft.min(u64::from(ring::Token::MAX_SLOTS)) as u32;
    let canaries = config.canary.as_ref().map(Canaries::start).transpose()?;
    if let Some(canaries) = &canaries {
        let baseline = canaries.config().baseline;
        watchers.progress.note(&format!(
            "baseline of the canaries: {} before the first connection",
            humantime::format_duration(baseline)
        ));
        let length = Length::Time(baseline);
        let is_done = || {
            watchers.show_canaries(Stage::Baseline, length, canaries, &Counts::default());
            false
        };
        if interrupts.linger(baseline, is_done)? {
            bail!("interrupted in the baseline, before the first connection");
        }
    }
    if let Some(start_at) = config.start_at {
        let at = humantime::format_rfc3339_millis(start_at);
        watchers.progress.note(&format!("starts at {at}"));
        if start::wait(start_at, interrupts)? {
            bail!("interrupted before the start at {at}, with no connection made");
        }
    }
    let shared = Shared::new(config.cores.len(), config.connections)?;
    let began = Began::at(shared.start);
    let log = watchers.hlog.take();
    let log = log.map(|to| IntervalLog::new(to, SystemTime::now(), config.cores.len()));
    let tally = Tally::new(
        config.cores.len(),
        log.transpose().context("cannot write --hlog")?,
    );
    let host = Watch::new(&config.targets);
    thread::scope(|scope| {
        let _ending = EndWorkers(&shared);
        let mut workers = Vec::new();
        for (number, core) in config.cores.iter().enumerate() {
            let job = Job {
                number,
                config,
                plan,
                shared: &shared,
                measured: tally.sender(),
                table_slots,
            };
            let thread = thread::Builder::new().name(format!("worker-{core}"));
            workers.push(thread.spawn_scoped(scope, move || worker::run(&job))?);
        }
        let mut conductor = Conductor {
            config,
            shared: &shared,
            canaries: canaries.as_ref(),
            workers: &workers,
            interrupts,
            watchers: &mut *watchers,
            lengths: Lengths::new(config),
            host,
            tally,
            phase: Phase::Ramp,
            next_sample: Duration::ZERO,
            next_memory_check: Duration::ZERO,
            next_trouble: Duration::ZERO,
            last_growth: (Duration::ZERO, 0),
            last_idle: Duration::ZERO,
            last_loss: (Duration::ZERO, 0),
            steps: Vec::new(),
        };
        let course = conductor.conduct();
        // What the host says is about a run only while its connections are there.
        let evidence = Evidence::read(&before);
        let entered = conductor.enter(Phase::Done, None);
        conductor.watchers.progress.finish();
        conductor.see_off();
        let (mut host, tally) = (conductor.host, conductor.tally);
        let reports: Vec<_> = workers.into_iter().map(ScopedJoinHandle::join).collect();
        let measured = tally.finish();
        let mut merged = Report::default();
        for report in reports {
            let report = report.map_err(|_| anyhow!("a worker panicked: this is a bug"))?;
            merged.merge(report.context("a worker failed")?);
        }
        entered?;
        let mut course = course?;
        course.counts = shared.counts();
        let mut summary = Summary::new(config.clone(), &merged, &measured, &course);
        summary.diagnosis = diagnose(&summary, &merged, plan, &evidence);
        let mut recovers = |watchers: &mut Watchers| {
            let now = shared.start.elapsed();
            host.enter(Phase::Recovery, now);
            let order = Order {
                phase: Phase::Recovery,
                ..shared.order()
            };
            watchers.sample(now, &order, &course.counts);
        };
        summary.canaries = canaries
            .map(|canaries| {
                recover(
                    canaries,
                    &summary,
                    &course.counts,
                    interrupts,
                    watchers,
                    &mut recovers,
                )
            })
            .transpose()?;
        summary.host_counters = Some(host.finish(shared.start.elapsed()));
        summary.start = config.start_at.map(|at| {
            let first = merged.first_connect.unwrap_or_default();
            Start::new(at, began.unix + first)
        });
        summary.part = config.part.as_ref().map(|division| {
            Mergeable::new(division, &summary, (&merged, &measured, &course), began)
        });
        Ok(summary)
    })
}

/// However the main thread leaves the scope, its workers end: the scope waits for them.
struct EndWorkers<'a>(&'a Shared);

impl Drop for EndWorkers<'_> {
    fn drop(&mut self) {
        // A worker that cannot be woken looks by itself within its longest wait.
        let _ = self.0.enter(Phase::Done, None);
    }
}

struct Conductor<'a, 'scope> {
    config: &'a Config,
    shared: &'a Shared,
    canaries: Option<&'a Canaries>,
    workers: &'a [ScopedJoinHandle<'scope, anyhow::Result<Report>>],
    interrupts: &'a Interrupts,
    watchers: &'a mut Watchers,
    lengths: Lengths,
    host: Watch,
    tally: Tally,
    phase: Phase,
    next_sample: Duration,
    next_memory_check: Duration,
    next_trouble: Duration,
    /// When the number of connections ever established last grew, and what it was.
    last_growth: (Duration, u64),
    /// When no further connection was asked for last.
    last_idle: Duration,
    /// The same of those lost.
    last_loss: (Duration, u64),
    steps: Vec<Step>,
}

impl Conductor<'_, '_> {
    fn conduct(&mut self) -> anyhow::Result<Course> {
        let mut ended = self.ramp()?;
        let (mut hold_from, mut hold) = (Duration::ZERO, Duration::ZERO);
        let mut at_hold_end = Counts::default();
        if ended.is_none() && !self.config.idle_for.is_zero() {
            self.enter(Phase::Idle, None)?;
            ended = self.until(self.now() + self.config.idle_for, |_| false)?;
        }
        if ended.is_none() && !self.config.quiet_for.is_zero() {
            self.enter(Phase::Quiet, None)?;
            ended = self.until(self.now() + self.config.quiet_for, |_| false)?;
        }
        if ended.is_none() {
            let phase = if self.config.active > 0 {
                Phase::Active
            } else {
                Phase::Hold
            };
            hold_from = self.now();
            self.enter(phase, None)?;
            ended = self.until(hold_from + self.config.hold, |_| false)?;
            hold = self.now() - hold_from;
            at_hold_end = self.shared.counts();
        }
        let mut storm = None;
        if let (None, Some(lasts)) = (ended, self.config.storm) {
            let (from, before) = (self.now(), self.shared.counts());
            self.enter(Phase::Storm, None)?;
            ended = self.until(from + lasts, |_| false)?;
            storm = Some(Storm {
                began_seconds: from.as_secs_f64(),
                seconds: (self.now() - from).as_secs_f64(),
                heard: self.shared.counts().heartbeats - before.heartbeats,
            });
        }
        self.enter(Phase::Close, None)?;
        self.await_echoes();
        let ended = self.ramp_down(ended)?;
        Ok(Course {
            ended: ended.unwrap_or(Ended::Complete),
            steps: std::mem::take(&mut self.steps),
            counts: self.shared.counts(),
            hold_from,
            hold,
            at_hold_end,
            storm,
            peak_rss_bytes: peak_rss_bytes().unwrap_or(0),
        })
    }

    /// Leg by leg, until each connection is established or has failed.
    fn ramp(&mut self) -> anyhow::Result<Option<Ended>> {
        let shape = &self.config.shape;
        let legs = shape.rise(self.config.connections);
        let has_stages = matches!(shape.rise, Rise::Levels { .. });
        for (step, leg) in (1..).zip(&legs) {
            let mut ended = self.carry_out(Phase::Ramp, *leg, Duration::MAX)?;
            let (began, up) = (self.shared.order().began, self.now());
            if ended.is_none() && !leg.rest.is_zero() {
                if has_stages {
                    self.enter(Phase::Step(step), None)?;
                }
                ended = self.until(up + leg.rest, |_| false)?;
            }
            let counts = self.shared.counts();
            if legs.len() > 1 {
                self.steps.push(Step {
                    connections: leg.to,
                    began_seconds: began.as_secs_f64(),
                    up_seconds: up.saturating_sub(began).as_secs_f64(),
                    held_seconds: self.now().saturating_sub(up).as_secs_f64(),
                    established: counts.live(),
                });
            }
            if ended.is_some() {
                return Ok(ended);
            }
        }
        let established = self.shared.counts().established;
        Ok((established == 0).then_some(Ended::NothingEstablished))
    }

    /// Closes the connections one after the other, where they are to end spread over a time, or in order. A run that was
    /// cut short is not drawn out.
    fn ramp_down(&mut self, ended: Option<Ended>) -> anyhow::Result<Option<Ended>> {
        let over = match ended {
            None => self.config.shape.fall,
            Some(_) => Duration::ZERO,
        };
        if over.is_zero() && self.config.close == Close::Rst {
            return Ok(ended);
        }
        let leg = Leg::down(self.config.connections, over);
        let deadline = self.now() + over + LONGEST_CLOSE;
        let stopped = self.carry_out(Phase::RampDown, leg, deadline)?;
        Ok(ended.or(stopped))
    }

    /// Until all workers have done what `leg` asks for, or until `deadline`, or until something ends the run.
    fn carry_out(
        &mut self,
        phase: Phase,
        leg: Leg,
        deadline: Duration,
    ) -> anyhow::Result<Option<Ended>> {
        let number = self.enter(phase, Some(leg))?;
        // No worker is ahead of the last order.
        let all = number * self.config.cores.len() as u64;
        self.until(deadline, |counts| counts.carried_out == all)
    }

    /// Until `deadline`, or until `is_done`, or until something ends the run.
    fn until(
        &mut self,
        deadline: Duration,
        is_done: impl Fn(&Counts) -> bool,
    ) -> anyhow::Result<Option<Ended>> {
        loop {
            let now = self.now();
            let counts = self.shared.counts();
            self.show(now, &counts);
            if let Some(ended) = self.trouble(now, &counts) {
                return Ok(Some(ended));
            }
            if now >= deadline
                || is_done(&counts)
                || self.workers.iter().any(ScopedJoinHandle::is_finished)
            {
                return Ok(None);
            }
            if self.interrupts.wait(TICK.min(deadline - now))? {
                return Ok(Some(Ended::Interrupted));
            }
        }
    }

    /// Messages under way are no failure of theirs when the run ends: they have a while to come back.
    fn await_echoes(&mut self) {
        let deadline = self.now() + GRACE;
        while self.shared.counts().outstanding > 0 && self.now() < deadline {
            thread::sleep(TICK);
            self.show(self.now(), &self.shared.counts());
        }
    }

    fn trouble(&mut self, now: Duration, counts: &Counts) -> Option<Ended> {
        for (last, value) in [
            (&mut self.last_growth, counts.established),
            (&mut self.last_loss, counts.lost),
        ] {
            if last.1 != value {
                *last = (now, value);
            }
        }
        if counts.established == 0 && counts.refused > 0 {
            return Some(Ended::Refused);
        }
        // Lost connections are made again, and the server may be too.
        let gives_up = self.config.reconnect.is_none() && self.phase != Phase::RampDown;
        let is_quiet =
            gives_up && now.saturating_sub(self.last_loss.0.max(self.last_growth.0)) >= GRACE;
        let turned_away = counts.lost.saturating_sub(counts.dropped);
        if is_quiet
            && counts.dropped > 0
            && counts.dropped * 2 >= counts.established.saturating_sub(turned_away)
        {
            return Some(Ended::ServerGone);
        }
        if is_quiet && counts.lost > 0 && counts.live() == 0 {
            return Some(Ended::AllLost);
        }
        if counts.established + counts.failed >= self.shared.order().level(now) {
            self.last_idle = now;
        }
        let since = self.last_growth.0.max(self.last_idle);
        if self.phase == Phase::Ramp && now.saturating_sub(since) > self.patience() {
            return Some(Ended::Stalled);
        }
        if now >= self.next_memory_check {
            self.next_memory_check = now + GRACE;
            let memory = host::Memory::read().ok();
            if memory.is_some_and(|memory| memory.available_bytes < MEMORY_FLOOR_BYTES) {
                return Some(Ended::LowMemory);
            }
        }
        None
    }

    /// How long a ramp may go on with nothing established: two timeouts, or two connects of a slow rate.
    fn patience(&self) -> Duration {
        let pace = match self.config.rate {
            0.0 => Duration::ZERO,
            rate => Duration::from_secs_f64(2.0 / rate),
        };
        (2 * self.config.connect_timeout).max(pace) + TICK
    }

    /// Gives the order for `phase`, and with it for `leg`; returns its number.
    fn enter(&mut self, phase: Phase, leg: Option<Leg>) -> anyhow::Result<u64> {
        self.phase = phase;
        if let Some(canaries) = self.canaries
            && let Some(stage) = stage_of(phase)
        {
            canaries.enter(stage);
        }
        self.host.enter(phase, self.now());
        let order = self.shared.enter(phase, leg)?;
        let now = self.now();
        self.tally.begin(order.interval(), now);
        let counts = self.shared.counts();
        self.watchers.progress.update(now, phase, &counts);
        self.sample(now, &counts);
        Ok(order.number)
    }

    /// Shows how the workers end, which takes a while where they close very many connections.
    fn see_off(&mut self) {
        while self.watchers.view.is_some()
            && !self.workers.iter().all(ScopedJoinHandle::is_finished)
        {
            self.view(&self.shared.counts());
            thread::sleep(TICK);
        }
    }

    fn view(&mut self, counts: &Counts) {
        let now = self.now();
        if let Some(view) = &mut self.watchers.view {
            view.show(|| Scene {
                stage: self.phase.name(),
                length: self.lengths.of(self.phase, counts),
                is_closed: self.phase == Phase::Done,
                counts: *counts,
                causes: self.shared.causes(),
                slowest: self.shared.take_slowest(),
                canaries: self.canaries.iter().flat_map(|c| c.news()).collect(),
                // Not at every look: it takes many files to be read.
                trouble: (now >= self.next_trouble).then(|| {
                    self.next_trouble = now + GRACE;
                    self.host.trouble_so_far()
                }),
            });
        }
    }

    fn show(&mut self, now: Duration, counts: &Counts) {
        self.view(counts);
        self.watchers.progress.update(now, self.phase, counts);
        self.tally.collect();
        if now < self.next_sample {
            return;
        }
        if self.tally.has_log() {
            // A worker that cannot be woken looks by itself within its longest wait.
            let _ = self.shared.next_interval();
            self.tally.begin(self.shared.order().interval(), now);
        }
        self.sample(now, counts);
    }

    fn sample(&mut self, now: Duration, counts: &Counts) {
        self.next_sample = now + self.config.sample_interval;
        self.watchers.progress.line(now, self.phase, counts);
        self.watchers.sample(now, &self.shared.order(), counts);
    }

    fn now(&self) -> Duration {
        self.shared.start.elapsed()
    }
}

/// What a phase is to the canaries. The while that echoes have to come back belongs to what was before.
fn stage_of(phase: Phase) -> Option<Stage> {
    match phase {
        Phase::Ramp => Some(Stage::Ramp),
        Phase::Step(step) => Some(Stage::Step(step)),
        Phase::Idle => Some(Stage::Idle),
        Phase::Quiet | Phase::Hold => Some(Stage::Hold),
        Phase::Active => Some(Stage::Active),
        Phase::Storm => Some(Stage::Storm),
        Phase::Close => None,
        Phase::RampDown | Phase::Done => Some(Stage::Close),
        Phase::Recovery => Some(Stage::Recovery),
    }
}

/// The workers have ended: the kernel closes what they held, and the canaries go on until that is over and for the
/// recovery after it, whose beginning `recovers` is told.
fn recover(
    canaries: Canaries,
    summary: &Summary,
    counts: &Counts,
    interrupts: &Interrupts,
    watchers: &mut Watchers,
    recovers: &mut dyn FnMut(&mut Watchers),
) -> anyhow::Result<canary::Report> {
    let held = summary.established;
    let mut is_closed = canaries.teardown(held);
    let is_over = || {
        watchers.show_canaries(Stage::Close, Length::Unknown, &canaries, counts);
        is_closed()
    };
    if summary.ended != Ended::Interrupted && !interrupts.linger(LONGEST_CLOSE, is_over)? {
        canaries.enter(Stage::Recovery);
        recovers(watchers);
        let recovery = canaries.config().recovery;
        let length = Length::Time(recovery);
        interrupts.linger(recovery, || {
            watchers.show_canaries(Stage::Recovery, length, &canaries, counts);
            false
        })?;
    }
    let levels: Vec<u64> = summary.steps.iter().map(|step| step.established).collect();
    canaries.finish(held, &levels)
}

/// VmHWM of /proc/self/status, proc_pid_status(5).
fn peak_rss_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
}
