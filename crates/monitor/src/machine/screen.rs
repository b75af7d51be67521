//! The screen: a socket at which viewers connect, and pictures.
//!
//! QEMU listens nowhere. Who connects to `vnc.sock`, which its directory keeps for the instance's owner, is handed to it
//! over the control connection; a picture is drawn into a memory file of ours.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;

use proa_protocol::machine::SCREEN_SOCKET;
use proa_vm::Control;
use rustix::fs::{AtFlags, CWD, MemfdFlags, Mode, OFlags, memfd_create, openat, unlinkat};
use serde_json::json;

use crate::error::{Error, IoAt};

/// Most bytes of a picture.
const LARGEST: u64 = 4 * 1024 * 1024;
/// The numbers under which QEMU gets descriptors.
const VIEWER: &str = "viewer";
const PICTURE: u32 = 1000;

/// Where viewers connect.
pub struct Screen {
    listener: UnixListener,
    directory: OwnedFd,
}

impl Screen {
    /// Listens in an instance's runtime directory, in the place of a monitor that was killed.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub fn listen(run_dir: &Path) -> Result<Self, Error> {
        let path = run_dir.join(SCREEN_SOCKET);
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = openat(CWD, run_dir, flags, Mode::empty()).at(run_dir)?;
        let _ = unlinkat(&directory, SCREEN_SOCKET, AtFlags::empty());
        // By a descriptor of its directory: paths of sockets may not be longer than 107 bytes, and ours can be.
        let address = format!("/proc/self/fd/{}/{SCREEN_SOCKET}", directory.as_raw_fd());
        let listener = UnixListener::bind(address).at(&path)?;
        listener.set_nonblocking(true).at(&path)?;
        Ok(Self { listener, directory })
    }

    /// Hands who has connected to QEMU.
    pub fn admit(&self, control: &mut Control) {
        // A connection that cannot be used is its viewer's to notice.
        let Ok((stream, _)) = self.listener.accept() else { return };
        control.send_with("getfd", json!({"fdname": VIEWER}), stream.into());
        control.send("add_client", json!({"protocol": "vnc", "fdname": VIEWER, "skipauth": true}));
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // One that stays behind is replaced by the next.
        let _ = unlinkat(&self.directory, SCREEN_SOCKET, AtFlags::empty());
    }
}

impl AsFd for Screen {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

/// A picture of the screen that QEMU has been told to draw.
pub struct Picture {
    file: OwnedFd,
}

impl Picture {
    /// Orders one; the number of the command whose answer says that it is there.
    ///
    /// # Errors
    /// There is no memory for it.
    pub fn order(control: &mut Control) -> io::Result<(u64, Self)> {
        // QEMU truncates what it writes to, so its size cannot be sealed; no more is read than a picture may have.
        let file = memfd_create("screen", MemfdFlags::CLOEXEC)?;
        // It takes no descriptor that could be read as well.
        let again = format!("/proc/self/fd/{}", file.as_raw_fd());
        let writer = rustix::fs::open(again, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
        // One after the other: QEMU does in order what it is told.
        control.send("remove-fd", json!({"fdset-id": PICTURE}));
        control.send_with("add-fd", json!({"fdset-id": PICTURE}), writer);
        let path = format!("/dev/fdset/{PICTURE}");
        let number = control.send("screendump", json!({"filename": path, "format": "png"}));
        Ok((number, Self { file }))
    }

    /// The PNG.
    ///
    /// # Errors
    /// It is larger than pictures are.
    pub fn bytes(&self) -> io::Result<Vec<u8>> {
        let size = rustix::fs::fstat(&self.file)?.st_size as u64;
        if size > LARGEST {
            return Err(io::Error::other(format!("it has {size} bytes")));
        }
        let mut bytes = vec![0; size as usize];
        let count = rustix::io::pread(&self.file, &mut bytes, 0)?;
        bytes.truncate(count);
        Ok(bytes)
    }
}
