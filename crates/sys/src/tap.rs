//! Taps: network interfaces whose cable is a descriptor (`Documentation/networking/tuntap.rst`).

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::thread::UnshareFlags;

use crate::net;
use crate::process::{aside, unshare_namespaces};

const DEVICE: &str = "/dev/net/tun";

/// A tap that leads nowhere: in a network namespace of its own, which goes with it.
///
/// # Errors
/// As for [`open`], or there can be no network namespace.
pub fn open_detached() -> io::Result<OwnedFd> {
    aside(|| {
        unshare_namespaces(UnshareFlags::NEWNET.bits().into())?;
        open("tap0")
    })
}

/// Makes a tap of this name, in the caller's network namespace, that is there as long as the descriptor is. Frames
/// are read and written with the header of virtio-net before them, so that checksums and segmentation can be left to
/// whoever needs them.
///
/// # Errors
/// The kernel has no taps (module `tun`), the name is taken, or the caller lacks `CAP_NET_ADMIN`.
pub fn open(name: &str) -> io::Result<OwnedFd> {
    let file = OpenOptions::new().read(true).write(true).open(DEVICE)?;
    let mut request = net::request(name)?;
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_TUN_EXCL;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: the kernel reads and writes one ifreq, which lives through the call.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(file.into()) }
}
