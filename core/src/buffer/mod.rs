//! The disk buffer: where replaced content and the guest's writes are kept until the next checkpoint.

pub mod index;
