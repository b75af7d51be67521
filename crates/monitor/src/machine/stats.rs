//! What a machine uses, as its host sees it: the VMM's process and the links of its network devices.

use std::fs;

use proa_protocol::message::Stats;
use proa_protocol::network::link_name;

use crate::clock::now_ns;

/// Where to look.
pub struct Usage {
    pid: u32,
    memory: u64,
    cpus: u32,
    links: Vec<String>,
}

impl Usage {
    /// Of the VMM with this process id, which gives its guest so much.
    pub fn new(pid: u32, memory: u64, cpus: u32, instance: &str, networks: usize) -> Self {
        Self { pid, memory, cpus, links: (0..networks).map(|number| link_name(instance, number)).collect() }
    }

    /// What it uses now.
    pub fn now(&self) -> Stats {
        let file = |name: &str| fs::read_to_string(format!("/proc/{}/{name}", self.pid)).unwrap_or_default();
        let (user, system) = cpu_ticks(&file("stat"));
        let tick = 1_000_000_000 / rustix::param::clock_ticks_per_second();
        let io = file("io");
        // What the guest receives, the host sends.
        let traffic = |counter: &str| {
            let read = |link: &String| {
                let path = format!("/sys/class/net/{link}/statistics/{counter}");
                fs::read_to_string(path).ok()?.trim().parse::<u64>().ok()
            };
            (!self.links.is_empty()).then(|| self.links.iter().filter_map(read).sum())
        };
        Stats {
            at_ns: now_ns(),
            cpu_total_ns: (user + system) * tick,
            cpu_user_ns: Some(user * tick),
            cpu_system_ns: Some(system * tick),
            online_cpus: self.cpus,
            memory_usage: field(&file("status"), "VmRSS:").map(|kib| kib * 1024),
            memory_limit: Some(self.memory),
            memory_total: self.memory,
            io_read_bytes: field(&io, "read_bytes:"),
            io_write_bytes: field(&io, "write_bytes:"),
            net_rx_bytes: traffic("tx_bytes"),
            net_tx_bytes: traffic("rx_bytes"),
            ..Stats::default()
        }
    }
}

/// Ticks in user mode and in the kernel, from `/proc/<pid>/stat`; its second field may hold anything.
fn cpu_ticks(stat: &str) -> (u64, u64) {
    let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let mut fields = rest.split_whitespace().skip(11).map(|text| text.parse().unwrap_or(0));
    (fields.next().unwrap_or(0), fields.next().unwrap_or(0))
}

/// The number after a line's name.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_a_process_are_read() {
        let stat = "7 (a ) b) S 1 7 7 0 -1 4194560 100 0 0 0 12 34 0 0 20 0 1 0 5 6 7";
        assert_eq!(cpu_ticks(stat), (12, 34));
        assert_eq!(field("Name:\tx\nVmRSS:\t   12 kB\n", "VmRSS:"), Some(12));
        let own = Usage::new(std::process::id(), 1 << 30, 1, "ab", 0).now();
        assert!(own.memory_usage.unwrap() > 0 && own.net_rx_bytes.is_none());
    }
}
