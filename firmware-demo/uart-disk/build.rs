//! Tells the linker which script to follow; the machine's crate has said how the memory lies.

fn main() {
    println!("cargo::rustc-link-arg-bins=-Tlink.x");
}
