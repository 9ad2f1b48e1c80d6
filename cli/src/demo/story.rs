//! The acts of the demo, one after the other.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail, ensure};
use serde_json::json;

use super::block::Version;
use super::clock::Moment;
use super::history::{End, Log, Side, Write};
use super::nbd::{Command, Export, Head};
use super::pair::{self, Daemon, EXPORT, Places};
use super::random::Random;
use super::report::{Report, Teller};
use super::scan::Scan;
use super::verify::{Evidence, verify};
use super::watch::Watcher;
use super::workload::{Counters, Notes, Plan, Scene, Worker};
use crate::args::DemoArgs;
use crate::commands::{self, Qmp};

/// Connections to the primary.
const PRIMARY_CONNECTIONS: u16 = 4;
/// Connections to the secondary's guest view.
const GUEST_CONNECTIONS: u16 = 2;
/// Requests in flight on each.
const DEPTH: usize = 16;
/// Least time between two requests of a connection of the secondary's guest: it works, and the primary's guest is the
/// one at full speed.
const GUEST_PACE: Duration = Duration::from_millis(1);
/// Most requests that are noted, so that memory is bounded; a longer run spreads them.
const REQUESTS_MAX: u32 = 2_000_000;
/// How long the other side has to answer.
const TIMEOUT: Duration = Duration::from_secs(30);
/// How often the demo looks whether all is well.
const LOOK: Duration = Duration::from_millis(20);

/// One run.
pub(crate) struct Story<'a> {
    /// What was asked for.
    pub(crate) args: &'a DemoArgs,
    /// Which requests are made.
    pub(crate) seed: u64,
    /// What all share.
    pub(crate) scene: Arc<Scene>,
    /// Where everything is.
    pub(crate) places: &'a Places,
    /// Tells people.
    pub(crate) teller: &'a Teller,
}

/// The workload on both sides.
struct Cast {
    primary: Vec<Worker>,
    guest: Vec<Worker>,
    primary_counters: Arc<Counters>,
    guest_counters: Arc<Counters>,
}

impl Story<'_> {
    /// Plays it. Everything that was started has ended afterwards.
    pub(crate) fn play(&self) -> anyhow::Result<Report> {
        let mut report = Report::new(self.seed, self.scene.layout.size_bytes());
        let mut evidence = Evidence::default();
        for name in ["primary.img", "secondary.img"] {
            self.check()?;
            self.scene.image.write_to(&self.places.file(name), || self.check())?;
        }
        let mut secondary = Daemon::secondary(self.places, self.args)?;
        let mut secondary_qmp = secondary.connect(&self.scene.interrupted)?;
        let mut primary = Daemon::primary(self.places, self.args)?;
        let mut primary_qmp = primary.connect(&self.scene.interrupted)?;
        pair::wait_for_replica(&mut primary_qmp, &self.scene.interrupted)?;
        let watcher = Watcher::start(secondary.connect(&self.scene.interrupted)?, self.scene.clock);

        let mut cast = self.enter()?;
        self.run(&mut report, &cast, &watcher, [&mut primary, &mut secondary])?;
        let healthy = self.last_words(&mut report, &mut primary_qmp, &watcher)?;
        self.kill(&mut report, &mut evidence, &mut cast, &mut primary)?;
        // A replica that fell behind after the last question would miss no more than what was answered since.
        evidence.primary.forget_answers_after(healthy);
        self.compare_twins(&mut evidence, report.is_behind)?;
        self.fail_over(&mut report, &mut evidence, &cast, &mut secondary_qmp, &watcher)?;
        self.look_at_view(&mut evidence, cast, &mut report, &watcher)?;

        let seen = watcher.seen();
        report.take_watch(&seen);
        evidence.epochs = seen.epochs;
        drop((watcher, secondary_qmp));
        let status = secondary.end()?;
        ensure!(status.success(), "the secondary ended with {status}");
        let disk = Scan::file(&self.scene, &self.places.file("secondary.img"))?;
        evidence.views.push(("the secondary disk at the end", disk));
        self.judge(&mut report, &evidence);
        Ok(report)
    }

    fn check(&self) -> anyhow::Result<()> {
        pair::check(&self.scene.interrupted)
    }

    fn export(&self, socket: &str) -> anyhow::Result<Export> {
        let export = Export::connect(&self.places.socket(socket), EXPORT, TIMEOUT)?;
        let expected = self.scene.layout.size_bytes();
        ensure!(export.size_bytes == expected, "{socket} has {} bytes, not {expected}", export.size_bytes);
        Ok(export)
    }

    fn enter(&self) -> anyhow::Result<Cast> {
        let mut seeds = Random::new(self.seed);
        let connections = u32::from(PRIMARY_CONNECTIONS + GUEST_CONNECTIONS);
        let pace = Duration::from_secs(self.args.seconds.into()) * connections / REQUESTS_MAX;
        // Below this the sleeping itself takes longer.
        let pace = if pace < Duration::from_micros(20) { Duration::ZERO } else { pace };
        let mut start = |numbers: std::ops::Range<u16>, side, socket: &str, counters: &Arc<Counters>| {
            let worker = |connection| {
                let pace = if side == Side::Guest { pace.max(GUEST_PACE) } else { pace };
                let plan = Plan { connection, side, seed: seeds.next(), depth: DEPTH, pace };
                Ok(Worker::start(self.export(socket)?, plan, &self.scene, counters)?)
            };
            numbers.map(worker).collect::<anyhow::Result<Vec<Worker>>>()
        };
        let (primary_counters, guest_counters) = (Arc::default(), Arc::default());
        let primary = start(0..PRIMARY_CONNECTIONS, Side::Primary, "primary", &primary_counters)?;
        let numbers = PRIMARY_CONNECTIONS..PRIMARY_CONNECTIONS + GUEST_CONNECTIONS;
        let guest = start(numbers, Side::Guest, "guest", &guest_counters)?;
        self.teller.line(
            "workload",
            format_args!(
                "{PRIMARY_CONNECTIONS} connections to the primary, {GUEST_CONNECTIONS} to the secondary's guest view, \
                 {DEPTH} requests in flight on each"
            ),
        );
        Ok(Cast { primary, guest, primary_counters, guest_counters })
    }

    fn run(
        &self,
        report: &mut Report,
        cast: &Cast,
        watcher: &Watcher,
        daemons: [&mut Daemon; 2],
    ) -> anyhow::Result<()> {
        let began = Instant::now();
        let span = Duration::from_secs(self.args.seconds.into());
        let bar = self.teller.bar(span.as_millis() as u64);
        let [primary_daemon, secondary_daemon] = daemons;
        while began.elapsed() < span {
            thread::sleep(LOOK);
            self.check_well(cast, watcher)?;
            primary_daemon.ensure_alive()?;
            secondary_daemon.ensure_alive()?;
            let bytes = cast.primary_counters.written_bytes.load(Ordering::Relaxed);
            let rate = bytes as f64 / began.elapsed().as_secs_f64() / f64::from(1 << 20);
            bar.set_position(began.elapsed().as_millis() as u64);
            bar.set_message(format!(
                "{:.0} of {} s, {rate:.0} MiB/s, {} checkpoints",
                began.elapsed().as_secs_f64(),
                self.args.seconds,
                watcher.epochs_passed()
            ));
        }
        bar.finish_and_clear();
        report.checkpoints = watcher.epochs_passed();
        report.elapsed = began.elapsed();
        report.take_counters(&cast.primary_counters);
        ensure!(report.checkpoints != 0, "no checkpoint succeeded in {} seconds", self.args.seconds);
        Ok(())
    }

    fn check_well(&self, cast: &Cast, watcher: &Watcher) -> anyhow::Result<()> {
        self.check()?;
        let trouble = cast.primary.iter().chain(&cast.guest).find_map(Worker::trouble);
        if let Some(trouble) = trouble.or(watcher.stage().1) {
            bail!("{trouble}");
        }
        Ok(())
    }

    /// What the primary and the secondary say of each other just before the kill; and when they were asked.
    fn last_words(
        &self,
        report: &mut Report,
        primary: &mut Qmp,
        watcher: &Watcher,
    ) -> anyhow::Result<Moment> {
        let asked = self.scene.clock.now();
        let status = commands::query(primary)?;
        let volume = status.volumes.first().context("the primary has no volume")?;
        report.checkpoint_us = volume.checkpoint_us.unwrap_or_default();
        report.is_behind = volume.behind || watcher.seen().is_behind;
        self.teller.told_run(report);
        Ok(asked)
    }

    /// SIGKILL while writes are in flight.
    fn kill(
        &self,
        report: &mut Report,
        evidence: &mut Evidence,
        cast: &mut Cast,
        primary: &mut Daemon,
    ) -> anyhow::Result<()> {
        cast.primary.iter().for_each(Worker::expect_break);
        report.in_flight_at_kill = cast.primary.iter().map(Worker::in_flight).sum();
        primary.kill()?;
        for (connection, worker) in (0..).zip(cast.primary.drain(..)) {
            let notes = worker.finish().map_err(|trouble| anyhow!(trouble))?;
            add(&mut evidence.primary, &mut evidence.primary_reads, connection, notes);
        }
        evidence.killed = self.scene.clock.now();
        let open = evidence.primary.iter_ends().filter(|end| *end == End::Open).count();
        self.teller.line(
            "kill",
            format_args!("SIGKILL to the primary in mid-write: {open} of its guest's writes have no answer"),
        );
        Ok(())
    }

    /// Every acknowledged write is on both disks: what a stop without failover would go on from.
    fn compare_twins(&self, evidence: &mut Evidence, is_behind: bool) -> anyhow::Result<()> {
        self.check()?;
        let spinner = self.teller.spinner("reading both disks");
        evidence.primary_disk = Scan::file(&self.scene, &self.places.file("primary.img"))?;
        if is_behind {
            self.teller.line("twins", format_args!("the replica is behind, so the disks are not compared"));
        } else {
            evidence.secondary_disk = Some(Scan::export(&self.scene, self.export("secondary")?)?);
        }
        spinner.finish_and_clear();
        Ok(())
    }

    /// The secondary takes over while its guest goes on; then one more write shows how soon it could.
    fn fail_over(
        &self,
        report: &mut Report,
        evidence: &mut Evidence,
        cast: &Cast,
        secondary: &mut Qmp,
        watcher: &Watcher,
    ) -> anyhow::Result<()> {
        self.check_well(cast, watcher)?;
        let mut export = self.export("guest")?;
        let connection = PRIMARY_CONNECTIONS + GUEST_CONNECTIONS;
        let mut data = [0; super::block::BLOCK_BYTES];
        self.scene.stamp.write(&mut data, 0, Version { connection, index: 0 });
        let head =
            Head { command: Command::Write, flags: 0, cookie: 1, offset: 0, length: data.len() as u32 };
        // The commit and the guest shall meet.
        cast.guest.iter().for_each(Worker::hurry);
        let began = Instant::now();
        let arguments = json!({ "enable": false, "primary": false, "failover": true });
        secondary.execute("xen-set-replication", &arguments).context("the failover was refused")?;
        report.failover_answered = began.elapsed();
        let submitted = self.scene.clock.now();
        let answer = export.call(head, &data).context("the first guest write after the failover")?;
        ensure!(answer.error == 0, "the first guest write after the failover: error {}", answer.error);
        report.failover_first_write = began.elapsed();
        let end = End::Done(self.scene.clock.now());
        evidence.guest.add(connection, vec![Write { first: 0, count: 1, is_zeroes: false, submitted, end }]);
        export.disconnect();
        let spinner = self.teller.spinner("reading the guest view");
        evidence
            .views
            .push(("the guest view during the commit", Scan::export(&self.scene, self.export("guest")?)?));
        loop {
            self.check_well(cast, watcher)?;
            match watcher.stage().0.as_str() {
                "done" => break,
                "failover" if began.elapsed() < TIMEOUT => thread::sleep(LOOK),
                stage => bail!("the failover does not come to its end: stage {stage}"),
            }
        }
        spinner.finish_and_clear();
        report.failover_done = watcher.seen().since.map_or(began.elapsed(), |since| since - began);
        self.teller.told_failover(report, watcher.seen().commit_bytes);
        Ok(())
    }

    /// The guest comes to rest, and everything that it can see is looked at.
    fn look_at_view(
        &self,
        evidence: &mut Evidence,
        cast: Cast,
        report: &mut Report,
        watcher: &Watcher,
    ) -> anyhow::Result<()> {
        self.check_well(&cast, watcher)?;
        for (connection, worker) in (PRIMARY_CONNECTIONS..).zip(cast.guest) {
            let notes = worker.finish().map_err(|trouble| anyhow!(trouble))?;
            add(&mut evidence.guest, &mut evidence.guest_reads, connection, notes);
        }
        report.guest_writes = cast.guest_counters.writes.load(Ordering::Relaxed);
        report.guest_refused = cast.guest_counters.refused.load(Ordering::Relaxed);
        let spinner = self.teller.spinner("reading the guest view again");
        let view = Scan::export(&self.scene, self.export("guest")?)?;
        spinner.finish_and_clear();
        evidence.views.push(("the guest view after the commit", view));
        Ok(())
    }

    fn judge(&self, report: &mut Report, evidence: &Evidence) {
        self.teller.told_guest(report);
        let spinner = self.teller.spinner("comparing with the history of every block");
        report.verdict = verify(evidence, self.scene.layout);
        spinner.finish_and_clear();
        self.teller.told_verdict(report, evidence);
    }
}

fn add(log: &mut Log, reads: &mut Vec<super::workload::ReadNote>, connection: u16, notes: Notes) {
    log.add(connection, notes.writes);
    reads.extend(notes.reads.into_iter().filter(|read| read.answered != Moment::NEVER));
}

/// A directory for disks and logs that holds nothing yet.
pub(crate) fn empty_directory(path: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(path).with_context(|| format!("cannot make {}", path.display()))?;
    let mut entries = std::fs::read_dir(path).with_context(|| format!("cannot read {}", path.display()))?;
    ensure!(entries.next().is_none(), "{} is not empty: name another directory", path.display());
    Ok(())
}
