//! What running instances use, one shape for both levels.

use std::time::{Duration, Instant};

use proa_protocol::instance::{IsolationLevel, Status};
use proa_protocol::message::{Request, Response, Stats};

use crate::engine::{Engine, Instance};
use crate::error::Result;

/// How long all instances together may take to answer: a guest may be deaf.
const LIMIT: Duration = Duration::from_secs(5);
/// Ticks of a second in `/proc/PID/stat`, on every architecture we know.
const TICKS: f64 = 100.0;

/// One instance at one moment.
#[derive(Debug, Clone)]
pub struct Sample {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its image, as it was named.
    pub image: String,
    /// Its level.
    pub level: IsolationLevel,
    /// Whether it is frozen.
    pub paused: bool,
    /// Its last start, nanoseconds since the epoch.
    pub started_ns: i64,
    /// What it uses; `None` where it did not say so in time.
    pub stats: Option<Stats>,
    /// What its monitor costs.
    pub monitor: Option<Cost>,
    /// What its VMM costs, the guest's memory and CPU time included.
    pub vmm: Option<Cost>,
}

/// What a process of ours costs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cost {
    /// Its proportional share of memory, bytes; `None` where that cannot be read.
    pub pss: Option<u64>,
    /// CPU time, seconds.
    pub cpu_seconds: f64,
}

impl Engine {
    /// Looks at all running instances, in the order of their names.
    ///
    /// # Errors
    /// The records cannot be read.
    pub fn sample(&self) -> Result<Vec<Sample>> {
        let deadline = Instant::now() + LIMIT;
        let live = self.instances()?.into_iter().filter(Instance::is_live);
        let mut samples: Vec<Sample> = live.map(|instance| self.sample_of(&instance, deadline)).collect();
        samples.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(samples)
    }

    fn sample_of(&self, instance: &Instance, deadline: Instant) -> Sample {
        let Instance { record, state } = instance;
        let answer =
            self.connect(instance).and_then(|mut channel| channel.call_until(Request::Stats, deadline));
        let stats = match answer {
            Ok(Some(Response::Stats(stats))) => Some(*stats),
            // One that has just ended, or does not answer, is there without figures.
            _ => None,
        };
        Sample {
            id: record.id.clone(),
            name: record.name.clone(),
            image: record.image.clone(),
            level: record.level,
            paused: state.status == Status::Paused,
            started_ns: state.started_ns,
            stats,
            monitor: cost(state.monitor_pid),
            vmm: (record.level == IsolationLevel::Vm).then(|| cost(state.pid)).flatten(),
        }
    }
}

fn cost(pid: u32) -> Option<Cost> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok();
    Some(Cost { pss: rollup.and_then(|text| pss(&text)), cpu_seconds: cpu_seconds(&stat)? })
}

fn pss(rollup: &str) -> Option<u64> {
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}

/// The sum of fields 14 and 15.
fn cpu_seconds(stat: &str) -> Option<f64> {
    // The name may hold blanks and parentheses: what follows starts after the last one.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ').skip(11);
    let ticks = |text: Option<&str>| text?.parse::<u64>().ok();
    Some((ticks(fields.next())? + ticks(fields.next())?) as f64 / TICKS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costs_are_read() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 1 0 100";
        assert_eq!(cpu_seconds(stat), Some(3.0));
        assert_eq!(
            pss("5-7 ---p 0 0:0 0 [rollup]\nRss:  9 kB\nPss:  12 kB\nPss_Anon: 1 kB\n"),
            Some(12 * 1024)
        );
        let own = cost(std::process::id()).unwrap();
        assert!(own.pss.is_none_or(|bytes| bytes > 10_000));
        assert_eq!(cost(0), None);
    }
}
