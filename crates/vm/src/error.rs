//! What can go wrong on the way to a running guest; each message says what to do about it.

use std::io;
use std::path::PathBuf;

/// Why a virtual machine cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// No hypervisor on this host.
    #[error("no {program} on this host; install it: apt-get install qemu-system-x86")]
    MissingVmm {
        /// The program looked for.
        program: &'static str,
    },
    /// No UEFI on this host.
    #[error("UEFI's firmware {path} is not on this host; install it: apt-get install ovmf")]
    MissingFirmware {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// A disk image that is refused.
    #[error("{path}: {reason}")]
    BadDisk {
        /// The file.
        path: PathBuf,
        /// Why, and what to do.
        reason: String,
    },
    /// No virtio-fs server on this host.
    #[error(
        "sharing {path} with a virtual machine needs virtiofsd; install it: apt-get install virtiofsd (Debian 12: qemu-system-common)"
    )]
    MissingVirtiofsd {
        /// What was to be shared.
        path: PathBuf,
    },
    /// No kernel at the path the user named.
    #[error("missing kernel {path}: {source}")]
    MissingKernel {
        /// The path.
        path: PathBuf,
        /// Why it cannot be read.
        source: io::Error,
    },
    /// Neither the host nor its distribution gave a kernel.
    #[error(
        "no guest kernel: the host has none under /boot and fetching one failed: {reason}; name one with --kernel PATH"
    )]
    NoKernel {
        /// What failed.
        reason: String,
    },
    /// No kernel has that name.
    #[error(
        "no kernel is called {name}: `proa kernel ls` lists them, and a file is named with a slash in its path"
    )]
    NoSuchKernel {
        /// The name.
        name: String,
    },
    /// A kernel has that name already.
    #[error("there is a kernel {name}: remove it (proa kernel rm {name}), or take another name")]
    KernelNameTaken {
        /// The name.
        name: String,
    },
    /// The directory with modules has none for the kernel.
    #[error("{directory} has no modules of {release}: name the directory that has a directory {release}")]
    NoModules {
        /// Where they were looked for.
        directory: PathBuf,
        /// The kernel's release.
        release: String,
    },
    /// The file is no kernel that can be started.
    #[error("{path} is not a kernel for this machine: {reason}")]
    BadKernel {
        /// The path.
        path: PathBuf,
        /// What was found.
        reason: String,
    },
    /// The kernel lacks what a guest needs.
    #[error("kernel {path} lacks {driver} (neither built in nor among its modules in {modules})")]
    MissingDriver {
        /// The kernel.
        path: PathBuf,
        /// The driver's name.
        driver: String,
        /// Where modules were looked for.
        modules: PathBuf,
    },
    /// What a bind mount names cannot be looked at.
    #[error("cannot share {path}: {source}")]
    ShareSource {
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What a bind mount names means nothing to another kernel.
    #[error(
        "cannot share {path} with a virtual machine: it is neither a directory nor a regular file, and only the host's kernel can serve it"
    )]
    Unshareable {
        /// The path.
        path: PathBuf,
    },
    /// A snapshot that cannot be used.
    #[error("snapshot {path}: {reason}")]
    BadSnapshot {
        /// Its directory.
        path: PathBuf,
        /// Why, and what to do.
        reason: String,
    },
    /// A machine of which no snapshot can be made.
    #[error(
        "a virtual machine with volumes, --no-template or --kernel-arg cannot be copied as it runs: run it without"
    )]
    NoGround,
    /// More memory than can come to a machine that runs.
    #[error(
        "a virtual machine that was started with its memory can have {most} MiB for the instance while it runs; stop it, update it, start it"
    )]
    TooMuch {
        /// MiB.
        most: u64,
    },
    /// Memory or CPUs that no guest can have.
    #[error("{0}")]
    BadShape(String),
    /// A program that was to be started could not be.
    #[error("cannot start {program}: {source}")]
    Spawn {
        /// The program.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A helper program failed.
    #[error("{program} failed: {reason}")]
    Helper {
        /// The program.
        program: String,
        /// What it said.
        reason: String,
    },
    /// The VMM ended when it should not have.
    #[error("the virtual machine ended ({status}){detail}")]
    Died {
        /// Exit code or signal of the VMM.
        status: String,
        /// What it or the guest said last, on lines of their own.
        detail: String,
    },
    /// The guest's agent is silent.
    #[error("the guest has not answered within {seconds} s{detail}")]
    Silent {
        /// How long was waited.
        seconds: u64,
        /// What the guest's console said last.
        detail: String,
    },
    /// Reading or writing failed.
    #[error("{path}: {source}")]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl VmError {
    /// For `map_err`: an I/O error at `path`.
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}
