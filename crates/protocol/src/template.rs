//! What is known of a template of virtual machines: the file [`INFO_FILE`] in its directory.

use serde::{Deserialize, Serialize};

/// Where all that virtual machines are made of is kept, below the state directory.
pub const STORE: &str = "vm";
/// Where templates are, below [`STORE`].
pub const DIRECTORY: &str = "templates";
/// Beside them: locked by who makes one, and holds the process id of that.
pub const LOCK_FILE: &str = "templates.lock";
/// How such a process is called: the second word of its command line.
pub const MAKER_ARGUMENT: &str = "--template";
/// A template's description; without it there is no template. The time of its last change is that of the template's
/// last use.
pub const INFO_FILE: &str = "template.json";

/// What a template says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TemplateInfo {
    /// The kernel's name in the store.
    pub kernel: String,
    /// Guest memory, bytes.
    pub memory: u64,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Places for layers.
    pub places: usize,
    /// Rate of the time stamp counter that the guest believes in; 0 where it asks the hardware.
    pub tsc_khz: u64,
    /// Device, inode, size and times of the memory's file, as a checksum.
    pub memory_identity: String,
    /// The same of the writable disk, where the guest has that mounted.
    pub disk_identity: Option<String>,
    /// Checksum of the devices' state.
    pub state_sha256: String,
}
