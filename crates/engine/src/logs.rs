//! Reading what an instance has written: Docker's json-file format, across rotations.
//!
//! ```text
//!   log.json.2 ─▶ log.json.1 ─▶ log.json       oldest first; a file is known by its inode, so that a reader
//!                                              finds its place again after files have been renamed
//! ```

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use proa_protocol::instance::LOG_FILE;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;
use serde::Deserialize;

use crate::channel::Channel;
use crate::engine::{Engine, Instance};
use crate::error::{Error, Result};
use crate::parse;

/// Files that a log may have been rotated into.
const MOST_FILES: u32 = 1000;

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
}

#[derive(Deserialize)]
struct Line {
    log: String,
    stream: Stream,
    time: String,
}

impl Engine {
    /// Passes entries to `take` until there are no more, or until it says so by returning false.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn logs(
        &self,
        instance: &Instance,
        options: &LogOptions,
        mut take: impl FnMut(Entry) -> bool,
    ) -> Result<()> {
        let directory = self.paths.instance(&instance.record.id);
        // Connected before the first read: what is written after the end of that read is then seen by waiting.
        let mut end = if options.follow { self.end_of(instance)? } else { None };
        let watch = end.as_ref().map(|_| Watch::new(&directory)).transpose()?;
        let mut reader = Reader::new(directory);
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

/// Reads entries of all files in their order, and finds its place again after a rotation.
struct Reader {
    directory: PathBuf,
    current: Option<(u64, BufReader<File>)>,
    partial: Vec<u8>,
}

impl Reader {
    fn new(directory: PathBuf) -> Self {
        Self { directory, current: None, partial: Vec::new() }
    }

    /// The next whole entry, if it has been written.
    fn next_entry(&mut self) -> Result<Option<Entry>> {
        loop {
            if let Some((_, file)) = &mut self.current {
                let read = file.read_until(b'\n', &mut self.partial);
                read.map_err(|error| Error::io("read the log in", &self.directory, error))?;
                if self.partial.ends_with(b"\n") {
                    let line = std::mem::take(&mut self.partial);
                    // A line that a full disk or a power cut has cut off says nothing.
                    match serde_json::from_slice::<Line>(&line) {
                        Ok(line) => return Ok(Some(entry(line))),
                        Err(_) => continue,
                    }
                }
            }
            if !self.open_next()? {
                return Ok(None);
            }
        }
    }

    /// Goes on to the next newer file; false if there is none.
    fn open_next(&mut self) -> Result<bool> {
        let current = self.current.as_ref().map(|(inode, _)| *inode);
        let files = self.files()?;
        // A place that was rotated away altogether is before the oldest file.
        let next = match files.iter().position(|(inode, _)| Some(*inode) == current) {
            Some(at) => at + 1,
            None => 0,
        };
        let Some((inode, path)) = files.get(next) else { return Ok(false) };
        match File::open(path) {
            Ok(file) => {
                // Renamed in between: look again.
                let same = file.metadata().is_ok_and(|metadata| metadata.ino() == *inode);
                if same {
                    self.partial.clear();
                    self.current = Some((*inode, BufReader::with_capacity(64 * 1024, file)));
                }
                Ok(true)
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(true),
            Err(error) => Err(Error::io("read", path, error)),
        }
    }

    /// Inodes and paths, the oldest first.
    fn files(&self) -> Result<Vec<(u64, PathBuf)>> {
        let mut files = Vec::new();
        let name = |number: u32| match number {
            0 => LOG_FILE.to_owned(),
            number => format!("{LOG_FILE}.{number}"),
        };
        for number in 0..MOST_FILES {
            let path = self.directory.join(name(number));
            match std::fs::metadata(&path) {
                Ok(metadata) => files.push((metadata.ino(), path)),
                // Between the two renames of a rotation there may be no current file.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound && number == 0 => {}
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => break,
                Err(error) => return Err(Error::io("read", &path, error)),
            }
        }
        files.reverse();
        files.dedup_by_key(|(inode, _)| *inode);
        Ok(files)
    }
}

fn entry(line: Line) -> Entry {
    let time = line.time.parse::<jiff::Timestamp>().unwrap_or_default();
    let at_ns = i64::try_from(time.as_nanosecond()).unwrap_or(i64::MAX);
    Entry { stream: line.stream, at_ns, text: line.log }
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
    use std::io::Write;

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
        let mut reader = Reader::new(directory.to_owned());
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
    fn the_place_is_kept_across_a_rotation() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        write(directory.path(), "log.json", 0..1);
        let mut reader = Reader::new(directory.path().to_owned());
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
        let mut reader = Reader::new(directory.path().to_owned());
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
}
