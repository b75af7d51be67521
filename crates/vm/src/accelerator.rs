//! Whether the host's hardware virtualization is of use; found out once for each boot of the host.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use proa_sys::kvm::{self, Verdict};
use serde::{Deserialize, Serialize};

use crate::VmError;
use crate::store::Store;

const DEVICE: &str = "/dev/kvm";
const RECORD: &str = "accelerator.json";
/// The probe's loop takes a millisecond or two on hardware; where instructions are emulated, a thousand times
/// that.
const FAST: Duration = Duration::from_millis(50);
const LIMIT: Duration = Duration::from_secs(1);
/// A busy host may delay a run; it does not delay each of them.
const TRIES: usize = 3;
/// Long enough to tell the counter's rate to some parts in a million.
const TSC_PERIOD: Duration = Duration::from_millis(25);

/// What executes the guest's instructions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Accelerator {
    /// The CPU.
    Kvm {
        /// Group that may use the device.
        group: u32,
    },
    /// The VMM, by translating them.
    Emulation {
        /// Rate of the time stamp counter that the guest sees; it cannot measure it well itself.
        tsc_khz: u64,
    },
}

#[derive(Debug, Serialize, Deserialize)]
struct Record {
    /// The host's boot, and which device it had.
    host: String,
    /// Why hardware virtualization is of no use here; `None` where it is.
    unusable: Option<String>,
    group: u32,
    tsc_khz: u64,
}

impl Accelerator {
    /// Its name, as users and snapshots have it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Kvm { .. } => "kvm",
            Self::Emulation { .. } => "emulation",
        }
    }

    /// The best that works here. That it is not the hardware is said by one line to `notice` when that is found out: once
    /// for each boot of the host, since `proa info` says it at any time.
    pub fn find(store: &Store, notice: &mut dyn FnMut(String)) -> Result<Self, VmError> {
        let host = describe_host();
        let known = || store.read_json::<Record>(RECORD).filter(|record| record.host == host);
        let record = match known() {
            Some(record) => record,
            None => {
                let lock = store.lock()?;
                match known() {
                    Some(record) => record,
                    None => {
                        let record = Record::probe(host.clone());
                        store.write_json(&lock, &store.path(RECORD), &record)?;
                        record.announce(notice);
                        record
                    }
                }
            }
        };
        Ok(match record.unusable {
            None => Self::Kvm { group: record.group },
            Some(_) => Self::Emulation { tsc_khz: record.tsc_khz },
        })
    }
}

impl Record {
    fn probe(host: String) -> Self {
        let unusable = probe_repeatedly();
        let group = fs::metadata(DEVICE).map_or(0, |metadata| metadata.gid());
        let tsc_khz = match unusable {
            None => 0,
            Some(_) => kvm::measure_tsc_hz(TSC_PERIOD) / 1000,
        };
        Self { host, unusable, group, tsc_khz }
    }

    fn announce(&self, notice: &mut dyn FnMut(String)) {
        if let Some(reason) = &self.unusable {
            notice(format!("no usable hardware virtualization ({reason}): emulating, which is slow"));
        }
    }
}

/// Why no run showed the device to be of use; `None` as soon as one does.
fn probe_repeatedly() -> Option<String> {
    let mut reason = None;
    for _ in 0..TRIES {
        reason = run_probe();
        reason.as_ref()?;
    }
    reason
}

/// Why one run shows the device to be of no use.
fn run_probe() -> Option<String> {
    match kvm::probe(Path::new(DEVICE), LIMIT) {
        Ok(Verdict::Ran(time)) if time <= FAST => None,
        Ok(Verdict::Ran(time)) => {
            Some(format!("{DEVICE}: a test loop took {} ms instead of one or two", time.as_millis()))
        }
        Ok(Verdict::Hung) => Some(format!("{DEVICE}: a test loop did not end")),
        Ok(Verdict::Failed(reason)) => Some(format!("{DEVICE}: {reason}")),
        Err(error) => Some(format!("{DEVICE}: {error}")),
    }
}

/// Changes with each boot, and when the device comes, goes or changes hands.
fn describe_host() -> String {
    let device = match fs::metadata(DEVICE) {
        Ok(metadata) => {
            format!("{:x} {:o} {} {}", metadata.rdev(), metadata.mode(), metadata.uid(), metadata.gid())
        }
        Err(_) => "none".to_owned(),
    };
    format!("{} {device}", boot_id())
}

/// Another one after each boot of the host.
pub(crate) fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_is_probed_once_and_says_so_once() {
        let scratch = tempfile::tempdir().unwrap();
        let store = Store::open(scratch.path()).unwrap();
        let mut lines = Vec::new();
        let first = Accelerator::find(&store, &mut |line| lines.push(line)).unwrap();
        let written = fs::read(scratch.path().join(RECORD)).unwrap();
        let second = Accelerator::find(&store, &mut |line| lines.push(line)).unwrap();
        assert_eq!(first, second);
        assert_eq!(written, fs::read(scratch.path().join(RECORD)).unwrap());
        match first {
            Accelerator::Kvm { .. } => assert!(lines.is_empty()),
            Accelerator::Emulation { tsc_khz } => {
                assert!(tsc_khz > 100_000 && lines.len() == 1, "{lines:?}");
            }
        }
    }

    #[test]
    fn a_record_of_another_boot_is_not_believed() {
        let scratch = tempfile::tempdir().unwrap();
        let store = Store::open(scratch.path()).unwrap();
        let stale = Record { host: "another".into(), unusable: Some("x".into()), group: 0, tsc_khz: 1 };
        store.write_json(&store.lock().unwrap(), &store.path(RECORD), &stale).unwrap();
        let found = Accelerator::find(&store, &mut |line| assert!(!line.contains("(x)"))).unwrap();
        assert_ne!(found, Accelerator::Emulation { tsc_khz: 1 });
    }
}
