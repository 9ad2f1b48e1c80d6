//! Tells the linker how the board's memory lies.

fn main() {
    let here = std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets it");
    println!("cargo::rustc-link-search={here}");
    println!("cargo::rerun-if-changed=memory.x");
    println!("cargo::rustc-link-arg-bins=-Tlink.x");
    println!("cargo::rustc-link-arg-bins=-Tdefmt.x");
    // Sections are not moved to page boundaries: the regions of memory.x do not begin at such.
    println!("cargo::rustc-link-arg-bins=--nmagic");
}
