//! The guest's kernel: found, made ready once, and kept in the store.
//!
//! ```text
//!   a file that the user named ────────────────────────────┐
//!   newest of the host (/boot/vmlinuz-*, /lib/modules) ────┼─▶ image unpacked, modules picked ─▶ kernels/<key>
//!   the distribution's package, downloaded and unpacked ───┘
//! ```
//!
//! Some are there already by names that users gave them (`named`), one of which may be for all guests that name none.
//!
//! A kernel of the host that lacks a driver is marked `unfit` and the next is tried; a kernel that the user
//! named is never passed over in silence.

mod decompress;
mod elf;
mod image;
mod modules;
mod named;
mod package;
mod prune;

use std::cmp::Ordering;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::VmError;
use crate::store::{Store, StoreLock, identity, publish, short_hex};
use modules::{Module, Modules};
pub use named::add_kernel;
use proa_protocol::kernel::name_of;

/// Changes when what is kept of a kernel changes. It is part of each name, so that two versions of this program
/// that share a store do not take each other's work for their own; a newer one clears what older ones have made.
const FORMAT: &str = "5";
/// Drivers and file systems without which a guest cannot work, in the order they are wanted at boot.
const NEEDED: &[&str] =
    &["virtio_pci", "virtio_console", "virtio_blk", "virtio_net", "erofs", "overlay", "ext4"];
/// The checksum that ext4 and erofs ask for by another name than the module's.
const HELPFUL: &[&str] = &["crc32c_generic"];
/// What gives the host back the memory that is free in the guest.
const GIVING: &[&str] = &["virtio_balloon"];
/// What memory needs that comes while a guest runs; loaded when some comes.
const GROWING: &[&str] = &["virtio_mem"];
/// What shares need on top.
const SHARING: &[&str] = &["fuse", "virtiofs"];

const INFO: &str = "kernel.json";
const IMAGE: &str = "image";
const UNFIT: &str = "unfit";
const DISTRIBUTION: &str = "distribution";

/// A kernel in the store.
#[derive(Debug, Clone)]
pub(crate) struct Kernel {
    key: String,
    directory: PathBuf,
    info: Info,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Info {
    origin: String,
    release: String,
    modules: Vec<String>,
    share_modules: Vec<String>,
    /// Not in what older versions have kept under names.
    #[serde(default)]
    late_modules: Vec<String>,
}

/// The modules of a kernel, by who needs them and when.
struct Picked {
    needed: Vec<Module>,
    sharing: Vec<Module>,
    late: Vec<Module>,
}

/// Modules beside those of every guest, and the part of a kernel's key that tells of them.
struct More<'a> {
    modules: &'a [String],
    mark: String,
}

impl<'a> More<'a> {
    fn new(modules: &'a [String]) -> Self {
        let mark = match modules {
            [] => String::new(),
            names => format!("-with-{}", short_hex(Sha256::new_with_prefix(names.join(" ")))),
        };
        Self { modules, mark }
    }
}

/// Where a kernel comes from before it is in the store.
struct Candidate {
    key: String,
    origin: String,
    image: PathBuf,
    /// Directories that may hold a directory named by the release.
    module_roots: Vec<PathBuf>,
}

impl Kernel {
    /// The kernel to boot, made ready if it is not.
    pub fn find(
        store: &Store,
        named: Option<&Path>,
        more: &[String],
        notice: &mut dyn FnMut(String),
    ) -> Result<Self, VmError> {
        let default = if named.is_none() { named::default_name(store) } else { None };
        if let Some(name) = default.as_deref().or_else(|| named.and_then(name_of)) {
            return Self::called(store, name);
        }
        let more = &More::new(more);
        if let Some(path) = named {
            let candidate = Candidate::named(path)?.marked(more);
            return match Self::load(store, &candidate.key) {
                Some(kernel) => Ok(kernel),
                None => Self::import(store, &store.lock()?, &candidate, more),
            };
        }
        for candidate in host_candidates(Path::new("/boot"), Path::new("/lib/modules")) {
            let candidate = candidate.marked(more);
            if directory(store, &candidate.key).join(UNFIT).exists() {
                continue;
            }
            if let Some(kernel) = Self::load(store, &candidate.key) {
                return Ok(kernel);
            }
            let lock = store.lock()?;
            match Self::import(store, &lock, &candidate, more) {
                Ok(kernel) => return Ok(kernel),
                Err(error @ (VmError::MissingDriver { .. } | VmError::BadKernel { .. })) => {
                    mark_unfit(store, &lock, &candidate.key, &error)?;
                }
                Err(error) => return Err(error),
            }
        }
        Self::from_distribution(store, more, notice)
    }

    /// Its name in the store.
    pub fn name(&self) -> String {
        format!("{FORMAT}-{}", self.key)
    }

    /// The kernel image for the hypervisor.
    pub fn image(&self) -> PathBuf {
        self.directory.join(IMAGE)
    }

    /// Names and files of the modules to load, in order.
    pub fn modules(&self, sharing: bool) -> Vec<(String, PathBuf)> {
        let more: &[String] = if sharing { &self.info.share_modules } else { &[] };
        self.files(self.info.modules.iter().chain(more))
    }

    /// The same of those that are loaded when they are needed.
    pub fn late_modules(&self) -> Vec<(String, PathBuf)> {
        self.files(self.info.late_modules.iter())
    }

    fn files<'a>(&self, names: impl Iterator<Item = &'a String>) -> Vec<(String, PathBuf)> {
        names.map(|name| (name.clone(), self.directory.join("modules").join(name))).collect()
    }

    fn load(store: &Store, key: &str) -> Option<Self> {
        let directory = directory(store, key);
        let info: Info = store.read_json(directory.join(INFO))?;
        Some(Self { key: key.to_owned(), directory, info })
    }

    fn from_distribution(
        store: &Store,
        more: &More,
        notice: &mut dyn FnMut(String),
    ) -> Result<Self, VmError> {
        let pointer = directory(store, &format!("{DISTRIBUTION}{}", more.mark));
        let current = || {
            let key = fs::read_to_string(&pointer).ok()?;
            Self::load(store, key.trim())
        };
        if let Some(kernel) = current() {
            return Ok(kernel);
        }
        let lock = store.lock()?;
        // Another process may have fetched it while this one waited.
        if let Some(kernel) = current() {
            return Ok(kernel);
        }
        let scratch = store.partial(&lock, &store.path("kernels/package"));
        fs::create_dir(&scratch).map_err(VmError::io(&scratch))?;
        let unpacked = package::fetch(&scratch, notice)?;
        let candidate = Candidate {
            key: unpacked.origin.clone(),
            origin: unpacked.origin,
            image: unpacked.image,
            module_roots: unpacked.modules,
        }
        .marked(more);
        let kernel = Self::import(store, &lock, &candidate, more)?;
        store.write(&lock, &pointer, kernel.key.as_bytes())?;
        fs::remove_dir_all(&scratch).map_err(VmError::io(&scratch))?;
        Ok(kernel)
    }

    /// Puts a kernel and the modules it needs into the store.
    fn import(store: &Store, lock: &StoreLock, candidate: &Candidate, more: &More) -> Result<Self, VmError> {
        if let Some(kernel) = Self::load(store, &candidate.key) {
            return Ok(kernel);
        }
        let image = image::read(&candidate.image)?;
        let Picked { needed, sharing, late } = candidate.pick_modules(&image.release, more)?;
        let directory = directory(store, &candidate.key);
        let partial = store.partial(lock, &directory);
        let modules = partial.join("modules");
        fs::create_dir_all(&modules).map_err(VmError::io(&modules))?;
        let path = partial.join(IMAGE);
        fs::write(&path, &image.bytes).map_err(VmError::io(&path))?;
        let names = |list: &[Module]| list.iter().map(|module| module.name.clone()).collect();
        let info = Info {
            origin: candidate.origin.clone(),
            release: image.release,
            modules: names(&needed),
            share_modules: names(&sharing),
            late_modules: names(&late),
        };
        for module in needed.iter().chain(&sharing).chain(&late) {
            let path = modules.join(&module.name);
            fs::write(&path, &module.bytes).map_err(VmError::io(&path))?;
        }
        store.write_json(lock, &partial.join(INFO), &info)?;
        if directory.exists() {
            // Marked unfit, by a version that needed more.
            fs::remove_dir_all(&directory).map_err(VmError::io(&directory))?;
        }
        publish(&partial, &directory)?;
        store.clear_older(lock, "kernels", FORMAT, &prune::named_directories(store));
        Ok(Self { key: candidate.key.clone(), directory, info })
    }
}

impl Candidate {
    /// A kernel the user named: its modules are beside it as packages have them, or the host's of that release.
    fn named(path: &Path) -> Result<Self, VmError> {
        let missing = |source| VmError::MissingKernel { path: path.to_owned(), source };
        let path = fs::canonicalize(path).map_err(missing)?;
        let metadata = fs::metadata(&path).map_err(missing)?;
        if !metadata.is_file() {
            return Err(VmError::BadKernel { path, reason: "it is not a file".to_owned() });
        }
        let beside = path.parent().unwrap_or(Path::new("/"));
        let above = beside.parent().unwrap_or(beside);
        let module_roots = vec![
            beside.join("modules"),
            beside.join("lib/modules"),
            above.join("lib/modules"),
            above.join("usr/lib/modules"),
            PathBuf::from("/lib/modules"),
        ];
        let key = format!("named-{}", identity(&path, &metadata));
        Ok(Self { key, origin: path.display().to_string(), image: path, module_roots })
    }

    fn marked(mut self, more: &More) -> Self {
        self.key.push_str(&more.mark);
        self
    }

    fn pick_modules(&self, release: &str, more: &More) -> Result<Picked, VmError> {
        let mut directories = self.module_roots.iter().map(|root| root.join(release));
        let Some(directory) = directories.find(|path| path.join("modules.builtin").exists()) else {
            // A kernel with everything built in has none; what it lacks, the agent will tell.
            return Ok(Picked { needed: Vec::new(), sharing: Vec::new(), late: Vec::new() });
        };
        let modules = Modules::read(&directory)?;
        if let Some(driver) = modules.missing(NEEDED) {
            return Err(VmError::MissingDriver {
                path: self.image.clone(),
                driver: driver.to_owned(),
                modules: directory,
            });
        }
        let more: Vec<&str> = more.modules.iter().map(String::as_str).collect();
        let wanted = [HELPFUL, NEEDED, GIVING, &more].concat();
        let keep = insists_on_signatures(&directory, &self.image, release);
        let needed = modules.load_order(&wanted, keep)?;
        let beside = |names: &[&str]| -> Result<Vec<Module>, VmError> {
            let mut more = modules.load_order(names, keep)?;
            more.retain(|module| !needed.iter().any(|other| other.name == module.name));
            Ok(more)
        };
        let (sharing, late) = (beside(SHARING)?, beside(GROWING)?);
        Ok(Picked { needed, sharing, late })
    }
}

/// Whether the kernel loads signed modules only; one whose configuration is not at hand may.
fn insists_on_signatures(modules: &Path, image: &Path, release: &str) -> bool {
    let beside = image.with_file_name(format!("config-{release}"));
    let texts = [beside, modules.join("config")].into_iter().filter_map(|path| fs::read_to_string(path).ok());
    texts.into_iter().next().is_none_or(|text| text.lines().any(|line| line == "CONFIG_MODULE_SIG_FORCE=y"))
}

/// Where a kernel is kept, or the key of one.
fn directory(store: &Store, key: &str) -> PathBuf {
    store.path("kernels").join(format!("{FORMAT}-{key}"))
}

fn mark_unfit(store: &Store, lock: &StoreLock, key: &str, why: &VmError) -> Result<(), VmError> {
    let directory = directory(store, key);
    fs::create_dir_all(&directory).map_err(VmError::io(&directory))?;
    store.write(lock, &directory.join(UNFIT), why.to_string().as_bytes())
}

/// The host's kernels that have their modules installed, newest first.
fn host_candidates(boot: &Path, module_root: &Path) -> Vec<Candidate> {
    let Ok(entries) = fs::read_dir(boot) else { return Vec::new() };
    let mut found: Vec<(String, PathBuf, String)> = entries
        .flatten()
        .filter_map(|entry| {
            let release = entry.file_name().to_str()?.strip_prefix("vmlinuz-")?.to_owned();
            let installed = module_root.join(&release).join("modules.builtin").exists();
            let identity = identity(&entry.path(), &entry.metadata().ok()?);
            installed.then(|| (release, entry.path(), identity))
        })
        .collect();
    found.sort_by(|one, other| compare_releases(&other.0, &one.0));
    let candidate = |(release, image, identity): (String, PathBuf, String)| Candidate {
        key: format!("host-{release}-{identity}"),
        origin: image.display().to_string(),
        image,
        module_roots: vec![module_root.to_owned()],
    };
    found.into_iter().map(candidate).collect()
}

/// Runs of digits compare as numbers, so 6.10 comes after 6.9.
fn compare_releases(one: &str, other: &str) -> Ordering {
    let parts = |text: &str| -> Vec<(u64, String)> {
        text.split(['.', '-', '+', '~', '_'])
            .map(|part| {
                let digits = part.find(|byte: char| !byte.is_ascii_digit()).unwrap_or(part.len());
                (part[..digits].parse().unwrap_or(0), part[digits..].to_owned())
            })
            .collect()
    };
    parts(one).cmp(&parts(other))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_compare_by_number() {
        let mut releases = ["6.9.0-1-amd64", "6.10.2-1-amd64", "6.1.0-13-amd64", "6.1.0-9-amd64"];
        releases.sort_by(|one, other| compare_releases(other, one));
        assert_eq!(releases, ["6.10.2-1-amd64", "6.9.0-1-amd64", "6.1.0-13-amd64", "6.1.0-9-amd64"]);
    }

    #[test]
    fn only_kernels_with_modules_are_candidates_newest_first() {
        let scratch = tempfile::tempdir().unwrap();
        let (boot, modules) = (scratch.path().join("boot"), scratch.path().join("modules"));
        fs::create_dir(&boot).unwrap();
        for release in ["6.1.0-9-amd64", "6.1.0-10-amd64", "9.9.9-without-modules"] {
            fs::write(boot.join(format!("vmlinuz-{release}")), "x").unwrap();
        }
        fs::write(boot.join("config-6.1.0-9-amd64"), "").unwrap();
        for release in ["6.1.0-9-amd64", "6.1.0-10-amd64"] {
            fs::create_dir_all(modules.join(release)).unwrap();
            fs::write(modules.join(release).join("modules.builtin"), "").unwrap();
        }
        let keys: Vec<String> = host_candidates(&boot, &modules).into_iter().map(|found| found.key).collect();
        assert_eq!(keys.len(), 2);
        assert!(keys[0].starts_with("host-6.1.0-10-amd64-") && keys[1].starts_with("host-6.1.0-9-amd64-"));
        assert!(host_candidates(&scratch.path().join("none"), &modules).is_empty());
    }

    #[test]
    fn signatures_stay_unless_the_configuration_allows_to_drop_them() {
        let scratch = tempfile::tempdir().unwrap();
        let image = scratch.path().join("vmlinuz-1");
        let insists = || insists_on_signatures(scratch.path(), &image, "1");
        assert!(insists());
        fs::write(scratch.path().join("config-1"), "# CONFIG_MODULE_SIG_FORCE is not set\n").unwrap();
        assert!(!insists());
        fs::write(scratch.path().join("config-1"), "CONFIG_MODULE_SIG_FORCE=y\n").unwrap();
        assert!(insists());
    }

    #[test]
    fn a_named_kernel_that_is_missing_is_named() {
        let scratch = tempfile::tempdir().unwrap();
        let store = Store::open(scratch.path()).unwrap();
        let error = Kernel::find(&store, Some(Path::new("/no/kernel")), &[], &mut |_| {}).unwrap_err();
        assert!(error.to_string().starts_with("missing kernel /no/kernel"), "{error}");
        let error = Kernel::find(&store, Some(Path::new("/tmp")), &[], &mut |_| {}).unwrap_err();
        assert!(error.to_string().contains("not a file"), "{error}");
    }
}
