# Sourced by the scripts that build for bare machines: where `core` for a target comes from.
#
# choose_toolchain NAME TARGET [LINKER]
#   NAME is `rustup`, `debian`, or empty for the first of the two that works. Sets `toolchain`, and `build_std` to what
#   cargo must be told besides; with Debian's, exports what makes cargo use it, and LINKER as the target's linker.

debian_rustc=${TWINBLOCK_DEBIAN_RUSTC:-/usr/bin/rustc}

has_rustup_target() {
    command -v rustup >/dev/null || return 1
    rustup target list --installed 2>/dev/null | grep -qx "$1" && return 0
    rustup target add "$1" >/dev/null 2>&1
}

choose_toolchain() {
    local target=$2 linker=${3:-ld.lld} variable
    toolchain=$1
    if [ -z "$toolchain" ]; then
        if has_rustup_target "$target"; then toolchain=rustup; else toolchain=debian; fi
    fi
    build_std=()
    case $toolchain in
        rustup) ;;
        debian)
            # The stable compiler builds core only if it is told that it may; the target's usual linker is rustup's.
            variable=CARGO_TARGET_${target^^}_LINKER
            export RUSTC_BOOTSTRAP=1 RUSTC=$debian_rustc "${variable//-/_}=$linker"
            build_std=(-Zbuild-std=core)
            ;;
        *) return 1 ;;
    esac
}

# The packages of Debian that the chosen toolchain needs.
toolchain_packages() {
    [ "$toolchain" = rustup ] || echo rustc-web rust-web-src lld
}
