//! What only the first process of a guest asks of its kernel.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// `RNDADDENTROPY`: `_IOW('R', 3, int[2])`.
const ADD_ENTROPY: libc::c_ulong = 0x4008_5203;
/// `RNDRESEEDCRNG`: `_IO('R', 7)`.
const RESEED: libc::c_ulong = 0x5207;
/// `BLKFLSBUF`: `_IO(0x12, 97)`.
const FLUSH_BUFFERS: libc::c_ulong = 0x1261;
/// Bytes that one call takes.
pub const MAX_ENTROPY: usize = 512;

/// `struct rand_pool_info` with room for [`MAX_ENTROPY`].
#[repr(C)]
struct Pool {
    entropy_bits: libc::c_int,
    size: libc::c_int,
    bytes: [u8; MAX_ENTROPY],
}

/// Adds bytes to the kernel's random pool and counts all their bits as entropy, so that it is seeded at once.
/// `random` is `/dev/urandom`, opened for writing. Bytes beyond [`MAX_ENTROPY`] are left out.
///
/// # Errors
/// The caller lacks `CAP_SYS_ADMIN`, or `random` is another file.
pub fn add_entropy(random: impl AsFd, bytes: &[u8]) -> io::Result<()> {
    let bytes = &bytes[..bytes.len().min(MAX_ENTROPY)];
    let size = bytes.len() as libc::c_int;
    let mut pool = Pool { entropy_bits: size * 8, size, bytes: [0; MAX_ENTROPY] };
    pool.bytes[..bytes.len()].copy_from_slice(bytes);
    // SAFETY: the kernel reads `size` bytes after the two numbers, which `pool` holds and which live through the call.
    let result = unsafe { libc::ioctl(random.as_fd().as_raw_fd(), ADD_ENTROPY as _, &raw const pool) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Makes the kernel's generator take up at once what was added to its pool; by itself it does so within a minute.
///
/// # Errors
/// The caller lacks `CAP_SYS_ADMIN`, or `random` is another file.
pub fn reseed(random: impl AsFd) -> io::Result<()> {
    // SAFETY: no argument is read.
    let result = unsafe { libc::ioctl(random.as_fd().as_raw_fd(), RESEED as _) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Writes what is new of a block device and drops what the kernel has kept of it.
///
/// # Errors
/// The caller lacks `CAP_SYS_ADMIN`, or `disk` is another file.
pub fn forget_blocks(disk: impl AsFd) -> io::Result<()> {
    // SAFETY: no argument is read.
    let result = unsafe { libc::ioctl(disk.as_fd().as_raw_fd(), FLUSH_BUFFERS as _, 0) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
