//! Layers against the kernel that mounts them, fsck.erofs, GNU tar and umoci. Needs root.

#[path = "layer/mounted.rs"]
mod mounted;
#[path = "layer/random.rs"]
mod random;
#[path = "layer/refused.rs"]
mod refused;
#[path = "layer/rules.rs"]
mod rules;
#[path = "layer/tarball.rs"]
mod tarball;
#[path = "layer/tools.rs"]
mod tools;
