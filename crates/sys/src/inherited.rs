//! Descriptors that a program was started with.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::OwnedFd;

/// Takes what this program got as its standard output, which is `/dev/null` from then on.
///
/// # Errors
/// It is not open, or there is no `/dev/null`.
pub fn take_output() -> io::Result<OwnedFd> {
    let output = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdout(), 3)?;
    rustix::stdio::dup2_stdout(OpenOptions::new().write(true).open("/dev/null")?)?;
    Ok(output)
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
    fn only_what_is_not_ours_was_inherited() {
        let ours = std::fs::File::open("/dev/null").unwrap();
        let inherited = rustix::io::dup(&ours).unwrap();
        assert!(is_there(inherited.as_raw_fd() as u32));
        assert!(!is_there(ours.as_raw_fd() as u32) && !is_there(100_000));
    }
}
