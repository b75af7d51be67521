//! Kernels of virtual machines: which there are, the names that users give them, and which one is the default.
//!
//! ```text
//!   host's, or the distribution's ─ found and kept when a guest needs one ─▶ kept ─┐
//!   a file ─ add ─▶ named ─ use ─▶ the default of guests that name none            ├─▶ listed
//!   source ─ build (`build`) ─▶ a file                                             ┘
//! ```
//! A named kernel is whole when its name is there; without the name, its directory is nobody's. One that an instance
//! names, or that is the default, is not removed. What of all that nothing needs is decided where it is kept
//! (`proa_vm`'s store), and told what instances name.

mod build;

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use proa_protocol::kernel::{AddKernel, DEFAULT, DIRECTORY, NAMED, NamedKernel, PruneKernels, name_of};
use proa_protocol::template::STORE;

use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::{monitor, names};

pub use build::KernelSource;
pub use proa_protocol::kernel::Pruned;

/// The word in place of a name for the newest kernel at hand.
pub const AUTO: &str = "auto";
/// What is known of a kernel that was kept.
const KEPT: &str = "kernel.json";

/// A kernel that guests can boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// The name that a user gave it.
    pub name: Option<String>,
    /// As `uname -r` says it.
    pub release: String,
    /// The file or the package that it was made of.
    pub source: String,
    /// Bytes on disk, with its modules.
    pub bytes: u64,
    /// Whether guests boot it which name none; where none is marked, the newest at hand.
    pub default: bool,
}

#[derive(serde::Deserialize)]
struct Kept {
    origin: String,
    release: String,
}

impl Engine {
    /// All kernels: those with names, and those of the host and the distribution that guests have needed.
    ///
    /// # Errors
    /// A directory cannot be read.
    pub fn kernels(&self) -> Result<Vec<Kernel>> {
        let default = self.default_kernel();
        let mut kernels = Vec::new();
        let mut directories = Vec::new();
        for name in list(&self.kernel_names())? {
            let Some(kernel) = self.named_kernel(&name) else { continue };
            kernels.push(Kernel {
                bytes: proa_sys::trees::disk_usage(&self.kernel_directory().join(&kernel.directory)),
                default: default.as_deref() == Some(&name),
                name: Some(name),
                release: kernel.release,
                source: kernel.source,
            });
            directories.push(kernel.directory);
        }
        for directory in list(&self.kernel_directory())? {
            let path = self.kernel_directory().join(&directory);
            let kept =
                fs::read(path.join(KEPT)).ok().and_then(|text| serde_json::from_slice::<Kept>(&text).ok());
            let Some(Kept { origin, release }) = kept.filter(|_| !directories.contains(&directory)) else {
                continue;
            };
            let bytes = proa_sys::trees::disk_usage(&path);
            kernels.push(Kernel { name: None, release, source: origin, bytes, default: false });
        }
        Ok(kernels)
    }

    /// Keeps a kernel under a name.
    ///
    /// # Errors
    /// The name is taken or none, or it is no kernel that guests can boot.
    pub fn add_kernel(&self, name: &str, image: &Path, modules: Option<&Path>) -> Result<()> {
        names::check("kernel", name)?;
        if name == AUTO {
            return Err(Error::invalid("auto means the newest kernel at hand, and is no name"));
        }
        let absolute = |path: &Path| std::path::absolute(path).map_err(|error| Error::io("use", path, error));
        let wanted = AddKernel {
            store: self.paths.root.join(STORE),
            name: name.to_owned(),
            image: absolute(image)?,
            modules: modules.map(absolute).transpose()?,
        };
        monitor::add_kernel(&self.programs, &wanted)
    }

    /// Makes a kernel the one of guests that name none; [`AUTO`] takes the newest at hand again.
    ///
    /// # Errors
    /// There is no such kernel.
    pub fn use_kernel(&self, name: &str) -> Result<()> {
        let link = self.kernel_names().join(DEFAULT);
        let failed = |error| Error::io("change", &link, error);
        if name == AUTO {
            return match fs::remove_file(&link) {
                Err(error) if error.kind() != ErrorKind::NotFound => Err(failed(error)),
                _ => Ok(()),
            };
        }
        self.check_kernel(name)?;
        let fresh = self.kernel_names().join(format!("{DEFAULT}.new"));
        let _ = fs::remove_file(&fresh);
        symlink(name, &fresh).and_then(|()| fs::rename(&fresh, &link)).map_err(failed)
    }

    /// Removes a kernel that has a name. Guests that run have what they need of it.
    ///
    /// # Errors
    /// There is none, it is the default, or instances name it.
    pub fn remove_kernel(&self, name: &str) -> Result<()> {
        let kernel = self.check_kernel(name)?;
        if self.default_kernel().as_deref() == Some(name) {
            let hint = format!("choose another first: proa kernel use {AUTO}");
            return Err(Error::conflict(format!("kernel {name} is the default"), hint));
        }
        let names_it = |kernel: &Option<PathBuf>| kernel.as_deref().and_then(name_of) == Some(name);
        if let Some(user) = self.db.all()?.into_iter().find(|record| names_it(&record.host_config.vm.kernel))
        {
            let hint = format!("remove that first: proa rm {}", user.name);
            return Err(Error::conflict(format!("instance {} boots kernel {name}", user.name), hint));
        }
        let file = self.kernel_names().join(name);
        fs::remove_file(&file).map_err(|error| Error::io("remove", &file, error))?;
        let directory = self.kernel_directory().join(&kernel.directory);
        proa_sys::trees::remove(&directory).map_err(|error| Error::io("remove", &directory, error))
    }

    /// Removes kernels that nothing needs any more, and what guests have started from with them: never one that has a
    /// name, and none that a guest would start from that is made now. With `all`, copies of files that instances do not
    /// name go as well. What was removed.
    ///
    /// # Errors
    /// One cannot be removed.
    pub fn prune_kernels(&self, all: bool) -> Result<Vec<Pruned>> {
        let store = self.paths.root.join(STORE);
        if !store.is_dir() {
            return Ok(Vec::new());
        }
        let records = if all { self.db.all()? } else { Vec::new() };
        let wanted = records.into_iter().filter_map(|record| record.host_config.vm.kernel).collect();
        let agent = self.programs.agent.clone();
        monitor::prune_kernels(&self.programs, &PruneKernels { store, agent, wanted: all.then_some(wanted) })
    }

    /// What is kept under this name.
    ///
    /// # Errors
    /// Nothing is.
    pub(crate) fn check_kernel(&self, name: &str) -> Result<NamedKernel> {
        let found = names::check("kernel", name).ok().and_then(|()| self.named_kernel(name));
        found.ok_or_else(|| Error::Invalid {
            message: format!("no kernel is called {name}"),
            hint: "`proa kernel ls` lists them; a file is named with a slash in its path, as ./FILE".into(),
        })
    }

    fn named_kernel(&self, name: &str) -> Option<NamedKernel> {
        let kernel: NamedKernel =
            serde_json::from_slice(&fs::read(self.kernel_names().join(name)).ok()?).ok()?;
        // What is removed with it lies beside it.
        name_of(Path::new(&kernel.directory)).is_some().then_some(kernel)
    }

    fn default_kernel(&self) -> Option<String> {
        fs::read_link(self.kernel_names().join(DEFAULT)).ok()?.into_os_string().into_string().ok()
    }

    fn kernel_directory(&self) -> PathBuf {
        self.paths.root.join(STORE).join(DIRECTORY)
    }

    fn kernel_names(&self) -> PathBuf {
        self.kernel_directory().join(NAMED)
    }
}

/// Names in a directory, which need not be there, in their order; without those that begin with a dot.
fn list(directory: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(|error| Error::io("list", directory, error))?,
    };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let mut names: Vec<String> = names.filter(|name| !name.starts_with('.')).collect();
    names.sort_unstable();
    Ok(names)
}
