//! `checkpoint`: writes the processes of a container to files, by criu, and ends them unless they are to go on.

use std::fs;
use std::os::unix::fs::MetadataExt;

use proa_runtime::Container;

use crate::args::{Opt, Parsed, flag, value};
use crate::criu::{Beside, Criu, NETWORK, bind_mounts, check, network, streams};
use crate::error::{Failure, Result};
use crate::global::Global;
use crate::store::Status;

/// Options that `checkpoint` and `restore` share.
pub const SHARED: &[Opt] = &[
    value("image-path"),
    value("work-path"),
    value("manage-cgroups-mode"),
    value("empty-ns"),
    value("page-server"),
    value("status-fd"),
    flag("tcp-established"),
    flag("tcp-skip-in-flight"),
    flag("link-remap"),
    flag("ext-unix-sk"),
    flag("shell-job"),
    flag("lazy-pages"),
    flag("file-locks"),
    flag("auto-dedup"),
];
/// Its own.
pub const OPTIONS: &[Opt] = &[value("parent-path"), flag("leave-running"), flag("pre-dump")];

/// Runs it.
///
/// # Errors
/// There is no criu, or it cannot write the container: then that runs on.
pub fn run(global: &Global, parsed: &Parsed) -> Result<u8> {
    let entry = global.store.open(parsed.id()?)?;
    let lock = entry.lock()?;
    let _cgroup = entry.lock_cgroup()?;
    let saved = entry.saved()?;
    let status = entry.status(saved.as_ref(), Some(&lock))?;
    let (container, spec) = entry.container(saved.as_ref())?;
    let (Status::Running, Some(container), Some(saved)) = (status, container, saved) else {
        return Err(Failure::new(format!("container '{}' is {}, not running", entry.id, status.name())));
    };
    check(&spec)?;
    if container.joins_cgroup_late() {
        let text = "on cgroup v1 only a container with a cgroupsPath or a limit can be checkpointed";
        return Err(Failure::new(text));
    }
    let mut criu = Criu::new("dump", parsed)?;
    criu.make_directories()?;
    criu.arg("--tree", saved.pid.to_string());
    criu.arg("--root", &saved.rootfs);
    freezer(&container).into_iter().for_each(|dir| criu.arg("--freeze-cgroup", dir));
    for (place, _) in bind_mounts(&spec) {
        criu.arg("--external", format!("mnt[{place}]:{place}"));
    }
    let streams = streams(saved.pid)?;
    for name in streams.iter().flatten().filter(|name| name.starts_with("file[")) {
        criu.arg("--external", name);
    }
    if network(&spec).is_some() {
        let path = format!("/proc/{}/ns/net", saved.pid);
        let inode = fs::metadata(&path).map_err(|error| Failure::at(path, error))?.ino();
        criu.arg("--external", format!("net[{inode}]:{NETWORK}"));
    }
    Beside::new(proa_runtime::cgroup_path(&entry.id, &spec, saved.cgroup())?, streams).save(&criu.images)?;
    criu.run()?;
    Ok(0)
}

/// The cgroup by which all processes can be held at once, and none is overlooked.
fn freezer(container: &Container) -> Option<std::path::PathBuf> {
    let mut paths = container.cgroup_paths().into_iter();
    let is_freezer = |name: &str| name.is_empty() || name.split(',').any(|part| part == "freezer");
    paths.find(|(name, _)| is_freezer(name)).map(|(_, dir)| dir)
}
