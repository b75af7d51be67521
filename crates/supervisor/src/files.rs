//! The files that an instance is given: written to a directory of ours and bound into its root.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use proa_oci::runtime::{IdMapping, Mount, Spec};
use proa_protocol::message::ErrorKind;
use proa_runtime::Error;
use rustix::fs::XattrFlags;

/// The attribute that holds a file's SELinux label.
const SELINUX: &str = "security.selinux";

/// Files as they were written: by path in the root, where they are, and their text.
#[derive(Debug, Default)]
pub(crate) struct Written(BTreeMap<String, (PathBuf, String)>);

impl Written {
    /// Gives them their texts, before anybody could have changed them.
    pub fn fill(&mut self, files: &BTreeMap<String, String>) -> Result<(), Error> {
        for (destination, (source, text)) in &mut self.0 {
            if let Some(new) = files.get(destination).filter(|new| *new != text) {
                fs::write(&*source, new).map_err(|error| at(source, &error))?;
                text.clone_from(new);
            }
        }
        Ok(())
    }

    /// Gives those of them that are still as they were written another text, in place: they are mounted.
    pub fn rewrite(&mut self, files: BTreeMap<String, String>) -> Result<(), Error> {
        for (destination, new) in files {
            let Some((source, text)) = self.0.get_mut(&destination) else { continue };
            if *text == new || !holds(source, text).map_err(|error| at(source, &error))? {
                continue;
            }
            fs::write(&*source, &new).map_err(|error| at(source, &error))?;
            *text = new;
        }
        Ok(())
    }
}

/// Whether a file has this text; an instance may have made it as long as it likes.
fn holds(path: &Path, text: &str) -> std::io::Result<bool> {
    Ok(fs::metadata(path)?.len() == text.len() as u64 && fs::read(path)? == text.as_bytes())
}

/// Writes `files` (path in the root, text) below `scratch` and adds a bind mount for each to the spec.
pub(crate) fn bind(
    files: &BTreeMap<String, String>,
    scratch: &Path,
    spec: &mut Spec,
) -> Result<Written, Error> {
    let mut written = Written::default();
    if files.is_empty() {
        return Ok(written);
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
        written.0.insert(destination.clone(), (source, text.clone()));
    }
    Ok(written)
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
        let mut written = bind(&files, &scratch, &mut spec).unwrap();
        assert_eq!(spec.mounts.len(), 2);
        let source = spec.mounts[1].source.as_deref().unwrap();
        assert_eq!(fs::read_to_string(source).unwrap(), "box\n");
        let mut rewrite = |text: &str| {
            let path = |name: &str| (name.to_owned(), text.to_owned());
            written.rewrite([path("/etc/hostname"), path("/etc/hosts")].into()).unwrap();
            fs::read_to_string(source).unwrap()
        };
        assert_eq!(rewrite("ship\n"), "ship\n");
        // What the instance has changed is its own.
        fs::write(source, "mine\n").unwrap();
        assert_eq!(rewrite("boat\n"), "mine\n");
        fs::remove_dir_all(&scratch).unwrap();
    }
}
