//! Standard streams: pipes from the parent, the null device, or a terminal of the container's own `/dev/pts`.
//!
//! The terminal's slave is got from its master by descriptor and bound to `/dev/console` by descriptor, so no
//! name in `/dev/pts` is ever looked up (CVE-2025-52565).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use proa_oci::runtime::ConsoleSize;
use rustix::fs::{FileType, OFlags, ResolveFlags, makedev};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use super::{Init, Place, devices, mounts};
use crate::container::Stdio;
use crate::stdio::Input;
use crate::{Error, Result, inroot, rootfs};

const DEVPTS_SUPER_MAGIC: i64 = 0x1cd1;

pub(super) fn run(init: &mut Init) -> Result<()> {
    if let Stdio::Terminal(size) = init.job.stdio {
        return terminal(init, size);
    }
    if init.job.stdio == Stdio::Inherit {
        init.streams.inherit();
        return Ok(());
    }
    let null = devices::open_null(init.root.as_fd())?;
    init.streams.install(Input::Null(null.as_fd()))
}

fn terminal(init: &mut Init, size: ConsoleSize) -> Result<()> {
    let (master, slave) = open_pair(init.root.as_fd())?;
    let window = Winsize { ws_row: size.height, ws_col: size.width, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(&slave, window).map_err(|errno| Error::call("terminal size", errno))?;
    rustix::process::ioctl_tiocsctty(&slave).map_err(|errno| Error::call("controlling terminal", errno))?;
    if matches!(init.job.place, Place::New { .. }) {
        console(init.root.as_fd(), slave.as_fd()).map_err(|error| error.context("/dev/console"))?;
    }
    *init.terminal = Some(master);
    init.streams.install(Input::Terminal(slave.as_fd()))
}

fn open_pair(root: BorrowedFd) -> Result<(OwnedFd, OwnedFd)> {
    let path = "/dev/pts/ptmx";
    let flags = OFlags::RDWR | OFlags::NOCTTY;
    let master =
        inroot::open(root, path, flags, ResolveFlags::NO_SYMLINKS).map_err(|errno| Error::at(path, errno))?;
    let stat = inroot::stat(master.as_fd()).map_err(|errno| Error::at(path, errno))?;
    let filesystem = rustix::fs::fstatfs(&master).map_err(|errno| Error::at(path, errno))?;
    let is_ptmx = inroot::is(&stat, FileType::CharacterDevice) && stat.st_rdev == makedev(5, 2);
    if !is_ptmx || filesystem.f_type != DEVPTS_SUPER_MAGIC {
        return Err(Error::internal(format!("{path} is not a terminal multiplexer")));
    }
    unlockpt(&master).map_err(|errno| Error::at(path, errno))?;
    let slave = ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)
        .map_err(|errno| Error::at(path, errno))?;
    Ok((master, slave))
}

fn console(root: BorrowedFd, slave: BorrowedFd) -> Result<()> {
    let target = inroot::make_file_no_links(root, "/dev/console")?;
    let tree = rootfs::clone_handle(slave, false).map_err(|errno| Error::call("open_tree", errno))?;
    mounts::attach(tree.as_fd(), target.as_fd())
}
