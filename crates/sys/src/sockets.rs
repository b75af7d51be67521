//! Unix sockets: by paths of any length, and with a descriptor beside the bytes.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

/// Calls with a path by the directory's descriptor: paths of sockets may not be longer than 107 bytes.
///
/// # Errors
/// There is no such directory, or what `run` says.
pub fn in_directory<T>(
    directory: &Path,
    name: &str,
    run: impl FnOnce(&Path) -> io::Result<T>,
) -> io::Result<T> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(directory, flags, Mode::empty())?;
    run(Path::new(&format!("/proc/self/fd/{}/{name}", directory.as_raw_fd())))
}

/// Sends bytes, of which there must be one, and a descriptor; how many were taken. Allocates nothing.
///
/// # Errors
/// Nobody reads.
pub fn send_with(socket: impl AsFd, bytes: &[u8], descriptor: BorrowedFd) -> rustix::io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let descriptors = [descriptor];
    ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
    sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL)
}

/// Receives bytes, and the descriptor that came with them.
///
/// # Errors
/// Nothing can be read.
pub fn receive_with(socket: impl AsFd, bytes: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let parts = &mut [IoSliceMut::new(bytes)];
    let received =
        rustix::io::retry_on_intr(|| recvmsg(&socket, parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC))?;
    let descriptor = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    Ok((received.bytes, descriptor))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::{UnixListener, UnixStream};

    #[test]
    fn a_descriptor_comes_along_by_a_long_path() {
        let directory = std::env::temp_dir().join(format!("{}-{}", "s".repeat(120), std::process::id()));
        std::fs::create_dir(&directory).unwrap();
        let listener = in_directory(&directory, "sock", |path| UnixListener::bind(path)).unwrap();
        let client = in_directory(&directory, "sock", |path| UnixStream::connect(path)).unwrap();
        let (server, _) = listener.accept().unwrap();
        let null = std::fs::File::open("/dev/null").unwrap();
        send_with(&server, b"+hello", null.as_fd()).unwrap();
        let mut bytes = [0; 16];
        let (count, descriptor) = receive_with(&client, &mut bytes).unwrap();
        assert_eq!(&bytes[..count], b"+hello");
        assert!(descriptor.is_some());
        std::fs::remove_dir_all(directory).unwrap();
    }
}
