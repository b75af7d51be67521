//! What `ps` prints of processes: its options, as far as they choose columns, and its columns.
//!
//! The host's `ps` sees no process of a guest, so both levels have their columns from here. Options that choose processes
//! change nothing, since all of the instance's are listed; any other that is not known is refused by its name.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use proa_protocol::message::ProcessInfo;

use crate::error::Failure;

const DAY: u64 = 86_400;
const KNOWN: &str = "-e, -A, -f, -j, -o COLUMN,…; a, u, x, o COLUMN,…";

/// A column: its names in `-o`, its header, and what it shows.
struct Column {
    names: &'static [&'static str],
    header: &'static str,
    show: fn(&Row) -> String,
}

/// A process at a moment.
struct Row<'a> {
    process: &'a ProcessInfo,
    now_s: i64,
}

macro_rules! column {
    ($header:literal, [$($name:literal),+], $show:expr) => {
        Column { names: &[$($name),+], header: $header, show: $show }
    };
}

const COLUMNS: &[Column] = &[
    column!("PID", ["pid", "tgid"], |row| row.process.pid.to_string()),
    column!("PPID", ["ppid"], |row| row.process.ppid.to_string()),
    column!("PGID", ["pgid"], |row| row.process.pgid.to_string()),
    column!("PGRP", ["pgrp"], |row| row.process.pgid.to_string()),
    column!("SID", ["sid"], |row| row.process.sid.to_string()),
    column!("SESS", ["sess", "session"], |row| row.process.sid.to_string()),
    column!("UID", ["uid"], |row| row.process.uid.to_string()),
    column!("EUID", ["euid"], |row| row.process.uid.to_string()),
    column!("GID", ["gid"], |row| row.process.gid.to_string()),
    column!("EGID", ["egid"], |row| row.process.gid.to_string()),
    column!("USER", ["user", "uname"], |row| row.process.user.clone()),
    column!("EUSER", ["euser"], |row| row.process.user.clone()),
    column!("GROUP", ["group"], |row| row.process.group.clone()),
    column!("EGROUP", ["egroup"], |row| row.process.group.clone()),
    column!("TT", ["tty", "tt"], |row| row.process.tty.clone()),
    column!("TTY", ["tname"], |row| row.process.tty.clone()),
    column!("COMMAND", ["comm", "ucomm"], |row| plain(&row.process.name)),
    column!("CMD", ["ucmd"], |row| plain(&row.process.name)),
    column!("COMMAND", ["args", "command"], |row| plain(&row.process.command)),
    column!("CMD", ["cmd"], |row| plain(&row.process.command)),
    column!("STAT", ["stat"], |row| row.process.state.clone()),
    column!("S", ["s", "state"], |row| row.process.state.chars().take(1).collect()),
    column!("TIME", ["time", "cputime"], |row| with_days(row.process.cpu_ms / 1000)),
    column!("TIME", ["bsdtime"], |row| minutes(row.process.cpu_ms / 1000)),
    column!("ELAPSED", ["etime"], |row| elapsed(row.age())),
    column!("ELAPSED", ["etimes"], |row| row.age().to_string()),
    column!("STARTED", ["start"], |row| row.started("%H:%M:%S", "%b %d")),
    column!("STARTED", ["lstart"], |row| row.format("%a %b %e %H:%M:%S %Y")),
    column!("STIME", ["stime"], |row| row.started("%H:%M", "%b%d")),
    column!("START", ["start_time", "bsdstart"], |row| row.started("%H:%M", "%b%d")),
    column!("C", ["c"], |row| (row.busy() / 10).min(99).to_string()),
    column!("%CPU", ["pcpu", "%cpu"], |row| tenths(row.busy())),
    column!("%MEM", ["pmem", "%mem"], |row| tenths(row.process.of_memory.into())),
    column!("VSZ", ["vsz", "vsize"], |row| (row.process.vsz / 1024).to_string()),
    column!("RSS", ["rss", "rssize", "rsz"], |row| (row.process.rss / 1024).to_string()),
    column!("NI", ["ni", "nice"], |row| row.process.nice.to_string()),
    column!("PRI", ["pri"], |row| (39 - row.process.priority).to_string()),
    column!("NLWP", ["nlwp"], |row| row.process.threads.to_string()),
    column!("THCNT", ["thcount"], |row| row.process.threads.to_string()),
];

/// `-f`, which is what there is without options, with the header that `ps` gives names of users there.
const FULL: &[(&str, &str)] = &[
    ("user", "UID"),
    ("pid", "PID"),
    ("ppid", "PPID"),
    ("c", "C"),
    ("stime", "STIME"),
    ("tname", "TTY"),
    ("time", "TIME"),
    ("cmd", "CMD"),
];
const PLAIN: &[(&str, &str)] = &[("pid", "PID"), ("tname", "TTY"), ("time", "TIME"), ("ucmd", "CMD")];
const JOBS: &[(&str, &str)] =
    &[("pid", "PID"), ("pgid", "PGID"), ("sid", "SID"), ("tname", "TTY"), ("time", "TIME"), ("ucmd", "CMD")];
const BSD: &[(&str, &str)] =
    &[("pid", "PID"), ("tname", "TTY"), ("stat", "STAT"), ("bsdtime", "TIME"), ("args", "COMMAND")];
const USER: &[(&str, &str)] = &[
    ("user", "USER"),
    ("pid", "PID"),
    ("pcpu", "%CPU"),
    ("pmem", "%MEM"),
    ("vsz", "VSZ"),
    ("rss", "RSS"),
    ("tname", "TTY"),
    ("stat", "STAT"),
    ("start_time", "START"),
    ("bsdtime", "TIME"),
    ("args", "COMMAND"),
];

/// The columns that options of `ps` ask for, with their headers.
pub struct Columns(Vec<(&'static Column, String)>);

/// What was read of the options.
#[derive(Default)]
struct Options {
    columns: Vec<(&'static Column, String)>,
    full: bool,
    jobs: bool,
    bsd: bool,
    user: bool,
}

impl Columns {
    /// Reads options of `ps`; none are `-ef`.
    ///
    /// # Errors
    /// One is not known, or the processes' ids are not shown, by which Docker finds an instance's processes.
    pub fn parse(options: &[String]) -> Result<Self, Failure> {
        if options.is_empty() {
            return Ok(Self::named(FULL));
        }
        let mut read = Options::default();
        let mut words = options.iter().flat_map(|option| option.split_whitespace());
        while let Some(word) = words.next() {
            read.word(word, &mut words)?;
        }
        let chosen = match read {
            Options { columns, .. } if !columns.is_empty() => Self(columns),
            Options { full: true, .. } => Self::named(FULL),
            Options { jobs: true, .. } => Self::named(JOBS),
            Options { user: true, .. } => Self::named(USER),
            Options { bsd: true, .. } => Self::named(BSD),
            _ => Self::named(PLAIN),
        };
        match chosen.0.iter().any(|(_, header)| header == "PID") {
            true => Ok(chosen),
            false => {
                Err(Failure::new("no column PID is among those that were asked for").with_hint("add pid"))
            }
        }
    }

    fn named(columns: &[(&str, &str)]) -> Self {
        let column = |(name, header): &(&str, &str)| Some((find(name)?, (*header).to_owned()));
        Self(columns.iter().filter_map(column).collect())
    }

    /// Headers and a line for each process.
    pub fn lines(&self, processes: &[ProcessInfo], now_s: i64) -> Vec<Vec<String>> {
        let headers = self.0.iter().map(|(_, header)| header.clone()).collect();
        let line = |process| {
            let row = Row { process, now_s };
            self.0.iter().map(|(column, _)| (column.show)(&row)).collect()
        };
        std::iter::once(headers).chain(processes.iter().map(line)).collect()
    }
}

impl Options {
    fn word<'a>(&mut self, word: &'a str, more: &mut impl Iterator<Item = &'a str>) -> Result<(), Failure> {
        if let Some(long) = word.strip_prefix("--") {
            return match long.split_once('=').unwrap_or((long, "")) {
                ("format", "") => self.list(more.next().unwrap_or_default()),
                ("format", list) => self.list(list),
                _ => Err(unknown(word)),
            };
        }
        let (dash, letters) = word.strip_prefix('-').map_or(("", word), |letters| ("-", letters));
        for (at, letter) in letters.char_indices() {
            match (dash, letter) {
                // All that follows is the list, or the next word.
                (_, 'o') => {
                    let rest = &letters[at + 1..];
                    return self.list(if rest.is_empty() { more.next().unwrap_or_default() } else { rest });
                }
                // Which processes, and how wide: all, and as wide as they are.
                ("-", 'e' | 'A' | 'a' | 'd' | 'w') => {}
                ("", 'a' | 'x' | 'w') => self.bsd = true,
                ("-", 'f') => self.full = true,
                ("-", 'j') => self.jobs = true,
                ("", 'u') => self.user = true,
                _ => return Err(unknown(&format!("{dash}{letter}"))),
            }
        }
        Ok(())
    }

    /// `NAME,NAME…`; one with a header of its own, `NAME=HEADER`, is the last.
    fn list(&mut self, list: &str) -> Result<(), Failure> {
        let (names, header) = list.split_once('=').map_or((list, None), |(names, own)| (names, Some(own)));
        let last = names.split(',').count() - 1;
        for (at, name) in names.split(',').enumerate() {
            let Some(column) = find(name) else {
                let known = COLUMNS.iter().map(|column| column.names[0]).collect::<Vec<_>>().join(" ");
                return Err(Failure::new(format!("no column {name:?}")).with_hint(known));
            };
            let header = header.filter(|_| at == last).unwrap_or(column.header);
            if column.names.contains(&"pid") && header != "PID" {
                return Err(Failure::new("the column pid has the header PID").with_hint("leave its own out"));
            }
            self.columns.push((column, header.to_owned()));
        }
        Ok(())
    }
}

fn find(name: &str) -> Option<&'static Column> {
    COLUMNS.iter().find(|column| column.names.contains(&name))
}

fn unknown(option: &str) -> Failure {
    Failure::new(format!("option {option} of ps is none that Proa has")).with_hint(KNOWN)
}

impl Row<'_> {
    fn age(&self) -> u64 {
        (self.now_s - self.process.start_s).max(0).unsigned_abs()
    }

    /// Thousandths of one CPU over its life.
    fn busy(&self) -> u64 {
        (self.process.cpu_ms / self.age().max(1)).min(999_999)
    }

    fn format(&self, format: &str) -> String {
        let started = Timestamp::from_second(self.process.start_s).unwrap_or_default();
        started.to_zoned(TimeZone::system()).strftime(format).to_string()
    }

    fn started(&self, within_a_day: &str, before: &str) -> String {
        self.format(if self.age() < DAY { within_a_day } else { before })
    }
}

/// Whoever wrote the command line does not write to our terminal.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn tenths(thousandths: u64) -> String {
    format!("{}.{}", thousandths / 10, thousandths % 10)
}

fn minutes(seconds: u64) -> String {
    format!("{}:{:02}", seconds / 60, seconds % 60)
}

fn with_days(seconds: u64) -> String {
    let days = if seconds >= DAY { format!("{}-", seconds / DAY) } else { String::new() };
    format!("{days}{:02}:{:02}:{:02}", seconds % DAY / 3600, seconds / 60 % 60, seconds % 60)
}

fn elapsed(seconds: u64) -> String {
    match seconds {
        0..3600 => format!("{:02}:{:02}", seconds / 60, seconds % 60),
        _ => with_days(seconds),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(options: &[&str]) -> Result<String, Failure> {
        let options: Vec<String> = options.iter().map(ToString::to_string).collect();
        Columns::parse(&options).map(|columns| columns.lines(&[], 0)[0].join(" "))
    }

    #[test]
    fn options_choose_columns() {
        let full = "UID PID PPID C STIME TTY TIME CMD";
        for options in [&[][..], &["-ef"], &["-e", "-f"], &["-fww"]] {
            assert_eq!(headers(options).unwrap(), full, "{options:?}");
        }
        assert_eq!(headers(&["aux"]).unwrap(), "USER PID %CPU %MEM VSZ RSS TTY STAT START TIME COMMAND");
        assert_eq!(headers(&["ax"]).unwrap(), "PID TTY STAT TIME COMMAND");
        assert_eq!(headers(&["-e"]).unwrap(), "PID TTY TIME CMD");
        for options in
            [&["-o", "pid,comm"][..], &["-opid,comm"], &["-eo", "pid,comm"], &["--format=pid,comm"]]
        {
            assert_eq!(headers(options).unwrap(), "PID COMMAND", "{options:?}");
        }
        assert_eq!(headers(&["o", "pid,user", "-o", "args=WHAT"]).unwrap(), "PID USER WHAT");
    }

    #[test]
    fn what_is_not_known_is_refused_by_its_name() {
        for (options, named) in [
            (&["-Z"][..], "-Z"),
            (&["-efL"], "-L"),
            (&["--sort=pid"], "--sort"),
            (&["auxf"], "option f"),
            (&["-o", "pid,wchan"], "wchan"),
            (&["-o", "comm"], "PID"),
            (&["-o", "pid=P"], "PID"),
            (&["-o"], "\"\""),
        ] {
            let error = format!("{:?}", headers(options).unwrap_err());
            assert!(error.contains(&named.replace('"', "\\\"")), "{options:?}: {error}");
        }
    }

    #[test]
    fn times_are_as_in_ps() {
        assert_eq!(with_days(3 * DAY + 3661), "3-01:01:01");
        assert_eq!((elapsed(61), elapsed(3661)), ("01:01".into(), "01:01:01".into()));
        assert_eq!((minutes(125), tenths(37)), ("2:05".into(), "3.7".into()));
        let process =
            ProcessInfo { start_s: 1000, cpu_ms: 2500, command: "a\x1b[2J".into(), ..Default::default() };
        let row = Row { process: &process, now_s: 1010 };
        assert_eq!((row.busy(), plain(&process.command)), (250, "a [2J".to_owned()));
    }
}
