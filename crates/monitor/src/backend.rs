//! Where the instance's processes are: in a container of this process, in a guest, or in a machine of its own.
//!
//! This is the one place that knows them all. Everything above it moves frames.

use std::path::{Path, PathBuf};
use std::time::Duration;

use proa_protocol::frame::Frame;
use proa_protocol::instance::{InstanceConfig, IsolationLevel, Layer, layer_mount_dir};
use proa_protocol::message::{Request, Response};
use proa_runtime::{Owners, Rootfs};
use proa_supervisor::{HOST_TOKENS, PollSet, Status, Supervisor, SupervisorConfig, root_outside};

use rustix::event::PollFlags;

use crate::args::Args;
use crate::error::{Error, IoAt};
use crate::guest::Guest;
use crate::machine::Machine;
use crate::network::{Places, Remains};
use crate::record::Record;
use crate::shared;
use crate::standby::Ready;

/// The channel of the monitor itself: it attaches the log there, starts, and hears of failures and the end.
pub const MONITOR: u32 = 1;

/// The token of what is neither the supervisor's nor the guest's.
const FORWARDER: u64 = HOST_TOKENS - 1;

/// An instance's processes.
pub enum Backend {
    /// A container, and its places in networks.
    Local(Box<Supervisor>, Places),
    /// A virtual machine.
    Guest(Box<Guest>),
    /// A whole disk that boots by itself.
    Machine(Box<Machine>),
    /// None of these: the last has ended, and the next has not begun.
    Over,
}

impl Backend {
    /// Prepares what the configuration asks for: mounts a container's layers, or boots a guest, if that is not `standby`. Lines for the
    /// user go to `notice`. Where that fails it has no place in any network.
    ///
    /// # Errors
    /// A layer cannot be mounted, or a part of the virtual machine is missing.
    pub fn new(
        args: &Args,
        record: &Record,
        config: InstanceConfig,
        standby: Option<Ready>,
        notice: &mut dyn FnMut(String),
    ) -> Result<Self, Error> {
        let places = Places::prepare(args, &config.networks)?;
        let made = match config.isolation {
            _ if config.machine.is_some() => Machine::prepare(args, record, &config, places.clone(), notice)
                .map(Box::new)
                .map(Self::Machine),
            IsolationLevel::Container => local(args, record, config, places.clone()),
            IsolationLevel::Vm => Guest::boot(args, record, config, places.clone(), standby, notice)
                .map(Box::new)
                .map(Self::Guest),
        };
        made.inspect_err(|_| places.give_up())
    }

    /// Passes on a frame; its channel names the client.
    pub fn send(&mut self, frame: Frame) {
        match self {
            Self::Local(supervisor, _) => supervisor.handle(frame),
            Self::Guest(guest) => guest.send(&frame),
            Self::Machine(machine) => machine.send(frame),
            Self::Over => {}
        }
    }

    /// The next frame for a client or for the monitor.
    pub fn pop(&mut self) -> Option<Frame> {
        match self {
            Self::Local(supervisor, _) => supervisor.pop(),
            Self::Guest(guest) => guest.pop(),
            Self::Machine(machine) => machine.pop(),
            Self::Over => None,
        }
    }

    /// Adds what to wait for.
    pub fn poll_fds<'fd>(&'fd self, set: &mut PollSet<'fd>) {
        if let Some(forwarder) = self.places().and_then(Places::forwarder) {
            set.add(FORWARDER, forwarder, PollFlags::IN);
        }
        match self {
            Self::Local(supervisor, _) => supervisor.poll_fds(set),
            Self::Guest(guest) => guest.poll_fds(set),
            Self::Machine(machine) => machine.poll_fds(set),
            Self::Over => {}
        }
    }

    /// A descriptor of [`Backend::poll_fds`] is ready.
    pub fn ready(&mut self, token: u64) {
        if let Some(places) = self.places_mut().filter(|_| token == FORWARDER) {
            return places.revive();
        }
        match self {
            Self::Local(supervisor, _) => supervisor.ready(token),
            Self::Guest(guest) => guest.ready(token),
            Self::Machine(machine) => machine.ready(token),
            Self::Over => {}
        }
    }

    /// How long until [`Backend::tick`] must be called.
    pub fn timeout(&self) -> Option<Duration> {
        match self {
            Self::Local(supervisor, _) => supervisor.timeout(),
            Self::Guest(guest) => guest.timeout(),
            Self::Machine(machine) => machine.timeout(),
            Self::Over => None,
        }
    }

    /// Does what is due; to be called after each round.
    pub fn tick(&mut self) {
        if let Some(places) = self.places_mut() {
            places.tick();
        }
        match self {
            Self::Local(supervisor, _) => supervisor.tick(),
            Self::Guest(guest) => guest.tick(),
            Self::Machine(machine) => machine.tick(),
            Self::Over => {}
        }
    }

    fn places(&self) -> Option<&Places> {
        match self {
            Self::Local(_, places) => Some(places),
            Self::Guest(guest) => Some(guest.places()),
            Self::Machine(machine) => Some(machine.places()),
            Self::Over => None,
        }
    }

    fn places_mut(&mut self) -> Option<&mut Places> {
        match self {
            Self::Local(_, places) => Some(places),
            Self::Guest(guest) => Some(guest.places_mut()),
            Self::Machine(machine) => Some(machine.places_mut()),
            Self::Over => None,
        }
    }

    /// Where a VMM is bounded on the host, or why it is not; told once, when that is known.
    pub fn take_place(&mut self) -> Option<String> {
        match self {
            Self::Guest(guest) => guest.take_place(),
            Self::Machine(machine) => machine.take_place(),
            Self::Local(..) | Self::Over => None,
        }
    }

    /// Whether clients must wait before they send more.
    pub fn congested(&self) -> bool {
        match self {
            // Its windows bound what it holds.
            Self::Local(..) | Self::Machine(_) => false,
            Self::Guest(guest) => guest.congested(),
            Self::Over => false,
        }
    }

    /// The host's processes that carry the instance, the first process or VMM first.
    pub fn pids(&self) -> Vec<u32> {
        match self {
            Self::Local(supervisor, _) => match supervisor.status() {
                Status::Running(pid) | Status::Paused(pid) => vec![pid],
                Status::Ready | Status::Held | Status::Ended(_) => Vec::new(),
            },
            Self::Guest(guest) => guest.pids(),
            Self::Machine(machine) => machine.pids(),
            Self::Over => Vec::new(),
        }
    }

    /// Gives an instance that runs another place in a network, or takes one away. Where a guest has to do its part, the
    /// answer is among the frames for the channel.
    ///
    /// # Errors
    /// It is none that can have that, or the kernel refuses.
    pub fn change_network(&mut self, channel: u32, request: Request) -> Result<Option<Response>, Error> {
        let pid = self.pids().first().copied();
        match (self, pid) {
            (Self::Local(_, places), Some(pid)) => places.change(request, pid).map(|()| Some(Response::Ok)),
            (Self::Local(..), None) | (Self::Over, _) => Err(Error::NotRunning),
            (Self::Guest(guest), _) => guest.change_network(channel, request).map(|()| None),
            (Self::Machine(_), _) => Err(Error::FixedDevices),
        }
    }

    /// Gives a virtual machine another size and other limits. The answer is among the frames for the channel.
    ///
    /// # Errors
    /// It is none, or cannot have that.
    pub fn update_guest(&mut self, channel: u32, request: Request) -> Result<(), Error> {
        match (self, request) {
            (Self::Guest(guest), Request::UpdateGuest { size, resources }) => {
                guest.update(channel, size, resources)
            }
            _ => Err(Error::NotRunning),
        }
    }

    /// Copies a virtual machine as it is at one moment. The answer is among the frames for the channel.
    ///
    /// # Errors
    /// It is none, or not at rest.
    pub fn snapshot(&mut self, channel: u32, directory: PathBuf) -> Result<(), Error> {
        match self {
            Self::Guest(guest) => guest.snapshot(channel, directory),
            Self::Machine(machine) => machine.snapshot(channel, &directory),
            Self::Local(..) => Err(Error::NoSnapshot),
            Self::Over => Err(Error::NotRunning),
        }
    }

    /// What is left to do for others when the instance has ended and everybody has been told.
    pub fn prepare_next(&mut self) {
        if let Self::Guest(guest) = self {
            guest.prepare_next();
        }
    }

    /// Ends the first process where a signal from inside could not. Its end is told as any other.
    pub fn kill(&mut self) {
        match self {
            // The kernel has done all that can be done.
            Self::Local(..) => {}
            Self::Guest(guest) => guest.kill(),
            Self::Machine(machine) => machine.kill(),
            Self::Over => {}
        }
    }

    /// Ends all processes and removes what they ran in; `discard` says that its files are not needed any more.
    ///
    /// # Errors
    /// Something could not be removed.
    pub fn stop(&mut self, discard: bool) -> Result<Stop, Error> {
        match self {
            Self::Local(supervisor, places) => {
                let mounts = supervisor.delete();
                places.withdraw()?;
                Ok(Stop::Done(Remains::new(mounts?, places.clone())))
            }
            Self::Guest(guest) => guest.stop(discard),
            Self::Machine(machine) => machine.stop(),
            Self::Over => Ok(Stop::Done(Remains::default())),
        }
    }
}

/// How far an end has come.
pub enum Stop {
    /// It must be asked for again after the next round.
    NotYet,
    /// Nothing runs any more. What is given takes time to vanish when it is dropped.
    Done(Remains),
}

fn local(args: &Args, record: &Record, mut config: InstanceConfig, places: Places) -> Result<Backend, Error> {
    let taken = shared::join(args, &mut config)?;
    let cgroup = shared::cgroup_policy(&config.spec);
    let label = config.layer_label.as_deref();
    let lowers =
        config.layers.iter().map(|layer| mount_layer(&args.run, layer, label)).collect::<Result<_, _>>()?;
    let (upper, work) = (record.dir.join("upper"), record.dir.join("work"));
    for directory in [&upper, &work] {
        match rustix::fs::mkdir(directory, rustix::fs::Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(error).at(directory),
        }
    }
    // The root of a user namespace of its own makes its files itself.
    if let Some((uid, gid)) = root_outside(&config.spec) {
        std::os::unix::fs::chown(&upper, Some(uid), Some(gid)).at(&upper)?;
    }
    // An ordinary user's layers were unpacked with the owners that the map asks for.
    let mapped = config.spec.linux.as_ref().filter(|_| proa_sys::userns::is_initial());
    let owners = mapped.map_or_else(Owners::default, |linux| Owners {
        uids: linux.uid_mappings.clone(),
        gids: linux.gid_mappings.clone(),
    });
    let supervisor = Supervisor::new(SupervisorConfig {
        id: config.id,
        spec: config.spec,
        launch: config.launch,
        rootfs: Rootfs::Overlay { lowers, upper, work, owners },
        scratch: record.run_dir.join("files"),
        cgroup,
        taken,
        interfaces: places.interfaces(),
        shares_memory: false,
    });
    Ok(Backend::Local(Box::new(supervisor), places))
}

/// Where the layer's directory is; an EROFS image is mounted first, once for the whole host.
pub fn mount_layer(run: &Path, layer: &Layer, label: Option<&str>) -> Result<PathBuf, Error> {
    if layer.path.is_dir() {
        return Ok(layer.path.clone());
    }
    let directory = layer_mount_dir(run, &layer.diff_id);
    proa_sys::layer_mount::ensure_mounted(&layer.path, &directory, label)?;
    Ok(directory)
}
