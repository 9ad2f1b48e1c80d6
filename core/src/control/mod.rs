//! Commands, answers and events as plain data, and their JSON text (feature `control`).
//!
//! The text is that of QMP, the QEMU Machine Protocol: a greeting, then `{"execute": …}` from the client, and
//! `{"return": …}`, `{"error": …}` and `{"event": …}` from the server (`docs/interop/qmp-spec` of QEMU). The data needs no
//! feature, so that a node without JSON can be managed by other means.

mod command;
mod histogram;
#[cfg(feature = "control")]
pub mod json;
mod report;
mod text;

pub use command::{Answer, Command};
pub use histogram::Histogram;
pub use report::{
    BufferLevel, BufferReport, CheckpointReport, CommitReport, ERROR_KINDS, EventReport, FullPolicy,
    MemoryReport, ReplicaReport, Role, StatusText, Trouble, VolumeReport, error_name, replica_state_name,
    view_name,
};
pub use text::RefusalText;
