//! What the runs have met: which input, in which stage, beside which trouble, and with which result.
//!
//! The table has a cell for each combination of an input of a machine, its stage and a trouble that was there. A cell
//! that stays empty must be declared impossible, with the reason ([`super::impossible`]).

use std::collections::BTreeMap;
use std::fmt;
use twinblock_core::Stage;

use super::impossible::{self, Pattern};

const SECONDARY: &[&str] = &[
    "primary connects",
    "guest connects",
    "clean close",
    "unclean close",
    "primary read",
    "primary write",
    "primary zeroes",
    "primary trim",
    "primary flush",
    "primary status",
    "guest read",
    "guest write",
    "guest zeroes",
    "guest trim",
    "guest flush",
    "guest status",
    "disk done",
    "disk failed",
    "buffer done",
    "buffer failed",
    "start",
    "checkpoint",
    "forced checkpoint",
    "prepare",
    "commit",
    "failover",
    "stop",
    "forced stop",
    "time-out",
];

const PRIMARY: &[&str] = &[
    "guest connects",
    "guest leaves",
    "read",
    "write",
    "zeroes",
    "trim",
    "flush",
    "status",
    "disk done",
    "disk failed",
    "replica done",
    "replica failed",
    "start",
    "stop",
    "barrier",
    "urgent barrier",
    "hurry",
    "release",
    "attach",
    "detach",
    "connected",
    "restarted",
    "disconnected",
    "missing",
];

const COORDINATOR: &[&str] = &[
    "begin",
    "urgent begin",
    "barrier",
    "barrier refused",
    "epoch",
    "epoch refused",
    "prepared",
    "prepare refused",
    "committed",
    "commit refused",
    "current",
    "behind",
    "disconnected",
    "link lost",
    "time-out",
];

/// Whose input it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// A secondary.
    Secondary,
    /// A primary.
    Primary,
    /// The coordinator of checkpoints.
    Coordinator,
}

impl Side {
    const ALL: [Self; 3] = [Self::Secondary, Self::Primary, Self::Coordinator];

    /// As the table and the list of what is impossible name it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Secondary => "secondary",
            Self::Primary => "primary",
            Self::Coordinator => "coordinator",
        }
    }

    /// What can be offered to it.
    #[must_use]
    pub const fn inputs(self) -> &'static [&'static str] {
        match self {
            Self::Secondary => SECONDARY,
            Self::Primary => PRIMARY,
            Self::Coordinator => COORDINATOR,
        }
    }

    /// Where it can stand.
    #[must_use]
    pub const fn stages(self) -> &'static [&'static str] {
        match self {
            Self::Secondary => &["none", "running", "failover", "failover-failed", "done"],
            Self::Primary => &["none", "running", "done"],
            Self::Coordinator => &["idle", "barrier", "ask", "prepare", "commit"],
        }
    }

    /// What can be wrong meanwhile; the first is nothing.
    #[must_use]
    pub const fn troubles(self) -> &'static [&'static str] {
        match self {
            Self::Secondary => {
                &["-", "disk", "buffer", "full", "broken", "behind", "cut", "stale", "slow", "clock", "dead"]
            }
            Self::Primary => &["-", "disk", "down", "behind", "full", "slow", "clock"],
            Self::Coordinator => &["-", "lost", "down", "behind", "slow", "clock"],
        }
    }

    const fn cells(self) -> usize {
        self.inputs().len() * self.stages().len() * self.troubles().len()
    }
}

/// Troubles that are there at a time, by their places in [`Side::troubles`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Troubles(u16);

impl Troubles {
    /// With one more, if it is there.
    #[must_use]
    pub fn with(self, side: Side, name: &str, is_there: bool) -> Self {
        let place = place_of(side.troubles(), name);
        Self(self.0 | (u16::from(is_there) << place))
    }
}

/// The place of a secondary's or primary's stage among [`Side::stages`].
#[must_use]
pub fn stage_of(side: Side, stage: Stage) -> usize {
    place_of(side.stages(), stage.name())
}

fn place_of(names: &[&str], name: &str) -> usize {
    names.iter().position(|one| *one == name).unwrap_or_else(|| panic!("there is no '{name}'"))
}

/// Counters of cells, and of results by stage and operation.
#[derive(Clone, Debug)]
pub struct Coverage {
    cells: [Vec<u64>; 3],
    results: BTreeMap<(String, &'static str, String), u64>,
}

impl Default for Coverage {
    fn default() -> Self {
        Self { cells: Side::ALL.map(|side| vec![0; side.cells()]), results: BTreeMap::new() }
    }
}

impl Coverage {
    /// One more result of an operation.
    pub fn count(&mut self, operation: &str, stage: Stage, result: &str) {
        *self.results.entry((operation.to_owned(), stage.name(), result.to_owned())).or_default() += 1;
    }

    /// An input was offered.
    pub fn meet(&mut self, side: Side, input: &str, stage: usize, troubles: Troubles) {
        let row = place_of(side.inputs(), input) * side.stages().len() + stage;
        let columns = side.troubles().len();
        let cells = &mut self.cells[side as usize][row * columns..(row + 1) * columns];
        if troubles == Troubles::default() {
            cells[0] += 1;
        }
        for (place, cell) in cells.iter_mut().enumerate().skip(1) {
            *cell += u64::from(troubles.0 >> place & 1);
        }
    }

    /// Adds another's counts.
    pub fn merge(&mut self, other: &Self) {
        for (mine, others) in self.cells.iter_mut().zip(&other.cells) {
            mine.iter_mut().zip(others).for_each(|(mine, others)| *mine += others);
        }
        for (key, count) in &other.results {
            *self.results.entry(key.clone()).or_default() += count;
        }
    }

    /// How often this result was met.
    #[must_use]
    pub fn met(&self, operation: &str, stage: Stage, result: &str) -> u64 {
        let key = (operation.to_owned(), stage.name(), result.to_owned());
        self.results.get(&key).copied().unwrap_or(0)
    }

    /// All cells.
    fn cells(&self) -> impl Iterator<Item = Cell> {
        Side::ALL.into_iter().flat_map(move |side| {
            let (stages, troubles) = (side.stages(), side.troubles());
            self.cells[side as usize].iter().enumerate().map(move |(place, count)| Cell {
                side,
                input: side.inputs()[place / troubles.len() / stages.len()],
                stage: stages[place / troubles.len() % stages.len()],
                trouble: troubles[place % troubles.len()],
                count: *count,
            })
        })
    }

    /// What is wrong with the table: cells that were met and are declared impossible, and declarations that speak of no
    /// cell; and, apart, cells that are empty and could be met.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        let mut verdict = Verdict::default();
        let mut is_used = vec![false; impossible::PATTERNS.len()];
        for cell in self.cells() {
            let pattern = impossible::PATTERNS.iter().position(|pattern| cell.is_in(pattern));
            verdict.cells += 1;
            verdict.met += usize::from(cell.count != 0);
            match pattern {
                Some(pattern) => {
                    is_used[pattern] = true;
                    let is_rare = impossible::PATTERNS[pattern].is_rare;
                    *if is_rare { &mut verdict.rare } else { &mut verdict.impossible } += 1;
                    if cell.count != 0 && !is_rare {
                        verdict.wrong.push(format!("met and declared impossible: {cell}"));
                    }
                }
                None if cell.count == 0 => verdict.empty.push(format!("never met: {cell}")),
                None => {}
            }
        }
        for (pattern, is_used) in impossible::PATTERNS.iter().zip(is_used) {
            if !is_used {
                verdict.wrong.push(format!("declares nothing that another one does not: {pattern:?}"));
            }
        }
        verdict
    }
}

/// What the table comes to.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    /// How many cells there are.
    pub cells: usize,
    /// How many were met.
    pub met: usize,
    /// How many are declared impossible.
    pub impossible: usize,
    /// How many are declared too rare to be demanded.
    pub rare: usize,
    /// What must not be.
    pub wrong: Vec<String>,
    /// What could have been met and was not; more seeds may.
    pub empty: Vec<String>,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cells, met, impossible, rare, .. } = self;
        write!(f, "{cells} cells: {met} met, {impossible} impossible, {rare} too rare to be demanded")
    }
}

struct Cell {
    side: Side,
    input: &'static str,
    stage: &'static str,
    trouble: &'static str,
    count: u64,
}

impl Cell {
    fn is_in(&self, pattern: &Pattern) -> bool {
        let fits = |wanted: &str, is: &str| wanted == "*" || wanted.split('|').any(|one| one == is);
        pattern.side == self.side
            && fits(pattern.inputs, self.input)
            && fits(pattern.stages, self.stage)
            && fits(pattern.troubles, self.trouble)
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { side, input, stage, trouble, count } = self;
        write!(f, "{}: {input} in stage {stage} with trouble {trouble} ({count})", side.name())
    }
}

impl Coverage {
    fn write_cells(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut cells = self.cells().peekable();
        for side in Side::ALL {
            write!(f, "\n{:<19} {:<16}", side.name(), "stage")?;
            for trouble in side.troubles() {
                write!(f, "{trouble:>10}")?;
            }
            for _ in 0..side.inputs().len() * side.stages().len() {
                if let Some(first) = cells.peek() {
                    write!(f, "\n{:<19} {:<16}", first.input, first.stage)?;
                }
                for cell in cells.by_ref().take(side.troubles().len()) {
                    let pattern = impossible::PATTERNS.iter().find(|pattern| cell.is_in(pattern));
                    match cell.count {
                        0 if pattern.is_some_and(|pattern| !pattern.is_rare) => write!(f, "{:>10}", "x")?,
                        0 => write!(f, "{:>10}", ".")?,
                        count => write!(f, "{count:>10}")?,
                    }
                }
            }
            writeln!(f)?;
        }
        Ok(())
    }

    fn write_results(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stages = Side::Secondary.stages();
        write!(f, "\n{:<24} {:<22}", "operation", "result")?;
        for stage in stages {
            write!(f, "{stage:>16}")?;
        }
        writeln!(f)?;
        let mut rows: Vec<_> =
            self.results.keys().map(|(operation, _, result)| (operation, result)).collect();
        rows.sort();
        rows.dedup();
        for (operation, result) in rows {
            write!(f, "{operation:<24} {result:<22}")?;
            for stage in stages {
                let key = (operation.clone(), *stage, result.clone());
                write!(f, "{:>16}", self.results.get(&key).copied().unwrap_or(0))?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write_cells(f)?;
        self.write_results(f)
    }
}
