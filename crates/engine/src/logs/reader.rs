//! Entries of a log's files, across rotations and compression.
//!
//! ```text
//!   log.json.2.gz ─▶ log.json.1 ─▶ log.json    oldest first; a file is known by its inode, so that a reader
//!                                              finds its place again after files have been renamed
//! ```
//!
//! A reader holds its file open, so that nobody else gets its inode; one that was compressed and removed meanwhile
//! is named in the header of what was made of it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use flate2::read::GzDecoder;
use proa_protocol::log::{COMPRESSED, LogDriver, MAX_LOCAL_ENTRY};
use serde::Deserialize;

use super::{Entry, Stream};
use crate::error::{Error, Result};

/// Files that a log may have been rotated into.
const MOST_FILES: u32 = 1000;
const BUFFER: usize = 64 * 1024;

/// Reads entries of all files in their order.
pub struct Reader {
    directory: PathBuf,
    name: &'static str,
    local: bool,
    current: Option<(u64, BufReader<Source>)>,
    partial: Vec<u8>,
}

enum Source {
    Plain(File),
    Compressed(Box<GzDecoder<File>>),
}

impl Read for Source {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(file) => file.read(buffer),
            Self::Compressed(decoder) => decoder.read(buffer),
        }
    }
}

#[derive(Deserialize)]
struct Line {
    log: String,
    stream: Stream,
    time: String,
    #[serde(default)]
    attrs: BTreeMap<String, String>,
}

/// What was found at the place of the next entry.
enum Next {
    Entry(Entry),
    /// Something that says nothing.
    Nonsense,
    /// Not all of it is there.
    Unfinished,
}

impl Reader {
    /// Of the log in an instance's directory; `None` where the driver keeps no files.
    pub fn new(directory: &Path, driver: LogDriver) -> Option<Self> {
        Some(Self {
            directory: directory.to_owned(),
            name: driver.file()?,
            local: driver == LogDriver::Local,
            current: None,
            partial: Vec::new(),
        })
    }

    /// The next whole entry, if it has been written.
    pub fn next_entry(&mut self) -> Result<Option<Entry>> {
        loop {
            if let Some((_, file)) = &mut self.current {
                let next =
                    if self.local { record(file, &mut self.partial) } else { line(file, &mut self.partial) };
                match next.map_err(|error| Error::io("read the log in", &self.directory, error))? {
                    Next::Entry(entry) => return Ok(Some(entry)),
                    Next::Nonsense => continue,
                    Next::Unfinished => {}
                }
            }
            if !self.open_next()? {
                return Ok(None);
            }
        }
    }

    /// Goes on to the next newer file; false if there is none.
    fn open_next(&mut self) -> Result<bool> {
        let files = self.files()?;
        let next = match &self.current {
            // A place that was rotated away altogether is before the oldest file.
            Some((inode, _)) => place(&files, *inode).map_or(0, |at| at + 1),
            None => 0,
        };
        let Some((inode, path)) = files.get(next) else { return Ok(false) };
        match File::open(path) {
            Ok(file) => {
                // Renamed in between: look again.
                if file.metadata().is_ok_and(|metadata| metadata.ino() == *inode) {
                    self.partial.clear();
                    let source = match is_compressed(path) {
                        true => Source::Compressed(Box::new(GzDecoder::new(file))),
                        false => Source::Plain(file),
                    };
                    self.current = Some((*inode, BufReader::with_capacity(BUFFER, source)));
                }
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
            Err(error) => Err(Error::io("read", path, error)),
        }
    }

    /// Inodes and paths, the oldest first.
    fn files(&self) -> Result<Vec<(u64, PathBuf)>> {
        let mut files = Vec::new();
        let mut gap = false;
        for number in 0..MOST_FILES {
            let plain = match number {
                0 => self.name.to_owned(),
                number => format!("{}.{number}", self.name),
            };
            // Both are there for a moment.
            let names = [plain.clone(), plain + COMPRESSED];
            match names.iter().find_map(|name| self.known(name).transpose()).transpose()? {
                Some(file) => {
                    files.push(file);
                    gap = false;
                }
                None if gap => break,
                // Between two renames of a rotation one is missing.
                None => gap = true,
            }
        }
        files.reverse();
        files.dedup_by_key(|(inode, _)| *inode);
        Ok(files)
    }

    fn known(&self, name: &str) -> Result<Option<(u64, PathBuf)>> {
        let path = self.directory.join(name);
        match std::fs::metadata(&path) {
            Ok(metadata) => Ok(Some((metadata.ino(), path))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io("read", &path, error)),
        }
    }
}

fn is_compressed(path: &Path) -> bool {
    path.extension().is_some_and(|end| COMPRESSED.ends_with(&*end.to_string_lossy()))
}

/// Where the file with this inode is, or what was made of it. An inode is used again, so the newest counts.
fn place(files: &[(u64, PathBuf)], inode: u64) -> Option<usize> {
    let same = files.iter().rposition(|(found, _)| *found == inode);
    same.or_else(|| files.iter().rposition(|(_, path)| is_compressed(path) && made_of(path) == Some(inode)))
}

fn made_of(path: &Path) -> Option<u64> {
    let decoder = GzDecoder::new(File::open(path).ok()?);
    std::str::from_utf8(decoder.header()?.comment()?).ok()?.parse().ok()
}

/// An object of json-file.
fn line(file: &mut impl BufRead, partial: &mut Vec<u8>) -> io::Result<Next> {
    file.read_until(b'\n', partial)?;
    if !partial.ends_with(b"\n") {
        return Ok(Next::Unfinished);
    }
    let line = std::mem::take(partial);
    // A line that a full disk or a power cut has cut off says nothing.
    let Ok(line) = serde_json::from_slice::<Line>(&line) else { return Ok(Next::Nonsense) };
    let time = line.time.parse::<jiff::Timestamp>().unwrap_or_default();
    let at_ns = i64::try_from(time.as_nanosecond()).unwrap_or(i64::MAX);
    Ok(Next::Entry(Entry { stream: line.stream, at_ns, text: line.log, attributes: line.attrs }))
}

/// A record of the driver `local`.
fn record(file: &mut impl BufRead, partial: &mut Vec<u8>) -> io::Result<Next> {
    const LENGTH: usize = 4;
    if !fill(file, partial, LENGTH)? {
        return Ok(Next::Unfinished);
    }
    let length = u32::from_be_bytes([partial[0], partial[1], partial[2], partial[3]]);
    // What comes after such a length cannot be found: the rest of the file is passed by.
    let whole = if length > MAX_LOCAL_ENTRY { usize::MAX } else { length as usize + 2 * LENGTH };
    if !fill(file, partial, whole)? {
        return Ok(Next::Unfinished);
    }
    let record = std::mem::take(partial);
    Ok(local_entry(&record[LENGTH..whole - LENGTH]).map_or(Next::Nonsense, Next::Entry))
}

/// Reads until there are so many bytes; false if there are fewer.
fn fill(file: &mut impl BufRead, bytes: &mut Vec<u8>, wanted: usize) -> io::Result<bool> {
    if wanted == usize::MAX {
        return Ok(false);
    }
    let missing = wanted.saturating_sub(bytes.len()) as u64;
    file.take(missing).read_to_end(bytes)?;
    Ok(bytes.len() >= wanted)
}

/// Protobuf's fields 1 to 4; others are passed by.
fn local_entry(mut bytes: &[u8]) -> Option<Entry> {
    let mut entry =
        Entry { stream: Stream::Stdout, at_ns: 0, text: String::new(), attributes: BTreeMap::new() };
    let mut partial = false;
    while !bytes.is_empty() {
        let key = number(&mut bytes)?;
        let (value, slice) = match key & 7 {
            0 => (number(&mut bytes)?, &[][..]),
            2 => {
                let length = usize::try_from(number(&mut bytes)?).ok()?;
                let (slice, rest) = bytes.split_at_checked(length)?;
                bytes = rest;
                (0, slice)
            }
            _ => return None,
        };
        match key >> 3 {
            1 if slice == b"stderr" => entry.stream = Stream::Stderr,
            2 => entry.at_ns = value as i64,
            3 => entry.text = String::from_utf8_lossy(slice).into_owned(),
            4 => partial = value != 0,
            _ => {}
        }
    }
    if !partial {
        entry.text.push('\n');
    }
    Some(entry)
}

fn number(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}
