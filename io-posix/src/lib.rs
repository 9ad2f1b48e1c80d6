//! Disks, sockets and an event loop on POSIX.
