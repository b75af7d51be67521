//! The program driven as engines drive it: bundles and its command line; then by the engines themselves.
//!
//! Needs root, Debian's busybox-static, podman, docker.io, containerd, criu, systemd and dbus; fails clearly without.

mod support;

mod beside;
mod checkpoint;
mod crash;
mod engines;
mod exec;
mod life;
mod machine;
mod systemd;
mod tell;
