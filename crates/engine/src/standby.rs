//! Virtual machines that stand by, as far as one asks for them or ends them: making them is the monitor's.

use std::fs;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use proa_protocol::standby::{
    ARGUMENT, DIRECTORY, LOCK_FILE, SOCKET_FILE, Standby, WELCOME, directory, disk, key,
};
use proa_sys::sockets::in_directory;
use rustix::process::Signal;

use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::holder;
use crate::paths::Paths;
use crate::system::entries;

/// How long one may take to say that it is ours; it does nothing but wait for that.
const PATIENCE: Duration = Duration::from_secs(1);

/// A monitor with a virtual machine of this kind; none where there is none, or others were first.
pub(crate) fn claim(paths: &Paths, wish: &Standby) -> Option<UnixStream> {
    let connect = |path: &Path| UnixStream::connect(path);
    let mut socket = in_directory(&directory(&paths.run, &key(&wish.kind)), SOCKET_FILE, connect).ok()?;
    socket.set_read_timeout(Some(PATIENCE)).ok()?;
    let mut said = [0];
    socket.read_exact(&mut said).ok()?;
    socket.set_read_timeout(None).ok()?;
    (said == [WELCOME]).then_some(socket)
}

/// Whether there may be one of any kind.
pub fn is_any(paths: &Paths) -> bool {
    fs::read_dir(paths.run.join(DIRECTORY)).is_ok_and(|mut entries| entries.next().is_some())
}

impl Engine {
    /// How many stand by, or are about to.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn count_standby(&self) -> Result<usize> {
        Ok(self.standby_places()?.iter().filter(|place| is_held(place)).count())
    }

    /// What those have left that died: the directories and disks.
    pub(crate) fn dead_standby(&self) -> Result<Vec<PathBuf>> {
        let is_live = |path: &Path| {
            path.file_stem().is_some_and(|key| is_held(&self.paths.run.join(DIRECTORY).join(key)))
        };
        let mut left = self.standby_places()?;
        left.extend(below(&self.paths.root)?);
        left.retain(|path| !is_live(path));
        Ok(left)
    }

    /// Ends all that stand by and removes what they have.
    ///
    /// # Errors
    /// One does not end.
    pub(crate) fn end_standby(&self) -> Result<()> {
        for place in self.standby_places()? {
            let lock = place.join(LOCK_FILE);
            holder::end(&lock, ARGUMENT.as_bytes(), Signal::TERM)
                .map_err(|error| Error::io("end what stands by, by", &lock, error))?;
            let key = place.file_name().unwrap_or_default().to_string_lossy().into_owned();
            // What others are removing is gone as well.
            let _ = fs::remove_file(disk(&self.paths.root, &key));
            let _ = fs::remove_dir_all(&place);
        }
        for base in [&self.paths.run, &self.paths.root] {
            let _ = fs::remove_dir_all(base.join(DIRECTORY));
        }
        Ok(())
    }

    /// Those that are, were, or are being made.
    fn standby_places(&self) -> Result<Vec<PathBuf>> {
        let mut places = below(&self.paths.run)?;
        places.retain(|path| path.is_dir());
        Ok(places)
    }
}

fn is_held(place: &Path) -> bool {
    proa_sys::lock::is_held(&place.join(LOCK_FILE)).unwrap_or(true)
}

fn below(base: &Path) -> Result<Vec<PathBuf>> {
    let directory = base.join(DIRECTORY);
    Ok(entries(&directory)?.into_iter().map(|name| directory.join(name)).collect())
}
