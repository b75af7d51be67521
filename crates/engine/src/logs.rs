//! Reading what an instance has written, where its log driver keeps files.

mod reader;

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;
use serde::Deserialize;

use self::reader::Reader;
use crate::channel::Channel;
use crate::db::Record;
use crate::engine::{Engine, Instance};
use crate::error::{Error, Result};
use crate::parse;

/// Which entries.
#[derive(Debug, Clone, Default)]
pub struct LogOptions {
    /// Go on with what is written from now on, until the instance ends.
    pub follow: bool,
    /// Not before this moment, nanoseconds since the epoch.
    pub since_ns: Option<i64>,
    /// Not after this moment.
    pub until_ns: Option<i64>,
    /// Only the last ones.
    pub tail: Option<usize>,
}

/// Where a process wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    /// Standard output, or the terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

/// One line, or a part of one that was too long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Where it was written.
    pub stream: Stream,
    /// When, nanoseconds since the epoch.
    pub at_ns: i64,
    /// What, with its newline.
    pub text: String,
    /// Labels and variables that the log was to have.
    pub attributes: BTreeMap<String, String>,
}

impl Engine {
    /// Passes entries to `take` until there are no more, or until it says so by returning false.
    ///
    /// # Errors
    /// A file cannot be read, or the log driver keeps none.
    pub fn logs(
        &self,
        instance: &Instance,
        options: &LogOptions,
        mut take: impl FnMut(Entry) -> bool,
    ) -> Result<()> {
        let directory = self.paths.instance(&instance.record.id);
        let driver = self.read_config(&instance.record.id)?.log.driver;
        let Some(mut reader) = Reader::new(&directory, driver) else { return Err(unreadable(instance)) };
        // Connected before the first read: what is written after the end of that read is then seen by waiting.
        let mut end = if options.follow { self.end_of(instance)? } else { None };
        let watch = end.as_ref().map(|_| Watch::new(&directory)).transpose()?;
        if !tail(&mut reader, options, &mut take)? {
            return Ok(());
        }
        while let (Some(channel), Some(watch)) = (&mut end, &watch) {
            let ended = !watch.wait(channel, options.until_ns)?;
            while let Some(entry) = reader.next_entry()? {
                if options.until_ns.is_some_and(|until| entry.at_ns > until) {
                    return Ok(());
                }
                if options.since_ns.is_none_or(|since| entry.at_ns >= since) && !take(entry) {
                    return Ok(());
                }
            }
            if ended {
                break;
            }
        }
        Ok(())
    }

    fn end_of(&self, instance: &Instance) -> Result<Option<Channel>> {
        // Who is silent is let go at the monitor's end, which comes after that of all restarts. One that ends at this
        // very moment has written everything already.
        Ok(self.connect(instance).ok())
    }
}

fn unreadable(instance: &Instance) -> Error {
    let Record { name, host_config, .. } = &instance.record;
    let hint = match host_config.log_config.kind.as_str() {
        "journald" => format!("`journalctl CONTAINER_NAME={name}` shows it"),
        driver => format!("the driver of {name} is {driver}"),
    };
    Error::unsupported("configured logging driver does not support reading", hint)
}

/// Passes on what there is; false where `take` has had enough.
fn tail(reader: &mut Reader, options: &LogOptions, take: &mut impl FnMut(Entry) -> bool) -> Result<bool> {
    let mut last = VecDeque::new();
    while let Some(entry) = reader.next_entry()? {
        if options.until_ns.is_some_and(|until| entry.at_ns > until) {
            last.into_iter().all(&mut *take);
            return Ok(false);
        }
        if options.since_ns.is_some_and(|since| entry.at_ns < since) {
            continue;
        }
        match options.tail {
            None => {
                if !take(entry) {
                    return Ok(false);
                }
            }
            Some(0) => {}
            Some(count) => {
                if last.len() == count {
                    last.pop_front();
                }
                last.push_back(entry);
            }
        }
    }
    Ok(last.into_iter().all(take))
}

/// Tells when files in a directory change.
struct Watch(rustix::fd::OwnedFd);

impl Watch {
    fn new(directory: &Path) -> Result<Self> {
        let failed = |errno| Error::io("watch", directory, errno);
        let fd =
            inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK).map_err(failed)?;
        let flags = inotify::WatchFlags::MODIFY | inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_TO;
        inotify::add_watch(&fd, directory, flags).map_err(failed)?;
        Ok(Self(fd))
    }

    /// Waits for a change; false when the instance has ended or the time is over.
    fn wait(&self, channel: &mut Channel, until_ns: Option<i64>) -> Result<bool> {
        let left =
            until_ns.map(|until| Duration::from_nanos(u64::try_from(until - parse::now_ns()).unwrap_or(0)));
        let timeout =
            left.map(|left| Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() });
        let mut fds = [PollFd::new(&self.0, PollFlags::IN), PollFd::new(channel, PollFlags::IN)];
        match poll(&mut fds, timeout.as_ref()) {
            Ok(0) => return Ok(false),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(Error::io("watch", Path::new("log"), errno)),
        }
        let ended = !fds[1].revents().is_empty();
        let mut events = [0; 4096];
        while rustix::io::read(&self.0, &mut events).is_ok_and(|count| count > 0) {}
        Ok(!ended)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::Write;

    use proa_protocol::log::LogDriver;

    fn reader(directory: &Path) -> Reader {
        Reader::new(directory, LogDriver::JsonFile).unwrap()
    }

    fn write(directory: &Path, name: &str, numbers: std::ops::Range<i32>) {
        let mut file = File::options().create(true).append(true).open(directory.join(name)).unwrap();
        for number in numbers {
            writeln!(
                file,
                r#"{{"log":"line {number}\n","stream":"stdout","time":"1970-01-01T00:00:{number:02}Z"}}"#
            )
            .unwrap();
        }
    }

    fn texts(directory: &Path, options: &LogOptions) -> Vec<String> {
        let mut texts = Vec::new();
        let mut reader = reader(directory);
        tail(&mut reader, options, &mut |entry| {
            texts.push(entry.text.trim_start_matches("line ").trim_end().to_owned());
            true
        })
        .unwrap();
        texts
    }

    #[test]
    fn rotated_files_are_one_log() {
        let directory = tempfile::tempdir().unwrap();
        write(directory.path(), "log.json.2", 0..2);
        write(directory.path(), "log.json.1", 2..4);
        write(directory.path(), "log.json", 4..6);
        assert_eq!(texts(directory.path(), &LogOptions::default()), ["0", "1", "2", "3", "4", "5"]);
        let with = |tail, since: Option<i64>, until: Option<i64>| {
            let seconds = |value: i64| value * 1_000_000_000;
            let options = LogOptions {
                tail,
                since_ns: since.map(seconds),
                until_ns: until.map(seconds),
                follow: false,
            };
            texts(directory.path(), &options).join(" ")
        };
        assert_eq!(with(Some(3), None, None), "3 4 5");
        assert_eq!(with(Some(0), None, None), "");
        assert_eq!(with(Some(9), Some(4), None), "4 5");
        assert_eq!(with(None, Some(1), Some(3)), "1 2 3");
        assert_eq!(with(Some(1), None, Some(3)), "3");
    }

    #[test]
    fn nothing_is_missed_in_the_middle_of_a_rotation() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        for (number, name) in ["log.json.3", "log.json.2", "log.json.1", "log.json"].iter().enumerate() {
            write(directory.path(), name, number as i32..number as i32 + 1);
        }
        // As the monitor renames them, the oldest first.
        for (from, to) in
            [("log.json.3", "log.json.4"), ("log.json.2", "log.json.3"), ("log.json.1", "log.json.2")]
        {
            std::fs::rename(at(from), at(to)).unwrap();
            assert_eq!(texts(directory.path(), &LogOptions::default()), ["0", "1", "2", "3"]);
        }
        std::fs::rename(at("log.json"), at("log.json.1")).unwrap();
        assert_eq!(texts(directory.path(), &LogOptions::default()), ["0", "1", "2", "3"]);
    }

    #[test]
    fn the_place_is_kept_across_a_rotation() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        write(directory.path(), "log.json", 0..1);
        let mut reader = reader(directory.path());
        let mut next = || reader.next_entry().unwrap().map(|entry| entry.text);
        assert_eq!(next().as_deref(), Some("line 0\n"));
        assert_eq!(next(), None);
        write(directory.path(), "log.json", 1..2);
        std::fs::rename(at("log.json"), at("log.json.1")).unwrap();
        write(directory.path(), "log.json", 2..3);
        assert_eq!(next().as_deref(), Some("line 1\n"));
        assert_eq!(next().as_deref(), Some("line 2\n"));
        assert_eq!(next(), None);
    }

    #[test]
    fn half_a_line_waits_and_a_broken_one_is_passed_by() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log.json");
        std::fs::write(&path, "{\"log\":\"cut\nnonsense\n").unwrap();
        write(directory.path(), "log.json", 7..8);
        let mut file = File::options().append(true).open(&path).unwrap();
        file.write_all(br#"{"log":"half"#).unwrap();
        let mut reader = reader(directory.path());
        assert_eq!(reader.next_entry().unwrap().unwrap().text, "line 7\n");
        assert_eq!(reader.next_entry().unwrap(), None);
        writeln!(file, r#"","stream":"stderr","time":"1970-01-01T00:00:09.5Z"}}"#).unwrap();
        let entry = reader.next_entry().unwrap().unwrap();
        assert_eq!((entry.text.as_str(), entry.stream, entry.at_ns), ("half", Stream::Stderr, 9_500_000_000));
    }

    #[test]
    fn no_log_is_an_empty_log() {
        let directory = tempfile::tempdir().unwrap();
        assert!(texts(directory.path(), &LogOptions::default()).is_empty());
    }

    fn compress(directory: &Path, name: &str) {
        use std::os::unix::fs::MetadataExt;
        let path = directory.join(name);
        let inode = std::fs::metadata(&path).unwrap().ino().to_string();
        let to = File::create(directory.join(format!("{name}.gz"))).unwrap();
        let mut writer = flate2::GzBuilder::new().comment(inode).write(to, flate2::Compression::fast());
        writer.write_all(&std::fs::read(&path).unwrap()).unwrap();
        writer.finish().unwrap();
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn the_place_is_kept_when_the_file_is_compressed() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        write(directory.path(), "log.json.1", 0..2);
        write(directory.path(), "log.json", 2..4);
        compress(directory.path(), "log.json.1");
        assert_eq!(texts(directory.path(), &LogOptions::default()), ["0", "1", "2", "3"]);
        let mut reader = reader(directory.path());
        let mut next = || reader.next_entry().unwrap().map(|entry| entry.text);
        for number in 0..4 {
            assert_eq!(next(), Some(format!("line {number}\n")));
        }
        assert_eq!(next(), None);
        std::fs::rename(at("log.json.1.gz"), at("log.json.2.gz")).unwrap();
        std::fs::rename(at("log.json"), at("log.json.1")).unwrap();
        compress(directory.path(), "log.json.1");
        write(directory.path(), "log.json", 4..6);
        assert_eq!(next().as_deref(), Some("line 4\n"));
        assert_eq!(next().as_deref(), Some("line 5\n"));
        assert_eq!(next(), None);
    }

    #[test]
    fn the_short_form_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let record = b"\0\0\0\x0f\x0a\x06stdout\x10\xac\x02\x1a\x02hi\0\0\0\x0f";
        let partial = b"\0\0\0\x0f\x0a\x06stderr\x10\x01\x1a\x01x\x20\x01\0\0\0\x0f";
        let path = directory.path().join("log.local");
        let mut file = File::create(path).unwrap();
        file.write_all(&[&record[..], partial, &record[..7]].concat()).unwrap();
        let mut reader = Reader::new(directory.path(), LogDriver::Local).unwrap();
        let first = reader.next_entry().unwrap().unwrap();
        assert_eq!((first.text.as_str(), first.stream, first.at_ns), ("hi\n", Stream::Stdout, 300));
        let second = reader.next_entry().unwrap().unwrap();
        assert_eq!((second.text.as_str(), second.stream), ("x", Stream::Stderr));
        assert_eq!(reader.next_entry().unwrap(), None);
        file.write_all(&record[7..]).unwrap();
        assert_eq!(reader.next_entry().unwrap().unwrap().text, "hi\n");
        for driver in [LogDriver::None, LogDriver::Syslog, LogDriver::Journald] {
            assert!(Reader::new(directory.path(), driver).is_none());
        }
    }
}
