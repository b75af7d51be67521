//! The files that an instance is given: written to a directory of ours and bound into its root.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown};
use std::path::Path;

use proa_oci::runtime::{IdMapping, Mount, Spec};
use proa_protocol::message::ErrorKind;
use proa_runtime::Error;
use rustix::fs::XattrFlags;

/// The attribute that holds a file's SELinux label.
const SELINUX: &str = "security.selinux";

/// Writes `files` (path in the root, text) below `scratch` and adds a bind mount for each to the spec.
pub(crate) fn bind(files: &BTreeMap<String, String>, scratch: &Path, spec: &mut Spec) -> Result<(), Error> {
    if files.is_empty() {
        return Ok(());
    }
    fs::DirBuilder::new().recursive(true).mode(0o700).create(scratch).map_err(|error| at(scratch, &error))?;
    let label =
        spec.linux.as_ref().and_then(|linux| linux.mount_label.clone()).filter(|label| !label.is_empty());
    let root = root_outside(spec);
    for (index, (destination, text)) in files.iter().enumerate() {
        // A mount of the user's own goes before ours.
        if spec.mounts.iter().any(|mount| mount.destination == *destination) {
            continue;
        }
        let source = scratch.join(index.to_string());
        fs::write(&source, text).map_err(|error| at(&source, &error))?;
        // All users of the instance read them, whatever the umask here.
        fs::set_permissions(&source, fs::Permissions::from_mode(0o644))
            .map_err(|error| at(&source, &error))?;
        if let Some(label) = &label {
            rustix::fs::setxattr(&source, SELINUX, label.as_bytes(), XattrFlags::empty())
                .map_err(|errno| at(&source, &errno.into()))?;
        }
        if let Some((uid, gid)) = root {
            chown(&source, Some(uid), Some(gid)).map_err(|error| at(&source, &error))?;
        }
        spec.mounts.push(Mount {
            destination: destination.clone(),
            kind: Some("bind".into()),
            source: Some(source.to_string_lossy().into_owned()),
            options: vec!["bind".into(), "rprivate".into()],
            ..Mount::default()
        });
    }
    Ok(())
}

/// Whom the instance's root is outside, where it has a user namespace of its own.
pub fn root_outside(spec: &Spec) -> Option<(u32, u32)> {
    let linux = spec.linux.as_ref()?;
    let of = |map: &[IdMapping]| Some(map.iter().find(|range| range.container_id == 0)?.host_id);
    Some((of(&linux.uid_mappings)?, of(&linux.gid_mappings)?))
}

fn at(path: &Path, error: &std::io::Error) -> Error {
    Error::new(ErrorKind::Internal, format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_written_and_bound_unless_the_user_mounts_there() {
        let scratch = std::env::temp_dir().join(format!("proa-files-{}", std::process::id()));
        let mut spec = Spec::default();
        spec.mounts.push(Mount { destination: "/etc/hosts".into(), ..Mount::default() });
        let files = BTreeMap::from([
            ("/etc/hostname".to_owned(), "box\n".to_owned()),
            ("/etc/hosts".to_owned(), "127.0.0.1 localhost\n".to_owned()),
        ]);
        bind(&files, &scratch, &mut spec).unwrap();
        assert_eq!(spec.mounts.len(), 2);
        let source = spec.mounts[1].source.as_deref().unwrap();
        assert_eq!(fs::read_to_string(source).unwrap(), "box\n");
        fs::remove_dir_all(&scratch).unwrap();
    }
}
