//! The process that keeps the server: reads files, makes sockets, brings the firewall's tables back.
//!
//! ```text
//!   inotify ─▶ file ─▶ update ─▶ server        network.json ─▶ sockets by its bridge (again, when it is another)
//!   server ended ─▶ a new one, told everything  table removed ─▶ restore
//!   nobody to serve for a while, SIGTERM, `<run>/networks` gone ─▶ end
//! ```
//!
//! For an ordinary user it also keeps the network namespace that the bridges are in (`proa_network::switch`), and makes
//! the sockets there; the server asks the host's servers as the host does. Then it stays as long as somebody holds what
//! it hands out.
//!
//! Whoever wants names served writes the endpoint's file first and then starts a resolver, which ends at once where the
//! lock is held. The one that holds it looks once more after it has let go of it: so either it has seen the file, or the
//! other has got the lock.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use proa_network::Switch;
use proa_network::switch::Keeper;
use proa_protocol::network::{DIRECTORY, Driver, Network, RESOLVER_LOCK};
use proa_sys::job::{self, Job};
use proa_sys::signalfd::SignalFd;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::process::{Signal, WaitId, WaitIdOptions, getpid, waitid};

use crate::args::Args;
use crate::firewall::Guard;
use crate::server::Server;
use crate::update::{self, Segment, Transport, Update};
use crate::watch::{Change, Watch};
use crate::{confine, files, listen, resolv_conf};

/// How often a bridge that is not there is looked for, at first and later.
const LOOK: Duration = Duration::from_millis(200);
const LOOK_LATER: Duration = Duration::from_secs(5);
const LOOKS: u32 = 50;
/// How long a server must have lived for a new one to be started at once.
const PAUSE: Duration = Duration::from_secs(1);
/// How long removed tables stay so: who flushes them often puts others there next.
const SETTLE: Duration = Duration::from_millis(300);
/// When that failed, it is tried again.
const RESTORE_AGAIN: Duration = Duration::from_secs(5);

/// Why there is no resolver.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or directory cannot be used.
    #[error("{path}: {error}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// An ordinary user's network namespace.
    #[error(transparent)]
    Switch(#[from] proa_network::Error),
    /// Something else failed.
    #[error("cannot {what}: {error}")]
    Failed {
        /// What was to be done.
        what: &'static str,
        /// Why.
        error: io::Error,
    },
}

fn failed(what: &'static str) -> impl Fn(io::Error) -> Error {
    move |error| Error::Failed { what, error }
}

/// Serves until there is nobody to serve; at once, if another does. `detach` gives what is
/// closed when a user's network namespace is there and names are answered in it.
///
/// # Errors
/// The networks' directory cannot be used, or no server can be started.
pub fn run(args: &Args, say: fn(&str), detach: fn() -> Option<OwnedFd>) -> Result<(), Error> {
    let signals =
        SignalFd::new(&[Signal::TERM.as_raw(), Signal::INT.as_raw()]).map_err(failed("block signals"))?;
    confine::raise_descriptors();
    loop {
        let Some(lock) = lock(args)? else { return Ok(()) };
        let keeper = args.switch.then(|| Keeper::start(&args.run)).transpose()?;
        let waiting = keeper.as_ref().and_then(|_| detach());
        confine::narrow(args.switch).map_err(failed("give up privileges"))?;
        let was_told = Steward::new(args, say, keeper)?.serve(&signals, waiting)?;
        drop(lock);
        if was_told || !files::has_endpoints(&args.run) {
            return Ok(());
        }
    }
}

/// How often, and how far apart, a lock that is held is tried again.
const LOCK_TRIES: u32 = 5;
const LOCK_PAUSE: rustix::event::Timespec = rustix::event::Timespec { tv_sec: 0, tv_nsec: 4_000_000 };

/// Takes the resolver's lock, if it is free.
fn lock(args: &Args) -> Result<Option<File>, Error> {
    let path = args.run.join(DIRECTORY).join(RESOLVER_LOCK);
    let failed = |error| Error::Io { path: path.clone(), error };
    let mut tries = 0;
    loop {
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(&path).map_err(failed)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) if proa_sys::lock::is_unlinked(&file) => {}
            Ok(()) => {
                // Whoever ends what belongs to the root finds us by it.
                let id = std::process::id().to_string();
                file.set_len(0).and_then(|()| (&file).write_all(id.as_bytes())).map_err(failed)?;
                return Ok(Some(file));
            }
            // Somebody may only be looking whether there is one.
            Err(Errno::WOULDBLOCK) if tries < LOCK_TRIES => {
                tries += 1;
                let _ = rustix::event::poll(&mut [], Some(&LOCK_PAUSE));
            }
            Err(Errno::WOULDBLOCK) => return Ok(None),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(failed(errno.into())),
        }
    }
}

fn bridge_socket(index: u32, bridge: &str) -> Result<(Transport, OwnedFd), proa_network::Error> {
    listen::open_bridge(index).map_err(proa_network::Error::file("read packets of", bridge))
}

struct Steward<'a> {
    args: &'a Args,
    say: fn(&str),
    /// An ordinary user's.
    keeper: Option<Keeper>,
    /// Where the bridges are.
    switch: Switch,
    watch: Watch,
    guard: Option<Guard>,
    restore_at: Option<Instant>,
    networks: BTreeMap<String, Known>,
    child: Child,
    idle_since: Option<Instant>,
    look_at: Option<Instant>,
    looks: u32,
}

/// A network that the server knows.
struct Known {
    network: Network,
    endpoints: BTreeSet<String>,
    /// The interface whose sockets the server has, and with which addresses.
    bound: Option<(u32, Segment)>,
}

/// The server's process.
struct Child {
    channel: OwnedFd,
    job: Job,
    started: Instant,
    /// It has ended, and a new one is started then.
    again_at: Option<Instant>,
}

impl Child {
    fn start() -> io::Result<Self> {
        let (channel, theirs) = update::channel()?;
        let parent = Some(getpid());
        let job = job::spawn(&[theirs.as_fd()], || {
            let served = theirs.try_clone().and_then(|channel| {
                let server = Server::new(channel)?;
                confine::enter(parent)?;
                server.run()
            });
            i32::from(served.is_err())
        })?;
        Ok(Self { channel, job, started: Instant::now(), again_at: None })
    }
}

impl<'a> Steward<'a> {
    fn new(args: &'a Args, say: fn(&str), keeper: Option<Keeper>) -> Result<Self, Error> {
        let switch = keeper.as_ref().map_or(Switch::Host, |keeper| keeper.switch().clone());
        let directory = args.run.join(DIRECTORY);
        let watch =
            Watch::new(&args.run, &args.resolv_conf).map_err(|error| Error::Io { path: directory, error })?;
        let guard = args.table.as_deref().map(|table| Guard::new(&args.run, table, switch.clone()));
        let guard = guard.transpose()?;
        let child = Child::start().map_err(failed("start the server"))?;
        // Tables may have been removed while nobody looked.
        let restore_at = guard.is_some().then(Instant::now);
        let networks = BTreeMap::new();
        Ok(Self {
            args,
            say,
            keeper,
            switch,
            watch,
            guard,
            restore_at,
            networks,
            child,
            idle_since: Some(Instant::now()),
            look_at: None,
            looks: 0,
        })
    }

    /// Whether it ends because it was told to.
    fn serve(mut self, signals: &SignalFd, waiting: Option<OwnedFd>) -> Result<bool, Error> {
        self.everything();
        drop(waiting);
        loop {
            let ready = self.wait(signals)?;
            if signals.next_signal().map_err(failed("read signals"))?.is_some() {
                return Ok(true);
            }
            if ready[1] {
                for change in self.watch.changes().map_err(failed("watch files"))? {
                    match change {
                        Change::Over => return Ok(true),
                        Change::Everything => self.everything(),
                        Change::Servers => self.servers(),
                        Change::Network(id) => self.network(&id),
                        Change::Endpoint(network, instance) => self.endpoint(&network, &instance),
                    }
                }
                self.note_idle();
            }
            if let Some(keeper) = &mut self.keeper {
                if ready[4] { keeper.ready() } else { keeper.tick() }?;
                self.note_idle();
            }
            let now = Instant::now();
            if ready[2] && self.guard.as_ref().is_some_and(Guard::heard) {
                self.restore_at.get_or_insert(now + SETTLE);
            }
            if ready[3] {
                self.reap(now)?;
            }
            self.timers(now)?;
            if self.idle_since.is_some_and(|since| now >= since + self.args.idle) {
                return Ok(false);
            }
        }
    }

    /// Waits; which of signals, files, firewall, server and keeper have something.
    fn wait(&self, signals: &SignalFd) -> Result<[bool; 5], Error> {
        let is_running = self.child.again_at.is_none();
        let has = |waits: Option<BorrowedFd<'_>>| waits.is_some();
        let [guard, child, keeper] = [
            self.guard.as_ref().map(AsFd::as_fd),
            is_running.then_some(self.child.job.pidfd.as_fd()),
            self.keeper.as_ref().map(AsFd::as_fd),
        ];
        let waits = [Some(signals.as_fd()), Some(self.watch.as_fd()), guard, child, keeper];
        let mut fds: Vec<PollFd> = waits
            .iter()
            .map(|waits| PollFd::from_borrowed_fd(waits.unwrap_or(signals.as_fd()), PollFlags::IN))
            .collect();
        let idle_end = self.idle_since.map(|since| since + self.args.idle);
        let keeper_next = self.keeper.as_ref().and_then(Keeper::next);
        let moments = [idle_end, self.look_at, self.restore_at, self.child.again_at, keeper_next];
        let timeout = moments.into_iter().flatten().min().map(|at| {
            let left = at.saturating_duration_since(Instant::now());
            Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) }
        });
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(failed("wait")(errno.into())),
        }
        let ready = |place: usize| has(waits[place]) && !fds[place].revents().is_empty();
        Ok([ready(0), ready(1), ready(2), ready(3), ready(4)])
    }

    fn timers(&mut self, now: Instant) -> Result<(), Error> {
        if self.child.again_at.is_some_and(|at| at <= now) {
            self.child = Child::start().map_err(failed("start the server"))?;
            self.everything();
        }
        if self.look_at.is_some_and(|at| at <= now) {
            self.look_at = None;
            let ids: Vec<String> = self.networks.keys().cloned().collect();
            for id in ids {
                self.listen(&id);
            }
        }
        if let Some(guard) = self.guard.as_ref().filter(|_| self.restore_at.is_some_and(|at| at <= now)) {
            self.restore_at = None;
            match guard.restore() {
                Ok(false) => {}
                Ok(true) => (self.say)("the firewall's rules for networks were gone, and are back"),
                Err(text) => {
                    (self.say)(&text);
                    self.restore_at = Some(now + RESTORE_AGAIN);
                }
            }
        }
        Ok(())
    }

    fn reap(&mut self, now: Instant) -> Result<(), Error> {
        match waitid(WaitId::PidFd(self.child.job.pidfd.as_fd()), WaitIdOptions::EXITED) {
            Ok(_) | Err(Errno::CHILD | Errno::INTR) => {}
            Err(errno) => return Err(failed("reap the server")(errno.into())),
        }
        (self.say)("the server of names has ended, and is started again");
        self.child.again_at = Some(now.max(self.child.started + PAUSE));
        self.networks.clear();
        Ok(())
    }

    /// Tells the server all that the files say.
    fn everything(&mut self) {
        self.servers();
        let mut ids = files::networks(&self.args.run);
        ids.extend(self.networks.keys().cloned());
        for id in ids {
            self.network(&id);
            let known = self.networks.get(&id).map(|known| known.endpoints.clone()).unwrap_or_default();
            for instance in known.union(&files::endpoints(&self.args.run, &id)) {
                self.endpoint(&id, instance);
            }
        }
        self.note_idle();
    }

    fn servers(&mut self) {
        let text = std::fs::read_to_string(&self.args.resolv_conf).unwrap_or_default();
        self.tell(&Update::Servers(resolv_conf::parse(&text)), &[]);
    }

    fn network(&mut self, id: &str) {
        // Before its files are read, so that no change is missed.
        self.watch.network(&self.args.run, id);
        let Some(network) = files::network(&self.args.run, id) else {
            if self.networks.remove(id).is_some() {
                self.tell(&Update::Gone(id.to_owned()), &[]);
            }
            return;
        };
        let known = self.networks.get_mut(id);
        let is_new = known.is_none();
        match known {
            Some(known) => known.network = network,
            None => {
                let known = Known { network, endpoints: BTreeSet::new(), bound: None };
                self.networks.insert(id.to_owned(), known);
            }
        }
        self.looks = 0;
        self.listen(id);
        if is_new {
            for instance in files::endpoints(&self.args.run, id) {
                self.endpoint(id, &instance);
            }
        }
    }

    /// Tells the server what the network is, with sockets where it has none by this bridge.
    fn listen(&mut self, id: &str) {
        let Some(known) = self.networks.get_mut(id) else { return };
        let mut segment = files::segment(&known.network);
        if self.keeper.is_some() {
            segment.hosts = proa_network::switch::host_addresses();
        }
        let sockets = if known.network.driver == Driver::Bridge && !segment.gateways.is_empty() {
            let bridge = &known.network.bridge;
            let bound = known.bound.as_ref();
            let gateways = &segment.gateways;
            let open = || -> io::Result<_> {
                let index = listen::interface(bridge)?;
                let has = bound.is_some_and(|(bound, with)| *bound == index && with.gateways == *gateways);
                Ok((index, if has { Vec::new() } else { listen::open(gateways, bridge)? }))
            };
            let opened =
                self.switch.inside(|| open().map_err(proa_network::Error::file("listen by", bridge)));
            match opened {
                Ok((index, mut sockets)) => {
                    if !sockets.is_empty() {
                        // Names are answered without it.
                        match self.switch.inside(|| bridge_socket(index, bridge)) {
                            Ok(socket) => sockets.push(socket),
                            Err(error) => (self.say)(&format!("cannot give addresses by DHCP: {error}")),
                        }
                    }
                    segment.bridge = index;
                    known.bound = Some((index, segment.clone()));
                    sockets
                }
                Err(error) => {
                    if self.looks == LOOKS {
                        let name = &known.network.name;
                        (self.say)(&format!("cannot serve names of network '{name}' by {bridge}: {error}"));
                    }
                    known.bound = None;
                    self.looks += 1;
                    let pause = if self.looks > LOOKS { LOOK_LATER } else { LOOK };
                    self.look_at = Some(Instant::now() + pause);
                    Vec::new()
                }
            }
        } else {
            Vec::new()
        };
        let (transports, sockets): (Vec<_>, Vec<_>) = sockets.into_iter().unzip();
        segment.sockets = transports;
        self.tell(&Update::Network(segment), &sockets);
    }

    fn endpoint(&mut self, network: &str, instance: &str) {
        let Some(known) = self.networks.get_mut(network) else { return };
        let entry = files::endpoint(&self.args.run, network, instance).map(|live| files::entry(&live));
        let was_known = match entry {
            Some(_) => !known.endpoints.insert(instance.to_owned()),
            None => known.endpoints.remove(instance),
        };
        let is_unheard = known.bound.is_none();
        if entry.is_some() && !was_known && (is_unheard || self.keeper.is_some()) {
            // An endpoint is told of when its bridge is there; and a user's host may have another address by now.
            self.listen(network);
        }
        if entry.is_some() || was_known {
            let (network, instance) = (network.to_owned(), instance.to_owned());
            self.tell(&Update::Endpoint { network, instance, entry }, &[]);
        }
    }

    fn note_idle(&mut self) {
        let serves = self.networks.values().any(|known| !known.endpoints.is_empty());
        let has_visitors = self.keeper.as_ref().is_some_and(Keeper::has_visitors);
        self.idle_since =
            if serves || has_visitors { None } else { self.idle_since.or_else(|| Some(Instant::now())) };
    }

    fn tell(&self, update: &Update, sockets: &[OwnedFd]) {
        // One that has ended is noticed by its end, and the next is told everything.
        let _ = update::send(&self.child.channel, update, sockets);
    }
}
