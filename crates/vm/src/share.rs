//! Bind mounts of an instance as virtio-fs shares.
//!
//! A host directory becomes one share, mounted by the agent at `/run/proa/shares/<tag>`. A single file is
//! shared alone: its server sees a directory that holds nothing but that file, under the name [`FILE_NAME`].

use std::path::{Path, PathBuf};

use proa_oci::runtime::{Mount, Spec};

use crate::VmError;

/// Where the agent mounts shares in the guest.
pub const GUEST_DIR: &str = "/run/proa/shares";
/// Name of a share's file where the share is a single file.
pub const FILE_NAME: &str = "file";

/// One host directory or file shown to the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    /// virtio-fs tag.
    pub tag: String,
    /// Host path.
    pub source: PathBuf,
    /// The server itself refuses writes.
    pub readonly: bool,
    /// The source is not a directory.
    pub single_file: bool,
}

/// Turns the spec's bind mounts into shares and points their sources at where the guest mounts them.
///
/// # Errors
/// A source does not exist, cannot be looked at, or is neither a directory nor a regular file.
pub fn plan_shares(spec: &mut Spec) -> Result<Vec<Share>, VmError> {
    let mut shares = Vec::new();
    for mount in spec.mounts.iter_mut().filter(|mount| is_bind(mount)) {
        let source = PathBuf::from(mount.source.as_deref().unwrap_or_default());
        let metadata = std::fs::metadata(&source)
            .map_err(|error| VmError::ShareSource { path: source.clone(), source: error })?;
        if !metadata.is_dir() && !metadata.is_file() {
            return Err(VmError::Unshareable { path: source });
        }
        let share = Share {
            tag: format!("share{}", shares.len()),
            source,
            readonly: mount.options.iter().any(|option| option == "ro" || option == "rro"),
            single_file: !metadata.is_dir(),
        };
        mount.source = Some(share.guest_path().to_string_lossy().into_owned());
        shares.push(share);
    }
    Ok(shares)
}

impl Share {
    /// Where the guest sees what is shared.
    pub fn guest_path(&self) -> PathBuf {
        let directory = Path::new(GUEST_DIR).join(&self.tag);
        if self.single_file { directory.join(FILE_NAME) } else { directory }
    }
}

fn is_bind(mount: &Mount) -> bool {
    mount.kind.as_deref() == Some("bind")
        || mount.options.iter().any(|option| option == "bind" || option == "rbind")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bind(source: &Path, options: &[&str]) -> Mount {
        Mount {
            destination: "/data".into(),
            kind: Some("bind".into()),
            source: Some(source.to_string_lossy().into_owned()),
            options: options.iter().map(|option| option.to_string()).collect(),
            ..Mount::default()
        }
    }

    #[test]
    fn bind_mounts_become_shares_and_others_stay() {
        let proc = Mount { destination: "/proc".into(), kind: Some("proc".into()), ..Mount::default() };
        let file = Path::new("/proc/self/status");
        let mut spec = Spec {
            mounts: vec![proc.clone(), bind(Path::new("/usr"), &["rbind", "ro"]), bind(file, &[])],
            ..Spec::default()
        };
        let shares = plan_shares(&mut spec).unwrap();
        assert_eq!(spec.mounts[0], proc);
        assert_eq!(spec.mounts[1].source.as_deref(), Some("/run/proa/shares/share0"));
        assert_eq!(spec.mounts[2].source.as_deref(), Some("/run/proa/shares/share1/file"));
        assert!(shares[0].readonly && !shares[0].single_file);
        assert!(!shares[1].readonly && shares[1].single_file);
    }

    #[test]
    fn a_missing_source_is_named() {
        let mut spec = Spec { mounts: vec![bind(Path::new("/no/such/path"), &[])], ..Spec::default() };
        assert!(plan_shares(&mut spec).unwrap_err().to_string().contains("/no/such/path"));
        let mut spec = Spec { mounts: vec![bind(Path::new("/dev/null"), &[])], ..Spec::default() };
        assert!(plan_shares(&mut spec).unwrap_err().to_string().contains("/dev/null"));
    }
}
