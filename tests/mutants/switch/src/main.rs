//! Builds the breaks that cargo-mutants would make into the sources themselves, each behind a number, so that one
//! program has all of them and a variable of its environment chooses one. Building anew for each break takes hours.
//!
//! `twinblock-mutants-switch TREE LIST PLACED` reads LIST (an array of cargo-mutants' breaks, each with its `id`, 1 and
//! up), changes the files of TREE, and writes to PLACED the numbers that it could place. Around the text of each stand
//! the comments `/*<ID*/` and `/*ID>*/`, and around what several share `/*<ID,ID*/` and `/*ID,ID>*/`, so that errors of
//! the compiler can be told to whom they belong.

mod render;
mod sites;

use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;

use serde::Deserialize;

/// One break, as cargo-mutants lists it.
#[derive(Debug, Clone, Deserialize)]
struct Break {
    id: u32,
    file: String,
    genre: String,
    replacement: String,
    span: Span,
}

#[derive(Debug, Clone, Copy, Deserialize)]
struct Span {
    start: Place,
}

/// Line and column, both from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
struct Place {
    line: usize,
    column: usize,
}

/// Reads the number that the environment chooses; `at` is 0 while a constant is computed.
const SWITCH: &str = r#"
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub(crate) mod switched {
    use core::sync::atomic::{AtomicU32, Ordering};
    static CHOSEN: AtomicU32 = AtomicU32::new(u32::MAX);
    #[inline]
    pub const fn at() -> u32 {
        core::intrinsics::const_eval_select((), none, chosen)
    }
    const fn none() -> u32 {
        0
    }
    #[inline]
    fn chosen() -> u32 {
        let chosen = CHOSEN.load(Ordering::Relaxed);
        if chosen == u32::MAX { ask() } else { chosen }
    }
    #[cold]
    fn ask() -> u32 {
        let chosen = std::env::var("TWINBLOCK_BREAK").map_or(0, |text| text.parse().unwrap());
        CHOSEN.store(chosen, Ordering::Relaxed);
        chosen
    }
}
"#;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, tree, list, placed] = arguments.as_slice() else {
        return Err("twinblock-mutants-switch TREE LIST PLACED".into());
    };
    let tree = Path::new(tree);
    let breaks: Vec<Break> = serde_json::from_str(&std::fs::read_to_string(list)?)?;
    let mut by_file: BTreeMap<&str, Vec<&Break>> = BTreeMap::new();
    for one in &breaks {
        by_file.entry(&one.file).or_default().push(one);
    }
    let mut ids = Vec::new();
    for (file, breaks) in by_file {
        let path = tree.join(file);
        let text = std::fs::read_to_string(&path)?;
        let (changed, mut some) = render::switched(&text, &breaks)?;
        ids.append(&mut some);
        std::fs::write(path, changed)?;
    }
    let root = tree.join("core/src/lib.rs");
    let text = std::fs::read_to_string(&root)?;
    let text = text
        .replace(
            "#![forbid(unsafe_code)]",
            "#![feature(core_intrinsics, const_eval_select)]\n#![allow(internal_features)]",
        )
        .replace("#[cfg(test)]\nextern crate std;", "extern crate std;");
    std::fs::write(root, text + SWITCH)?;
    std::fs::write(placed, serde_json::to_string(&ids)?)?;
    Ok(())
}
