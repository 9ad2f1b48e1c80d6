//! Tells the linker how the memory of each machine lies.

fn main() {
    let variable = |name| std::env::var(name).expect("cargo sets it");
    let (here, processor) = (variable("CARGO_MANIFEST_DIR"), variable("CARGO_CFG_TARGET_ARCH"));
    println!("cargo::rustc-link-search={here}/memory/{processor}");
    println!("cargo::rerun-if-changed=memory");
    println!("cargo::rustc-link-arg-tests=-Tlink.x");
    println!("cargo::rustc-link-arg-tests=-Tembedded-test.x");
    // Sections are not moved to page boundaries: the regions of memory.x do not begin at such.
    println!("cargo::rustc-link-arg-tests=--nmagic");
}
