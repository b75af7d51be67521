//! Virtual machines that stand by: started ahead of need, each waits in a monitor of its own for an instance of its kind.
//!
//! ```text
//!   <run>/standby/<key>/lock     held by the monitor, and has its process id
//!                       socket   there when it stands by; who connects and reads [`WELCOME`] has it
//!                       view     covered by the VMM's own view of the file system
//!   <root>/standby/<key>.img     the writable disk; it moves to the instance
//! ```
//!
//! Who has it tells it an instance's id, as any monitor that was started before that was known. Who closes the connection
//! instead ends it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::instance::InstanceConfig;
use crate::message::GuestConfig;

/// The second word of such a monitor's command line.
pub const ARGUMENT: &str = "--standby";
/// Below the runtime directory, and below the state directory.
pub const DIRECTORY: &str = "standby";
/// In the directory of one.
pub const LOCK_FILE: &str = "lock";
/// In the directory of one.
pub const SOCKET_FILE: &str = "socket";
/// In the directory of one.
pub const VIEW: &str = "view";
/// In the directory of all, with the key before it: that it could not be made.
pub const FAILED: &str = ".failed";
/// What the one who is served first is told.
pub const WELCOME: u8 = b'!';

/// Namespaces that a monitor must have in common with who starts an instance.
const NAMESPACES: [&str; 5] = ["cgroup", "mnt", "net", "pid", "user"];
/// Of a checksum that is a name.
const NAME_BYTES: usize = 8;

/// The directory of the one with this key.
pub fn directory(run: &Path, key: &str) -> PathBuf {
    run.join(DIRECTORY).join(key)
}

/// Its writable disk.
pub fn disk(root: &Path, key: &str) -> PathBuf {
    root.join(DIRECTORY).join(format!("{key}.img"))
}

/// What an instance wants for the next of its kind.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standby {
    /// Its kind, as from [`kind`].
    pub kind: String,
    /// How many virtual machines may stand by, of all kinds.
    pub most: u32,
}

/// What instances have in common that can be served by the same one, as a name: all but what [`GuestConfig::kind`] leaves
/// out, their size, and the monitor's program.
pub fn kind(config: &InstanceConfig, monitor: &Path) -> String {
    let guest = GuestConfig {
        spec: config.spec.clone(),
        launch: config.launch.clone(),
        layers: config.layers.len(),
        ..GuestConfig::default()
    };
    let layers: Vec<&Path> = config.layers.iter().map(|layer| &*layer.path).collect();
    let identity = |found: fs::Metadata| (found.dev(), found.ino(), found.mtime(), found.mtime_nsec());
    let program = fs::metadata(monitor).map(identity).ok();
    name(&json!([guest.kind(), layers, config.vm, config.networks.len(), program]))
}

/// The key of those of a kind that are where this process is: in its namespaces and its cgroup.
pub fn key(kind: &str) -> String {
    let place = NAMESPACES.map(|name| fs::read_link(format!("/proc/self/ns/{name}")).unwrap_or_default());
    let cgroup = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    name(&json!([kind, place, cgroup]))
}

fn name(what: &Value) -> String {
    let digest = Sha256::digest(what.to_string());
    digest.iter().take(NAME_BYTES).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proa_oci::runtime::Process;

    fn config(command: &str, memory: u64) -> InstanceConfig {
        let mut config = InstanceConfig { id: command.repeat(3), ..InstanceConfig::default() };
        config.spec.process = Some(Process { args: vec![command.to_owned()], ..Process::default() });
        config.spec.hostname = Some(command.to_owned());
        config.vm.memory = memory;
        config
    }

    #[test]
    fn instances_that_differ_in_their_program_and_name_are_of_one_kind() {
        let of = |config: &InstanceConfig| kind(config, "/proc/self/exe".as_ref());
        let first = of(&config("one", 0));
        assert_eq!(first.len(), 2 * NAME_BYTES);
        assert_eq!(first, of(&config("two", 0)));
        assert_ne!(first, of(&config("one", 1)));
        assert_ne!(first, kind(&config("one", 0), "/none".as_ref()));
        let mut other = config("one", 0);
        other.spec.root.get_or_insert_default().readonly = true;
        assert_ne!(first, of(&other));
        assert_eq!(key(&first), key(&first));
        assert_ne!(key(&first), key("other"));
    }
}
