//! The whole story on this machine: a pair of daemons, a workload that can be verified, checkpoints, a killed
//! primary, a failover, and a verdict on every byte.

mod block;
mod clock;
mod history;
mod image;
mod layout;
mod nbd;
mod pair;
mod random;
mod report;
mod scan;
#[cfg(test)]
mod server;
mod story;
mod verify;
mod watch;
mod workload;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use block::Stamp;
use clock::Clock;
use image::Image;
use layout::Layout;
use pair::{Interrupted, Places};
use random::Random;
use report::{Report, Teller};
use serde_json::json;
use story::Story;
use workload::Scene;

use crate::args::DemoArgs;
use crate::failure::Failure;
use crate::units;

/// `twinblock demo`.
///
/// # Errors
/// [`Failure::Refused`]: it could not be played to the end, or a byte was wrong.
pub(crate) fn run(args: &DemoArgs) -> Result<(), Failure> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64);
    let seed = args.seed.unwrap_or(now % 1_000_000);
    let interrupted = Interrupted::default();
    let (directory, result) = match prepare(args) {
        Ok((places, temporary)) => {
            let result = play(args, seed, now, &places, &interrupted);
            let is_right = result.as_ref().is_ok_and(Report::is_ok);
            // What has gone wrong can be looked at afterwards, if there is anything to see.
            let is_dull =
                is_right || interrupted.load(Ordering::Relaxed) || !places.file("secondary.log").exists();
            (keep(temporary, is_dull, args.keep.clone()), result)
        }
        Err(error) => (None, Err(error)),
    };
    if args.json {
        let mut value = match &result {
            Ok(report) => report.to_json(),
            Err(error) => json!({ "verdict": "failed", "reason": format!("{error:#}"), "seed": seed }),
        };
        if let (Some(directory), Some(map)) = (&directory, value.as_object_mut()) {
            map.insert("directory".into(), directory.display().to_string().into());
        }
        anstream::println!("{value}");
    }
    let left = directory
        .map(|path| format!(" (seed {seed}); disks and logs are in {}", path.display()))
        .unwrap_or_default();
    match result {
        Ok(report) if report.is_ok() => Ok(()),
        Ok(_) => Err(Failure::Refused(format!("demo: not every byte is right{left}"))),
        Err(error) => Err(Failure::Refused(format!("demo: {error:#}{left}"))),
    }
}

/// Directories that vanish with this value.
struct Temporary {
    work: Option<tempfile::TempDir>,
    _sockets: tempfile::TempDir,
}

fn prepare(args: &DemoArgs) -> anyhow::Result<(Places, Temporary)> {
    let sockets =
        tempfile::Builder::new().prefix("twinblock-").tempdir().context("no temporary directory")?;
    let (directory, work) = match &args.keep {
        Some(path) => {
            story::empty_directory(path)?;
            (path.clone(), None)
        }
        None => {
            let work = tempfile::Builder::new().prefix("twinblock-demo-").tempdir()?;
            (work.path().to_path_buf(), Some(work))
        }
    };
    Ok((Places::new(&directory, sockets.path()), Temporary { work, _sockets: sockets }))
}

fn keep(temporary: Temporary, is_dull: bool, kept: Option<PathBuf>) -> Option<PathBuf> {
    match temporary.work {
        Some(work) if !is_dull => Some(work.keep()),
        _ => kept,
    }
}

fn play(
    args: &DemoArgs,
    seed: u64,
    now: u64,
    places: &Places,
    interrupted: &Interrupted,
) -> anyhow::Result<Report> {
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(interrupted))?;
    }
    // Blocks of another run with the same seed, left on an image, are not taken for this run's.
    let stamp = Stamp::new(Random::new(now ^ u64::from(std::process::id())).next());
    let image = match &args.disk {
        Some(path) => Image::open(path)?,
        None => Image::Striped { stamp, size_bytes: args.size.0 },
    };
    let size_bytes = image.size_bytes();
    anyhow::ensure!(
        size_bytes >= 1 << 20,
        "a disk of {} is too small: take 1M or more",
        units::bytes(size_bytes)
    );
    let least = crate::spec::BUFFER_GRANULES_MIN * 4096;
    anyhow::ensure!(
        args.buffer_size.0 >= least,
        "a disk buffer of {} is too small: take {} or more",
        units::bytes(args.buffer_size.0),
        units::bytes(least)
    );
    anyhow::ensure!(!args.checkpoint_every.0.is_zero(), "no time between checkpoints: take 1ms or more");
    let teller = Teller::new(args.json);
    let source =
        args.disk.as_ref().map(|path| format!(" copied from {}", path.display())).unwrap_or_default();
    teller.line(
        "pair",
        format_args!(
            "a disk of {}{source} and its twin, a disk buffer of {}, a checkpoint every {}, seed {seed}",
            units::bytes(size_bytes),
            units::bytes(args.buffer_size.0),
            args.checkpoint_every
        ),
    );
    let layout = Layout::new(size_bytes);
    let scene = Scene { clock: Clock::start(), stamp, layout, image, interrupted: Arc::clone(interrupted) };
    Story { args, seed, scene: Arc::new(scene), places, teller: &teller }.play()
}
