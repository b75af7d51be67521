//! What running instances use, for monitoring systems.
//!
//! ```text
//!   Engine::sample ─▶ families ─┬▶ text   Prometheus' text format, or OpenMetrics
//!                               └▶ otlp   OpenTelemetry's protocol, in JSON
//! ```
//!
//! A family has one name, one unit and one meaning at both levels; what a host or a level cannot tell has no points.

pub mod otlp;
pub mod serve;
pub mod text;

use proa_engine::metrics::{Cost, Sample};
use proa_protocol::message::{Pressure, Stats, Waited};

/// What sort of number it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It goes up and down.
    Gauge,
    /// It only grows, until the instance is started again.
    Counter,
}

/// One number.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Number {
    /// Bytes, tasks.
    Whole(u64),
    /// Seconds.
    Seconds(f64),
}

/// A number of one instance.
#[derive(Debug, Clone, PartialEq)]
pub struct Point {
    /// Labels beside the instance's own.
    pub labels: Vec<(&'static str, &'static str)>,
    /// Which instance, by its place among the samples.
    pub sample: usize,
    /// How much.
    pub number: Number,
}

/// All numbers of one meaning.
#[derive(Debug, Clone, PartialEq)]
pub struct Family {
    /// Its name, without the `_total` of counters.
    pub name: &'static str,
    /// What it means.
    pub help: &'static str,
    /// What sort it is.
    pub kind: Kind,
    /// OpenTelemetry's unit.
    pub unit: &'static str,
    /// The numbers.
    pub points: Vec<Point>,
}

/// The labels of an instance.
pub fn labels(sample: &Sample) -> [(&'static str, &str); 4] {
    [
        ("id", &sample.id),
        ("name", &sample.name),
        ("image", &sample.image),
        ("isolation", sample.level.as_str()),
    ]
}

type Read = fn(&Sample) -> Option<Number>;
/// Name, help, kind, unit, and the points: labels and where the number is.
type Definition = (&'static str, &'static str, Kind, &'static str, &'static [(&'static [Label], Read)]);
type Label = (&'static str, &'static str);

const NS: f64 = 1e9;

fn bytes(sample: &Sample, read: fn(&Stats) -> Option<u64>) -> Option<Number> {
    sample.stats.as_ref().and_then(read).map(Number::Whole)
}

fn seconds(sample: &Sample, read: fn(&Stats) -> Option<u64>) -> Option<Number> {
    sample.stats.as_ref().and_then(read).map(|ns| Number::Seconds(ns as f64 / NS))
}

fn waited(sample: &Sample, what: fn(&Pressure) -> Waited, full: bool) -> Option<Number> {
    let waited = what(sample.stats.as_ref()?.pressure.as_ref()?);
    Some(Number::Seconds(if full { waited.full_ns } else { waited.some_ns } as f64 / NS))
}

fn pss(cost: Option<Cost>) -> Option<Number> {
    cost?.pss.map(Number::Whole)
}

fn cpu(cost: Option<Cost>) -> Option<Number> {
    Some(Number::Seconds(cost?.cpu_seconds))
}

const DEFINITIONS: &[Definition] = &[
    (
        "proa_instance_up",
        "Whether the instance answered when it was asked for its figures.",
        Kind::Gauge,
        "1",
        &[(&[], |sample| Some(Number::Whole(sample.stats.is_some().into())))],
    ),
    (
        "proa_instance_paused",
        "Whether the instance is frozen.",
        Kind::Gauge,
        "1",
        &[(&[], |sample| Some(Number::Whole(sample.paused.into())))],
    ),
    (
        "proa_instance_start_time_seconds",
        "Last start, in seconds since the epoch.",
        Kind::Gauge,
        "s",
        &[(&[], |sample| Some(Number::Seconds(sample.started_ns as f64 / NS)))],
    ),
    (
        "proa_cpu_usage_seconds",
        "CPU time used.",
        Kind::Counter,
        "s",
        &[(&[], |sample| seconds(sample, |stats| Some(stats.cpu_total_ns)))],
    ),
    (
        "proa_cpu_mode_seconds",
        "CPU time used, by mode.",
        Kind::Counter,
        "s",
        &[
            (&[("mode", "user")], |sample| seconds(sample, |stats| stats.cpu_user_ns)),
            (&[("mode", "system")], |sample| seconds(sample, |stats| stats.cpu_system_ns)),
        ],
    ),
    (
        "proa_cpus",
        "CPUs that the instance may use at once.",
        Kind::Gauge,
        "1",
        &[(&[], |sample| bytes(sample, |stats| Some(stats.online_cpus.into())))],
    ),
    (
        "proa_memory_usage_bytes",
        "Memory charged, page cache included.",
        Kind::Gauge,
        "By",
        &[(&[], |sample| bytes(sample, |stats| stats.memory_usage))],
    ),
    (
        "proa_memory_working_set_bytes",
        "Memory charged less inactive page cache.",
        Kind::Gauge,
        "By",
        &[(&[], |sample| {
            bytes(sample, |stats| {
                Some(stats.memory_usage?.saturating_sub(stats.memory_inactive_file.unwrap_or(0)))
            })
        })],
    ),
    (
        "proa_memory_limit_bytes",
        "Limit on memory; absent where there is none.",
        Kind::Gauge,
        "By",
        &[(&[], |sample| bytes(sample, |stats| stats.memory_limit))],
    ),
    (
        "proa_memory_total_bytes",
        "Memory of the machine that it runs on: the host's, or the guest's at level vm.",
        Kind::Gauge,
        "By",
        &[(&[], |sample| bytes(sample, |stats| Some(stats.memory_total)))],
    ),
    ("proa_pids", "Tasks.", Kind::Gauge, "1", &[(&[], |sample| bytes(sample, |stats| stats.pids))]),
    (
        "proa_pids_limit",
        "Limit on tasks; absent where there is none.",
        Kind::Gauge,
        "1",
        &[(&[], |sample| bytes(sample, |stats| stats.pids_limit))],
    ),
    (
        "proa_network_receive_bytes",
        "Bytes received by interfaces other than lo.",
        Kind::Counter,
        "By",
        &[(&[], |sample| bytes(sample, |stats| stats.net_rx_bytes))],
    ),
    (
        "proa_network_transmit_bytes",
        "Bytes sent by interfaces other than lo.",
        Kind::Counter,
        "By",
        &[(&[], |sample| bytes(sample, |stats| stats.net_tx_bytes))],
    ),
    (
        "proa_block_read_bytes",
        "Bytes read from block devices.",
        Kind::Counter,
        "By",
        &[(&[], |sample| bytes(sample, |stats| stats.io_read_bytes))],
    ),
    (
        "proa_block_write_bytes",
        "Bytes written to block devices.",
        Kind::Counter,
        "By",
        &[(&[], |sample| bytes(sample, |stats| stats.io_write_bytes))],
    ),
    (
        "proa_pressure_waiting_seconds",
        "Time in which some task waited (PSI), by resource; absent where the kernel does not tell.",
        Kind::Counter,
        "s",
        &[
            (&[("resource", "cpu")], |sample| waited(sample, |pressure| pressure.cpu, false)),
            (&[("resource", "memory")], |sample| waited(sample, |pressure| pressure.memory, false)),
            (&[("resource", "io")], |sample| waited(sample, |pressure| pressure.io, false)),
        ],
    ),
    (
        "proa_pressure_stalled_seconds",
        "Time in which all tasks waited (PSI), by resource; absent where the kernel does not tell.",
        Kind::Counter,
        "s",
        &[
            (&[("resource", "cpu")], |sample| waited(sample, |pressure| pressure.cpu, true)),
            (&[("resource", "memory")], |sample| waited(sample, |pressure| pressure.memory, true)),
            (&[("resource", "io")], |sample| waited(sample, |pressure| pressure.io, true)),
        ],
    ),
    (
        "proa_monitor_memory_bytes",
        "The monitor's proportional share of memory.",
        Kind::Gauge,
        "By",
        &[(&[], |sample| pss(sample.monitor))],
    ),
    (
        "proa_monitor_cpu_seconds",
        "CPU time that the monitor used.",
        Kind::Counter,
        "s",
        &[(&[], |sample| cpu(sample.monitor))],
    ),
    (
        "proa_vmm_memory_bytes",
        "The VMM's proportional share of memory, the guest's memory included; of level vm alone.",
        Kind::Gauge,
        "By",
        &[(&[], |sample| pss(sample.vmm))],
    ),
    (
        "proa_vmm_cpu_seconds",
        "CPU time that the VMM used, the guest's included; of level vm alone.",
        Kind::Counter,
        "s",
        &[(&[], |sample| cpu(sample.vmm))],
    ),
];

/// All families that have points.
pub fn families(samples: &[Sample]) -> Vec<Family> {
    let family = |&(name, help, kind, unit, parts): &Definition| {
        let mut points = Vec::new();
        for (place, sample) in samples.iter().enumerate() {
            for (labels, read) in parts {
                if let Some(number) = read(sample) {
                    points.push(Point { labels: labels.to_vec(), sample: place, number });
                }
            }
        }
        (!points.is_empty()).then_some(Family { name, help, kind, unit, points })
    };
    DEFINITIONS.iter().filter_map(family).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proa_protocol::instance::IsolationLevel;

    /// Two instances, one of which says nothing.
    pub(super) fn samples() -> Vec<Sample> {
        let stats = Stats {
            cpu_total_ns: 1_500_000_000,
            memory_usage: Some(1000),
            memory_inactive_file: Some(400),
            online_cpus: 2,
            pressure: Some(Pressure {
                cpu: Waited { some_ns: 2_000_000_000, full_ns: 0 },
                ..Pressure::default()
            }),
            ..Stats::default()
        };
        let web = Sample {
            id: "ab".repeat(32),
            name: "web".into(),
            image: "a\"b\\c\nd".into(),
            level: IsolationLevel::Vm,
            paused: false,
            started_ns: 1_700_000_000_500_000_000,
            stats: Some(stats),
            monitor: Some(Cost { pss: Some(300_000), cpu_seconds: 0.25 }),
            vmm: Some(Cost { pss: None, cpu_seconds: 2.0 }),
        };
        let deaf = Sample {
            id: "cd".repeat(32),
            name: "deaf".into(),
            level: IsolationLevel::Container,
            stats: None,
            vmm: None,
            ..web.clone()
        };
        vec![web, deaf]
    }

    #[test]
    fn names_are_unlike_and_say_their_unit() {
        let mut names: Vec<&str> = DEFINITIONS.iter().map(|definition| definition.0).collect();
        for (name, _, _, unit, _) in DEFINITIONS {
            let ends = match *unit {
                "s" => name.ends_with("_seconds"),
                "By" => name.ends_with("_bytes"),
                _ => true,
            };
            assert!(ends && name.starts_with("proa_"), "{name}");
        }
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), DEFINITIONS.len());
    }

    #[test]
    fn what_is_not_known_has_no_points() {
        let families = families(&samples());
        let find = |name: &str| families.iter().find(|family| family.name == name);
        let up: Vec<Number> =
            find("proa_instance_up").unwrap().points.iter().map(|point| point.number).collect();
        assert_eq!(up, [Number::Whole(1), Number::Whole(0)]);
        assert_eq!(find("proa_memory_working_set_bytes").unwrap().points[0].number, Number::Whole(600));
        assert!(find("proa_pids").is_none() && find("proa_vmm_memory_bytes").is_none());
        assert_eq!(find("proa_vmm_cpu_seconds").unwrap().points.len(), 1);
    }
}
