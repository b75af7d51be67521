//! The instance's output, cut into lines and kept by a driver.
//!
//! ```text
//!   output ─▶ lines ─┬▶ files    json-file, local: appended and rotated
//!                    ├▶ remote   journald, syslog: sent, or waiting to be
//!                    └▶ nobody   none
//! ```
//!
//! A line longer than 16 KiB becomes several entries, only the last of which ends in a newline, and all of which
//! carry the first one's time.

mod compress;
mod files;
mod journald;
mod json;
mod local;
mod remote;
mod syslog;

use std::path::Path;
use std::time::Duration;

use proa_protocol::frame::Kind;
use proa_protocol::log::{LogConfig, LogDriver};
use proa_supervisor::PollSet;

use self::files::Files;
use self::journald::Journal;
use self::json::Json;
use self::remote::{Form, Remote, Target};
use self::syslog::Syslog;
use crate::clock::now_ns;
use crate::error::{Error, IoAt};

/// Bytes of a line after which it is split.
const LINE: usize = 16 * 1024;

/// Writes one instance's log.
pub struct Log {
    sink: Sink,
    streams: [Stream; 2],
    /// When the output that is being taken came.
    now: i64,
}

/// Who keeps it.
enum Sink {
    Nobody,
    Json(Files, Json),
    Local(Files),
    Remote(Box<Remote>),
}

/// What others call the instance.
#[derive(Debug, Clone, Default)]
pub struct Identity {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its image.
    pub image: String,
}

/// The unfinished line of one stream.
#[derive(Default)]
struct Stream {
    partial: Vec<u8>,
    /// When the first part of a line that is being split was written.
    split_since: Option<i64>,
}

/// One line, or a part of it.
struct Entry<'a> {
    stderr: bool,
    at_ns: i64,
    text: &'a [u8],
    ends: Ends,
}

/// What comes after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ends {
    /// Another line.
    Line,
    /// The rest of the line.
    Split,
    /// Nothing any more.
    Output,
}

impl Entry<'_> {
    fn stream_name(&self) -> &'static str {
        if self.stderr { "stderr" } else { "stdout" }
    }
}

impl Log {
    /// Opens the log of the instance in `dir`, to append to it.
    ///
    /// # Errors
    /// Its file cannot be opened, or its server cannot be reached.
    pub fn open(dir: &Path, config: &LogConfig, identity: Identity) -> Result<Self, Error> {
        let files = |name: &str| {
            let path = dir.join(name);
            Files::open(path.clone(), config).at(&path)
        };
        let remote = |target: Target, form| {
            let name = target.to_string();
            let remote = Remote::open(target, form, config.max_buffer);
            remote
                .map(|remote| Sink::Remote(Box::new(remote)))
                .map_err(|error| Error::LogDriver { name, error })
        };
        let sink = match config.driver {
            LogDriver::None => Sink::Nobody,
            LogDriver::JsonFile => {
                Sink::Json(files(proa_protocol::instance::LOG_FILE)?, Json::new(&config.attributes))
            }
            LogDriver::Local => {
                let path = dir.join(proa_protocol::log::LOCAL_FILE);
                Sink::Local(Files::open_records(path.clone(), config).at(&path)?)
            }
            LogDriver::Journald => remote(Target::journal(), Form::Journal(Journal::new(&identity, config)))?,
            LogDriver::Syslog => remote(
                Target::Syslog(config.syslog.address.clone()),
                Form::Syslog(Syslog::new(&config.syslog, &config.tag)),
            )?,
        };
        Ok(Self::new(sink))
    }

    /// The log of an instance that writes nothing, as it does not run.
    pub fn nobody() -> Self {
        Self::new(Sink::Nobody)
    }

    fn new(sink: Sink) -> Self {
        Self { sink, streams: Default::default(), now: now_ns() }
    }

    /// Takes output, all of which came at the same time. It reaches the file with the next [`Log::flush`].
    pub fn push(&mut self, kind: Kind, mut bytes: &[u8]) {
        if let Sink::Nobody = self.sink {
            return;
        }
        self.now = now_ns();
        let stream = usize::from(kind == Kind::Stderr);
        while !bytes.is_empty() {
            let room = LINE - self.streams[stream].partial.len();
            let window = &bytes[..room.min(bytes.len())];
            if let Some(end) = window.iter().position(|&byte| byte == b'\n') {
                self.line(stream, &bytes[..end], Ends::Line);
                bytes = &bytes[end + 1..];
            } else if window.len() == room {
                self.line(stream, window, Ends::Split);
                bytes = &bytes[room..];
            } else {
                self.streams[stream].partial.extend_from_slice(bytes);
                return;
            }
        }
    }

    /// Takes the end of output: unfinished lines are written as they are.
    pub fn end(&mut self) {
        self.now = now_ns();
        for stream in 0..self.streams.len() {
            if !self.streams[stream].partial.is_empty() {
                self.line(stream, &[], Ends::Output);
            }
        }
        self.flush();
    }

    /// Passes on what was taken: to a file in one call, to a server as far as it takes it.
    pub fn flush(&mut self) {
        match &mut self.sink {
            Sink::Nobody => {}
            Sink::Json(files, _) | Sink::Local(files) => files.flush(),
            Sink::Remote(remote) => remote.send(),
        }
    }

    fn line(&mut self, stream: usize, rest: &[u8], ends: Ends) {
        let Stream { partial, split_since } = &mut self.streams[stream];
        let at_ns = split_since.unwrap_or(self.now);
        *split_since = (ends != Ends::Line).then_some(at_ns);
        let joined;
        let text = if partial.is_empty() {
            rest
        } else {
            partial.extend_from_slice(rest);
            joined = std::mem::take(partial);
            &joined
        };
        let entry = Entry { stderr: stream == 1, at_ns, text, ends };
        match &mut self.sink {
            Sink::Nobody => {}
            Sink::Json(files, json) => json.append(&entry, files.next()),
            Sink::Local(files) => local::append(&entry, files.next()),
            Sink::Remote(remote) => remote.push(&entry),
        }
    }
}

/// What the loop must know of a driver that does not take everything at once.
impl Log {
    /// Whether the instance is to wait.
    pub fn is_full(&self) -> bool {
        matches!(&self.sink, Sink::Remote(remote) if remote.is_full())
    }

    /// Whether it may ever be full.
    pub fn may_wait(&self) -> bool {
        matches!(self.sink, Sink::Remote(_))
    }

    /// The instance has ended.
    pub fn set_ending(&mut self) {
        if let Sink::Remote(remote) = &mut self.sink {
            remote.set_ending();
        }
    }

    /// Whether everything is where it goes.
    pub fn is_drained(&self) -> bool {
        !matches!(&self.sink, Sink::Remote(remote) if !remote.is_drained())
    }

    /// Messages that nobody got.
    pub fn lost(&self) -> u64 {
        if let Sink::Remote(remote) = &self.sink { remote.lost() } else { 0 }
    }

    /// Adds what to wait for.
    pub fn poll_fds<'fd>(&'fd self, token: u64, set: &mut PollSet<'fd>) {
        match &self.sink {
            Sink::Nobody => {}
            Sink::Json(files, _) | Sink::Local(files) => files.poll_fds(token, set),
            Sink::Remote(remote) => remote.poll_fds(token, set),
        }
    }

    /// What it waits for is there; a server gets its part with the next [`Log::flush`].
    pub fn ready(&mut self) {
        if let Sink::Json(files, _) | Sink::Local(files) = &mut self.sink {
            files.ready();
        }
    }

    /// How long until [`Log::flush`] is due though nothing is ready.
    pub fn timeout(&self) -> Option<Duration> {
        if let Sink::Remote(remote) = &self.sink { remote.timeout() } else { None }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use super::*;
    use proa_protocol::instance::LOG_FILE;
    use serde_json::Value;

    struct Fixture {
        dir: PathBuf,
        log: Log,
    }

    impl Fixture {
        fn new(name: &str, max_size: u64, max_files: u32) -> Self {
            let dir = std::env::temp_dir().join(format!("proa-log-{}-{name}", std::process::id()));
            let config = LogConfig { max_size, max_files, ..LogConfig::default() };
            Self::with(dir, &config)
        }

        fn with(dir: PathBuf, config: &LogConfig) -> Self {
            fs::create_dir_all(&dir).unwrap();
            let log = Log::open(&dir, config, Identity::default()).unwrap();
            Self { dir, log }
        }

        fn raw(&mut self, file: &str) -> String {
            self.log.flush();
            fs::read_to_string(self.dir.join(file)).unwrap_or_default()
        }

        fn lines(&mut self, file: &str) -> Vec<Value> {
            self.raw(file).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
        }
    }

    impl Drop for Fixture {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }

    #[test]
    fn lines_come_in_pieces_and_streams_are_apart() {
        let mut fixture = Fixture::new("pieces", 0, 1);
        fixture.log.push(Kind::Stdout, b"one\ntw");
        fixture.log.push(Kind::Stderr, b"err\n");
        fixture.log.push(Kind::Stdout, b"o\n\nrest");
        fixture.log.end();
        let lines = fixture.lines(LOG_FILE);
        let text = |line: &Value, key: &str| line[key].as_str().unwrap().to_owned();
        let seen: Vec<_> = lines.iter().map(|line| (text(line, "stream"), text(line, "log"))).collect();
        let seen: Vec<_> = seen.iter().map(|(stream, text)| (stream.as_str(), text.as_str())).collect();
        let out = "stdout";
        assert_eq!(seen, [(out, "one\n"), ("stderr", "err\n"), (out, "two\n"), (out, "\n"), (out, "rest")]);
    }

    #[test]
    fn text_is_escaped_as_docker_does() {
        let mut fixture = Fixture::new("escape", 0, 1);
        fixture.log.push(Kind::Stdout, "q\"b\\t\tr\r<&>é\u{2028}\n".as_bytes());
        fixture.log.push(Kind::Stdout, b"bad \xff\xe2\x80 end\n");
        let raw = fixture.raw(LOG_FILE);
        assert!(raw.starts_with(
            r#"{"log":"q\"b\\t\u0009r\r\u003c\u0026\u003eé\u2028\n","stream":"stdout","time":""#
        ));
        assert!(raw.contains(r#"{"log":"bad \ufffd\ufffd\ufffd end\n""#), "{raw}");
        assert_eq!(fixture.lines(LOG_FILE)[0]["log"], "q\"b\\t\tr\r<&>é\u{2028}\n");
    }

    #[test]
    fn long_lines_are_split_and_share_their_time() {
        let mut fixture = Fixture::new("long", 0, 1);
        let line = vec![b'a'; 2 * LINE + 10];
        fixture.log.push(Kind::Stdout, &line[..100]);
        fixture.log.push(Kind::Stdout, &line[100..]);
        fixture.log.push(Kind::Stdout, b"\n");
        fixture.log.push(Kind::Stdout, b"next\n");
        let lines = fixture.lines(LOG_FILE);
        let lengths: Vec<usize> = lines.iter().map(|line| line["log"].as_str().unwrap().len()).collect();
        assert_eq!(lengths, [LINE, LINE, 11, 5]);
        assert_eq!(lines[0]["time"], lines[2]["time"]);
        assert_ne!(lines[2]["time"], lines[3]["time"]);
    }

    #[test]
    fn rotation_loses_no_line_and_keeps_so_many_files() {
        let mut fixture = Fixture::new("rotate", 1000, 3);
        for number in 0..30 {
            fixture.log.push(Kind::Stdout, format!("line {number}\n").as_bytes());
            if number % 7 == 0 {
                fixture.log.flush();
            }
        }
        let files = ["log.json.2", "log.json.1", "log.json"];
        let kept: Vec<String> =
            files.iter().flat_map(|file| fixture.lines(file)).map(|line| line["log"].to_string()).collect();
        let expected: Vec<String> =
            (30 - kept.len()..30).map(|number| format!("\"line {number}\\n\"")).collect();
        assert_eq!(kept, expected);
        assert!(kept.len() > 20, "{kept:?}");
        assert!(!fixture.dir.join("log.json.3").exists());
        assert!(fixture.raw("log.json.1").len() < 1100);
    }

    #[test]
    fn a_single_file_starts_over() {
        let mut fixture = Fixture::new("single", 200, 1);
        for number in 0..10 {
            fixture.log.push(Kind::Stdout, format!("line {number}\n").as_bytes());
        }
        assert!(fixture.raw(LOG_FILE).len() < 300);
        assert_eq!(fs::read_dir(&fixture.dir).unwrap().count(), 1);
    }

    #[test]
    fn attributes_stand_before_the_time() {
        let attributes = [("a".to_owned(), "1".to_owned())].into();
        let config = LogConfig { attributes, ..LogConfig::default() };
        let dir = std::env::temp_dir().join(format!("proa-log-{}-attributes", std::process::id()));
        let mut fixture = Fixture::with(dir, &config);
        fixture.log.push(Kind::Stdout, b"x\n");
        let raw = fixture.raw(LOG_FILE);
        assert!(raw.starts_with(r#"{"log":"x\n","stream":"stdout","attrs":{"a":"1"},"time":""#), "{raw}");
    }
}
