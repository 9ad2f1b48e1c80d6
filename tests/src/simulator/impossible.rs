//! Cells of the coverage table that no run can meet, each with the reason.

use super::coverage::Side;

/// Cells that are impossible; `*` stands for all, `|` separates several.
#[derive(Clone, Copy, Debug)]
pub struct Pattern {
    /// Whose.
    pub side: Side,
    /// Which inputs.
    pub inputs: &'static str,
    /// In which stages.
    pub stages: &'static str,
    /// With which troubles.
    pub troubles: &'static str,
    /// Why not.
    pub reason: &'static str,
}

/// All of them.
pub const PATTERNS: &[Pattern] = &[];
