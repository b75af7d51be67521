//! A descriptor in the place of a file that a program opens by its path.
//!
//! QEMU opens the file behind a guest's memory for writing even where it maps it privately, and keeps the
//! descriptor. A guest that has taken over its VMM could then write to what other guests start from. So the first
//! call `openat(…, O_RDWR)`, with that flag and no other, is held by a seccomp notification, and answered with a
//! descriptor that can only be read. Later ones fail with `ENOSYS`: nobody answers them any more.
//!
//! Where a guest gives memory back, QEMU punches a hole into the file behind it first, and drops its own copy of the
//! pages only if that works. Into this file nobody can; so for its descriptor, whose number is known, `fallocate` does
//! nothing and says that it worked. A file that is the program's alone is handed over without that.
//!
//! ```text
//!   child: filter ─▶ listener, sent over a socket ─▶ exec ─▶ openat(…, O_RDWR) waits ─▶ goes on with the descriptor
//!   parent:          Handover::complete ─────────────────────────▶ answers
//! ```

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::process::{Insn, install_filter_with_listener};
use crate::sockets::{receive_with, send_with};

const LOAD: u16 = 0x20;
const JUMP_IF_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;
const ALLOW: u32 = 0x7fff_0000;
const NOTIFY: u32 = 0x7fc0_0000;
/// An error of 0: the call is not made, and returns as if it had worked.
const SUCCEED: u32 = 0x0005_0000;
/// Where `struct seccomp_data` has the call's number and the low halves of its first and its third argument.
const NUMBER_AT: u32 = 0;
const DESCRIPTOR_AT: u32 = 16;
const FLAGS_AT: u32 = 32;
/// Number of the descriptor that stands for the file: one that no program comes to by itself, below the usual limit.
const FILE_NUMBER: u32 = 1000;
/// `SECCOMP_ADDFD_FLAG_SETFD`.
const SET_NUMBER: u32 = 1;

/// `SECCOMP_IOCTL_NOTIF_RECV`, `_SEND` and `_ADDFD`.
const RECEIVE: libc::c_ulong = 0xc050_2100;
const SEND: libc::c_ulong = 0xc018_2101;
const ADD_FD: libc::c_ulong = 0x4018_2103;

/// Holds what `openat(…, O_RDWR)` asks, and does `freed` with a `fallocate` of the file; lets everything else pass. A
/// 32-bit program's calls have other numbers: at worst another call is held, and answered as if it opened something, or
/// not made.
const fn filter(freed: u32) -> [Insn; 10] {
    [
        Insn { code: LOAD, jt: 0, jf: 0, k: NUMBER_AT },
        Insn { code: JUMP_IF_EQUAL, jt: 0, jf: 3, k: libc::SYS_openat as u32 },
        Insn { code: LOAD, jt: 0, jf: 0, k: FLAGS_AT },
        Insn { code: JUMP_IF_EQUAL, jt: 0, jf: 5, k: libc::O_RDWR as u32 },
        Insn { code: RETURN, jt: 0, jf: 0, k: NOTIFY },
        Insn { code: JUMP_IF_EQUAL, jt: 0, jf: 3, k: libc::SYS_fallocate as u32 },
        Insn { code: LOAD, jt: 0, jf: 0, k: DESCRIPTOR_AT },
        Insn { code: JUMP_IF_EQUAL, jt: 0, jf: 1, k: FILE_NUMBER },
        Insn { code: RETURN, jt: 0, jf: 0, k: freed },
        Insn { code: RETURN, jt: 0, jf: 0, k: ALLOW },
    ]
}

/// `struct seccomp_notif`.
#[repr(C)]
#[derive(Default)]
struct Notification {
    id: u64,
    pid: u32,
    flags: u32,
    data: [u64; 8],
}

/// `struct seccomp_notif_resp`.
#[repr(C)]
struct Answer {
    id: u64,
    value: i64,
    error: i32,
    flags: u32,
}

/// `struct seccomp_notif_addfd`.
#[repr(C)]
struct NewFd {
    id: u64,
    flags: u32,
    source: u32,
    number: u32,
    number_flags: u32,
}

/// A pair of sockets over which the child sends the listener of its filter.
pub(crate) struct Channel {
    parent: OwnedFd,
    child: OwnedFd,
}

impl Channel {
    pub fn new() -> io::Result<Self> {
        let (parent, child) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        Ok(Self { parent, child })
    }

    /// The child's end.
    pub fn child(&self) -> BorrowedFd<'_> {
        self.child.as_fd()
    }

    /// Waits until the program has asked for a file, and answers with `file`, which it may then close.
    pub fn complete(self, file: BorrowedFd, limit: Duration) -> io::Result<()> {
        drop(self.child);
        let listener = receive(&self.parent)?;
        let deadline = Instant::now() + limit;
        loop {
            wait(&listener, deadline)?;
            match answer(&listener, file) {
                // A signal has interrupted the call, which then asks anew.
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                other => return other,
            }
        }
    }
}

/// Takes the question that waits and answers it.
fn answer(listener: &OwnedFd, file: BorrowedFd) -> io::Result<()> {
    let mut asked = Notification::default();
    // SAFETY: the kernel fills in the structure, which has its layout and is zero, as it wants.
    check(unsafe { libc::ioctl(listener.as_raw_fd(), RECEIVE as _, &raw mut asked) })?;
    let new = NewFd {
        id: asked.id,
        flags: SET_NUMBER,
        source: file.as_raw_fd() as u32,
        number: FILE_NUMBER,
        number_flags: libc::O_CLOEXEC as u32,
    };
    // SAFETY: the kernel reads the structure, which has its layout.
    let number = check(unsafe { libc::ioctl(listener.as_raw_fd(), ADD_FD as _, &raw const new) })?;
    let mut answer = Answer { id: asked.id, value: number.into(), error: 0, flags: 0 };
    // SAFETY: as before.
    check(unsafe { libc::ioctl(listener.as_raw_fd(), SEND as _, &raw mut answer) }).map(drop)
}

/// In the child, before it runs its program; allocates nothing. The caller has set `no_new_privs`.
pub(crate) fn prepare_child(channel: BorrowedFd, is_common: bool) -> io::Result<()> {
    let filter = filter(if is_common { SUCCEED } else { ALLOW });
    let listener = install_filter_with_listener(&filter, 0)?;
    Ok(send_with(channel, b"l", listener.as_fd()).map(drop)?)
}

fn receive(socket: &OwnedFd) -> io::Result<OwnedFd> {
    let (_, listener) = receive_with(socket, &mut [0])?;
    listener.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

/// Until the program asks; an error when it has ended, or does not ask in time.
fn wait(listener: &OwnedFd, deadline: Instant) -> io::Result<()> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut fds = [PollFd::new(listener, PollFlags::IN)];
        match poll(&mut fds, Some(&left)) {
            Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
            Ok(_) if fds[0].revents().contains(PollFlags::IN) => return Ok(()),
            Ok(_) => return Err(Errno::SRCH.into()),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
