//! Logs on standard error.

use std::io::{self, IsTerminal};

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::failure::Failure;

/// Starts logging: what `--log` says, else `RUST_LOG`, else `fallback`.
///
/// # Errors
/// [`Failure::Usage`]: the filter is not understood.
pub(crate) fn start(flag: Option<&str>, fallback: LevelFilter) -> Result<(), Failure> {
    let variable = std::env::var("RUST_LOG").ok().filter(|text| !text.is_empty());
    let filter = match (flag, &variable) {
        (Some(text), _) => parse("--log", text)?,
        (None, Some(text)) => parse("RUST_LOG", text)?,
        (None, None) => Targets::new().with_default(fallback),
    };
    let layer = tracing_subscriber::fmt::layer()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none())
        .with_target(false);
    tracing_subscriber::registry().with(filter).with(layer).init();
    Ok(())
}

fn parse(origin: &str, text: &str) -> Result<Targets, Failure> {
    text.parse().map_err(|_| {
        Failure::Usage(format!(
            "{origin} '{text}' is no filter: write error, warn, info, debug, trace or target=level"
        ))
    })
}
