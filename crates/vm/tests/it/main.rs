//! Whole guests: a kernel that really boots, an agent that answers. Needs root, qemu-system-x86, busybox-static,
//! erofs-utils, and the agent that `cargo xtask dist` builds; the first run fetches a kernel.

mod errors;
mod fixture;
mod hostile;
mod jail;
mod life;
mod resize;
mod shares;
mod templates;
