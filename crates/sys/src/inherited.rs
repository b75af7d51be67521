//! Descriptors that a program was started with.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

/// Takes ownership of a descriptor that this program inherited, and marks it close-on-exec.
///
/// # Errors
/// It is standard input, output or error, is not open, or is close-on-exec already: then it was not
/// inherited, or was taken before, and belongs to somebody.
pub fn take(number: u32) -> io::Result<OwnedFd> {
    let number = i32::try_from(number).map_err(|_| io::ErrorKind::InvalidInput)?;
    if number <= libc::STDERR_FILENO {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: an integer and no memory.
    let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
    if flags == -1 {
        return Err(io::Error::last_os_error());
    }
    if flags & libc::FD_CLOEXEC != 0 {
        return Err(io::Error::other("the descriptor was not inherited"));
    }
    // SAFETY: as above.
    if unsafe { libc::fcntl(number, libc::F_SETFD, flags | libc::FD_CLOEXEC) } == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open, and it was not close-on-exec, as all that Rust code opens is; so it came with the
    // program, and having no owner yet, gets this one.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Whether this program was started with a descriptor of this number, and nobody has taken it.
pub fn is_there(number: u32) -> bool {
    // SAFETY: integers and no memory.
    let flags = i32::try_from(number).map_or(-1, |number| unsafe { libc::fcntl(number, libc::F_GETFD) });
    flags != -1 && flags & libc::FD_CLOEXEC == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn only_what_was_inherited_can_be_taken_and_only_once() {
        let ours = std::fs::File::open("/dev/null").unwrap();
        assert!(take(ours.as_raw_fd() as u32).is_err());
        assert!(take(1).is_err());
        assert!(take(100_000).is_err());
        let inherited = rustix::io::dup(&ours).unwrap();
        let number = std::os::fd::IntoRawFd::into_raw_fd(inherited) as u32;
        assert!(is_there(number) && !is_there(ours.as_raw_fd() as u32) && !is_there(100_000));
        let taken = take(number).unwrap();
        assert!(!is_there(number));
        assert!(take(number).is_err());
        drop(taken);
    }
}
