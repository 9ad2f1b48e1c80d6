//! The host daemon and its commands, as a library, so that other programs than the daemon itself can call its parts.
#![forbid(unsafe_code)]

mod allocation;
mod args;
mod commands;
mod config;
mod daemon;
mod demo;
mod failure;
mod graph;
mod logging;
mod spec;
mod text;
mod units;

use std::process::ExitCode;

use args::{Cli, Command};
use clap::Parser;
use commands::NewReplica;
use failure::Failure;
use tracing_subscriber::filter::LevelFilter;

/// Runs the command that the process was started with.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) if !error.use_stderr() => error.exit(),
        Err(error) => return report(&Failure::Usage(args::one_line(&error))),
    };
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => report(&failure),
    }
}

/// Whether a text would do as the file of `twinblock daemon --config`. Opens nothing and connects to nothing.
///
/// # Errors
/// One line: what is wrong, in which line of the text, and what to do. It begins with `origin`, the name of the text.
pub fn check_config(text: &str, origin: &str) -> Result<(), String> {
    config::parse(text, origin).map(|_| ()).map_err(|refusal| text::one_line(&refusal, usize::MAX))
}

/// Plays managers' commands on the nodes of a daemon that has none yet, and looks at the invariants of these after each.
/// Opens nothing and connects to nothing. A line is the arguments of `blockdev-add` as an object, options as `drive_add` has
/// them, `+PARENT CHILD` and `-PARENT CHILD` as `x-blockdev-change` has them, or `!NODE` as `blockdev-del` has it. Gives the
/// text of each refusal.
///
/// # Errors
/// Which invariant was broken, after which line: a bug.
pub fn check_nodes(lines: &str) -> Result<Vec<String>, String> {
    graph::play(lines)
}

fn report(failure: &Failure) -> ExitCode {
    // One line, whatever the names in it are made of.
    anstream::eprintln!("twinblock: {}", text::one_line(&failure.to_string(), usize::MAX));
    ExitCode::from(failure.exit_code())
}

fn run(cli: Cli) -> Result<(), Failure> {
    let is_daemon = matches!(cli.command, Command::Secondary(_) | Command::Primary(_) | Command::Daemon(_));
    logging::start(cli.log.as_deref(), if is_daemon { LevelFilter::INFO } else { LevelFilter::WARN })?;
    match cli.command {
        Command::Secondary(flags) => serve(&flags.into_spec()),
        Command::Primary(flags) => serve(&flags.into_spec()),
        Command::Daemon(flags) => serve(&flags.into_spec()?),
        Command::Start { volume, control } => commands::start(&control, volume.as_deref()),
        Command::Checkpoint { force, volume, control } => {
            commands::checkpoint(&control, force, volume.as_deref())
        }
        Command::Stop { failover, force, volume, control } => {
            commands::stop(&control, failover, force, volume.as_deref())
        }
        Command::Status { json, watch, control } => commands::show(&control, json, watch.map(|span| span.0)),
        Command::Attach { uri, name, volume, replica_control, sync, control } => {
            commands::attach(&control, NewReplica { uri, name, volume, control: replica_control, sync })
        }
        Command::Detach { name, volume, control } => commands::detach(&control, &name, volume.as_deref()),
        Command::Demo(args) => demo::run(&args),
    }
}

fn serve(spec: &spec::DaemonSpec) -> Result<(), Failure> {
    spec.check().map_err(Failure::Usage)?;
    if spec.end_with_parent {
        end_with_parent()?;
    }
    daemon::run(spec)
}

/// SIGTERM arrives when the thread that started this process ends.
#[cfg(target_os = "linux")]
fn end_with_parent() -> Result<(), Failure> {
    use rustix::process::{Signal, set_parent_process_death_signal};
    set_parent_process_death_signal(Some(Signal::TERM)).map_err(|error| {
        Failure::Refused(format!("cannot end with the process that started this one: {error}"))
    })
}

/// Only Linux can say when the process that started this one ends.
#[cfg(not(target_os = "linux"))]
fn end_with_parent() -> Result<(), Failure> {
    Ok(())
}
