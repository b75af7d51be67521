//! A look into an image: its layers as one read-only tree, in no place, for who copies from it.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use proa_sys::userns;
use rustix::fs::{CWD, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{
    MountAttrFlags, MountFlags, MountPropagationFlags, fsconfig_set_flag, fsconfig_set_string,
};

use crate::fork::made_aside;
use crate::plan::namespaces;
use crate::rootfs::{
    LONGEST_VALUE, clone_tree, finish, has_lowerdir_append, join_names, open_all, open_context,
};
use crate::{Error, Result, inroot};

/// The directory `path` of the image with these layers, lowest first; `None` where the image has no such directory.
/// `empty` is an empty directory, since an overlay has two layers at least.
///
/// The mount lives as long as the descriptor. No link of the image leads out of it (invariant 9).
///
/// # Errors
/// The layers cannot be mounted, or the image's links lead round and round.
pub fn image_directory(layers: &[PathBuf], empty: &Path, path: &str) -> Result<Option<OwnedFd>> {
    let tree = mount(layers, empty, has_lowerdir_append())?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    match inroot::open(tree.as_fd(), path, flags, ResolveFlags::empty()) {
        Ok(directory) => Ok(Some(directory)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(errno) => Err(Error::at(path, errno).context("the image")),
    }
}

fn mount(layers: &[PathBuf], empty: &Path, one_by_one: bool) -> Result<OwnedFd> {
    if layers.is_empty() {
        return Err(Error::invalid("the image has no layers"));
    }
    let lowers: Vec<PathBuf> = std::iter::once(empty.to_owned()).chain(layers.iter().cloned()).collect();
    let opened = open_all(&lowers)?;
    let names = join_names(&opened);
    if !one_by_one && names.len() > LONGEST_VALUE {
        drop(opened);
        return mount_aside(&lowers, empty);
    }
    let context = open_context("overlay")?;
    let set = |key: &str, value: &Path| {
        fsconfig_set_string(context.as_fd(), key, value)
            .map_err(|errno| crate::rootfs::explain(&context, errno).context("overlay of an image's layers"))
    };
    if one_by_one {
        lowers.iter().rev().try_for_each(|lower| set("lowerdir+", lower))?;
    } else {
        set("lowerdir", Path::new(&names))?;
    }
    if !userns::is_initial() {
        fsconfig_set_flag(context.as_fd(), "userxattr").map_err(|errno| {
            crate::rootfs::explain(&context, errno).context("overlay in a user namespace")
        })?;
    }
    finish(context, MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_RDONLY)
        .map_err(|error| error.context("overlay of an image's layers"))
}

/// The same by `mount(2)`, whose options may be as long as a page, in a mount namespace that goes away.
fn mount_aside(lowers: &[PathBuf], at: &Path) -> Result<OwnedFd> {
    made_aside(namespaces::MOUNT, || {
        mount_here(lowers, at).map_err(|error| error.context("overlay of an image's layers"))
    })
}

fn mount_here(lowers: &[PathBuf], at: &Path) -> Result<OwnedFd> {
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).map_err(|errno| Error::call("make mounts private", errno))?;
    // Opened here: the kernel takes layers of its caller's namespace alone.
    let opened = open_all(lowers)?;
    let confined = if userns::is_initial() { "" } else { ",userxattr" };
    let options = CString::new(format!("lowerdir={}{confined}", join_names(&opened)))
        .map_err(|error| Error::call("overlay", error))?;
    let flags = MountFlags::NODEV | MountFlags::RDONLY;
    rustix::mount::mount("overlay", at, "overlay", flags, options.as_c_str())
        .and_then(|()| clone_tree(CWD, at))
        .map_err(|errno| Error::at(at, errno))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn layers_are_one_tree_and_links_stay_inside() {
        let bed = tempfile::tempdir().unwrap();
        let layers: Vec<PathBuf> = (0..20).map(|number| bed.path().join(format!("layer{number}"))).collect();
        for (number, layer) in layers.iter().enumerate() {
            fs::create_dir_all(layer.join("data")).unwrap();
            fs::write(layer.join(format!("data/{number}")), "").unwrap();
        }
        fs::write(layers[3].join("file"), "").unwrap();
        std::os::unix::fs::symlink("/data", layers[5].join("link")).unwrap();
        std::os::unix::fs::symlink("../../../etc", layers[5].join("out")).unwrap();
        std::os::unix::fs::symlink("round", layers[5].join("round")).unwrap();
        let empty = bed.path().join("empty");
        fs::create_dir(&empty).unwrap();
        let entries = |directory: &OwnedFd| rustix::fs::Dir::read_from(directory).unwrap().count() - 2;
        for one_by_one in [has_lowerdir_append(), false] {
            let tree = mount(&layers, &empty, one_by_one).expect("this test needs root");
            let data = rustix::fs::openat(&tree, "data", OFlags::RDONLY, rustix::fs::Mode::empty()).unwrap();
            assert_eq!(entries(&data), 20);
        }
        let look = |path: &str| image_directory(&layers, &empty, path);
        assert_eq!(entries(&look("/link").unwrap().unwrap()), 20);
        for path in ["/out", "/none", "/file"] {
            assert!(look(path).unwrap().is_none(), "{path}");
        }
        assert!(look("/round").is_err());
        assert_eq!(entries(&image_directory(&layers[..1], &empty, "/data").unwrap().unwrap()), 1);
    }
}
