//! The journal: what happens to instances and images, written by whoever does it.
//!
//! There is no daemon to ask, so events are kept in files, and whoever wants to watch follows those.
//!
//! ```text
//!   <root>/events/
//!     lock          held (flock) by whoever writes, for one append
//!     journal       {"journal":1,"file":12} and then one event a line, in Docker's JSON
//!     journal.11    the file before it, and so on, FILES of them at most
//! ```
//!
//! **Nothing written is lost, and nothing is written in halves.** An append takes the lock, stamps its events,
//! and is one `write` to the end. One that a full disk cuts off is cut back; a last line that a power cut left
//! without its end is ended before the next. Events are not synced: a power cut ends the instances as well.
//!
//! **A reader misses nothing and sees nothing twice.** A file's number grows by one with each rotation, and
//! a file gets its last line before it is renamed. So who has read a file that is not `journal` any more to
//! its end goes on with the next number. If that is gone already ([`MAX_BYTES`] times [`FILES`] are kept), the
//! reader knows that it has missed something.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::time::now_ns;

/// Bytes after which a new file is begun.
pub const MAX_BYTES: u64 = 1024 * 1024;
/// Files kept, the current one included.
pub const FILES: u64 = 4;

const DIRECTORY: &str = "events";
const CURRENT: &str = "journal";
const LOCK: &str = "lock";
const FORMAT: u32 = 1;

/// One event, as Docker's API has it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Event {
    /// The action again, as old clients look for it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub status: String,
    /// The actor's id again.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub id: String,
    /// An instance's image again.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub from: String,
    /// `container`, `image`, `network` or `volume`.
    #[serde(rename = "Type")]
    pub kind: String,
    /// What happened.
    #[serde(rename = "Action")]
    pub action: String,
    /// To what.
    #[serde(rename = "Actor")]
    pub actor: Actor,
    /// `local`.
    pub scope: String,
    /// Seconds since the epoch.
    pub time: i64,
    /// Nanoseconds since the epoch.
    #[serde(rename = "timeNano")]
    pub time_nano: i64,
}

/// What an event is about.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Actor {
    /// An instance's id, an image's id or name, a volume's name.
    #[serde(rename = "ID")]
    pub id: String,
    /// Name, image, labels, and what the action has.
    #[serde(rename = "Attributes")]
    pub attributes: BTreeMap<String, String>,
}

impl Event {
    /// Something happened to an instance. Its time is that of the append.
    pub fn instance(action: &str, id: &str, attributes: BTreeMap<String, String>) -> Self {
        let from = attributes.get("image").cloned().unwrap_or_default();
        Self::new("container", action, id, from, attributes)
    }

    /// Something happened to an image.
    pub fn image(action: &str, id: &str, name: &str) -> Self {
        let attributes = BTreeMap::from([("name".to_owned(), name.to_owned())]);
        Self::new("image", action, id, String::new(), attributes)
    }

    /// Something happened to what is neither. Docker's old fields are for instances and images alone.
    pub fn of(kind: &str, action: &str, id: &str, attributes: BTreeMap<String, String>) -> Self {
        Self {
            status: String::new(),
            id: String::new(),
            ..Self::new(kind, action, id, String::new(), attributes)
        }
    }

    /// Something happened to a volume.
    pub fn volume(action: &str, name: &str) -> Self {
        let attributes = BTreeMap::from([("driver".to_owned(), crate::volume::DRIVER.to_owned())]);
        Self::of("volume", action, name, attributes)
    }

    /// Something of a network, of this id.
    pub fn network(action: &str, id: &str) -> Self {
        Self::of("network", action, id, BTreeMap::new())
    }

    fn new(kind: &str, action: &str, id: &str, from: String, attributes: BTreeMap<String, String>) -> Self {
        Self {
            status: action.to_owned(),
            id: id.to_owned(),
            from,
            kind: kind.to_owned(),
            action: action.to_owned(),
            actor: Actor { id: id.to_owned(), attributes },
            scope: "local".to_owned(),
            time: 0,
            time_nano: 0,
        }
    }

    /// Adds an attribute.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl Into<String>) -> Self {
        self.actor.attributes.insert(key.to_owned(), value.into());
        self
    }
}

#[derive(Serialize, Deserialize)]
struct Header {
    journal: u32,
    file: u64,
}

/// The journal of one root.
#[derive(Debug, Clone)]
pub struct Journal {
    directory: PathBuf,
}

impl Journal {
    /// That of `root`. Nothing is opened.
    pub fn new(root: &Path) -> Self {
        Self { directory: root.join(DIRECTORY) }
    }

    /// Where its files are.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Appends events, stamped with the time of the append.
    ///
    /// # Errors
    /// Nothing has been written then.
    pub fn append(&self, events: &mut [Event]) -> io::Result<()> {
        let _lock = self.lock()?;
        let (file, size) = self.open_current()?;
        let bytes = stamped(events, now_ns());
        let (mut file, size) = if size > HEADER_ROOM && size + bytes.len() as u64 > MAX_BYTES {
            drop(file);
            self.rotate()?
        } else {
            (file, size)
        };
        file.write_all(&bytes).inspect_err(|_| {
            // What is cut off is no event; the failure to write is the one to tell.
            let _ = file.set_len(size);
        })
    }

    /// When the oldest event happened that is kept, where older ones are not.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn cut_before(&self) -> io::Result<Option<i64>> {
        let oldest = match self.numbered() {
            Ok(numbers) => numbers.first().copied().filter(|number| *number > 1),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let Some(oldest) = oldest else { return Ok(None) };
        let file = match File::open(self.file(oldest)) {
            Ok(file) => file,
            // Removed just now: then what is older is cut off as well.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Some(now_ns())),
            Err(error) => return Err(error),
        };
        let mut lines = io::BufRead::split(io::BufReader::new(file), b'\n').skip(1);
        let first = lines.next().transpose()?.unwrap_or_default();
        Ok(serde_json::from_slice::<Event>(&first).ok().map(|event| event.time_nano))
    }

    fn lock(&self) -> io::Result<File> {
        let path = self.directory.join(LOCK);
        let open = || OpenOptions::new().create(true).append(true).mode(0o600).open(&path);
        let lock = match open() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.directory)?;
                open()?
            }
            other => other?,
        };
        rustix::io::retry_on_intr(|| flock(&lock, FlockOperation::LockExclusive))?;
        Ok(lock)
    }

    /// The current file, its last line ended, and its size.
    fn open_current(&self) -> io::Result<(File, u64)> {
        let path = self.directory.join(CURRENT);
        let mut file = match OpenOptions::new().read(true).append(true).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // Never begun, or cut short between the two halves of a rotation.
                let last = self.numbered()?.last().copied().unwrap_or(0);
                return self.begin(last + 1);
            }
            Err(error) => return Err(error),
        };
        let mut size = file.metadata()?.len();
        let mut last = [b'\n'];
        if size > 0 {
            file.read_exact_at(&mut last, size - 1)?;
        }
        if last != [b'\n'] {
            file.write_all(b"\n")?;
            size += 1;
        }
        Ok((file, size))
    }

    /// Begins a file, which has its header when it is first seen.
    fn begin(&self, number: u64) -> io::Result<(File, u64)> {
        let fresh = self.directory.join("journal.new");
        let mut file =
            OpenOptions::new().create(true).truncate(true).read(true).write(true).mode(0o600).open(&fresh)?;
        let mut header = json(&Header { journal: FORMAT, file: number });
        header.push(b'\n');
        file.write_all(&header)?;
        fs::rename(&fresh, self.directory.join(CURRENT))?;
        Ok((file, header.len() as u64))
    }

    fn rotate(&self) -> io::Result<(File, u64)> {
        let current = self.directory.join(CURRENT);
        let number = number_of(&mut File::open(&current)?)?.unwrap_or(0);
        fs::rename(&current, self.file(number))?;
        for old in self.numbered()?.into_iter().filter(|old| old + FILES <= number + 1) {
            fs::remove_file(self.file(old))?;
        }
        self.begin(number + 1)
    }

    fn file(&self, number: u64) -> PathBuf {
        self.directory.join(format!("{CURRENT}.{number}"))
    }

    /// Numbers of the files before the current one, in order.
    fn numbered(&self) -> io::Result<Vec<u64>> {
        let mut numbers = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let name = entry?.file_name();
            let number: Option<u64> =
                name.to_str().and_then(|name| name.strip_prefix("journal.")?.parse().ok());
            numbers.extend(number);
        }
        numbers.sort_unstable();
        Ok(numbers)
    }
}

/// More than a header takes: a file is not rotated for one event that is larger than a file.
const HEADER_ROOM: u64 = 64;

/// Lines of events that all happened now.
fn stamped(events: &mut [Event], now: i64) -> Vec<u8> {
    let mut bytes = Vec::new();
    for event in events {
        event.time = now.div_euclid(1_000_000_000);
        event.time_nano = now;
        bytes.extend_from_slice(&json(event));
        bytes.push(b'\n');
    }
    bytes
}

fn json(value: &impl Serialize) -> Vec<u8> {
    // Strings, numbers and string-keyed maps always serialize.
    serde_json::to_vec(value).unwrap_or_default()
}

/// The number in a file's header; `None` if it has none.
fn number_of(file: &mut File) -> io::Result<Option<u64>> {
    let mut bytes = [0; HEADER_ROOM as usize];
    let read = file.read(&mut bytes)?;
    let line = bytes[..read].split(|byte| *byte == b'\n').next().unwrap_or_default();
    Ok(serde_json::from_slice::<Header>(line).ok().filter(|header| header.journal == FORMAT).map(|h| h.file))
}

/// Reads events in their order, across files.
#[derive(Debug)]
pub struct JournalReader {
    journal: Journal,
    current: Option<(u64, File)>,
    partial: Vec<u8>,
}

/// What a reader finds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// An event.
    Event(Box<Event>),
    /// Files that had not been read are gone: it was slower than the journal's whole length.
    Missed,
}

impl JournalReader {
    /// From the oldest event there is.
    pub fn from_start(journal: Journal) -> Self {
        Self { journal, current: None, partial: Vec::new() }
    }

    /// From now on.
    ///
    /// # Errors
    /// The journal cannot be read.
    pub fn from_now(journal: Journal) -> io::Result<Self> {
        let mut reader = Self::from_start(journal);
        match OpenOptions::new().read(true).open(reader.journal.directory.join(LOCK)) {
            Ok(lock) => {
                // Nobody is in the middle of a line.
                rustix::io::retry_on_intr(|| flock(&lock, FlockOperation::LockShared))?;
                let path = reader.journal.directory.join(CURRENT);
                if let Some((number, mut file)) = open_numbered(&path)? {
                    file.seek(SeekFrom::End(0))?;
                    reader.current = Some((number, file));
                }
                Ok(reader)
            }
            // Nothing has happened yet.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(reader),
            Err(error) => Err(error),
        }
    }

    /// All that can be read now, in order; nothing when the end is reached.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn read(&mut self) -> io::Result<Vec<Found>> {
        let mut found = Vec::new();
        loop {
            let Some((number, file)) = &mut self.current else {
                self.current = self.open_after(0)?;
                match self.current {
                    Some(_) => continue,
                    None => return Ok(found),
                }
            };
            // Asked before the last read: what a file gets, it gets before it is renamed.
            let (number, rotated) = (*number, !is_current(&self.journal, file)?);
            file.read_to_end(&mut self.partial)?;
            take_lines(&mut self.partial, &mut found);
            if !rotated {
                return Ok(found);
            }
            self.partial.clear();
            let Some((next, file)) = self.open_after(number)? else { return Ok(found) };
            if next != number + 1 {
                found.push(Found::Missed);
            }
            self.current = Some((next, file));
        }
    }

    /// The oldest file with a greater number.
    fn open_after(&self, number: u64) -> io::Result<Option<(u64, File)>> {
        let oldest = || match self.journal.numbered() {
            Ok(numbers) => Ok(numbers.into_iter().find(|other| *other > number)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        };
        loop {
            if let Some(older) = oldest()? {
                match open_numbered(&self.journal.file(older))? {
                    Some(opened) => return Ok(Some(opened)),
                    // Removed between the two looks.
                    None => continue,
                }
            }
            match open_numbered(&self.journal.directory.join(CURRENT))? {
                // Rotated between the two looks: what is next has a number now.
                Some((found, _)) if found > number + 1 && oldest()?.is_some_and(|older| older < found) => {}
                opened => return Ok(opened),
            }
        }
    }
}

/// Whether this is the file that is being written.
fn is_current(journal: &Journal, file: &File) -> io::Result<bool> {
    let own = file.metadata()?;
    match fs::metadata(journal.directory.join(CURRENT)) {
        Ok(current) => Ok((current.dev(), current.ino()) == (own.dev(), own.ino())),
        // In the middle of a rotation: there is nothing after it yet.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// A file and its number, which its header says; `None` where there is none.
fn open_numbered(path: &Path) -> io::Result<Option<(u64, File)>> {
    match File::open(path) {
        Ok(mut file) => {
            let number = number_of(&mut file)?;
            let number = number.ok_or_else(|| {
                io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("{} is not a journal of ours", path.display()),
                )
            })?;
            file.seek(SeekFrom::Start(0))?;
            Ok(Some((number, file)))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Takes whole lines off the front; what is no event (the header, a line that was cut off) says nothing.
fn take_lines(bytes: &mut Vec<u8>, found: &mut Vec<Found>) {
    let Some(end) = bytes.iter().rposition(|byte| *byte == b'\n') else { return };
    for line in bytes[..end].split(|byte| *byte == b'\n') {
        if let Ok(event) = serde_json::from_slice::<Event>(line)
            && !event.action.is_empty()
        {
            found.push(Found::Event(Box::new(event)));
        }
    }
    bytes.drain(..=end);
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixture(PathBuf, Journal);

    impl Fixture {
        fn new(name: &str) -> Self {
            let root = std::env::temp_dir().join(format!("proa-events-{}-{name}", std::process::id()));
            let _ = fs::remove_dir_all(&root);
            fs::create_dir_all(&root).unwrap();
            let journal = Journal::new(&root);
            Self(root, journal)
        }

        fn add(&self, action: &str) {
            self.1.append(&mut [Event::instance(action, "ab", BTreeMap::new())]).unwrap();
        }
    }

    impl Drop for Fixture {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn actions(reader: &mut JournalReader) -> Vec<String> {
        let found = reader.read().unwrap();
        let name = |found: Found| match found {
            Found::Event(event) => event.action,
            Found::Missed => "MISSED".to_owned(),
        };
        found.into_iter().map(name).collect()
    }

    #[test]
    fn the_format_is_frozen() {
        let attributes = BTreeMap::from([("image".to_owned(), "busybox".to_owned())]);
        let mut event = Event::instance("die", "ab", attributes).with("exitCode", "3");
        let line = stamped(std::slice::from_mut(&mut event), 1_700_000_000_000_000_007);
        let text = concat!(
            r#"{"status":"die","id":"ab","from":"busybox","Type":"container","Action":"die","Actor":"#,
            r#"{"ID":"ab","Attributes":{"exitCode":"3","image":"busybox"}},"scope":"local","#,
            r#""time":1700000000,"timeNano":1700000000000000007}"#,
            "\n"
        );
        assert_eq!(String::from_utf8(line).unwrap(), text);
        assert_eq!(json(&Header { journal: 1, file: 12 }), br#"{"journal":1,"file":12}"#);
    }

    #[test]
    fn readers_begin_at_the_start_or_now() {
        let fixture = Fixture::new("begin");
        let mut early = JournalReader::from_now(fixture.1.clone()).unwrap();
        assert!(actions(&mut early).is_empty());
        fixture.add("one");
        let mut late = JournalReader::from_now(fixture.1.clone()).unwrap();
        fixture.add("two");
        assert_eq!(actions(&mut early), ["one", "two"]);
        assert_eq!(actions(&mut late), ["two"]);
        assert_eq!(actions(&mut JournalReader::from_start(fixture.1.clone())), ["one", "two"]);
        assert!(actions(&mut early).is_empty());
    }

    #[test]
    fn what_a_crash_cut_off_harms_nothing_else() {
        let fixture = Fixture::new("cut");
        fixture.add("one");
        let path = fixture.1.directory().join(CURRENT);
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(b"{\"status\":\"half").unwrap();
        let mut reader = JournalReader::from_start(fixture.1.clone());
        assert_eq!(actions(&mut reader), ["one"]);
        fixture.add("two");
        assert_eq!(actions(&mut reader), ["two"]);
        // Between the two halves of a rotation.
        fs::rename(&path, fixture.1.file(1)).unwrap();
        assert!(actions(&mut reader).is_empty());
        fixture.add("three");
        assert_eq!(actions(&mut reader), ["three"]);
        assert_eq!(actions(&mut JournalReader::from_start(fixture.1.clone())), ["one", "two", "three"]);
    }

    #[test]
    fn rotation_loses_nothing_for_who_follows_and_is_told_to_who_sleeps() {
        let fixture = Fixture::new("rotate");
        let padding = "x".repeat(20_000);
        let add = |number: usize| {
            let mut event =
                [Event::instance(&number.to_string(), "ab", BTreeMap::new()).with("p", &*padding)];
            fixture.1.append(&mut event).unwrap();
        };
        add(0);
        assert_eq!(fixture.1.cut_before().unwrap(), None);
        let mut follower = JournalReader::from_start(fixture.1.clone());
        let mut sleeper = JournalReader::from_start(fixture.1.clone());
        let mut seen = actions(&mut follower);
        assert_eq!(actions(&mut sleeper), ["0"]);
        for number in 1..400 {
            add(number);
            if number % 40 == 0 {
                seen.extend(actions(&mut follower));
            }
        }
        seen.extend(actions(&mut follower));
        assert_eq!(seen, (0..400).map(|number| number.to_string()).collect::<Vec<_>>());
        let late = actions(&mut sleeper);
        assert_eq!(late.iter().filter(|action| *action == "MISSED").count(), 1);
        assert_eq!(late.last().unwrap(), "399");
        let files = fs::read_dir(fixture.1.directory()).unwrap().flatten();
        let sizes: Vec<u64> = files.map(|file| file.metadata().unwrap().len()).collect();
        assert_eq!(sizes.len() as u64, FILES + 1, "with the lock");
        assert!(fixture.1.cut_before().unwrap().is_some_and(|oldest| oldest > 0));
        assert!(sizes.iter().sum::<u64>() <= FILES * MAX_BYTES);
    }

    #[test]
    fn many_writers_and_a_reader_lose_nothing() {
        const WRITERS: usize = 4;
        const EACH: usize = 300;
        let fixture = Fixture::new("race");
        let journal = &fixture.1;
        let padding = "y".repeat(3_000);
        let mut seen = Vec::new();
        std::thread::scope(|scope| {
            for writer in 0..WRITERS {
                let padding = padding.clone();
                scope.spawn(move || {
                    for number in 0..EACH {
                        let event = Event::instance(&format!("{writer}-{number}"), "ab", BTreeMap::new());
                        journal.append(&mut [event.with("p", &*padding)]).unwrap();
                    }
                });
            }
            let mut reader = JournalReader::from_start(journal.clone());
            while seen.len() < WRITERS * EACH {
                seen.extend(actions(&mut reader));
            }
        });
        for writer in 0..WRITERS {
            let own: Vec<_> =
                seen.iter().filter(|action| action.starts_with(&format!("{writer}-"))).cloned().collect();
            let expected: Vec<_> = (0..EACH).map(|number| format!("{writer}-{number}")).collect();
            assert_eq!(own, expected);
        }
    }
}
