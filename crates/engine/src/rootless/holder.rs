//! The process that keeps a user namespace, and the conversation with it: one byte there, one byte and perhaps a
//! descriptor back.
//!
//! | asked | answered |
//! | --- | --- |
//! | `J`, join | `1` (a single id) or `R` (ranges), with the namespace |
//! | `E`, end | nothing: it ends |

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use proa_sys::sockets::{in_directory, receive_with, send_with};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::{Entered, Ids, Mapping, ids, refused};
use crate::error::{Error, Result};

/// The name (`argv[0]`) under which this program is a holder.
pub const NAME: &str = "proa-userns";
const SOCKET: &str = "proa-userns.sock";
const JOIN: u8 = b'J';
const END: u8 = b'E';
const SINGLE: u8 = b'1';
const RANGES: u8 = b'R';

/// How long a holder waits for a visitor before it ends.
const IDLE: Timespec = Timespec { tv_sec: 600, tv_nsec: 0 };
/// How long either side waits for the other's byte.
const PATIENCE: Duration = Duration::from_secs(2);

/// A namespace that a holder has handed out.
#[derive(Debug)]
pub(super) struct Held {
    pub namespace: OwnedFd,
    pub is_single: bool,
}

fn ask(directory: &Path, question: u8) -> io::Result<UnixStream> {
    let mut socket = in_directory(directory, SOCKET, |path| UnixStream::connect(path))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    socket.write_all(&[question])?;
    Ok(socket)
}

/// The namespace that a living holder has; `None` where there is none that answers.
pub(super) fn connect(directory: &Path) -> Option<Held> {
    let socket = ask(directory, JOIN).ok()?;
    let mut answer = [0];
    let (count, namespace) = receive_with(&socket, &mut answer).ok()?;
    let namespace = namespace?;
    (count == 1).then_some(Held { namespace, is_single: answer[0] == SINGLE })
}

/// Ends a holder, if there is one, and waits until it has.
pub(super) fn end(directory: &Path) {
    if let Ok(mut socket) = ask(directory, END) {
        // Its end, or silence: nothing depends on it.
        let _ = socket.read(&mut [0]);
    }
    let _ = std::fs::remove_file(directory.join(SOCKET));
}

/// Starts a holder with these ids, or with a single one where the helpers fail; whoever calls has the lock.
pub(super) fn start(directory: &Path, user: Mapping, ids: Ids) -> Result<(OwnedFd, Entered)> {
    let entered = |ids| match ids {
        Ids::Ranges { .. } => Entered::Ranges,
        Ids::Single(why) => Entered::Single(why),
    };
    match try_start(directory, user, &ids) {
        Ok(namespace) => Ok((namespace, entered(ids))),
        Err(Failed::Mapping(error)) if ids != Ids::Single(String::new()) => {
            let single = Ids::Single(error.to_string());
            match try_start(directory, user, &single) {
                Ok(namespace) => Ok((namespace, entered(single))),
                Err(failed) => Err(failed.into()),
            }
        }
        Err(failed) => Err(failed.into()),
    }
}

enum Failed {
    Mapping(io::Error),
    Other(Error),
}

impl From<Failed> for Error {
    fn from(failed: Failed) -> Self {
        match failed {
            Failed::Mapping(error) => refused(&error),
            Failed::Other(error) => error,
        }
    }
}

/// Starts a holder in a user namespace that is there; whoever calls has the lock.
pub(super) fn keep(directory: &Path, namespace: &OwnedFd) -> io::Result<()> {
    let (fresh, listener) = listen(directory)?;
    let mut command = command(listener, directory);
    proa_sys::userns::spawn_in(&mut command, namespace)?;
    std::fs::rename(directory.join(fresh), directory.join(SOCKET))
}

fn listen(directory: &Path) -> io::Result<(String, UnixListener)> {
    let fresh = format!("{SOCKET}.new");
    let _ = std::fs::remove_file(directory.join(&fresh));
    let listener = in_directory(directory, &fresh, |path| UnixListener::bind(path))?;
    Ok((fresh, listener))
}

fn try_start(directory: &Path, user: Mapping, ids: &Ids) -> Result<OwnedFd, Failed> {
    let failed = |action| move |error| Failed::Other(Error::io(action, &directory.join(SOCKET), error));
    let (fresh, listener) = listen(directory).map_err(failed("listen at"))?;
    let child = proa_sys::userns::spawn_unmapped(&mut command(listener, directory));
    let mut child = child.map_err(|error| Failed::Other(refused(&error)))?;
    let ready = || {
        ids::map(child.id(), user, ids).map_err(Failed::Mapping)?;
        let path = format!("/proc/{}/ns/user", child.id());
        let namespace = rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|errno| Failed::Other(Error::io("open", Path::new(&path), errno)))?;
        std::fs::rename(directory.join(&fresh), directory.join(SOCKET)).map_err(failed("publish"))?;
        Ok(namespace)
    };
    ready().inspect_err(|_| {
        let _ = child.kill();
        let _ = child.wait();
        let _ = std::fs::remove_file(directory.join(&fresh));
    })
}

fn command(listener: UnixListener, directory: &Path) -> Command {
    let mut command = Command::new("/proc/self/exe");
    // The argument tells people who look at the process what it belongs to.
    command
        .arg0(NAME)
        .arg(directory)
        .stdin(OwnedFd::from(listener))
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.env_clear().current_dir("/");
    command
}

/// What the holder does, its listening socket being standard input.
///
/// # Errors
/// The socket cannot be used, or there is no `/proc`.
pub fn serve() -> io::Result<()> {
    // The terminal's signals are for others. Failure means that we lead a session already.
    let _ = rustix::process::setsid();
    let _ = rustix::thread::set_name(c"proa-userns");
    let listener = UnixListener::from(io::stdin().as_fd().try_clone_to_owned()?);
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let namespace = rustix::fs::open("/proc/self/ns/user", flags, Mode::empty())?;
    while has_visitor(&listener)? {
        let Ok((socket, _)) = listener.accept() else { continue };
        // A visitor that leaves in the middle concerns nobody.
        if matches!(answer(socket, &namespace), Ok(END)) {
            break;
        }
    }
    Ok(())
}

fn has_visitor(listener: &UnixListener) -> io::Result<bool> {
    loop {
        match poll(&mut [PollFd::new(listener, PollFlags::IN)], Some(&IDLE)) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn answer(mut socket: UnixStream, namespace: &OwnedFd) -> io::Result<u8> {
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut question = [0];
    socket.read_exact(&mut question)?;
    if question[0] == JOIN {
        let kind = [if is_single()? { SINGLE } else { RANGES }];
        send_with(&socket, &kind, namespace.as_fd())?;
    }
    Ok(question[0])
}

fn is_single() -> io::Result<bool> {
    let map = std::fs::read_to_string("/proc/self/uid_map")?;
    Ok(map.lines().count() == 1 && map.split_whitespace().last() == Some("1"))
}
