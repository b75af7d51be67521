//! Raw copies of a machine that stands still for them.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use proa_protocol::snapshot::{BASE_FILE, GuestShape, RAW_DISK, RAW_MEMORY, RAW_STATE, SHAPE_FILE};
use rustix::fs::{AtFlags, CWD, linkat};

use super::guest_memory::GuestMemory;
use super::{PAGE, describe_place};
use crate::VmError;
use crate::accelerator::Accelerator;
use crate::disk::copy_sparse;
use crate::machine::Vm;

/// Pages that are copied at once.
const AT_ONCE: usize = 64;

/// What a machine stands on that can be captured: the memory that its own is a change of, and its shape.
pub(crate) struct Ground {
    pub base: OwnedFd,
    pub shape: GuestShape,
    pub accelerator: Accelerator,
}

impl Vm {
    /// Copies memory, devices and the writable disk, which is at `disk`, into an empty directory. The machine stands
    /// still meanwhile, and goes on whatever comes of it.
    ///
    /// # Errors
    /// It has shares, or was to be booted in any case; something cannot be read or written.
    pub fn capture(&mut self, disk: &Path, directory: &Path) -> Result<(), VmError> {
        self.ground.as_ref().ok_or(VmError::NoGround)?;
        self.control.stop()?;
        let done = self.copy_raw(disk, directory);
        let goes_on = self.control.go_on();
        done.and(goes_on)
    }

    fn copy_raw(&mut self, disk: &Path, directory: &Path) -> Result<(), VmError> {
        let pid = self.pid();
        let ground = self.ground.as_ref().ok_or(VmError::NoGround)?;
        let state = directory.join(RAW_STATE);
        // QEMU takes it only if it may do with it what it means to, and no more.
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&state);
        self.control.save_devices(file.map_err(VmError::io(&state))?.as_fd())?;
        let GuestShape { accelerator, cpu, .. } = describe_place(&ground.accelerator);
        let shape = GuestShape { accelerator, cpu, vmm: self.control.version()?, ..ground.shape.clone() };
        let base = File::from(ground.base.try_clone().map_err(VmError::io("memory"))?);
        copy_memory(pid, &base, &directory.join(RAW_MEMORY))?;
        let target = directory.join(RAW_DISK);
        copy_sparse(disk, &target).map_err(VmError::io(&target))?;
        keep_base(&base, &directory.join(BASE_FILE))?;
        let path = directory.join(SHAPE_FILE);
        fs::write(&path, serde_json::to_vec(&shape).unwrap_or_default()).map_err(VmError::io(&path))
    }
}

/// How many pages, their numbers, and from the next page of the file on what is in them.
fn copy_memory(pid: u32, base: &File, path: &Path) -> Result<(), VmError> {
    let copy = || -> io::Result<()> {
        let memory = GuestMemory::open(pid, &base.metadata()?, false)?;
        let pages = memory.own_pages()?;
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        let mut file = BufWriter::with_capacity(AT_ONCE * PAGE, file);
        let numbers = std::iter::once(pages.len() as u64).chain(pages.iter().copied());
        let mut head: Vec<u8> = numbers.flat_map(u64::to_le_bytes).collect();
        head.resize(head.len().next_multiple_of(PAGE), 0);
        file.write_all(&head)?;
        let mut bytes = vec![0; AT_ONCE * PAGE];
        for run in pages.chunk_by(|one, next| one + 1 == *next).flat_map(|run| run.chunks(AT_ONCE)) {
            let bytes = &mut bytes[..run.len() * PAGE];
            memory.read(run[0], bytes)?;
            file.write_all(bytes)?;
        }
        file.flush()
    };
    copy().map_err(VmError::io(path))
}

/// Gives the base another name. Where it has none any more, or is in another file system, it is copied.
fn keep_base(base: &File, path: &Path) -> Result<(), VmError> {
    let open = format!("/proc/self/fd/{}", base.as_raw_fd());
    if linkat(CWD, open.as_str(), CWD, path, AtFlags::SYMLINK_FOLLOW).is_ok() {
        return Ok(());
    }
    copy_sparse(Path::new(&open), path).map_err(VmError::io(path))
}
