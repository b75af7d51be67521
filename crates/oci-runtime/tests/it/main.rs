//! The program driven as engines drive it: bundles and its command line; then by the engines themselves.
//!
//! Needs root, Debian's busybox-static, podman, docker.io and containerd; fails clearly without.

mod support;

mod crash;
mod engines;
mod exec;
mod life;
mod tell;
