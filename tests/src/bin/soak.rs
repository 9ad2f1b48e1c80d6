//! Runs new random seeds of the simulator until it is stopped, and keeps those that fail.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use twinblock_tests::simulator::{Seed, coverage::Coverage};

const USAGE: &str = "\
usage: soak [--hours H] [--keep FILE] [--first N]

Runs seeds of the simulator on all processors, from a random first one or the one given, until it is stopped or the hours are
over. Seeds that fail are added to FILE (target/soak-seeds.txt), as tests/seeds.txt takes them. Exit code 1 if one failed.";

struct Options {
    hours: Option<f64>,
    keep: PathBuf,
    first: u64,
}

impl Options {
    fn parse(mut words: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut options = Self {
            hours: None,
            keep: PathBuf::from("target/soak-seeds.txt"),
            first: fastrand::u64(..1 << 48),
        };
        while let Some(word) = words.next() {
            let value = words.next().ok_or(USAGE)?;
            let wrong = || format!("{word}: '{value}' is no number");
            match word.as_str() {
                "--hours" => options.hours = Some(value.parse().map_err(|_| wrong())?),
                "--keep" => options.keep = value.into(),
                "--first" => options.first = value.parse().map_err(|_| wrong())?,
                _ => return Err(USAGE.into()),
            }
        }
        Ok(options)
    }
}

/// What all threads share.
struct Soak {
    options: Options,
    began: Instant,
    next: AtomicU64,
    done: AtomicU64,
    failed: AtomicU64,
    is_over: AtomicBool,
    coverage: Mutex<Coverage>,
}

impl Soak {
    fn work(&self) {
        let mut coverage = Coverage::default();
        while !self.is_over.load(Ordering::Relaxed) {
            let place = self.next.fetch_add(1, Ordering::Relaxed);
            let seed = Seed::of(self.options.first.wrapping_add(place));
            match seed.attempt() {
                Ok(met) => coverage.merge(&met),
                Err(text) => self.keep(seed, &text),
            }
            self.done.fetch_add(1, Ordering::Relaxed);
        }
        self.coverage.lock().expect("nobody panics with it").merge(&coverage);
    }

    fn keep(&self, seed: Seed, text: &str) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        let line = text.lines().next().unwrap_or_default();
        println!("\r{seed} failed: {line}\n  replay: {}", seed.how_to_replay());
        let file = std::fs::OpenOptions::new().create(true).append(true).open(&self.options.keep);
        let written = file.and_then(|mut file| writeln!(file, "{seed} # {line}"));
        if let Err(error) = written {
            eprintln!("{}: the seed cannot be kept: {error}", self.options.keep.display());
        }
    }

    fn watch(&self) {
        let limit = self.options.hours.map(|hours| Duration::from_secs_f64(hours * 3600.0));
        while limit.is_none_or(|limit| self.began.elapsed() < limit) {
            std::thread::sleep(Duration::from_millis(500));
            print!("\r{}", self.progress());
            let _ = std::io::stdout().flush();
        }
        self.is_over.store(true, Ordering::Relaxed);
    }

    fn progress(&self) -> String {
        let (done, failed) = (self.done.load(Ordering::Relaxed), self.failed.load(Ordering::Relaxed));
        let seconds = self.began.elapsed().as_secs();
        let rate = done as f64 / self.began.elapsed().as_secs_f64();
        let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
        format!("{done} seeds in {hours}:{minutes:02}:{:02}, {rate:.0}/s, {failed} failed ", seconds % 60)
    }
}

fn main() -> ExitCode {
    let options = match Options::parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(text) => {
            eprintln!("{text}");
            return ExitCode::from(2);
        }
    };
    println!("from seed {}; failing ones go to {}", options.first, options.keep.display());
    std::panic::set_hook(Box::new(|_| {}));
    let soak = Soak {
        options,
        began: Instant::now(),
        next: AtomicU64::new(0),
        done: AtomicU64::new(0),
        failed: AtomicU64::new(0),
        is_over: AtomicBool::new(false),
        coverage: Mutex::new(Coverage::default()),
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| soak.work());
        }
        soak.watch();
    });
    let verdict = soak.coverage.lock().expect("nobody panics with it").verdict();
    println!("\r{}", soak.progress());
    println!("{verdict}");
    ExitCode::from(u8::from(soak.failed.load(Ordering::Relaxed) != 0))
}
