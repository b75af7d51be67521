//! Who makes a user's switch and hands it out.

use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Instant;

use proa_protocol::network::{DIRECTORY, Held, SWITCH_SOCKET};
use proa_sys::process::{aside, unshare_namespaces};
use proa_sys::sockets::{in_directory, send_with};
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::mount::{UnmountFlags, mount_bind, unmount};
use rustix::thread::UnshareFlags;

use super::uplink::Uplink;
use super::{Switch, routes};
use crate::{Error, files};

/// Directory of mounted network namespaces beside the runtime directory, where Podman has them too: pasta's AppArmor
/// profile knows it.
const MOUNTS: &str = "netns";

/// Keeps the network namespace of a user's root.
#[derive(Debug)]
pub struct Keeper {
    switch: Switch,
    file: PathBuf,
    socket: PathBuf,
    listener: UnixListener,
    visitors: Vec<UnixStream>,
    uplink: Uplink,
    /// Of all that is waited for.
    epoll: OwnedFd,
}

impl Keeper {
    /// Takes over the namespace that instances still have, or makes one, with its way out. The caller has the resolver's
    /// lock and one thread, and gets a mount namespace of its own.
    ///
    /// # Errors
    /// There is no pasta, or the kernel refuses something.
    pub fn start(run: &Path) -> Result<Self, Error> {
        let switch = match adopted(run) {
            Some(namespace) => Switch::kept(namespace),
            None => fresh()?,
        };
        let file = mount(run, &switch)?;
        let uplink = Uplink::start(&switch, &file)?;
        let (socket, listener) = listen(run)?;
        let epoll = epoll::create(CreateFlags::CLOEXEC).map_err(Error::call("epoll_create"))?;
        let keeper = Self { switch, file, socket, listener, visitors: Vec::new(), uplink, epoll };
        keeper.watch(keeper.listener.as_fd())?;
        keeper.watch_uplink()?;
        Ok(keeper)
    }

    /// What it keeps.
    pub fn switch(&self) -> &Switch {
        &self.switch
    }

    /// Whether somebody has it who may be about to use it.
    pub fn has_visitors(&self) -> bool {
        !self.visitors.is_empty()
    }

    /// When [`Keeper::tick`] has something to do.
    pub fn next(&self) -> Option<Instant> {
        self.uplink.again_at()
    }

    /// Something is ready: somebody asks, or leaves, or pasta has ended.
    ///
    /// # Errors
    /// The kernel refuses something.
    pub fn ready(&mut self) -> Result<(), Error> {
        self.tick()?;
        while let Ok((visitor, _)) = self.listener.accept() {
            // One that leaves in the middle concerns nobody.
            let _ = self.welcome(visitor);
        }
        self.visitors.retain(|visitor| !has_left(visitor));
        Ok(())
    }

    fn welcome(&mut self, visitor: UnixStream) -> Result<(), Error> {
        let Some(namespace) = self.switch.namespace() else { return Err(Error::NoSwitch) };
        let answer = format!("+{}", self.uplink.notice());
        let failed = |errno: rustix::io::Errno| Error::file("answer at", &self.socket)(errno.into());
        send_with(&visitor, answer.as_bytes(), namespace).map_err(failed)?;
        self.watch(visitor.as_fd())?;
        self.visitors.push(visitor);
        Ok(())
    }

    /// Starts pasta again when it has ended.
    ///
    /// # Errors
    /// It has been removed, or the kernel refuses something.
    pub fn tick(&mut self) -> Result<(), Error> {
        let nothing = Uplink::Failed { why: String::new(), again_at: Instant::now() };
        self.uplink = std::mem::replace(&mut self.uplink, nothing).reap();
        if self.uplink.again_at().is_some_and(|at| at <= Instant::now()) {
            self.uplink = Uplink::start(&self.switch, &self.file)?;
            self.watch_uplink()?;
        }
        Ok(())
    }

    fn watch_uplink(&self) -> Result<(), Error> {
        self.uplink.pidfd().map_or(Ok(()), |pidfd| self.watch(pidfd))
    }

    fn watch(&self, descriptor: BorrowedFd) -> Result<(), Error> {
        epoll::add(&self.epoll, descriptor, EventData::new_u64(0), EventFlags::IN)
            .map_err(Error::call("epoll_ctl"))
    }
}

impl AsFd for Keeper {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        // What is left does no harm: both are replaced by the next keeper.
        let _ = fs::remove_file(&self.socket);
        let _ = unmount(&self.file, UnmountFlags::DETACH);
        let _ = fs::remove_file(&self.file);
    }
}

/// Visitors say nothing: what can be read is their end.
fn has_left(visitor: &UnixStream) -> bool {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut [PollFd::new(visitor, PollFlags::IN)], Some(&now)).is_ok_and(|count| count > 0)
}

/// The namespace that an instance's monitor still holds.
fn adopted(run: &Path) -> Option<OwnedFd> {
    let (_, places) = files::read_all(run);
    places.into_iter().filter_map(|(_, live)| live.switch).find_map(|held| open_held(&held))
}

fn open_held(held: &Held) -> Option<OwnedFd> {
    super::holder(held)?;
    let namespace = OwnedFd::from(File::open(&held.path).ok()?);
    let is_it = rustix::fs::fstat(&namespace).is_ok_and(|found| found.st_ino == held.inode);
    // One of another user namespace cannot be worked in.
    let switch = Switch::kept(namespace.try_clone().ok()?);
    (is_it && switch.inside(|| Ok(())).is_ok()).then_some(namespace)
}

fn fresh() -> Result<Switch, Error> {
    let made = || -> Result<OwnedFd, Error> {
        unshare_namespaces(UnshareFlags::NEWNET.bits().into())
            .map_err(Error::file("make", "a network namespace"))?;
        let path = "/proc/thread-self/ns/net";
        Ok(File::open(path).map_err(Error::file("open", path))?.into())
    };
    let switch = Switch::kept(aside(made)?);
    switch.inside(routes::prepare)?;
    Ok(switch)
}

/// Mounts the namespace where pasta, which has given up the rights to look into other processes, can open it.
fn mount(run: &Path, switch: &Switch) -> Result<PathBuf, Error> {
    let (Some(namespace), Some(parent), Some(name)) = (switch.namespace(), run.parent(), run.file_name())
    else {
        return Err(Error::NoSwitch);
    };
    let directory = parent.join(MOUNTS);
    files::make_directory(&directory)?;
    let file = directory.join(name);
    // Nobody else is to keep the namespace by the mount.
    unshare_namespaces(UnshareFlags::NEWNS.bits().into())
        .map_err(Error::file("make", "a mount namespace"))?;
    File::create(&file).map_err(Error::file("make", &file))?;
    let source = format!("/proc/self/fd/{}", namespace.as_raw_fd());
    mount_bind(source.as_str(), &file)
        .map_err(|errno| Error::file("mount a network namespace at", &file)(errno.into()))?;
    Ok(file)
}

/// What listens there is ready when it has its name.
fn listen(run: &Path) -> Result<(PathBuf, UnixListener), Error> {
    let directory = run.join(DIRECTORY);
    let socket = directory.join(SWITCH_SOCKET);
    let fresh = format!("{SWITCH_SOCKET}.new");
    let failed = |error| Error::file("listen at", &socket)(error);
    let _ = fs::remove_file(directory.join(&fresh));
    let listener = in_directory(&directory, &fresh, |path| UnixListener::bind(path)).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    fs::rename(directory.join(&fresh), &socket).map_err(failed)?;
    Ok((socket, listener))
}
