//! `spec`: a `config.json` to begin with.

use std::io::Write;
use std::path::Path;

use proa_oci::defaults;
use proa_oci::runtime::{IdMapping, Namespace, NamespaceKind, Spec};

use crate::args::{Opt, Parsed, flag, value};
use crate::error::{Failure, Result};

/// Its options.
pub const OPTIONS: &[Opt] = &[value("bundle").or('b')];
/// `--rootless` has no value here.
pub const ROOTLESS: &[Opt] = &[flag("rootless")];

/// Runs it.
///
/// # Errors
/// There is a `config.json` already.
pub fn run(parsed: &Parsed) -> Result<u8> {
    let path = Path::new(parsed.get("bundle").unwrap_or(".")).join("config.json");
    let spec = if parsed.is("rootless") { rootless(host_ids()) } else { default_spec() };
    let text = serde_json::to_string_pretty(&spec).map_err(|error| Failure::new(error.to_string()))?;
    let file = std::fs::File::create_new(&path);
    file.and_then(|mut file| file.write_all((text + "\n").as_bytes()))
        .map_err(|error| Failure::at(&path, error))?;
    Ok(0)
}

/// Docker's defaults, closed as they are, with a shell at the terminal.
fn default_spec() -> Spec {
    let mut spec = defaults::default_spec();
    spec.hostname = Some("proa".to_owned());
    spec.linux_mut().seccomp = Some(defaults::default_seccomp(&defaults::default_capabilities()));
    if let Some(root) = &mut spec.root {
        root.readonly = true;
    }
    if let Some(process) = &mut spec.process {
        process.terminal = true;
        process.args = vec!["sh".to_owned()];
        process.env.push("TERM=xterm".to_owned());
        process.no_new_privileges = true;
    }
    spec
}

/// For an ordinary user: ids of a user namespace, and nothing that such a user cannot have.
fn rootless((uid, gid): (u32, u32)) -> Spec {
    let mut spec = default_spec();
    let linux = spec.linux_mut();
    linux.namespaces.retain(|namespace| namespace.kind != NamespaceKind::Network);
    linux.namespaces.push(Namespace { kind: NamespaceKind::User, path: None });
    let one = |host_id| vec![IdMapping { container_id: 0, host_id, size: 1 }];
    (linux.uid_mappings, linux.gid_mappings) = (one(uid), one(gid));
    linux.resources = None;
    for mount in &mut spec.mounts {
        // Groups other than the user's own have no number inside.
        mount.options.retain(|option| !option.starts_with("gid="));
        if mount.destination == "/sys" {
            // Without a network namespace a new sysfs is not granted.
            mount.kind = Some("none".to_owned());
            mount.source = Some("/sys".to_owned());
            mount.options = ["rbind", "nosuid", "noexec", "nodev", "ro"].map(ToOwned::to_owned).to_vec();
        }
    }
    spec.mounts.retain(|mount| mount.destination != "/sys/fs/cgroup");
    spec
}

fn host_ids() -> (u32, u32) {
    (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ordinary_users_spec_maps_that_user() {
        let mut spec = rootless((1000, 100));
        let linux = spec.linux_mut();
        assert_eq!(linux.uid_mappings, [IdMapping { container_id: 0, host_id: 1000, size: 1 }]);
        assert!(linux.resources.is_none());
        assert!(linux.namespaces.iter().any(|namespace| namespace.kind == NamespaceKind::User));
        assert!(spec.mounts.iter().all(|mount| !mount.options.iter().any(|option| option == "gid=5")));
    }
}
