//! A machine that goes on from a snapshot.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use proa_protocol::snapshot::{BASE_FILE, Check, GuestShape, INFO_FILE, SnapshotInfo};
use rustix::fs::MemfdFlags;
use sha2::{Digest, Sha256};

use super::capture::Ground;
use super::guest_memory::GuestMemory;
use super::index::{Frame, Index, Run, ZEROS};
use super::pack::pack_name;
use super::{FORMAT, INDEX_FILE, MOST_STATE, PAGE, STATE_FILE, bad, describe_place};
use crate::accelerator::Accelerator;
use crate::machine::{Disk, Launch, Origin, Vm, open_disks};
use crate::qemu::Qemu;
use crate::store::{Store, base_identity, hex, publish};
use crate::{VmError, VmSpec};

/// Zeros are written in pieces of this size.
static NOTHING: [u8; 16 * PAGE] = [0; 16 * PAGE];

/// A snapshot whose description has been checked, and its files against that.
pub(super) struct Snapshot {
    directory: PathBuf,
    pub(super) info: SnapshotInfo,
    pub(super) index: Index,
    base: File,
}

impl Vm {
    /// Starts a virtual machine that goes on from the snapshot in `directory`. Its writable disk becomes what it was
    /// then, unless this fails. Does not wait for the guest, in which the agent is frozen and waits to be told what it is
    /// now.
    ///
    /// # Errors
    /// The snapshot is damaged, or of a machine that this host cannot carry on; a part is missing or cannot be started.
    pub fn resume(spec: &VmSpec, directory: &Path, notice: &mut dyn FnMut(String)) -> Result<Self, VmError> {
        let snapshot = Snapshot::open(directory)?;
        let store = Store::open(&spec.store)?;
        let accelerator = Accelerator::find(&store, notice)?;
        let qemu = Qemu::find()?;
        snapshot.check_shape(spec)?;
        let fresh = FreshDisk::unpack(&snapshot, &spec.rw_disk)?;
        let mut disks = open_disks(spec, fresh.open()?)?;
        disks.extend((disks.len()..=snapshot.info.shape.places).map(Disk::place));
        let memory = || snapshot.base.try_clone().map(OwnedFd::from).map_err(VmError::io(directory));
        let ground =
            Ground { base: memory()?, shape: snapshot.info.shape.clone(), accelerator: accelerator.clone() };
        let launch = Launch {
            spec,
            memory: ground.shape.memory,
            cpus: ground.shape.cpus,
            boots: None,
            origin: Origin::Resume { memory: memory()? },
            disks,
            clone: None,
            ground: Some(ground),
        };
        let mut vm = launch.run(&qemu, &accelerator)?;
        snapshot.check_place(&GuestShape { vmm: vm.control.version()?, ..describe_place(&accelerator) })?;
        snapshot.fill_memory(vm.pid())?;
        let state = snapshot.state()?;
        fresh.publish()?;
        vm.control.load(state.as_fd())?;
        Ok(vm)
    }
}

/// Whether a virtual machine could go on from this snapshot, as far as that can be told without one.
///
/// # Errors
/// It is damaged, or of a machine that this host cannot carry on.
pub fn check(wanted: &Check) -> Result<(), VmError> {
    let snapshot = Snapshot::open(&wanted.snapshot)?;
    let accelerator = Accelerator::find(&Store::open(&wanted.store)?, &mut |_| {})?;
    snapshot
        .check_place(&GuestShape { vmm: snapshot.info.shape.vmm.clone(), ..describe_place(&accelerator) })?;
    let packs = snapshot.packs()?;
    snapshot.state()?;
    let read = |frame: &Frame| snapshot.read_frame(&packs[frame.pack as usize], frame).map(drop);
    snapshot.index.frames.iter().try_for_each(read)
}

/// The writable disk as it was, which has its name only when all else is done; removed where it does not come to that.
struct FreshDisk<'path> {
    partial: PathBuf,
    path: &'path Path,
}

impl<'path> FreshDisk<'path> {
    fn unpack(snapshot: &Snapshot, path: &'path Path) -> Result<Self, VmError> {
        let fresh = Self { partial: path.with_extension("new"), path };
        let failed = || VmError::io(&fresh.partial);
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let disk = options.open(&fresh.partial).map_err(failed())?;
        let size = snapshot.info.disk_size;
        disk.set_len(size).map_err(failed())?;
        snapshot.each(&snapshot.index.disk, |page, bytes| {
            let at = page * PAGE as u64;
            // The last page of a disk may be shorter than others.
            let length = size.saturating_sub(at).min(bytes.len() as u64) as usize;
            disk.write_all_at(&bytes[..length], at)
        })?;
        Ok(fresh)
    }

    fn open(&self) -> Result<File, VmError> {
        OpenOptions::new().read(true).write(true).open(&self.partial).map_err(VmError::io(&self.partial))
    }

    fn publish(self) -> Result<(), VmError> {
        publish(&self.partial, self.path)
    }
}

impl Drop for FreshDisk<'_> {
    fn drop(&mut self) {
        // It has its name, or the room is wanted back.
        let _ = fs::remove_file(&self.partial);
    }
}

impl Snapshot {
    pub(super) fn open(directory: &Path) -> Result<Self, VmError> {
        let path = directory.join(INFO_FILE);
        let text = fs::read(&path).map_err(VmError::io(&path))?;
        let info: SnapshotInfo =
            serde_json::from_slice(&text).map_err(|error| bad(directory, format!("{INFO_FILE}: {error}")))?;
        if info.format != FORMAT {
            return Err(bad(directory, "it was made by another version of proa"));
        }
        let base = directory.join(BASE_FILE);
        let base = File::open(&base).map_err(VmError::io(&base))?;
        let metadata = base.metadata().map_err(VmError::io(directory))?;
        if base_identity(&metadata) != info.base_identity || metadata.len() != info.shape.memory {
            return Err(bad(directory, "the memory that it is a change of was changed or replaced"));
        }
        let bytes = read_checked(directory, INDEX_FILE, &info.index_sha256)?;
        let index = Index::decode(&bytes).map_err(|why| bad(directory, format!("its index: {why}")))?;
        if Index::exceeds(&index.memory, info.shape.memory) || Index::exceeds(&index.disk, info.disk_size) {
            return Err(bad(directory, "its index: a page of it is beyond the end"));
        }
        Ok(Self { directory: directory.to_owned(), info, index, base })
    }

    /// Whether the machine would be the one that was saved.
    fn check_shape(&self, spec: &VmSpec) -> Result<(), VmError> {
        let (shape, taps) = (&self.info.shape, spec.taps.len());
        if taps != shape.interfaces {
            let reason =
                format!("it is of a machine with {} networks, and this one has {taps}", shape.interfaces);
            return Err(bad(&self.directory, reason));
        }
        if spec.layers.len() > shape.places {
            return Err(bad(&self.directory, "it is of a machine with another image"));
        }
        Ok(())
    }

    /// Whether what it was saved by is what is here.
    fn check_place(&self, here: &GuestShape) -> Result<(), VmError> {
        let was = &self.info.shape;
        let differs = |what: &str, was: &str, is: &str| {
            bad(
                &self.directory,
                format!("it was made with {what} {was}, and here is {is}; start the instance anew"),
            )
        };
        if was.vmm != here.vmm {
            return Err(differs("QEMU", &was.vmm, &here.vmm));
        }
        if was.accelerator != here.accelerator {
            return Err(differs("the accelerator", &was.accelerator, &here.accelerator));
        }
        if was.cpu != here.cpu {
            return Err(bad(
                &self.directory,
                "it was made on another CPU, whose features its programs may use",
            ));
        }
        Ok(())
    }

    /// The state of the devices, as a file that is no other's.
    pub(super) fn state(&self) -> Result<OwnedFd, VmError> {
        let bytes = read_checked(&self.directory, STATE_FILE, &self.info.state_sha256)?;
        let state = zstd::bulk::decompress(&bytes, MOST_STATE)
            .map_err(|_| bad(&self.directory, "its state cannot be unpacked"))?;
        let make = || -> io::Result<OwnedFd> {
            let file = File::from(rustix::fs::memfd_create("state", MemfdFlags::CLOEXEC)?);
            file.write_all_at(&state, 0)?;
            Ok(file.into())
        };
        make().map_err(VmError::io("memfd"))
    }

    fn fill_memory(&self, pid: u32) -> Result<(), VmError> {
        let failed = || VmError::io("memory of the virtual machine");
        let base = self.base.metadata().map_err(failed())?;
        let memory = GuestMemory::open(pid, &base, true).map_err(failed())?;
        self.each(&self.index.memory, |page, bytes| memory.write(page, bytes))
    }

    /// Gives the pages of these runs, some at a time that follow each other, in the order of the packs.
    pub(super) fn each(
        &self,
        runs: &[Run],
        mut take: impl FnMut(u64, &[u8]) -> io::Result<()>,
    ) -> Result<(), VmError> {
        let failed = || VmError::io(&self.directory);
        for run in runs.iter().filter(|run| run.block == ZEROS) {
            for at in (0..run.count).step_by(NOTHING.len() / PAGE) {
                let count = (run.count - at).min((NOTHING.len() / PAGE) as u32) as usize;
                take(run.page + u64::from(at), &NOTHING[..count * PAGE]).map_err(failed())?;
            }
        }
        let packs = self.packs()?;
        let mut places = self.places(runs);
        places.sort_unstable();
        for places in places.chunk_by(|one, next| one.frame == next.frame) {
            let frame = &self.index.frames[places[0].frame as usize];
            let bytes = self.unpack_frame(&packs[frame.pack as usize], frame)?;
            for together in places.chunk_by(Place::is_before) {
                let (from, to) = (together[0].slot as usize, together[together.len() - 1].slot as usize);
                take(together[0].page, &bytes[from * PAGE..(to + 1) * PAGE]).map_err(failed())?;
            }
        }
        Ok(())
    }

    fn places(&self, runs: &[Run]) -> Vec<Place> {
        let of = |run: &Run| {
            let blocks = self.index.blocks[run.block as usize..][..run.count as usize].iter();
            let page = run.page;
            blocks.zip(page..).map(|(block, page)| Place { frame: block.frame, slot: block.slot, page })
        };
        runs.iter().filter(|run| run.block != ZEROS).flat_map(of).collect()
    }

    fn packs(&self) -> Result<Vec<File>, VmError> {
        let open = |id| {
            let path = self.directory.join(pack_name(id));
            File::open(&path).map_err(VmError::io(&path))
        };
        self.index.packs.iter().map(open).collect()
    }

    fn unpack_frame(&self, pack: &File, frame: &Frame) -> Result<Vec<u8>, VmError> {
        let size = frame.blocks as usize * PAGE;
        let bytes = zstd::bulk::decompress(&self.read_frame(pack, frame)?, size);
        bytes.ok().filter(|bytes| bytes.len() == size).ok_or_else(|| self.damaged())
    }

    /// Compressed, and as it was written.
    fn read_frame(&self, pack: &File, frame: &Frame) -> Result<Vec<u8>, VmError> {
        if frame.length as usize > zstd::zstd_safe::compress_bound(frame.blocks as usize * PAGE) {
            return Err(self.damaged());
        }
        let mut bytes = vec![0; frame.length as usize];
        pack.read_exact_at(&mut bytes, frame.offset).map_err(|_| self.damaged())?;
        if Sha256::digest(&bytes).as_slice() != frame.sha256 {
            return Err(self.damaged());
        }
        Ok(bytes)
    }

    fn damaged(&self) -> VmError {
        bad(&self.directory, "a page of it is damaged")
    }
}

/// Where a page is, and where it belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    frame: u32,
    slot: u32,
    page: u64,
}

impl Place {
    /// Whether the other follows in both places.
    fn is_before(&self, next: &Self) -> bool {
        self.slot + 1 == next.slot && self.page + 1 == next.page
    }
}

fn read_checked(directory: &Path, name: &str, sha256: &str) -> Result<Vec<u8>, VmError> {
    let path = directory.join(name);
    let bytes = fs::read(&path).map_err(VmError::io(&path))?;
    if hex(&Sha256::digest(&bytes)) != sha256 {
        return Err(bad(directory, format!("its {name} was changed or replaced")));
    }
    Ok(bytes)
}
