//! From the kernel's hand-over to an open port.
//!
//! The initramfs is the kernel's `rootfs`, which nothing can pivot away from. So the agent moves to a tmpfs
//! mounted over it: containers then pivot as on any host. Modules come from the initramfs, `/modules/*.ko`, in
//! the order of their names.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_move, mount_remount, unmount as umount};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::configure::WRITABLE;
use crate::error::{At, Error};
use crate::expand::LateModules;

const MODULES: &str = "/modules";
const NEW_ROOT: &str = "/newroot";
const PORTS: &str = "/sys/class/virtio-ports";
/// The port's name, as the VMM's command line has it.
const PORT: &str = "proa";
/// How long a device may take to appear after its driver was loaded.
const DEVICE_LIMIT: Duration = Duration::from_secs(10);
/// Files that a process may raise its limit to: the kernel's own default for `fs.nr_open`.
const MAX_FILES: u64 = 1 << 20;

/// Mounts, loads and moves; afterwards `/` is a tmpfs with `/proc`, `/sys`, `/dev` and `/run`. Gives what may be loaded later.
pub fn prepare() -> Result<LateModules, Error> {
    if !Path::new("/proc/self").exists() {
        pseudo("proc", "/proc", "")?;
    }
    // The workload meets our executable through this mount (invariant 10). To run it again from a copy would
    // cost an emulated guest a tenth of its boot.
    mount_remount("/", MountFlags::BIND | MountFlags::RDONLY, "").at("remount", "/")?;
    raise_limits()?;
    // An idle guest need not be woken twice a second to look whether its memory is in pieces. Where the kernel has no
    // such thing there is nothing to switch off.
    let _ = fs::write("/proc/sys/vm/compaction_proactiveness", "0");
    load_modules()?;
    let late = LateModules::find();
    mount_at("tmpfs", NEW_ROOT, MountFlags::NOSUID | MountFlags::NODEV, "mode=755")?;
    for (kind, name, data) in [("sysfs", "sys", ""), ("devtmpfs", "dev", "mode=755")] {
        pseudo(kind, &format!("{NEW_ROOT}/{name}"), data)?;
    }
    for name in ["proc", "run", "tmp"] {
        make(format!("{NEW_ROOT}/{name}"))?;
    }
    mount_move("/proc", format!("{NEW_ROOT}/proc")).at("move", "/proc")?;
    rustix::process::chdir(NEW_ROOT).at("enter", NEW_ROOT)?;
    mount_move(".", "/").at("move", NEW_ROOT)?;
    rustix::process::chroot(".").at("change the root to", NEW_ROOT)?;
    // The runtime hands its controllers down.
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount_at("cgroup2", "/sys/fs/cgroup", flags, "")?;
    Ok(late)
}

/// The kernel's limit for its first process is less than what services give to theirs.
fn raise_limits() -> Result<(), Error> {
    let files = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { maximum: Some(MAX_FILES), ..files }).at("raise", "RLIMIT_NOFILE")
}

fn load_modules() -> Result<(), Error> {
    let Ok(entries) = fs::read_dir(MODULES) else { return Ok(()) };
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths {
        let file = File::open(&path).at("open", &path)?;
        match rustix::system::finit_module(&file, c"", 0) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error).at("load the module", path),
        }
    }
    Ok(())
}

/// Opens the port to the monitor, waiting until its device has appeared.
pub fn open_port() -> Result<File, Error> {
    let name = wait_for("virtio-serial port `proa`", find_port)?;
    let path = Path::new("/dev").join(name);
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(OFlags::NONBLOCK.bits() as i32);
    // The kernel announces the port a moment before devtmpfs has its node.
    wait_for("virtio-serial device node", || path.exists().then_some(()))?;
    options.open(&path).at("open", path)
}

fn find_port() -> Option<String> {
    let ports = fs::read_dir(PORTS).ok()?.flatten();
    let named = |path: &Path| fs::read_to_string(path.join("name")).is_ok_and(|name| name.trim() == PORT);
    ports.filter(|port| named(&port.path())).find_map(|port| port.file_name().into_string().ok())
}

/// Asks again and again until there is an answer or the limit is over.
pub fn wait_for<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> Result<T, Error> {
    let deadline = Instant::now() + DEVICE_LIMIT;
    loop {
        if let Some(answer) = ask() {
            return Ok(answer);
        }
        if Instant::now() > deadline {
            return Err(Error::Missing(what.to_owned()));
        }
        let moment = rustix::event::Timespec { tv_sec: 0, tv_nsec: 500_000 };
        let _ = rustix::event::poll(&mut [], Some(&moment));
    }
}

fn pseudo(kind: &str, target: &str, data: &str) -> Result<(), Error> {
    let flags = MountFlags::NOSUID | MountFlags::NOEXEC;
    mount_at(kind, target, if kind == "devtmpfs" { MountFlags::NOSUID } else { flags }, data)
}

fn mount_at(kind: &str, target: &str, flags: MountFlags, data: &str) -> Result<(), Error> {
    make(target)?;
    let data = std::ffi::CString::new(data).unwrap_or_default();
    mount(kind, target, kind, flags, Some(data.as_c_str())).at("mount", target)
}

/// Makes a directory and its parents.
pub fn make(path: impl AsRef<Path>) -> Result<(), Error> {
    let path = path.as_ref();
    fs::create_dir_all(path).at("make", path)
}

/// Writes everything to the disks and gives them up, as far as they were mounted.
pub fn unmount() {
    rustix::fs::sync();
    if umount(WRITABLE, UnmountFlags::empty()).is_err() {
        // Something still uses it: then at least nothing more is written.
        let _ = mount_remount(WRITABLE, MountFlags::RDONLY, "");
    }
    rustix::fs::sync();
}
