//! `events`: telling what the engine does, and following the journal (`proa_protocol::events`).

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::time::Duration;

use proa_protocol::events::{Event, Found, Journal, JournalReader};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;

use crate::db::Record;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::filters::{Conditions, pair};
use crate::parse;

/// Which events, and how long.
#[derive(Debug, Clone, Default)]
pub struct EventOptions {
    /// Not before; without it, from now on. Nanoseconds since the epoch.
    pub since_ns: Option<i64>,
    /// Not after; without it, for ever.
    pub until_ns: Option<i64>,
    /// Which.
    pub filters: EventFilters,
}

/// Conditions. Those of one key need one to hold, those of different keys all.
#[derive(Debug, Clone, Default)]
pub struct EventFilters(Conditions);

const KEYS: &[&str] =
    &["container", "daemon", "event", "image", "label", "network", "scope", "type", "volume"];

impl EventFilters {
    /// Reads `key=value` texts.
    ///
    /// # Errors
    /// A key is unknown, or there is no value.
    pub fn parse(texts: &[String]) -> Result<Self> {
        texts.iter().map(|text| pair(text, KEYS)).collect::<Result<_>>().map(|pairs| Self(Conditions(pairs)))
    }

    fn matches(&self, event: &Event) -> bool {
        let attributes = &event.actor.attributes;
        let attribute = |key: &str| attributes.get(key).map_or("", String::as_str);
        self.0.has_labels(attributes)
            && self.0.any("type", |kind| event.kind == kind)
            && self.0.any("scope", |scope| event.scope == scope)
            // `exec_create` stands for `exec_create: sh -c …`.
            && self.0.any("event", |action| event.action.split(':').next() == Some(action) || event.action == action)
            && self.0.any("volume", |wanted| event.kind == "volume" && event.actor.id == wanted)
            && self.0.any("container", |wanted| {
                event.kind == "container" && (event.actor.id.starts_with(wanted) || attribute("name") == wanted)
            })
            && self.0.any("network", |wanted| {
                event.kind == "network" && (event.actor.id.starts_with(wanted) || attribute("name") == wanted)
            })
            // There is no daemon that anything could happen to.
            && self.0.any("daemon", |_| false)
            && self.0.any("image", |wanted| {
                let names = match event.kind.as_str() {
                    "image" => [event.actor.id.as_str(), attribute("name")],
                    _ => [attribute("image"), ""],
                };
                names.iter().any(|name| !name.is_empty() && (*name == wanted || without_tag(name) == wanted))
            })
    }
}

/// A name without its tag; the colon of a port is followed by a slash.
fn without_tag(name: &str) -> &str {
    match name.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => repository,
        _ => name,
    }
}

/// What events say of an instance.
pub(crate) fn actor(record: &Record) -> BTreeMap<String, String> {
    let mut attributes = record.config.labels.clone();
    attributes.insert("image".to_owned(), record.image.clone());
    attributes.insert("name".to_owned(), record.name.clone());
    attributes
}

impl Engine {
    /// Tells of something done to an instance.
    pub fn tell(&self, record: &Record, action: &str, attributes: &[(&str, &str)]) {
        let event = Event::instance(action, &record.id, actor(record));
        let event = attributes.iter().fold(event, |event, (key, value)| event.with(key, *value));
        self.append(event);
    }

    /// Tells of something done to an image.
    pub fn tell_image(&self, action: &str, id: &str, name: &str) {
        self.append(Event::image(action, id, name));
    }

    /// Tells of something done to what is neither an instance nor an image.
    pub(crate) fn tell_of(&self, kind: &str, action: &str, id: &str, attributes: BTreeMap<String, String>) {
        self.append(Event::of(kind, action, id, attributes));
    }

    pub(crate) fn append(&self, event: Event) {
        let what = event.action.clone();
        // What was done is done: it does not fail for its event.
        if let Err(error) = Journal::new(&self.paths.root).append(&mut [event]) {
            (self.notice)(&format!("the event {what} could not be recorded: {error}"));
        }
    }

    /// Passes events to `take` until the time is over, or until it says so by returning false.
    ///
    /// # Errors
    /// The journal cannot be read, or was written faster than it was read.
    pub fn events(&self, options: &EventOptions, mut take: impl FnMut(&Event) -> bool) -> Result<()> {
        let journal = Journal::new(&self.paths.root);
        let directory = journal.directory().to_owned();
        let failed = |error| Error::io("read the events in", &directory, error);
        let over = |ns: i64| options.until_ns.is_some_and(|until| ns > until);
        // Watched before the first read: what comes after that is not missed.
        let watch = if over(parse::now_ns()) { None } else { Some(Watch::new(&directory)?) };
        let mut reader = match options.since_ns {
            Some(since) => {
                self.tell_of_cut(&journal, since).map_err(failed)?;
                JournalReader::from_start(journal)
            }
            None => JournalReader::from_now(journal).map_err(failed)?,
        };
        loop {
            for found in reader.read().map_err(failed)? {
                let Found::Event(event) = found else {
                    return Err(Error::conflict(
                        "events came faster than they were read",
                        "ask for them --since",
                    ));
                };
                if over(event.time_nano) {
                    return Ok(());
                }
                let wanted = options.since_ns.is_none_or(|since| event.time_nano >= since);
                if wanted && options.filters.matches(&event) && !take(&event) {
                    return Ok(());
                }
            }
            match &watch {
                Some(watch) if watch.wait(options.until_ns)? => {}
                _ => return Ok(()),
            }
        }
    }
}

/// What the journal has lost.
impl Engine {
    /// Says so where events have been asked for that are not kept any more.
    fn tell_of_cut(&self, journal: &Journal, since_ns: i64) -> std::io::Result<()> {
        if let Some(oldest_ns) = journal.cut_before()?
            && since_ns < oldest_ns
        {
            let oldest = jiff::Timestamp::from_nanosecond(oldest_ns.into()).unwrap_or_default();
            (self.notice)(&format!("events before {oldest} are not kept any more"));
        }
        Ok(())
    }
}

/// Tells when the journal changes.
pub(crate) struct Watch(rustix::fd::OwnedFd);

impl Watch {
    pub(crate) fn new(directory: &Path) -> Result<Self> {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
        made.map_err(|error| Error::io("make directory", directory, error))?;
        let failed = |errno| Error::io("watch", directory, errno);
        let fd =
            inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK).map_err(failed)?;
        let flags = inotify::WatchFlags::MODIFY | inotify::WatchFlags::MOVED_TO;
        inotify::add_watch(&fd, directory, flags).map_err(failed)?;
        Ok(Self(fd))
    }

    /// Waits for a change; false when the time is over.
    pub(crate) fn wait(&self, until_ns: Option<i64>) -> Result<bool> {
        let left = until_ns.map(|until| {
            Duration::from_nanos(u64::try_from(until.saturating_sub(parse::now_ns())).unwrap_or(0))
        });
        let timeout =
            left.map(|left| Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() });
        match poll(&mut [PollFd::new(&self.0, PollFlags::IN)], timeout.as_ref()) {
            Ok(0) => return Ok(false),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(Error::io("watch", Path::new("events"), errno)),
        }
        let mut events = [0; 4096];
        while rustix::io::read(&self.0, &mut events).is_ok_and(|count| count > 0) {}
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions() {
        let attributes: BTreeMap<String, String> = [("image", "busybox:1"), ("name", "web"), ("tier", "one")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into();
        let event = Event::instance("exec_create: sh -c x", "abcd", attributes);
        let holds = |texts: &[&str]| {
            let texts: Vec<String> = texts.iter().map(ToString::to_string).collect();
            EventFilters::parse(&texts).unwrap().matches(&event)
        };
        for texts in [
            &[][..],
            &["type=container"],
            &["event=exec_create"],
            &["event=die", "event=exec_create"],
            &["container=ab", "image=busybox"],
            &["container=web", "image=busybox:1"],
            &["label=tier", "label=tier=one", "scope=local"],
            &["type=container", "type=network"],
        ] {
            assert!(holds(texts), "{texts:?}");
        }
        for texts in [
            &["type=image"][..],
            &["event=exec"],
            &["container=we"],
            &["image=other"],
            &["label=tier=two"],
            &["label=tier", "label=none"],
            &["type=container", "event=die"],
            &["network=web"],
            &["volume=abcd"],
            &["daemon=proa"],
        ] {
            assert!(!holds(texts), "{texts:?}");
        }
        for text in ["", "event", "colour=red"] {
            assert!(EventFilters::parse(&[text.to_owned()]).is_err(), "{text}");
        }
        let pulled = Event::image("pull", "localhost:5000/a:1", "localhost:5000/a");
        let image = EventFilters::parse(&["image=localhost:5000/a".to_owned()]).unwrap();
        assert!(image.matches(&pulled));
    }
}
