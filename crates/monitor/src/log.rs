//! The instance's log: Docker's json-file format, one object a line.
//!
//! ```text
//!   {"log":"text\n","stream":"stdout","time":"2026-11-18T11:06:40.123456789Z"}
//! ```
//!
//! A line longer than 16 KiB becomes several objects, only the last of which ends in a newline, and all of
//! which carry the first one's time. Text is escaped as Docker escapes it; bytes that are not UTF-8 become
//! U+FFFD. When the file has reached its limit, `log.json` becomes `log.json.1` and so on before the next
//! object is written; objects are never split over files.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use proa_protocol::frame::Kind;
use proa_protocol::instance::{LOG_FILE, LogConfig};

use crate::clock::{Rfc3339, now_ns};
use crate::error::{Error, IoAt};

/// Bytes of a line after which it is split.
const LINE: usize = 16 * 1024;

/// Writes one instance's log.
pub struct Log {
    path: PathBuf,
    file: File,
    size: u64,
    config: LogConfig,
    streams: [Stream; 2],
    clock: Rfc3339,
    /// When the output that is being taken came.
    now: i64,
    out: Vec<u8>,
}

/// The unfinished line of one stream.
#[derive(Default)]
struct Stream {
    partial: Vec<u8>,
    /// When the first part of a line that is being split was written.
    split_since: Option<i64>,
}

impl Log {
    /// Opens the log of the instance in `dir`, to append to it.
    pub fn open(dir: &Path, config: LogConfig) -> Result<Self, Error> {
        let path = dir.join(LOG_FILE);
        let file = open(&path).at(&path)?;
        let size = file.metadata().at(&path)?.len();
        Ok(Self {
            path,
            file,
            size,
            config,
            streams: Default::default(),
            clock: Rfc3339::default(),
            now: now_ns(),
            out: Vec::new(),
        })
    }

    /// Takes output, all of which came at the same time. It reaches the file with the next [`Log::flush`].
    pub fn push(&mut self, kind: Kind, mut bytes: &[u8]) {
        self.now = now_ns();
        let stream = usize::from(kind == Kind::Stderr);
        while !bytes.is_empty() {
            let room = LINE - self.streams[stream].partial.len();
            let window = &bytes[..room.min(bytes.len())];
            if let Some(end) = window.iter().position(|&byte| byte == b'\n') {
                self.line(stream, &bytes[..end], true);
                bytes = &bytes[end + 1..];
            } else if window.len() == room {
                self.line(stream, window, false);
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
                self.line(stream, &[], false);
            }
        }
        self.flush();
    }

    /// Writes what was taken, in one call.
    pub fn flush(&mut self) {
        if self.out.is_empty() {
            return;
        }
        let mut written = 0;
        while written < self.out.len() {
            match self.file.write(&self.out[written..]) {
                Ok(count) => written += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    // The disk is full, say. An instance must not stand still for its log, so these lines are
                    // given up; half a line would spoil the next.
                    let length = self.file.metadata().map_or(0, |metadata| metadata.len());
                    let _ = self.file.set_len(length.saturating_sub(written as u64));
                    written = 0;
                    break;
                }
            }
        }
        self.size += written as u64;
        // An idle monitor keeps no buffer.
        self.out = Vec::new();
    }

    /// Writes the object of a line whose last part is `rest`.
    fn line(&mut self, stream: usize, rest: &[u8], whole: bool) {
        if self.config.max_size > 0 && self.size + self.out.len() as u64 >= self.config.max_size {
            self.flush();
            self.rotate();
        }
        let Stream { partial, split_since } = &mut self.streams[stream];
        let time = split_since.unwrap_or(self.now);
        *split_since = (!whole).then_some(time);
        self.out.reserve(partial.len() + rest.len() + 128);
        self.out.extend_from_slice(b"{\"log\":\"");
        if partial.is_empty() {
            escape(rest, &mut self.out);
        } else {
            partial.extend_from_slice(rest);
            escape(&std::mem::take(partial), &mut self.out);
        }
        let name: &[u8] = if stream == 0 { b"stdout" } else { b"stderr" };
        self.out.extend_from_slice(if whole { b"\\n\",\"stream\":\"" } else { b"\",\"stream\":\"" });
        self.out.extend_from_slice(name);
        self.out.extend_from_slice(b"\",\"time\":\"");
        self.clock.append(time, &mut self.out);
        self.out.extend_from_slice(b"\"}\n");
    }

    /// Begins a new file. Where that fails, the old one goes on.
    fn rotate(&mut self) {
        let numbered = |number: u32| PathBuf::from(format!("{}.{number}", self.path.display()));
        for number in (1..self.config.max_files.saturating_sub(1)).rev() {
            let _ = fs::rename(numbered(number), numbered(number + 1));
        }
        let moved = if self.config.max_files > 1 {
            fs::rename(&self.path, numbered(1))
        } else {
            fs::remove_file(&self.path)
        };
        if let (Ok(()), Ok(file)) = (moved, open(&self.path)) {
            self.file = file;
            self.size = 0;
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o640).open(path)
}

/// Appends a JSON string's inside.
fn escape(bytes: &[u8], out: &mut Vec<u8>) {
    for chunk in bytes.utf8_chunks() {
        escape_text(chunk.valid().as_bytes(), out);
        // Docker replaces each bad byte, not each bad sequence.
        for _ in chunk.invalid() {
            out.extend_from_slice(b"\\ufffd");
        }
    }
}

fn escape_text(text: &[u8], out: &mut Vec<u8>) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut plain = 0;
    let mut at = 0;
    while at < text.len() {
        let byte = text[at];
        let separator = byte == 0xe2 && matches!(text.get(at + 1..at + 3), Some([0x80, 0xa8 | 0xa9]));
        if !PLAIN[byte as usize] || separator {
            out.extend_from_slice(&text[plain..at]);
            match byte {
                b'"' | b'\\' => out.extend_from_slice(&[b'\\', byte]),
                b'\n' => out.extend_from_slice(b"\\n"),
                b'\r' => out.extend_from_slice(b"\\r"),
                0xe2 => {
                    // U+2028 and U+2029 end a line in JavaScript.
                    out.extend_from_slice(if text[at + 2] == 0xa8 { b"\\u2028" } else { b"\\u2029" });
                    at += 2;
                }
                _ => {
                    let (high, low) = (HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]);
                    out.extend_from_slice(&[b'\\', b'u', b'0', b'0', high, low]);
                }
            }
            plain = at + 1;
        }
        at += 1;
    }
    out.extend_from_slice(&text[plain..]);
}

/// Bytes that stand for themselves.
const PLAIN: [bool; 256] = {
    let mut plain = [true; 256];
    let mut byte = 0;
    while byte < 0x20 {
        plain[byte] = false;
        byte += 1;
    }
    let special = b"\"\\<>&";
    let mut at = 0;
    while at < special.len() {
        plain[special[at] as usize] = false;
        at += 1;
    }
    plain
};

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    struct Fixture {
        dir: PathBuf,
        log: Log,
    }

    impl Fixture {
        fn new(name: &str, max_size: u64, max_files: u32) -> Self {
            let dir = std::env::temp_dir().join(format!("proa-log-{}-{name}", std::process::id()));
            fs::create_dir_all(&dir).unwrap();
            let log = Log::open(&dir, LogConfig { max_size, max_files }).unwrap();
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
}
