//! The OCI runtime as a library: namespaces, cgroups, mounts, seccomp, exec.
//!
//! The monitor uses it on the host and the agent in a guest, so both levels apply a spec by the same code. Its
//! callers must have one thread: it forks without `exec`, and the child goes on with a copy of the caller's memory.
//!
//! ```text
//!                 create                    start                       delete
//!   (nothing) ────────────▶ [ created ] ────────────▶ [ started ] ────────────────▶ (nothing)
//!        │                       │                      │  │  ▲
//!        │          run          │ delete          exec ▼  │  │ resume
//!        └───────────────────────┼─────────────────▶       ▼  │
//!                                ▼                      [ paused ]
//!                            (nothing)
//! ```
//!
//! **What is done, and by whom.** The spec is first checked and turned into plain data (`plan`); whatever it asks
//! for that cannot be done is an error, never left out in silence. Then one `clone3` makes the first process, and
//! two processes work at once:
//!
//! | first process ([`STEPS`]) | the caller's process |
//! | --- | --- |
//! | joins namespaces, makes the network namespace, `lo` up | has systemd make its scope, if so asked; writes id maps; mounts the root file system, detached; has interfaces made ([`Interfaces`]) |
//! | takes the root, makes a `/proc` of its own | compiles the system call filter |
//! | bind sources, mounts, devices, console | joins the cgroup (v1, if something is limited) |
//! | masked and read-only paths, sysctl, names | waits, or moves interfaces and runs [`hooks`] |
//! | `pivot_root`, limits, working directory, user | |
//! | waits for the word, then filter, capabilities, `exec` | waits for the `exec` or the error |
//!
//! In a user namespace, and where ids are mapped, the caller takes the bind sources (`sources`). Where a user
//! namespace is joined, or a new one meets others that are joined, a process between the two joins and forks the
//! first one as a child of the caller.
//!
//! A process of `exec` is a child of the caller, born in the container's pid namespace, that joins the other
//! namespaces and then runs the same steps but those of the container. It is a copy of the caller, or shares the caller's
//! memory until its program runs ([`Create::shares_memory`]).
//!
//! **Invariants** (with those of `ARCHITECTURE.md`)
//!
//! * No path inside a container is resolved but by `openat2(RESOLVE_IN_ROOT)` (`inroot`), and none twice: what
//!   is mounted, masked or entered is held by descriptor.
//! * Mounts are made detached and moved into place. Nothing is mounted by a path.
//! * `/proc` is written through a procfs of our own, never through one that the container could have replaced.
//! * Devices are nodes of the container's own, each behind a mount of its own; all else is `nodev`. A caller may let
//!   the spec say which mounts are (`Create::nodev`), once the device rules hold.
//! * The child cannot be traced or have its descriptors opened from inside (`PR_SET_DUMPABLE`) without
//!   `CAP_SYS_PTRACE` over our user namespace, and every descriptor from 3 up is closed by the `exec`.
//! * Whatever fails, nothing is left: no process, no mount, no cgroup.

pub mod archive;
mod cgroup;
pub mod changes;
mod channel;
mod container;
mod error;
mod fork;
pub mod gate;
pub mod hooks;
mod hostroot;
mod init;
mod inroot;
mod mini_init;
mod netdev;
mod plan;
mod processes;
mod rootfs;
pub mod seccomp;
mod sources;
mod stdio;
mod user;
mod view;

pub use cgroup::{
    Enclosure, OomWatch, SubCgroup, cgroup_path, make_cgroup, remove_leftovers, signal_leftovers,
    update_scope,
};
pub use container::{
    CgroupPolicy, Child, Container, Create, Detach, Existing, Handles, Interfaces, Owners, Part, Rootfs,
    Stdio, Taken, signal_number,
};
pub use error::{Error, Result};
pub use hostroot::{mount_before, unmount_root};
pub use init::{Phase, STEPS, Step};
pub use mini_init::{INIT_NAME, init_main};
pub use plan::{check, hex_mask, knows_mount_option};
pub use sources::mounted_in;
pub use view::image_directory;
