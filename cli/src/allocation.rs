//! What the process has allocated, counted over all threads, and what it occupies.
//!
//! The counters are always on: a daemon allocates nothing per request, so that they cost it nothing, and what is tested
//! is the program that is shipped.

use std::alloc::System;
use std::fs::File;
use std::io::Read;

use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use twinblock_core::control::MemoryReport;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// How the process stands now. Allocates nothing.
pub(crate) fn report() -> MemoryReport {
    let stats = ALLOCATOR.stats();
    MemoryReport {
        allocation_count: (stats.allocations + stats.reallocations) as u64,
        deallocation_count: stats.deallocations as u64,
        // Another thread may have freed something between the two readings.
        allocated_bytes: stats.bytes_allocated.saturating_sub(stats.bytes_deallocated) as u64,
        resident_bytes: resident_bytes().unwrap_or_default(),
    }
}

/// The second number of `/proc/self/statm` (proc_pid_statm(5)): resident pages.
fn resident_bytes() -> Option<u64> {
    let mut text = [0; 128];
    let length = File::open("/proc/self/statm").ok()?.read(&mut text).ok()?;
    let text = std::str::from_utf8(text.get(..length)?).ok()?;
    let pages: u64 = text.split(' ').nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

#[cfg(test)]
mod tests {
    use super::report;

    #[test]
    fn what_another_thread_allocates_is_counted_until_it_is_given_back() {
        // Other tests allocate meanwhile: far less than this.
        const BYTES: u64 = 1 << 30;
        let before = report();
        let block = std::thread::spawn(|| vec![0u8; BYTES as usize]).join().unwrap();
        let held = report();
        drop(block);
        let after = report();
        assert!(held.allocated_bytes >= before.allocated_bytes + BYTES / 2);
        assert!(held.allocation_count > before.allocation_count);
        assert!(after.allocated_bytes <= held.allocated_bytes - BYTES / 2);
        assert!(after.deallocation_count > held.deallocation_count);
    }

    #[test]
    fn resident_memory_is_that_of_the_whole_program() {
        assert!(report().resident_bytes > 100 << 10);
    }
}
