//! Cgroups that were made below a container's own, for a process of `exec`.

use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};
use rustix::io::Errno;

use super::{Cgroup, v1, v2};
use crate::{Error, Result};

/// A cgroup below the container's own, which must exist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubCgroup {
    /// On cgroup v1, the controllers whose hierarchies are meant; none for all.
    controllers: Vec<String>,
    /// Relative to the container's cgroup; empty for that itself.
    path: PathBuf,
}

impl SubCgroup {
    /// Reads `PATH` or `CONTROLLER[,CONTROLLER…]:PATH`, as runc's `exec --cgroup` has it.
    ///
    /// # Errors
    /// The path would lead out of the container's cgroup.
    pub fn parse(text: &str) -> Result<Self> {
        let (controllers, path) = text.split_once(':').unwrap_or(("", text));
        let controllers = controllers.split(',').filter(|name| !name.is_empty()).map(ToOwned::to_owned);
        let controllers: Vec<_> = controllers.collect();
        if text.contains(':') && controllers.is_empty() {
            return Err(Error::invalid(format!("'{text}' names no controller before the colon")));
        }
        let path = Path::new(path.trim_start_matches('/'));
        if !path.components().all(|part| matches!(part, Component::Normal(_))) {
            return Err(Error::invalid(format!("'{text}' is not a path below the container's cgroup")));
        }
        Ok(Self { controllers, path: path.to_owned() })
    }
}

/// Where a process goes, held open.
#[derive(Debug)]
pub(crate) enum Below {
    /// It is forked into this one (v2).
    Fork(OwnedFd),
    /// It is moved into these, one in each hierarchy (v1).
    Attach(Vec<(PathBuf, OwnedFd)>),
}

impl Below {
    /// Moves a process that has not started its program, where that is to be done.
    pub(crate) fn attach(&self, pid: u32) -> Result<()> {
        let Self::Attach(dirs) = self else { return Ok(()) };
        dirs.iter().try_for_each(|(path, dir)| {
            let written = openat(dir, "cgroup.procs", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
                .and_then(|file| rustix::io::write(&file, pid.to_string().as_bytes()));
            match written {
                // It has ended meanwhile.
                Ok(_) | Err(Errno::SRCH) => Ok(()),
                Err(errno) => Err(Error::at(path, errno).context(format!("cannot move process {pid}"))),
            }
        })
    }
}

impl Cgroup {
    /// Where a process goes that is to be in these, of which a later one counts before an earlier. `None` if that
    /// is the container's own.
    pub(crate) fn below(&self, wishes: &[SubCgroup]) -> Result<Option<Below>> {
        if wishes.iter().all(|wish| wish.path.as_os_str().is_empty()) {
            return Ok(None);
        }
        match self {
            Self::None | Self::Scope(_) => {
                Err(Error::unsupported("the container has no cgroup, and so none below it"))
            }
            Self::V1(cgroup) => below_v1(cgroup, wishes).map(Some),
            Self::V2(cgroup) => below_v2(cgroup, wishes).map(Some),
        }
    }
}

fn below_v2(cgroup: &v2::Cgroup, wishes: &[SubCgroup]) -> Result<Below> {
    let [SubCgroup { controllers, path }] = wishes else {
        return Err(Error::invalid("on cgroup v2 a process is in one cgroup only"));
    };
    if !controllers.is_empty() {
        return Err(Error::invalid(format!(
            "on cgroup v2 controllers share one hierarchy: give '{}' alone",
            path.display()
        )));
    }
    open(&cgroup.dir(), path).map(Below::Fork)
}

fn below_v1(cgroup: &v1::Cgroup, wishes: &[SubCgroup]) -> Result<Below> {
    let hierarchies = cgroup.paths();
    if hierarchies.is_empty() {
        return Err(Error::unsupported(
            "the container has not joined a cgroup yet, so there is none below it",
        ));
    }
    let has = |hierarchy: &str, controller: &str| hierarchy.split(',').any(|part| part == controller);
    let named = wishes.iter().flat_map(|wish| &wish.controllers);
    for controller in named {
        if !hierarchies.iter().any(|(hierarchy, _)| has(hierarchy, controller)) {
            return Err(Error::unsupported(format!(
                "the container has no cgroup of a controller '{controller}'"
            )));
        }
    }
    let own = PathBuf::new();
    let dirs = hierarchies.into_iter().map(|(hierarchy, dir)| {
        let is_meant = |wish: &&SubCgroup| {
            wish.controllers.is_empty() || wish.controllers.iter().any(|name| has(&hierarchy, name))
        };
        let path = wishes.iter().rev().find(is_meant).map_or(&own, |wish| &wish.path);
        open(&dir, path).map(|fd| (dir.join(path), fd))
    });
    dirs.collect::<Result<_>>().map(Below::Attach)
}

/// Opens a cgroup below another, and nothing else.
fn open(dir: &Path, below: &Path) -> Result<OwnedFd> {
    let full = dir.join(below);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let top = openat(CWD, dir, flags, Mode::empty()).map_err(|errno| Error::at(dir, errno))?;
    if below.as_os_str().is_empty() {
        return Ok(top);
    }
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    openat2(&top, below, flags, Mode::empty(), resolve).map_err(|errno| match errno {
        Errno::NOENT => {
            Error::invalid(format!("the cgroup {} does not exist: make it first", full.display()))
        }
        errno => Error::at(full, errno),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_stays_below_and_may_name_controllers() {
        let read = |text: &str| SubCgroup::parse(text).unwrap();
        assert_eq!(read("a/b"), SubCgroup { controllers: vec![], path: "a/b".into() });
        assert_eq!(read("/a"), read("a"));
        assert_eq!(read("/").path, PathBuf::new());
        assert_eq!(read("cpu,memory:x").controllers, ["cpu", "memory"]);
        for wrong in ["..", "a/../..", "a/..", "/../x", "cpu:../x", ":x", "./x"] {
            assert!(SubCgroup::parse(wrong).is_err(), "{wrong}");
        }
    }
}
