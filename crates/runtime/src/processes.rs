//! Processes by `/proc`: who belongs to a container, and what each does.

use std::fs;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;

use proa_protocol::message::ProcessInfo;
use rustix::param::{clock_ticks_per_second, page_size};

use crate::user::Names;

/// A process and all its descendants; of a container's first process: everything in its pid namespace but what
/// was put there from outside.
pub(crate) fn descendants(pid: u32) -> Vec<u32> {
    let mut found = vec![pid];
    let mut at = 0;
    while let Some(parent) = found.get(at) {
        at += 1;
        let Ok(threads) = fs::read_dir(format!("/proc/{parent}/task")) else { continue };
        for thread in threads.flatten() {
            let children = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
            found.extend(children.split_whitespace().filter_map(|child| child.parse::<u32>().ok()));
        }
    }
    found
}

/// The inode that names the pid namespace of a process.
pub(crate) fn pid_namespace(pid: u32) -> Option<u64> {
    fs::metadata(format!("/proc/{pid}/ns/pid")).ok().map(|metadata| metadata.ino())
}

/// When a process was started, in clock ticks since the boot; `None` if it has ended.
pub(crate) fn start_ticks(pid: u32) -> Option<u64> {
    Stat::read(pid).map(|stat| stat.start_ticks)
}

/// Whether the process of this id is the one started at that moment, and has not ended.
pub(crate) fn is_alive(pid: u32, start_ticks: u64) -> bool {
    Stat::read(pid).is_some_and(|stat| stat.start_ticks == start_ticks && !stat.has_ended)
}

/// The id of the process that a descriptor is of; `None` if it has ended.
pub(crate) fn of_pidfd(pidfd: BorrowedFd) -> Option<u32> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd())).ok()?;
    info.lines().find_map(|line| line.strip_prefix("Pid:")?.trim().parse().ok())
}

/// All processes of a pid namespace, but not those of namespaces below it.
pub(crate) fn in_namespace(namespace: u64) -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| pid_namespace(*pid) == Some(namespace))
        .collect()
}

/// CPU time in nanoseconds and resident bytes of a process.
pub(crate) fn usage(pid: u32) -> Option<(u64, u64)> {
    let stat = Stat::read(pid)?;
    Some((stat.ticks * (1_000_000_000 / clock_ticks_per_second()), stat.rss_pages * page_size() as u64))
}

/// Bytes received and sent by the interfaces of a process's network namespace, `lo` excepted.
pub(crate) fn network(pid: u32) -> Option<(u64, u64)> {
    Some(sum_interfaces(&fs::read_to_string(format!("/proc/{pid}/net/dev")).ok()?))
}

/// Lines of `eth0: <8 fields of what was received> <8 of what was sent>`, bytes first in each.
fn sum_interfaces(text: &str) -> (u64, u64) {
    let interfaces = text.lines().filter_map(|line| line.split_once(':'));
    let bytes = interfaces.filter(|(name, _)| name.trim() != "lo").map(|(_, counts)| {
        let counts: Vec<u64> = counts.split_whitespace().map(|count| count.parse().unwrap_or(0)).collect();
        (counts.first().copied().unwrap_or(0), counts.get(8).copied().unwrap_or(0))
    });
    bytes.fold((0, 0), |(received, sent), (in_, out)| (received + in_, sent + out))
}

/// What is to be said about processes.
pub(crate) struct Teller {
    names: Names,
    boot_s: i64,
    memory: u64,
}

impl Teller {
    pub(crate) fn new() -> Self {
        let machine = rustix::system::sysinfo();
        let memory = (machine.totalram as u64 * u64::from(machine.mem_unit)).max(1);
        Self { names: Names::here(), boot_s: boot_time(), memory }
    }

    /// About one; `None` if it has ended.
    pub(crate) fn tell(&self, pid: u32) -> Option<ProcessInfo> {
        let stat = Stat::read(pid)?;
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let effective = |key: &str| {
            status.lines().find_map(|line| line.strip_prefix(key)?.split_whitespace().nth(1)?.parse().ok())
        };
        let (uid, gid) = (effective("Uid:")?, effective("Gid:")?);
        let locks = status.lines().any(|line| {
            line.strip_prefix("VmLck:").is_some_and(|rest| rest.split_whitespace().next() != Some("0"))
        });
        let ticks = clock_ticks_per_second();
        let rss = stat.rss_pages * page_size() as u64;
        Some(ProcessInfo {
            uid,
            pid,
            ppid: stat.ppid,
            start_s: self.boot_s + (stat.start_ticks / ticks) as i64,
            cpu_ms: stat.ticks * 1000 / ticks,
            tty: terminal_name(stat.tty),
            rss,
            state: stat.letters(pid, locks),
            command: command(pid).unwrap_or_else(|| format!("[{}]", stat.name)),
            name: stat.name,
            user: self.names.user(uid),
            gid,
            group: self.names.group(gid),
            pgid: stat.pgid,
            sid: stat.sid,
            nice: stat.nice,
            priority: stat.priority,
            threads: stat.threads,
            vsz: stat.vsz,
            of_memory: (rss * 1000 / self.memory) as u32,
        })
    }
}

/// When the machine was started, seconds since the epoch.
fn boot_time() -> i64 {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    stat.lines().find_map(|line| line.strip_prefix("btime ")?.parse().ok()).unwrap_or(0)
}

fn command(pid: u32) -> Option<String> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).ok().filter(|bytes| !bytes.is_empty())?;
    let words = bytes.strip_suffix(b"\0").unwrap_or(&bytes).split(|byte| *byte == 0);
    Some(words.map(String::from_utf8_lossy).collect::<Vec<_>>().join(" "))
}

fn terminal_name(device: i32) -> String {
    // The minor number has its upper bits above the major.
    let (major, minor) = (device >> 8 & 0xfff, device & 0xff | device >> 12 & 0xfff00);
    match (device, major) {
        (0, _) => "?".to_owned(),
        (_, 136..=143) => format!("pts/{}", minor + (major - 136) * 256),
        (_, 4) => format!("tty{minor}"),
        _ => format!("{major}:{minor}"),
    }
}

struct Stat {
    name: String,
    state: char,
    ppid: u32,
    pgid: u32,
    sid: u32,
    tty: i32,
    /// The process group in the terminal's foreground.
    foreground: i32,
    ticks: u64,
    priority: i32,
    nice: i32,
    threads: u32,
    start_ticks: u64,
    vsz: u64,
    rss_pages: u64,
    /// A zombie.
    has_ended: bool,
}

impl Stat {
    fn read(pid: u32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    /// The name stands in parentheses and may hold any, so the fields are counted from the last one.
    fn parse(text: &str) -> Option<Self> {
        let (head, tail) = text.rsplit_once(')')?;
        let fields: Vec<&str> = tail.split_whitespace().collect();
        let number = |field: usize| fields.get(field - 3)?.parse::<i64>().ok();
        let state = fields.first()?.chars().next()?;
        Some(Self {
            name: head.split_once('(')?.1.to_owned(),
            state,
            ppid: number(4)? as u32,
            pgid: number(5)? as u32,
            sid: number(6)? as u32,
            tty: number(7)? as i32,
            foreground: number(8)? as i32,
            ticks: (number(14)? + number(15)?) as u64,
            priority: number(18)? as i32,
            nice: number(19)? as i32,
            threads: number(20)? as u32,
            start_ticks: number(22)? as u64,
            vsz: number(23)? as u64,
            rss_pages: number(24)? as u64,
            has_ended: matches!(state, 'Z' | 'X'),
        })
    }

    /// The state, and what `ps` says beside it.
    fn letters(&self, pid: u32, locks: bool) -> String {
        let more = [
            ('<', self.nice < 0),
            ('N', self.nice > 0),
            ('L', locks),
            ('s', self.sid == pid),
            ('l', self.threads > 1),
            ('+', self.foreground == self.pgid as i32),
        ];
        let more = more.into_iter().filter(|(_, holds)| *holds).map(|(letter, _)| letter);
        std::iter::once(self.state).chain(more).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_parentheses_do_not_shift_the_fields() {
        let text = "7 (a) b) (c)) S 3 7 7 34817 7 0 1 2 3 4 50 25 0 0 20 0 1 0 999 4096 12 0";
        let stat = Stat::parse(text).unwrap();
        assert_eq!((stat.name.as_str(), stat.ppid, stat.tty), ("a) b) (c)", 3, 34817));
        assert_eq!((stat.vsz, stat.threads, stat.letters(7, false).as_str()), (4096, 1, "Ss+"));
        assert_eq!((stat.ticks, stat.start_ticks, stat.rss_pages), (75, 999, 12));
        assert_eq!(terminal_name(34817), "pts/1");
        assert_eq!(terminal_name(0), "?");
    }

    #[test]
    fn interfaces_are_summed_without_the_loopback() {
        let text = "Inter-|   Receive\n face |bytes\n    lo: 9 1 0 0 0 0 0 0 9 1 0 0 0 0 0 0\n\
            \x20 eth0: 100 1 0 0 0 0 0 0 7 1 0 0 0 0 0 0\n  eth1:20 1 0 0 0 0 0 0 3 1 0 0 0 0 0 0\n";
        assert_eq!(sum_interfaces(text), (120, 10));
        assert!(network(std::process::id()).is_some());
    }

    #[test]
    fn we_are_our_parents_descendant() {
        let own = std::process::id();
        let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        assert!(descendants(own).contains(&child.id()));
        let info = Teller::new().tell(own).unwrap();
        assert!(
            info.rss > 0
                && info.vsz >= info.rss
                && !info.name.is_empty()
                && info.start_s > 1_600_000_000
                && info.command.contains("proa")
        );
        assert_eq!(pid_namespace(own), pid_namespace(child.id()));
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
