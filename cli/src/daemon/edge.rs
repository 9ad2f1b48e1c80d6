//! By what means a daemon waits, moves bytes and works on files.

use tracing::info;
use twinblock_io_posix::poller::Poller;
use twinblock_io_posix::workers::{HELPERS, Workers};
use twinblock_io_uring::Ring;

use crate::failure::Failure;
use crate::spec::Backend;

/// What everything else is done with.
pub(super) struct Edge {
    pub(super) poller: Poller,
    pub(super) workers: Workers,
    /// Never [`Backend::Auto`].
    pub(super) backend: Backend,
}

impl Edge {
    /// As wanted; `descriptors` can be waited for at a time.
    pub(super) fn start(wanted: Backend, descriptors: u16) -> Result<Self, Failure> {
        match wanted {
            Backend::Posix => Self::posix(descriptors),
            Backend::IoUring => match Ring::new(descriptors) {
                Ok(ring) => Self::ring(&ring),
                Err(error) => {
                    Err(Failure::Refused(format!("backend io-uring: {error}; or take posix, or auto")))
                }
            },
            Backend::Auto => match Ring::new(descriptors) {
                Ok(ring) => Self::ring(&ring),
                Err(error) => {
                    info!("backend posix: {error}");
                    Self::posix(descriptors)
                }
            },
        }
    }

    fn posix(descriptors: u16) -> Result<Self, Failure> {
        let poller = Poller::new(descriptors).map_err(|error| failed("cannot start", &error))?;
        let workers = workers(&poller)?;
        Ok(Self { poller, workers, backend: Backend::Posix })
    }

    fn ring(ring: &Ring) -> Result<Self, Failure> {
        let poller = ring.poller().map_err(|error| failed("cannot start", &error))?;
        let workers = workers(&poller)?.beside(ring.queues());
        Ok(Self { poller, workers, backend: Backend::IoUring })
    }
}

fn workers(poller: &Poller) -> Result<Workers, Failure> {
    Workers::start(HELPERS, &poller.waker()).map_err(|error| failed("cannot start threads", &error))
}

fn failed(what: &str, error: &dyn std::fmt::Display) -> Failure {
    Failure::Refused(format!("{what}: {error}"))
}
