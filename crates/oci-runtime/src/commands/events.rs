//! `events`: resource use, in runc's shape, once or at intervals until the container ends.

use std::os::fd::AsFd;

use proa_protocol::message::Stats;
use proa_runtime::Container;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::Timespec;
use serde_json::{Value, json};

use crate::args::{Opt, Parsed, flag, value};
use crate::error::{Failure, Result};
use crate::global::Global;
use crate::out;

/// Its options.
pub const OPTIONS: &[Opt] = &[flag("stats"), value("interval")];

/// Runs it.
///
/// # Errors
/// The container does not run.
pub fn run(global: &Global, parsed: &Parsed) -> Result<u8> {
    let entry = global.store.open(parsed.id()?)?;
    let interval = interval(parsed.get("interval").unwrap_or("5s"))?;
    let (container, _) = entry.container(entry.saved()?.as_ref())?;
    let container =
        container.ok_or_else(|| Failure::new(format!("container '{}' is not running", entry.id)))?;
    let show = |container: &Container| out::line(&event(&entry.id, &container.stats()?));
    if parsed.is("stats") {
        return show(&container);
    }
    loop {
        let pidfd = container.pidfd();
        match poll(&mut [PollFd::new(&pidfd.as_fd(), PollFlags::IN)], Some(&interval)) {
            Ok(0) => show(&container)?,
            Ok(_) => return Ok(0),
            Err(rustix::io::Errno::INTR) => continue,
            Err(errno) => return Err(Failure::new(format!("poll: {errno}"))),
        };
    }
}

fn event(id: &str, stats: &Stats) -> Value {
    let blocks =
        |operation: &str, bytes: Option<u64>| bytes.map(|value| json!({ "op": operation, "value": value }));
    let service: Vec<Value> = [blocks("Read", stats.io_read_bytes), blocks("Write", stats.io_write_bytes)]
        .into_iter()
        .flatten()
        .collect();
    json!({
        "type": "stats",
        "id": id,
        "data": {
            "cpu": {
                "usage": {
                    "total": stats.cpu_total_ns,
                    "kernel": stats.cpu_system_ns.unwrap_or(0),
                    "user": stats.cpu_user_ns.unwrap_or(0),
                },
                "throttling": {},
            },
            "memory": {
                "usage": {
                    "usage": stats.memory_usage.unwrap_or(0),
                    "limit": stats.memory_limit.unwrap_or(u64::MAX),
                },
                "raw": { "inactive_file": stats.memory_inactive_file.unwrap_or(0) },
            },
            "pids": { "current": stats.pids.unwrap_or(0), "limit": stats.pids_limit.unwrap_or(0) },
            "blkio": { "ioServiceBytesRecursive": service },
        },
    })
}

/// A duration as Go writes it, of one unit: `5s`, `500ms`, `1m`.
fn interval(text: &str) -> Result<Timespec> {
    let wrong = || Failure::usage(format!("--interval {text}: use a duration above zero, like 5s or 500ms"));
    let end = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
    let number: i64 = text[..end].parse().map_err(|_| wrong())?;
    let unit = match &text[end..] {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(wrong()),
    };
    let ms = number.checked_mul(unit).filter(|ms| *ms > 0).ok_or_else(wrong)?;
    Ok(Timespec { tv_sec: ms / 1000, tv_nsec: ms % 1000 * 1_000_000 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals() {
        assert_eq!(interval("5s").unwrap(), Timespec { tv_sec: 5, tv_nsec: 0 });
        assert_eq!(interval("1500ms").unwrap(), Timespec { tv_sec: 1, tv_nsec: 500_000_000 });
        for text in ["", "5", "s", "0s", "-1s", "5x", "99999999999999999h"] {
            assert!(interval(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_shape_is_runcs() {
        let stats =
            Stats { cpu_total_ns: 7, memory_usage: Some(9), io_read_bytes: Some(3), ..Stats::default() };
        let event = event("x", &stats);
        assert_eq!((&event["type"], &event["id"]), (&json!("stats"), &json!("x")));
        assert_eq!(event["data"]["cpu"]["usage"]["total"], 7);
        assert_eq!(event["data"]["memory"]["usage"]["usage"], 9);
        assert_eq!(event["data"]["blkio"]["ioServiceBytesRecursive"][0]["op"], "Read");
    }
}
