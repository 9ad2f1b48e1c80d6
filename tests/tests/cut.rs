//! The primary dies at every request, and at every step, of fixed scripts; each time the secondary takes over, once from
//! the last checkpoint and once from the disk as it is.
//!
//! `TWINBLOCK_CUT=script/seed/steps:n/failover` runs one of them, with its steps printed if it fails.

use twinblock_tests::simulator::pair::cut::Deed::{
    Checkpoint, Flush, GuestFlush, GuestRead, GuestWrite, GuestZero, ManagersCheckpoint, Read, Settle, Trim,
    UrgentCheckpoint, Write, Zero,
};
use twinblock_tests::simulator::pair::cut::{Fuel, Run, Script, Takeover, at_every, run, wanted, watched};

const PLENTY: u64 = 128;

const SCRIPTS: [Script; 9] = [
    Script {
        name: "overlapping writes",
        slots: PLENTY,
        deeds: &[
            Write(0, 0, 2048),
            Write(1, 1024, 2048),
            Write(0, 512, 512),
            Checkpoint,
            Write(1, 0, 3000),
            Write(0, 700, 1500),
            Write(1, 1000, 100),
            Flush(0),
            Checkpoint,
            Write(0, 900, 900),
            Write(1, 900, 900),
        ],
    },
    Script {
        name: "unaligned writes",
        slots: PLENTY,
        deeds: &[
            Write(0, 1, 1),
            Write(1, 511, 2),
            Write(0, 4095, 3),
            Checkpoint,
            Write(1, 24_575, 301),
            Write(0, 2047, 700),
            Write(1, 0, 513),
            Checkpoint,
            Write(0, 24_875, 1),
            Write(1, 510, 5),
        ],
    },
    Script {
        name: "zeroes and trims",
        slots: PLENTY,
        deeds: &[
            Zero(0, 0, 4096),
            Trim(1, 5000, 6000),
            Write(0, 5100, 600),
            Checkpoint,
            Trim(0, 5000, 700),
            Zero(1, 100, 100),
            Write(1, 0, 8192),
            Zero(0, 4096, 4096),
            Checkpoint,
            Trim(0, 0, 24_876),
            Write(1, 12_000, 10),
        ],
    },
    Script {
        name: "longer than the window",
        slots: PLENTY,
        deeds: &[
            Write(0, 100, 10_000),
            Write(1, 8000, 9000),
            Checkpoint,
            Write(0, 0, 16_000),
            Checkpoint,
            Zero(1, 3000, 15_000),
            Read(0, 0, 24_000),
            Write(1, 4000, 5000),
        ],
    },
    Script {
        name: "flushes",
        slots: PLENTY,
        deeds: &[
            Write(0, 0, 512),
            Flush(0),
            Write(0, 512, 512),
            Flush(1),
            Checkpoint,
            Flush(0),
            Write(1, 0, 1024),
            Flush(1),
            Checkpoint,
            Write(0, 700, 3000),
            Flush(0),
        ],
    },
    Script {
        name: "a guest on the secondary",
        slots: PLENTY,
        deeds: &[
            GuestWrite(100, 1000),
            Write(0, 0, 2048),
            GuestRead(0, 4096),
            GuestWrite(600, 3000),
            Write(1, 512, 4096),
            GuestFlush,
            Checkpoint,
            GuestWrite(0, 700),
            Write(0, 0, 5000),
            GuestZero(300, 2000),
            GuestRead(0, 8000),
            Settle,
            Write(1, 1000, 1000),
            GuestWrite(24_000, 876),
            Write(0, 24_100, 700),
        ],
    },
    Script {
        name: "checkpoints of the pair",
        slots: PLENTY,
        deeds: &[
            Checkpoint,
            Write(0, 0, 4096),
            Checkpoint,
            Write(1, 2048, 4096),
            Write(0, 9000, 10),
            Settle,
            Checkpoint,
            Write(1, 0, 100),
            UrgentCheckpoint,
            Write(0, 50, 9000),
            Settle,
            UrgentCheckpoint,
            Write(1, 20, 20),
        ],
    },
    Script {
        name: "checkpoints by a manager",
        slots: PLENTY,
        deeds: &[
            Write(0, 0, 3000),
            Write(1, 1000, 3000),
            ManagersCheckpoint,
            Write(0, 500, 3000),
            GuestWrite(700, 700),
            ManagersCheckpoint,
            Write(1, 0, 10_000),
            Trim(0, 600, 5000),
        ],
    },
    Script {
        name: "a buffer that is nearly full",
        slots: 6,
        deeds: &[
            Write(0, 0, 2048),
            Write(1, 8192, 1024),
            Write(0, 12_288, 600),
            Write(1, 16_384, 512),
            Write(0, 100, 500),
            UrgentCheckpoint,
            Write(1, 12_000, 700),
            Write(0, 20_000, 2000),
            UrgentCheckpoint,
            Write(1, 3000, 10),
        ],
    },
];

fn whole(script: &Script, seed: u64) -> twinblock_tests::simulator::pair::cut::Seen {
    run(script, Run { seed, fuel: Fuel::Requests(u64::MAX), takeover: Takeover::Stop }, false)
}

#[test]
fn wherever_the_primary_dies_the_secondary_takes_over_with_exactly_what_it_should_hold() {
    if let Ok(text) = std::env::var("TWINBLOCK_CUT") {
        let (name, which) = wanted(&text).expect("script/seed/steps:n/failover");
        let script = SCRIPTS.iter().find(|script| script.name == name).expect("a script of that name");
        watched(script, which);
        return;
    }
    let seeds = std::env::var("TWINBLOCK_CUT_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(10);
    let deaths = |script: &Script| {
        let deaths = at_every(script, seeds);
        println!("{:>6} deaths in '{}'", deaths, script.name);
        deaths
    };
    let (first, second) = SCRIPTS.split_at(SCRIPTS.len() / 2);
    let total: u64 = std::thread::scope(|scope| {
        let all = |scripts: &[Script]| scripts.iter().map(deaths).sum::<u64>();
        let handle = scope.spawn(move || all(first));
        all(second) + handle.join().expect("a failure has been told")
    });
    println!("{total:>6} deaths");
}

#[test]
fn every_script_gets_through_with_its_checkpoints_and_the_full_buffer_holds_writes() {
    for script in &SCRIPTS {
        let seen: Vec<_> = (0..8).map(|seed| whole(script, seed)).collect();
        assert!(seen.iter().all(|seen| seen.is_through && seen.acknowledged != 0), "{}", script.name);
        assert!(seen.iter().all(|seen| seen.epochs >= 2), "{}: {seen:?}", script.name);
        let holds = script.slots < PLENTY;
        assert_eq!(seen.iter().any(|seen| seen.held_max != 0), holds, "{}", script.name);
    }
}
