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
pub const PATTERNS: &[Pattern] = &[
    Pattern {
        side: Side::Secondary,
        inputs: "*",
        stages: "none|failover|failover-failed|done",
        troubles: "broken|behind",
        reason: "only a running secondary has a view that can break and a primary that it can lack something of",
    },
    Pattern {
        side: Side::Secondary,
        inputs: "buffer done|buffer failed",
        stages: "none",
        troubles: "*",
        reason: "before the start nothing is kept",
    },
    Pattern {
        side: Side::Secondary,
        inputs: "*",
        stages: "none",
        troubles: "buffer|full",
        reason: "before the start the buffer is empty and not asked",
    },
    Pattern {
        side: Side::Secondary,
        inputs: "time-out",
        stages: "none|failover|failover-failed|done",
        troubles: "*",
        reason: "only a running secondary holds writes; a takeover refuses them",
    },
    Pattern {
        side: Side::Secondary,
        inputs: "disk failed",
        stages: "*",
        troubles: "-",
        reason: "a disk that fails is the trouble",
    },
    Pattern {
        side: Side::Secondary,
        inputs: "buffer failed",
        stages: "*",
        troubles: "-",
        reason: "a buffer that fails is the trouble",
    },
    Pattern {
        side: Side::Secondary,
        inputs: "*",
        stages: "failover-failed",
        troubles: "-",
        reason: "a failover fails only after a disk has failed",
    },
    Pattern {
        side: Side::Secondary,
        inputs: "*",
        stages: "none",
        troubles: "dead",
        reason: "the scripts start every secondary before its primary dies",
    },
    Pattern {
        side: Side::Secondary,
        inputs: "primary connects",
        stages: "*",
        troubles: "dead",
        reason: "a dead primary connects no more",
    },
    Pattern {
        side: Side::Primary,
        inputs: "disk failed",
        stages: "*",
        troubles: "-",
        reason: "a disk that fails is the trouble",
    },
    Pattern {
        side: Side::Primary,
        inputs: "replica done|replica failed",
        stages: "none",
        troubles: "*",
        reason: "before the start no replica is asked for anything",
    },
    Pattern {
        side: Side::Primary,
        inputs: "barrier|urgent barrier",
        stages: "none|done",
        troubles: "*",
        reason: "only volumes that run take part in a checkpoint, and all their barriers are raised at once",
    },
    Pattern {
        side: Side::Primary,
        inputs: "release|missing",
        stages: "none",
        troubles: "*",
        reason: "before the start there is no checkpoint",
    },
    Pattern {
        side: Side::Primary,
        inputs: "*",
        stages: "none",
        troubles: "full",
        reason: "before the start nothing is forwarded that could be held",
    },
    Pattern {
        side: Side::Primary,
        inputs: "connected",
        stages: "*",
        troubles: "-",
        reason: "whoever connects was down",
    },
    Pattern {
        side: Side::Coordinator,
        inputs: "begin|urgent begin",
        stages: "barrier|ask|prepare|commit",
        troubles: "*",
        reason: "one checkpoint at a time",
    },
    Pattern {
        side: Side::Coordinator,
        inputs: "barrier|barrier refused",
        stages: "idle|ask|prepare|commit",
        troubles: "*",
        reason: "barriers are answered before anything is asked",
    },
    Pattern {
        side: Side::Coordinator,
        inputs: "epoch",
        stages: "idle|barrier",
        troubles: "*",
        reason: "answers to an earlier checkpoint are not listened to",
    },
    Pattern {
        side: Side::Coordinator,
        inputs: "epoch refused",
        stages: "*",
        troubles: "*",
        reason: "a secondary always tells its epoch",
    },
    Pattern {
        side: Side::Coordinator,
        inputs: "prepared|prepare refused",
        stages: "idle|barrier|ask",
        troubles: "*",
        reason: "answers to an earlier checkpoint are not listened to",
    },
    Pattern {
        side: Side::Coordinator,
        inputs: "committed|commit refused",
        stages: "idle|barrier|ask|prepare",
        troubles: "*",
        reason: "commits come last",
    },
    Pattern {
        side: Side::Coordinator,
        inputs: "current",
        stages: "*",
        troubles: "-",
        reason: "whoever becomes current was down",
    },
    Pattern {
        side: Side::Coordinator,
        inputs: "time-out",
        stages: "idle",
        troubles: "*",
        reason: "nothing is waited for",
    },
];
