# Sourced by the scripts beside it: installs what is missing, builds, makes images.
# Every function may be called again at no cost.
set -eu

top=$(cd "$(dirname "$0")/.." && pwd)
cd "$top"
dist=$top/target/dist
export PATH="$PATH:/usr/sbin:/sbin:$HOME/.cargo/bin"

say() { printf '%s\n' "$*" >&2; }

need_root() {
    if [ "$(id -u)" -ne 0 ]; then
        say "$0: root is needed to make namespaces, mounts and cgroups; run it with sudo"
        exit 1
    fi
}

# need_packages PACKAGE...: installs those that are not there yet.
need_packages() {
    missing=
    for package in "$@"; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing="$missing $package"
    done
    [ -n "$missing" ] || return 0
    say "installing:$missing"
    apt-get update -qq
    # shellcheck disable=SC2086
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
}

# The toolchain at hand if it is new enough, else Debian's cargo-web (a current Rust in a stable Debian).
need_rust() {
    need_packages gcc libc6-dev
    wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
    have=$(cargo --version 2>/dev/null | cut -d' ' -f2 || true)
    lowest=$(printf '%s\n%s\n' "$wanted" "${have:-0}" | sort -V | head -n 1)
    [ "$lowest" = "$wanted" ] || need_packages cargo-web rustc-web
}

# What Proa itself uses when it runs.
need_runtime_packages() {
    need_packages busybox-static nftables passt qemu-system-x86 qemu-system-common ovmf e2fsprogs
}

build() {
    need_rust
    cargo xtask dist
}

# import_busybox: puts the image `busybox` into the store, made from Debian's busybox-static.
import_busybox() {
    "$dist/proa" image inspect busybox >/dev/null 2>&1 && return 0
    rootfs=$(mktemp -d)
    mkdir -p "$rootfs/bin" "$rootfs/etc" "$rootfs/root" "$rootfs/tmp" "$rootfs/var/www"
    chmod 1777 "$rootfs/tmp"
    cp "$(command -v busybox)" "$rootfs/bin/busybox"
    for applet in $("$rootfs/bin/busybox" --list); do
        [ "$applet" = busybox ] || ln "$rootfs/bin/busybox" "$rootfs/bin/$applet"
    done
    printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n' >"$rootfs/etc/passwd"
    printf 'root:x:0:\nnogroup:x:65534:\n' >"$rootfs/etc/group"
    printf '<h1>one image, two levels</h1>\n' >"$rootfs/var/www/index.html"
    tar -C "$rootfs" --numeric-owner --owner=0 --group=0 -cf - . |
        "$dist/proa" import --change 'CMD ["sh"]' --change 'ENV PATH=/bin' - busybox >/dev/null
    rm -rf "$rootfs"
}

# import_debian: puts `debian:bookworm` into the store, made by mmdebstrap from Debian's own archive.
import_debian() {
    "$dist/proa" image inspect debian:bookworm >/dev/null 2>&1 && return 0
    need_packages mmdebstrap
    say "making debian:bookworm (a minute or two)"
    mmdebstrap --variant=minbase --quiet bookworm - |
        "$dist/proa" import --change 'CMD ["bash"]' - debian:bookworm >/dev/null
}
