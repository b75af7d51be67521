//! What the monitor writes into the journal: all that happens to a live instance.
//!
//! Events are gathered during a round and written in one append before any client hears of what they tell. Who
//! the instance is (name, image, labels) is read again when its configuration has been replaced, as by `rename`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use proa_protocol::events::{Event, Journal};
use proa_protocol::instance::{CONFIG_FILE, InstanceConfig};
use proa_protocol::message::{ErrorKind, ExitStatus, Happening};
use proa_protocol::network::{Driver, Endpoint};
use proa_protocol::volume::MountPoint;
use rustix::rand::{GetRandomFlags, getrandom};
use serde::Deserialize;

use crate::record::{Stamp, stamp};

/// Events kept for a disk that is full at the moment.
const MOST_PENDING: usize = 256;
/// Time between two ends of memory that are told.
const OOM_PAUSE: Duration = Duration::from_secs(1);
/// What a process ended with that ended with its instance.
const KILLED: i32 = 137;

/// The events of one instance.
pub struct Events {
    journal: Journal,
    id: String,
    config: PathBuf,
    stamp: Stamp,
    actor: BTreeMap<String, String>,
    volumes: Vec<MountPoint>,
    networks: Vec<Place>,
    pending: Vec<Event>,
    execs: Vec<Exec>,
    /// When it was last told.
    out_of_memory: Option<Instant>,
}

/// A further process that has not ended.
struct Exec {
    id: String,
    action: String,
    channel: u32,
    pid: Option<u32>,
}

/// A network that the instance is in.
struct Place {
    id: String,
    name: String,
    driver: Driver,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct WhatChanges {
    actor: BTreeMap<String, String>,
    networks: Vec<Endpoint>,
}

impl Events {
    /// Of the instance with this directory and configuration.
    pub fn new(root: &Path, directory: &Path, config: &InstanceConfig) -> Self {
        let path = directory.join(CONFIG_FILE);
        Self {
            journal: Journal::new(root),
            id: config.id.clone(),
            stamp: stamp(&path),
            config: path,
            actor: config.actor.clone(),
            volumes: config.mount_points.iter().filter(|point| point.volume.is_some()).cloned().collect(),
            networks: places(&config.networks),
            pending: Vec::new(),
            execs: Vec::new(),
            out_of_memory: None,
        }
    }

    /// Something happened to the instance.
    pub fn tell(&mut self, action: &str, attributes: &[(&str, String)]) {
        self.refresh();
        let event = Event::instance(action, &self.id, self.actor.clone());
        let event = attributes.iter().fold(event, |event, (key, value)| event.with(key, value.clone()));
        self.keep(event);
    }

    fn keep(&mut self, event: Event) {
        if self.pending.len() < MOST_PENDING {
            self.pending.push(event);
        }
    }

    /// The instance is in its networks (`connect`), or not any more.
    fn networks(&mut self, action: &str) {
        self.refresh();
        let event = |place: &Place| {
            let event = Event::network(action, &place.id).with("container", self.id.clone());
            event.with("name", place.name.clone()).with("type", place.driver.as_str())
        };
        let events: Vec<Event> = self.networks.iter().map(event).collect();
        events.into_iter().for_each(|event| self.keep(event));
    }

    /// The instance runs.
    pub fn started(&mut self) {
        self.networks("connect");
        self.volumes("mount");
        self.tell("start", &[]);
    }

    /// The instance's volumes are mounted into it (`mount`), or not any more.
    fn volumes(&mut self, action: &str) {
        for point in &self.volumes {
            let event = Event::volume(action, &point.name).with("container", self.id.clone());
            let event = if action == "mount" {
                let writable = (!point.read_only).to_string();
                let event = event.with("destination", point.destination.clone());
                event.with("propagation", point.propagation.clone()).with("read/write", writable)
            } else {
                event
            };
            if self.pending.len() < MOST_PENDING {
                self.pending.push(event);
            }
        }
    }

    /// Another process is asked for.
    pub fn exec(&mut self, channel: u32, args: &[String]) {
        let exec = Exec { id: fresh_id(), action: args.join(" "), channel, pid: None };
        for action in ["exec_create", "exec_start"] {
            self.tell(&format!("{action}: {}", exec.action), &[("execID", exec.id.clone())]);
        }
        self.execs.push(exec);
    }

    /// It runs.
    pub fn exec_started(&mut self, channel: u32, pid: u32) {
        if let Some(exec) = self.execs.iter_mut().find(|exec| exec.channel == channel && exec.pid.is_none()) {
            exec.pid = Some(pid);
        }
    }

    /// It could not be run.
    pub fn exec_failed(&mut self, channel: u32, kind: ErrorKind) {
        let code = match kind {
            ErrorKind::CommandNotFound => 127,
            _ => 126,
        };
        self.end_execs(code, |exec| exec.channel == channel && exec.pid.is_none());
    }

    /// Something happened by itself.
    pub fn happened(&mut self, what: Happening) {
        match what {
            // A client that left at once took the news of the start with it: then its channel tells.
            Happening::ExecEnded { channel, pid, code } => {
                self.end_execs(code, |exec| exec.channel == channel && exec.pid.is_none_or(|own| own == pid))
            }
            Happening::OutOfMemory => {
                // What a guest says is written down no faster than is of use.
                let now = Instant::now();
                if self.out_of_memory.is_none_or(|last| now - last >= OOM_PAUSE) {
                    self.out_of_memory = Some(now);
                    self.tell("oom", &[]);
                }
            }
        }
    }

    /// The instance has ended, and all that ran in it.
    pub fn died(&mut self, status: ExitStatus, started_ns: i64) {
        self.end_execs(KILLED, |_| true);
        if status.oom_killed && self.out_of_memory.is_none() {
            self.tell("oom", &[]);
        }
        let seconds = (status.at_ns - started_ns).max(0) / 1_000_000_000;
        self.tell("die", &[("exitCode", status.code.to_string()), ("execDuration", seconds.to_string())]);
        self.networks("disconnect");
        self.volumes("unmount");
    }

    /// Writes what has been gathered. What cannot be written is tried again with what comes next.
    pub fn flush(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        if self.journal.append(&mut self.pending).is_ok() {
            // An idle monitor keeps no buffer.
            self.pending = Vec::new();
        }
    }

    fn end_execs(&mut self, code: i32, which: impl Fn(&Exec) -> bool) {
        let (ended, running) = std::mem::take(&mut self.execs).into_iter().partition(|exec| which(exec));
        self.execs = running;
        for Exec { id, .. } in ended {
            self.tell("exec_die", &[("execID", id), ("exitCode", code.to_string())]);
        }
    }

    fn refresh(&mut self) {
        let now = stamp(&self.config);
        if now == self.stamp {
            return;
        }
        let fresh = fs::read(&self.config).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        if let Some(WhatChanges { actor, networks }) = fresh {
            (self.actor, self.networks, self.stamp) = (actor, places(&networks), now);
        }
    }
}

fn places(endpoints: &[Endpoint]) -> Vec<Place> {
    let place = |Endpoint { network, .. }: &Endpoint| Place {
        id: network.id.clone(),
        name: network.name.clone(),
        driver: network.driver,
    };
    endpoints.iter().map(place).collect()
}

fn fresh_id() -> String {
    let mut bytes = [0u8; 32];
    // Without a random source the ids of processes are the least of all troubles.
    let _ = getrandom(&mut bytes, GetRandomFlags::empty());
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
