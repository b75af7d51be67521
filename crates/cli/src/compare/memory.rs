//! Memory of an instance as the host sees it: the monitor and all its descendants.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

/// Memory in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Memory {
    /// Ends with the instance.
    pub private: u64,
    /// Fair share of pages that others map too.
    pub shared: u64,
    /// Private and shared less the program's own resident memory.
    pub overhead: u64,
    /// Resident memory of the program, as seen inside.
    pub program: u64,
}

/// Memory of the instance that the process `holder` belongs to, whose program uses `program` bytes.
pub fn of_instance(holder: u32, program: u64) -> Result<Memory> {
    let parents = parents()?;
    let monitor = *parents.get(&holder).with_context(|| format!("process {holder} has ended"))?;
    let mut memory = Memory { program, ..Memory::default() };
    for pid in parents.keys().copied().filter(|pid| descends(&parents, *pid, monitor)) {
        // A process may end while we look; what is gone uses nothing.
        let Ok(rollup) = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")) else { continue };
        let private = kilobytes(&rollup, "Private_Clean:") + kilobytes(&rollup, "Private_Dirty:");
        memory.private += private;
        memory.shared += kilobytes(&rollup, "Pss:").saturating_sub(private);
    }
    memory.overhead = (memory.private + memory.shared).saturating_sub(program);
    Ok(memory)
}

/// `VmRSS` of a `/proc/PID/status`, in bytes.
pub fn resident(status: &str) -> u64 {
    kilobytes(status, "VmRSS:")
}

/// Number of processes on this host.
pub fn process_count() -> Result<usize> {
    Ok(parents()?.len())
}

fn kilobytes(text: &str, field: &str) -> u64 {
    let rest = text.lines().find_map(|line| line.strip_prefix(field));
    rest.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// Every process and its parent.
fn parents() -> Result<BTreeMap<u32, u32>> {
    let entries = fs::read_dir("/proc").context("cannot list /proc")?.flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    Ok(pids.filter_map(|pid| Some((pid, parent(pid)?))).collect())
}

fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat")).ok()?;
    // The name may hold blanks and parentheses: what follows starts after the last one.
    stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
}

fn descends(parents: &BTreeMap<u32, u32>, pid: u32, ancestor: u32) -> bool {
    let mut at = pid;
    // The chain is finite, but processes come and go while it is read.
    for _ in 0..parents.len() {
        if at == ancestor {
            return true;
        }
        match parents.get(&at) {
            Some(parent) => at = *parent,
            None => return false,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descent_is_followed_and_ends() {
        let parents = BTreeMap::from([(1, 0), (5, 1), (6, 5), (7, 7)]);
        assert!(descends(&parents, 6, 5));
        assert!(descends(&parents, 5, 5));
        assert!(!descends(&parents, 1, 5));
        assert!(!descends(&parents, 7, 5));
    }

    #[test]
    fn fields_are_read_in_bytes() {
        assert_eq!(resident("Name:\tx\nVmRSS:\t    1234 kB\n"), 1234 * 1024);
        assert_eq!(resident(""), 0);
    }
}
