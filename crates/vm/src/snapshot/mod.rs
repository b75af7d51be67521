//! Snapshots of machines that run: copied raw in a moment, packed at leisure, gone on from.
//!
//! ```text
//!   Vm ─ capture ─▶ memory.raw disk.raw state.raw shape.json base       the machine stands still meanwhile
//!                        └─ pack ─▶ pack-<id> index state snapshot.json   by a process of its own
//!                                        └─ resume ─▶ Vm                  a machine that goes on
//! ```
//!
//! A machine that started from a template has that one's memory mapped privately, and one that booted a file of zeros:
//! what it has changed are pages of its own, which the kernel tells from the others (`/proc/PID/pagemap`). Only those are
//! kept, and of the disk only what holds data. Pages that are alike, of memory or disk, of this snapshot or its parent,
//! are kept once. A machine whose memory others work in (with shares), or that shall never be cloned, cannot be captured.
//!
//! To go on, a new VMM maps the base as a clone of the template would, gets the changed pages written into that mapping
//! before anything runs, and reads the state of the devices.
//!
//! Invariants:
//! 1. What is read of a snapshot is checked against its description first: its state and index by their checksums, each
//!    group of pages by the one that the index has. The base is a file that nobody writes, known by size, inode and time.
//! 2. A machine goes on only where it could have been made: same CPU, VMM, accelerator. It is refused elsewhere.
//! 3. A snapshot is used any number of times and never changed.

mod capture;
mod guest_memory;
mod index;
mod pack;
mod resume;
#[cfg(test)]
mod tests;

use std::path::Path;

use proa_protocol::snapshot::GuestShape;

use crate::VmError;
use crate::accelerator::Accelerator;
use crate::template::describe_cpu;

pub(crate) use capture::Ground;
pub use pack::pack;
pub use resume::check;

/// Changes when snapshots made before cannot be used any more.
const FORMAT: u32 = 3;
/// Bytes of a page, of memory as of disks.
const PAGE: usize = 4096;
/// Files of a snapshot beside those that [`proa_protocol::snapshot`] names.
const INDEX_FILE: &str = "index";
const STATE_FILE: &str = "state";
const PACK_PREFIX: &str = "pack-";
/// The state of devices is some hundred KiB.
const MOST_STATE: usize = 64 << 20;

fn bad(path: &Path, reason: impl Into<String>) -> VmError {
    VmError::BadSnapshot { path: path.to_owned(), reason: reason.into() }
}

/// What a state depends on beside the machine itself and its VMM.
fn describe_place(accelerator: &Accelerator) -> GuestShape {
    GuestShape {
        accelerator: accelerator.name().to_owned(),
        cpu: describe_cpu().to_owned(),
        ..GuestShape::default()
    }
}
