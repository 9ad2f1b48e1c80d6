//! What the runs have met: how often each result of each operation in each stage.

use std::collections::BTreeMap;
use std::fmt;
use twinblock_core::Stage;

/// Counters by stage, operation and result.
#[derive(Clone, Debug, Default)]
pub struct Coverage {
    counts: BTreeMap<(String, &'static str, String), u64>,
}

impl Coverage {
    /// One more.
    pub fn count(&mut self, operation: &str, stage: Stage, result: &str) {
        *self.counts.entry((operation.to_owned(), stage.name(), result.to_owned())).or_default() += 1;
    }

    /// Adds another's counts.
    pub fn merge(&mut self, other: &Self) {
        for (key, count) in &other.counts {
            *self.counts.entry(key.clone()).or_default() += count;
        }
    }

    /// How often this was met.
    #[must_use]
    pub fn met(&self, operation: &str, stage: Stage, result: &str) -> u64 {
        let key = (operation.to_owned(), stage.name(), result.to_owned());
        self.counts.get(&key).copied().unwrap_or(0)
    }
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stages = [Stage::None, Stage::Running, Stage::Failover, Stage::FailoverFailed, Stage::Done];
        write!(f, "{:<24} {:<22}", "operation", "result")?;
        for stage in stages {
            write!(f, "{:>16}", stage.name())?;
        }
        writeln!(f)?;
        let mut rows: Vec<_> = self.counts.keys().map(|(operation, _, result)| (operation, result)).collect();
        rows.sort();
        rows.dedup();
        for (operation, result) in rows {
            write!(f, "{operation:<24} {result:<22}")?;
            for stage in stages {
                write!(f, "{:>16}", self.met(operation, stage, result))?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}
