//! One container, from creation to removal.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use proa_oci::runtime::{ConsoleSize, Process, Spec};
use proa_protocol::message::{ProcessInfo, Stats};

use crate::{Error, Result};

/// Where the root file system comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rootfs {
    /// An overlay, mounted by the runtime in the container's mount namespace.
    Overlay {
        /// Directories with the read-only layers, already mounted, lowest first.
        lowers: Vec<PathBuf>,
        /// The writable layer.
        upper: PathBuf,
        /// overlayfs' work directory, on the same file system as `upper`.
        work: PathBuf,
    },
    /// A directory, bound as it is.
    Directory(PathBuf),
}

/// What a process has as standard input, output and error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stdio {
    /// `/dev/null` for all three.
    Null,
    /// A pipe each.
    Pipes {
        /// Whether standard input is a pipe; otherwise it is `/dev/null`.
        stdin: bool,
    },
    /// A terminal of the container's own `/dev/pts`.
    Terminal(ConsoleSize),
}

/// Our ends of a process's streams, all close-on-exec and blocking.
#[derive(Debug, Default)]
pub struct Handles {
    /// Write end of standard input.
    pub stdin: Option<OwnedFd>,
    /// Read end of standard output.
    pub stdout: Option<OwnedFd>,
    /// Read end of standard error.
    pub stderr: Option<OwnedFd>,
    /// Master of the terminal.
    pub terminal: Option<OwnedFd>,
}

/// Whether the container gets cgroups.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum CgroupPolicy {
    /// At once where something is limited or the kernel makes it cheap, else by [`Container::join_cgroup_late`].
    #[default]
    Auto,
    /// Never: for hosts without cgroups. A spec that limits something is refused.
    Disabled,
}

/// What [`Container::create`] needs.
#[derive(Debug)]
pub struct Create<'a> {
    /// Instance id: names the cgroup.
    pub id: &'a str,
    /// The runtime spec; its `root.path` is not used.
    pub spec: &'a Spec,
    /// The root file system.
    pub rootfs: Rootfs,
    /// Docker's `--user`, resolved in the root; empty for the spec's numeric user. Docker's own default is `0`.
    pub user: &'a str,
    /// Streams of the first process.
    pub stdio: Stdio,
    /// Run a minimal init as PID 1 (needs a statically linked executable that calls [`crate::init_main`]).
    pub init: bool,
    /// Whether it gets cgroups.
    pub cgroup: CgroupPolicy,
}

/// A process started by [`Container::exec`]; a child of the caller, who must reap it.
#[derive(Debug)]
pub struct Child {
    /// Its id in our pid namespace.
    pub pid: u32,
    /// Readable when it has ended.
    pub pidfd: OwnedFd,
}

/// A container: created, then started, then deleted. Its first process is a child of the caller.
#[derive(Debug)]
pub struct Container {
    pid: u32,
    pidfd: OwnedFd,
}

impl Container {
    /// Makes the container; its first process waits just before `exec`.
    ///
    /// # Errors
    /// Names the step that failed. Nothing is left behind.
    pub fn create(create: Create) -> Result<(Self, Handles)> {
        Err(Error::unsupported(create.id))
    }

    /// Lets the first process `exec` the program.
    ///
    /// # Errors
    /// The kind tells "not found" (127) from "cannot be run" (126). The container must then be deleted.
    pub fn start(&mut self) -> Result<()> {
        Err(Error::unsupported(""))
    }

    /// Runs another process in the container.
    ///
    /// # Errors
    /// As for [`Container::start`].
    pub fn exec(&mut self, _process: &Process, _user: &str, _stdio: Stdio) -> Result<(Child, Handles)> {
        Err(Error::unsupported(""))
    }

    /// The first process in our pid namespace.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Readable when the first process has ended.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// What was asked for and could not be granted, one line each.
    pub fn warnings(&self) -> &[String] {
        &[]
    }

    /// Sends a signal to the first process, or to all.
    ///
    /// # Errors
    /// There is no such process any more.
    pub fn signal(&self, _signal: i32, _all: bool) -> Result<()> {
        Err(Error::unsupported(""))
    }

    /// Puts what runs in the container into its cgroup, where that was put off (cgroup v1, nothing limited).
    /// Call it some 50 ms after a start and after an exec; it does nothing where nothing is to be done.
    ///
    /// # Errors
    /// The cgroup cannot be made or joined.
    pub fn join_cgroup_late(&mut self) -> Result<()> {
        Err(Error::unsupported(""))
    }

    /// Resource use now.
    ///
    /// # Errors
    /// The cgroup cannot be read.
    pub fn stats(&self) -> Result<Stats> {
        Err(Error::unsupported(""))
    }

    /// All processes of the container.
    ///
    /// # Errors
    /// `/proc` cannot be read.
    pub fn processes(&self) -> Result<Vec<ProcessInfo>> {
        Err(Error::unsupported(""))
    }

    /// Freezes all processes.
    ///
    /// # Errors
    /// There is no freezer.
    pub fn pause(&mut self) -> Result<()> {
        Err(Error::unsupported(""))
    }

    /// Thaws them.
    ///
    /// # Errors
    /// There is no freezer.
    pub fn resume(&mut self) -> Result<()> {
        Err(Error::unsupported(""))
    }

    /// Whether the kernel killed something in the container for memory; ask before [`Container::delete`].
    pub fn oom_killed(&self) -> bool {
        false
    }

    /// The container's root directory with all its mounts, for [`crate::archive`]; valid while it runs.
    ///
    /// # Errors
    /// The first process has ended.
    pub fn root(&self) -> Result<OwnedFd> {
        Err(Error::unsupported(""))
    }

    /// Kills what still runs, reaps it, and removes the cgroups.
    ///
    /// # Errors
    /// Something could not be removed.
    pub fn delete(self) -> Result<()> {
        Err(Error::unsupported(""))
    }
}
