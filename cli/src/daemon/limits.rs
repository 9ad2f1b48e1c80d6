//! How many files and sockets the system lets this process open.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::managers::MANAGERS_MAX;
use crate::spec::REPLICAS_MAX;

/// Descriptors of the process itself: standard streams, signals, threads, a name being looked up.
const OWN: u64 = 32;
/// Descriptors of a volume: its disk, its buffer, two listeners, a link and a control link for each replica.
const PER_VOLUME: u64 = 4 + 2 * REPLICAS_MAX as u64;

/// How many NBD connections there can be: as many as are wanted, unless the system allows fewer descriptors even
/// after this process has asked for more; then with a line for the log.
pub(super) fn connections(connections_max: u16, volumes_max: usize) -> (u16, Option<String>) {
    let others = OWN + MANAGERS_MAX as u64 + PER_VOLUME * volumes_max as u64;
    let needed = others + u64::from(connections_max);
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let (current, maximum) = (current.unwrap_or(u64::MAX), maximum.unwrap_or(u64::MAX));
    let limit = if current < needed { raise(current, needed.min(maximum), maximum) } else { current };
    if limit >= needed {
        return (connections_max, None);
    }
    let places = u16::try_from(limit.saturating_sub(others)).unwrap_or(u16::MAX).clamp(1, connections_max);
    let line = format!(
        "too few open files are allowed ({limit}, and {needed} are needed for --max-connections {connections_max}): there are places for \
         {places} connections; raise the limit (ulimit -n, LimitNOFILE)"
    );
    (places, Some(line))
}

fn raise(current: u64, wanted: u64, maximum: u64) -> u64 {
    let limit = Rlimit { current: Some(wanted), maximum: Some(maximum) };
    match setrlimit(Resource::Nofile, limit) {
        Ok(()) => wanted,
        Err(_) => current,
    }
}
