//! cgroup v2: one directory, whose controllers the parents hand down.

mod limits;

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use proa_oci::runtime::Resources;
use proa_protocol::message::{Pressure, Stats, Waited};
use rustix::fs::{Mode, OFlags};

use super::{
    OomWatch, devices, field, make_dir, pause_ms, pids, read, read_number, remove_dir, try_write, write,
};
use crate::{Error, Result};

/// What counts an instance's use, and can limit it.
const COUNTING: &[&str] = &["cpu", "memory", "pids", "io"];
/// What only limits it. Each controller makes each cgroup dearer.
const LIMITING: &[&str] = &["cpuset", "hugetlb", "rdma"];

/// The container's directory.
#[derive(Debug)]
pub(crate) struct Cgroup {
    mount: PathBuf,
    path: PathBuf,
}

impl Cgroup {
    pub(super) fn create(
        mount: &Path,
        path: &Path,
        resources: &Resources,
        limited: bool,
        warnings: &mut Vec<String>,
    ) -> Result<Self> {
        let cgroup = Self { mount: mount.to_owned(), path: path.to_owned() };
        let dir = make_dir(mount, path)?;
        // Even where nothing is limited the controllers count.
        cgroup.hand_down(limited);
        let mut set_up = || {
            if limited {
                limits::set(&dir, resources, warnings)?;
            }
            devices::attach(cgroup.open()?.as_fd(), &resources.devices)
        };
        set_up().inspect_err(|_| {
            // Nothing is left behind; the error that counts is the first.
            let _ = cgroup.remove();
        })?;
        Ok(cgroup)
    }

    /// Sets other limits.
    pub(super) fn update(&self, resources: &Resources, warnings: &mut Vec<String>) -> Result<()> {
        // Where nothing was limited at the start, only what counts was handed down.
        self.hand_down(true);
        limits::set(&self.dir(), resources, warnings)
    }

    /// Sets what is to hold in a cgroup that systemd has made.
    pub(super) fn adopt(&self, resources: &Resources, warnings: &mut Vec<String>) -> Result<()> {
        // systemd hands down what its properties need; there are controllers that it has none for.
        self.hand_down(true);
        limits::set(&self.dir(), resources, warnings)?;
        if resources.devices.is_empty() {
            return Ok(());
        }
        devices::attach(self.open()?.as_fd(), &resources.devices)
    }

    /// As it is after [`Cgroup::create`] in another process.
    pub(super) fn reopen(mount: &Path, path: &Path) -> Self {
        Self { mount: mount.to_owned(), path: path.to_owned() }
    }

    pub(super) fn dir(&self) -> PathBuf {
        self.mount.join(&self.path)
    }

    /// Lets every level above the container's hand its controllers down. What cannot be had shows when a limit is
    /// set: its file is missing then.
    fn hand_down(&self, limited: bool) {
        let mut levels: Vec<_> = self.path.ancestors().skip(1).collect();
        levels.reverse();
        for level in levels {
            let dir = self.mount.join(level);
            let has = |file: &str| -> Vec<String> {
                read(&dir, file).unwrap_or_default().split_whitespace().map(ToOwned::to_owned).collect()
            };
            let (available, enabled) = (has("cgroup.controllers"), has("cgroup.subtree_control"));
            let wanted = COUNTING.iter().chain(LIMITING.iter().filter(|_| limited));
            // The kernel names a controller before its files are there. Where limits are to be written to them, what
            // another process hands down at this moment is handed down again, which waits for that other.
            let missing: Vec<String> = wanted
                .filter(|name| available.iter().any(|other| other == *name))
                .filter(|name| limited || !enabled.iter().any(|other| other == *name))
                .map(|name| format!("+{name}"))
                .collect();
            if missing.is_empty() || try_write(&dir, "cgroup.subtree_control", &missing.join(" ")).is_ok() {
                continue;
            }
            // A single one that cannot be had spoils all.
            for controller in missing {
                let _ = try_write(&dir, "cgroup.subtree_control", &controller);
            }
        }
    }

    pub(super) fn open(&self) -> Result<OwnedFd> {
        let dir = self.dir();
        rustix::fs::open(&dir, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|errno| Error::at(dir, errno))
    }

    pub(super) fn processes(&self) -> Vec<u32> {
        pids(&self.dir(), "cgroup.procs")
    }

    pub(super) fn stats(&self, stats: &mut Stats) {
        let dir = self.dir();
        let cpu = read(&dir, "cpu.stat").unwrap_or_default();
        let nanoseconds = |key| field(&cpu, key).map(|microseconds| microseconds * 1000);
        stats.cpu_total_ns = nanoseconds("usage_usec").unwrap_or(0);
        stats.cpu_user_ns = nanoseconds("user_usec");
        stats.cpu_system_ns = nanoseconds("system_usec");
        stats.memory_usage = read_number(&dir, "memory.current");
        stats.memory_limit = read_number(&dir, "memory.max");
        stats.memory_inactive_file = field(&read(&dir, "memory.stat").unwrap_or_default(), "inactive_file");
        stats.pids = read_number(&dir, "pids.current");
        stats.pids_limit = read_number(&dir, "pids.max");
        if let Some(io) = read(&dir, "io.stat") {
            stats.io_read_bytes = Some(sum_io(&io, "rbytes="));
            stats.io_write_bytes = Some(sum_io(&io, "wbytes="));
        }
        let pressure = |name| read(&dir, name).and_then(|text| waited(&text));
        // A kernel has all of them, or none.
        if let Some(cpu) = pressure("cpu.pressure") {
            let (memory, io) = (pressure("memory.pressure"), pressure("io.pressure"));
            stats.pressure =
                Some(Pressure { cpu, memory: memory.unwrap_or_default(), io: io.unwrap_or_default() });
        }
    }

    pub(super) fn oom_kills(&self) -> u64 {
        read(&self.dir(), "memory.events").and_then(|text| field(&text, "oom_kill")).unwrap_or(0)
    }

    pub(super) fn watch_oom(&self) -> Option<OomWatch> {
        let dir = self.dir();
        read_number(&dir, "memory.max").and_then(|_| OomWatch::v2(&dir))
    }

    pub(super) fn freeze(&self, frozen: bool) -> Result<()> {
        let dir = self.dir();
        let value = u64::from(frozen);
        write(&dir, "cgroup.freeze", &value.to_string())?;
        for _ in 0..2000 {
            if read(&dir, "cgroup.events").and_then(|text| field(&text, "frozen")) == Some(value) {
                return Ok(());
            }
            pause_ms(1);
        }
        if frozen {
            write(&dir, "cgroup.freeze", "0")?;
        }
        Err(Error::internal(format!("{}: the processes did not freeze within 2 s", dir.display())))
    }

    /// Since Linux 5.14.
    pub(super) fn kill(&self) -> bool {
        try_write(&self.dir(), "cgroup.kill", "1").is_ok()
    }

    pub(super) fn remove(&self) -> Result<()> {
        remove_dir(&self.mount, &self.path)
    }
}

/// Sum over devices in lines of `8:0 rbytes=1 wbytes=2 …`.
fn sum_io(text: &str, key: &str) -> u64 {
    text.split_whitespace().filter_map(|word| word.strip_prefix(key)?.parse::<u64>().ok()).sum()
}

/// Total times of lines as `some avg10=0.00 avg60=0.00 avg300=0.00 total=123`, in microseconds.
fn waited(text: &str) -> Option<Waited> {
    let total = |kind: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(kind))?;
        let total = line.split_whitespace().find_map(|word| word.strip_prefix("total="))?;
        total.parse::<u64>().ok().map(|microseconds| microseconds * 1000)
    };
    // Kernels before 5.13 have no `full` for the CPU.
    Some(Waited { some_ns: total("some ")?, full_ns: total("full ").unwrap_or(0) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pressure_is_read() {
        let text =
            "some avg10=0.00 avg60=0.12 avg300=0.00 total=123\nfull avg10=0.00 avg60=0 avg300=0 total=7\n";
        assert_eq!(waited(text), Some(Waited { some_ns: 123_000, full_ns: 7_000 }));
        assert_eq!(waited("some avg10=0.00 total=5\n"), Some(Waited { some_ns: 5_000, full_ns: 0 }));
        assert_eq!(waited(""), None);
    }

    #[test]
    fn block_bytes_are_summed_over_devices() {
        assert_eq!(sum_io("8:0 rbytes=5 wbytes=1\n8:16 rbytes=7 wbytes=2\n", "rbytes="), 12);
    }

    /// The v2 hierarchy of a hybrid host has no controllers, but groups, devices, freezing and killing.
    #[test]
    fn a_cgroup_without_controllers_freezes_kills_and_goes() {
        let mount = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(Path::new);
        let mount = mount.into_iter().find(|path| super::super::is_unified(path)).expect("a cgroup v2 mount");
        let path = PathBuf::from(format!("proa-test/{}", std::process::id()));
        let resources =
            Resources { devices: proa_oci::defaults::default_device_rules(), ..Resources::default() };
        let cgroup =
            Cgroup::create(mount, &path, &resources, false, &mut Vec::new()).expect("this test needs root");
        let mut sleeper = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        write(&cgroup.dir(), "cgroup.procs", &sleeper.id().to_string()).unwrap();
        assert_eq!(cgroup.processes(), [sleeper.id()]);
        cgroup.freeze(true).unwrap();
        cgroup.freeze(false).unwrap();
        assert!(cgroup.kill());
        sleeper.wait().unwrap();
        cgroup.remove().unwrap();
        assert!(!mount.join(&path).exists());
        // What holds it is whoever's named it; another run of this test may use it.
        let _ = std::fs::remove_dir(mount.join("proa-test"));
    }
}
