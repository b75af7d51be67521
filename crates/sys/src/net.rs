//! Network interfaces of the caller's network namespace.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// Switches the loopback interface on; the kernel then gives it `127.0.0.1` and `::1`.
///
/// # Errors
/// The caller lacks `CAP_NET_ADMIN` over the namespace.
pub fn loopback_up() -> io::Result<()> {
    // SAFETY: takes no pointers.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if fd == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just gave us this descriptor.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut request = request("lo")?;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: the kernel reads one ifreq, which lives through the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw const request) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Lets a socket have packets of one interface alone, both ways.
///
/// # Errors
/// There is no such interface, or the socket has one already and the caller lacks `CAP_NET_RAW`.
pub fn bind_to_device(socket: impl AsFd, name: &str) -> io::Result<()> {
    // SAFETY: the kernel reads as many bytes of the name as it has.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_BINDTODEVICE,
            name.as_ptr().cast(),
            name.len() as libc::socklen_t,
        )
    };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Lets a socket have addresses that are not this namespace's (`IP_TRANSPARENT`), and marks its packets (`SO_MARK`) for
/// the rules that bring the answers back.
///
/// # Errors
/// The caller lacks `CAP_NET_ADMIN` over the socket's namespace.
pub fn make_transparent(socket: impl AsFd, is_version_4: bool, mark: u32) -> io::Result<()> {
    let (level, name) = if is_version_4 {
        (libc::SOL_IP, libc::IP_TRANSPARENT)
    } else {
        (libc::SOL_IPV6, libc::IPV6_TRANSPARENT)
    };
    set_number(&socket, level, name, 1)?;
    set_number(&socket, libc::SOL_SOCKET, libc::SO_MARK, mark)
}

pub(crate) fn set_number(socket: impl AsFd, level: i32, name: i32, value: u32) -> io::Result<()> {
    // SAFETY: the kernel reads four bytes, which live through the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of::<u32>() as libc::socklen_t,
        )
    };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A request about the interface of this name, with no flags.
pub(crate) fn request(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: ifreq is plain data for which zero is valid: an empty name and no flags.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(request)
}
