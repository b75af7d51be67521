//! Taps: network interfaces whose cable is a descriptor (`Documentation/networking/tuntap.rst`).

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

const DEVICE: &str = "/dev/net/tun";

/// Makes a tap of this name, in the caller's network namespace, that is there as long as the descriptor is. Frames
/// are read and written with the header of virtio-net before them, so that checksums and segmentation can be left to
/// whoever needs them.
///
/// # Errors
/// The kernel has no taps (module `tun`), the name is taken, or the caller lacks `CAP_NET_ADMIN`.
pub fn open(name: &str) -> io::Result<OwnedFd> {
    let file = OpenOptions::new().read(true).write(true).open(DEVICE)?;
    // SAFETY: ifreq is plain data for which zero is valid: an empty name and no flags.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_TUN_EXCL;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: the kernel reads and writes one ifreq, which lives through the call.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(file.into()) }
}
