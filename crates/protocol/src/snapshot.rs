//! Snapshots of virtual machines that run: memory, devices and disk of one moment, as the engine lists them and the
//! monitor's program makes and uses them.
//!
//! ```text
//!   <root>/instances/<id>/
//!     snapshots/<name>/     whole; a name that begins with a dot is of one that is not
//!       snapshot.json         [`SnapshotInfo`]: what it needs to go on, and checksums of the next two
//!       state                 the devices, compressed
//!       index                 where each page of memory and disk is
//!       pack-<id>             pages, compressed; shared (hard links) by the snapshots that have them in common
//!       base                  what memory is a change of: that of the template it started from (a hard link)
//!     resume.json           [`Resume`]: the next start goes on from a snapshot, once
//! ```
//!
//! ```text
//!   create:  guest frozen, stopped ─ raw copies to .new ─▶ goes on ─ pages that differ, packed ─▶ <name>
//!   start:   resume.json ─ disk unpacked ─▶ rw.img ─ removed ─▶ VMM with the base, pages, state ─▶ agent: Adopt ─▶ runs
//! ```

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Where snapshots are, in the instance's directory.
pub const SNAPSHOTS: &str = crate::machine::SNAPSHOTS;
/// What a snapshot says of itself; without it there is none.
pub const INFO_FILE: &str = "snapshot.json";
/// What the next start goes on from, in the instance's directory.
pub const RESUME_FILE: &str = "resume.json";
/// How a process that packs a snapshot is called: the second word of its command line, before a [`Pack`].
pub const PACK_ARGUMENT: &str = "--pack-snapshot";
/// The same of one that looks whether a snapshot can be used, before a [`Check`].
pub const CHECK_ARGUMENT: &str = "--check-snapshot";
/// Raw copies in a snapshot that is not packed yet, beside the base: numbers of pages and the pages themselves, the
/// writable disk, the devices, and what the monitor knows ([`GuestShape`]).
pub const RAW_MEMORY: &str = "memory.raw";
/// See [`RAW_MEMORY`].
pub const RAW_DISK: &str = "disk.raw";
/// See [`RAW_MEMORY`].
pub const RAW_STATE: &str = "state.raw";
/// See [`RAW_MEMORY`].
pub const SHAPE_FILE: &str = "shape.json";
/// What memory is a change of.
pub const BASE_FILE: &str = "base";

/// What a virtual machine must have to go on from a state, exactly.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestShape {
    /// Guest memory, bytes.
    pub memory: u64,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Places for layers.
    pub places: usize,
    /// Network devices that lead somewhere.
    pub interfaces: usize,
    /// What executes its instructions.
    pub accelerator: String,
    /// Model and features of the host's CPU.
    pub cpu: String,
    /// The VMM's version.
    pub vmm: String,
}

/// What a snapshot says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotInfo {
    /// Changes when snapshots made before cannot be used any more.
    pub format: u32,
    /// What the virtual machine must have.
    pub shape: GuestShape,
    /// When it was made, nanoseconds since the epoch.
    pub made_ns: i64,
    /// Pages of memory that differ from the base.
    pub memory_pages: u64,
    /// Pages of the disk that hold something.
    pub disk_pages: u64,
    /// Size of the disk, bytes.
    pub disk_size: u64,
    /// Checksum of the file `state`.
    pub state_sha256: String,
    /// Checksum of the file `index`.
    pub index_sha256: String,
    /// Device, inode, size and time of the base, as a checksum.
    pub base_identity: String,
}

/// What the next start goes on from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resume {
    /// Directory of the snapshot.
    pub snapshot: PathBuf,
    /// It becomes another instance than it was: what is to tell them apart is made anew.
    pub is_fork: bool,
}

/// What a process is told that looks whether a snapshot can be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// Directory of the snapshot.
    pub snapshot: PathBuf,
    /// Where all that virtual machines are made of is kept.
    pub store: PathBuf,
}

/// What a process is told that packs a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pack {
    /// Directory with the raw copies, which become the snapshot's files.
    pub directory: PathBuf,
    /// A snapshot of the same instance with which it may have pages in common.
    pub parent: Option<PathBuf>,
}
