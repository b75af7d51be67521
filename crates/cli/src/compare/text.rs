//! The report as a table of text.

use super::{Level, Report};

/// One row: a label, and a cell for each level.
pub type Row = (&'static str, Vec<String>);

/// The report as aligned columns.
pub fn table(report: &Report) -> String {
    let mut lines = vec![(String::new(), report.levels.iter().map(|level| level.level.to_owned()).collect())];
    lines.extend(rows(report).into_iter().map(|(label, cells)| (label.to_owned(), cells)));
    let label_width = lines.iter().map(|(label, _)| label.chars().count()).max().unwrap_or(0);
    let columns = report.levels.len();
    let width = |column: usize| {
        lines.iter().map(|(_, cells): &(String, Vec<String>)| cells[column].chars().count()).max()
    };
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut out = String::new();
    for (label, cells) in &lines {
        let mut line = format!("{label:<label_width$}");
        for (cell, width) in cells.iter().zip(&widths) {
            line.push_str(&format!("   {cell:<width$}"));
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

/// The rows that the text and the page share.
pub fn rows(report: &Report) -> Vec<Row> {
    let each = |cell: &dyn Fn(&Level) -> String| report.levels.iter().map(cell).collect::<Vec<_>>();
    let memory = |pick: &dyn Fn(&super::Memory) -> u64| {
        each(&|level| level.memory.as_ref().map_or("not measured".into(), |memory| bytes(pick(memory))))
    };
    vec![
        ("virtualizes", each(&|level| level.virtualization.clone())),
        ("kernel", each(&|level| kernel(report, level))),
        ("start, median", each(&|level| milliseconds(level.start.p50_ms))),
        ("start, 99th percentile", each(&|level| milliseconds(level.start.p99_ms))),
        ("runs timed", each(&|level| level.start.samples_ms.len().to_string())),
        ("memory, private", memory(&|memory| memory.private)),
        ("memory, shared", memory(&|memory| memory.shared)),
        ("memory, overhead", memory(&|memory| memory.overhead)),
        ("image on disk", each(&|_| format!("{} (the same files)", bytes(report.image_bytes)))),
        ("host system calls reachable", each(&|level| syscalls(report, level))),
        ("processes visible", each(&|level| visible(report, level))),
    ]
}

fn kernel(report: &Report, level: &Level) -> String {
    let whose = if level.kernel == report.host_kernel { "the host's" } else { "its own" };
    format!("{} ({whose})", level.kernel)
}

fn syscalls(report: &Report, level: &Level) -> String {
    let Some(count) = level.host_syscalls else { return "not measured".into() };
    match level.level {
        "vm" => format!("none; {count} of {} by the VMM", report.syscalls),
        _ => format!("{count} of {}", report.syscalls),
    }
}

fn visible(report: &Report, level: &Level) -> String {
    match level.processes_visible {
        Some(count) => format!("{count} (the host has {})", report.host_processes),
        None => "not measured".into(),
    }
}

fn milliseconds(value: f64) -> String {
    if value < 100.0 { format!("{value:.1} ms") } else { format!("{value:.0} ms") }
}

/// Bytes in decimal units, as Docker prints sizes.
pub fn bytes(value: u64) -> String {
    let units = ["B", "kB", "MB", "GB", "TB"];
    let mut scaled = value as f64;
    let mut unit = 0;
    while scaled >= 1000.0 && unit + 1 < units.len() {
        scaled /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{value} B") } else { format!("{scaled:.1} {}", units[unit]) }
}

#[cfg(test)]
pub mod tests {
    use super::super::{Memory, Start};
    use super::*;

    pub fn report() -> Report {
        let level = |level, kernel: &str, p50_ms, private, host_syscalls| Level {
            level,
            virtualization: "something".into(),
            kernel: kernel.into(),
            start: Start { samples_ms: vec![p50_ms], p50_ms, p99_ms: p50_ms * 2.0 },
            memory: Some(Memory { private, shared: 1000, overhead: 500, program: 100 }),
            host_syscalls: Some(host_syscalls),
            processes_visible: Some(1),
        };
        Report {
            image: "busybox <&>".into(),
            command: vec!["true".into()],
            image_bytes: 2_000_000,
            host_kernel: "6.18".into(),
            host_processes: 90,
            syscalls: 379,
            levels: vec![
                level("container", "6.18", 9.5, 300_000, 310),
                level("vm", "6.1", 2600.0, 90_000_000, 290),
            ],
        }
    }

    #[test]
    fn the_table_says_what_differs() {
        let table = table(&report());
        for expected in
            ["6.18 (the host's)", "6.1 (its own)", "9.5 ms", "2600 ms", "300.0 kB", "90.0 MB", "310 of 379"]
        {
            assert!(table.contains(expected), "{expected} in\n{table}");
        }
        assert!(table.lines().all(|line| line.len() == line.trim_end().len()));
    }

    #[test]
    fn sizes_are_decimal() {
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(1_500_000), "1.5 MB");
    }
}
