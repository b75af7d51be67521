//! A disk image of others, once: from then on it is a raw disk of ours.
//!
//! ```text
//!   open ─▶ form: named, or by the first bytes ─▶ refused: backing files, other files, encryption
//!     raw    ─▶ its data copied, holes left out
//!     others ─▶ QEMU in a jail that has two descriptors and no file: query size ─▶ mirror ─▶ done
//!   ─▶ as large as was asked for ─▶ renamed into place
//! ```
//!
//! The program that reads the image is QEMU's own block layer, without a machine around it: it takes the image as an
//! open descriptor, as that of a running machine takes its disks, so it needs no right to any path. An image that names
//! another file, by whatever field we do not look at, names what is not there.

mod header;

use std::fs::{self, File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use proa_protocol::machine::{DiskFormat, DiskImport, DiskImported};
use proa_sys::jail::Jail;
use rustix::process::Resource;
use serde_json::{Value, json};

pub use self::header::judge;
use crate::accelerator::Accelerator;
use crate::disk::copy_data;
use crate::machine::{Helper, Logs};
use crate::qemu::{CommandLine, Qemu, SANDBOX};
use crate::qmp::Qmp;
use crate::store::publish;
use crate::{VmError, user};

/// Largest disk: what the usual file systems hold in a file.
const LARGEST: u64 = 15 << 40;
/// Disks are counted in these.
const SECTOR: u64 = 512;
/// Memory of the process that reads an image, bytes of addresses: stacks of its many threads are most of that.
const MEMORY: u64 = 4 << 30;
/// One pool for all of them, where the C library would set a part of the addresses aside for each.
const ONE_POOL: (&str, &str) = ("MALLOC_ARENA_MAX", "1");

/// Makes the disk.
///
/// # Errors
/// The image cannot be read, or is refused; the message says why.
pub fn run(import: &DiskImport) -> Result<DiskImported, VmError> {
    let refused = |reason: String| VmError::BadDisk { path: import.source.clone(), reason };
    let source = File::open(&import.source).map_err(VmError::io(&import.source))?;
    let failed = || VmError::io(&import.source);
    if !source.metadata().map_err(failed())?.is_file() {
        return Err(refused("not a regular file".into()));
    }
    let (format, refusal) = judge(&source, import.format).map_err(failed())?;
    if let Some(reason) = refusal {
        return Err(refused(reason));
    }
    let partial = import.partial();
    let made = fill(import, &source, format, &partial);
    let size = made.inspect_err(|_| {
        // Half a disk is of no use, and a full host needs the room.
        let _ = fs::remove_file(&partial);
    })?;
    publish(&partial, &import.target)?;
    Ok(DiskImported { format, size })
}

fn fill(import: &DiskImport, source: &File, format: DiskFormat, partial: &Path) -> Result<u64, VmError> {
    let mut options = OpenOptions::new();
    let options = options.read(true).write(true).create(true).truncate(true).mode(0o600);
    let target = options.open(partial).map_err(VmError::io(partial))?;
    let size = match format {
        DiskFormat::Raw => {
            let size = source.metadata().map_err(VmError::io(&import.source))?.len();
            check_size(import, size)?;
            target.set_len(size).map_err(VmError::io(partial))?;
            copy_data(source, &target).map_err(VmError::io(partial))?;
            size
        }
        format => convert(import, source, format, &target, partial)?,
    };
    let wanted = size.max(import.size).next_multiple_of(SECTOR);
    check_size(import, wanted)?;
    if import.size != 0 && import.size < size {
        let reason = format!("the disk has {size} bytes, and can be made larger but not smaller than that");
        return Err(VmError::BadDisk { path: import.source.clone(), reason });
    }
    target.set_len(wanted).and_then(|()| target.sync_all()).map_err(VmError::io(partial))?;
    Ok(wanted)
}

fn check_size(import: &DiskImport, size: u64) -> Result<(), VmError> {
    if size <= LARGEST {
        return Ok(());
    }
    let reason = format!("a disk of {size} bytes is more than the {LARGEST} that one can have");
    Err(VmError::BadDisk { path: import.source.clone(), reason })
}

/// Has QEMU copy what the image holds.
fn convert(
    import: &DiskImport,
    source: &File,
    format: DiskFormat,
    target: &File,
    path: &Path,
) -> Result<u64, VmError> {
    let logs = Logs::new()?;
    let (mut qmp, end) = Qmp::pair()?;
    let (mut reader, target_path) = start(import, source, format, target, &end.into(), &logs)?;
    let refused = |error: VmError| match error {
        VmError::Helper { reason, .. } => VmError::BadDisk {
            path: import.source.clone(),
            reason: format!("it cannot be read as {}: {reason}", format.as_str()),
        },
        other => other,
    };
    let copied = qmp.ask("query-named-block-nodes", json!({})).and_then(|nodes| {
        let size = virtual_size(&nodes);
        check_size(import, size)?;
        target.set_len(size).map_err(VmError::io(path))?;
        copy(&mut qmp, &target_path).map(|()| size)
    });
    let status = if copied.is_err() { reader.try_wait().ok().flatten() } else { None };
    reader.kill();
    reader.wait()?;
    match (copied, status) {
        // It ended by itself: what it said of that is the reason.
        (Err(_), Some(_)) | (Err(VmError::Died { .. }), _) => {
            let said = logs.said().unwrap_or_else(|| "its reader ended".into());
            Err(refused(VmError::Helper { program: String::new(), reason: said }))
        }
        (other, _) => other.map_err(refused),
    }
}

/// Bytes of the disk that the image is of.
fn virtual_size(nodes: &Value) -> u64 {
    let nodes = nodes.as_array().map(Vec::as_slice).unwrap_or_default();
    let source = nodes.iter().find(|node| node["node-name"] == "source");
    source.and_then(|node| node["image"]["virtual-size"].as_u64()).unwrap_or(0)
}

/// The mirror leaves out what reads as zeros, and is done when it is ready: nobody writes to the source.
fn copy(qmp: &mut Qmp, target: &str) -> Result<(), VmError> {
    let target = json!({
        "driver": "file", "node-name": "target", "filename": target, "locking": "off",
        "discard": "unmap", "detect-zeroes": "unmap",
    });
    qmp.ask("blockdev-add", target)?;
    let mirror = json!({"job-id": "copy", "device": "source", "target": "target", "sync": "full"});
    qmp.ask("blockdev-mirror", mirror)?;
    qmp.wait_job("copy")
}

fn start(
    import: &DiskImport,
    source: &File,
    format: DiskFormat,
    target: &File,
    control: &OwnedFd,
    logs: &Logs,
) -> Result<(Helper, String), VmError> {
    let qemu = Qemu::find()?;
    let failed = |source| VmError::Spawn { program: qemu.program().to_owned(), source };
    let mut line = CommandLine::default();
    line.add("-machine", "none");
    for flag in ["-nodefaults", "-no-user-config"] {
        line.flag(flag);
    }
    line.add("-display", "none");
    line.add("-sandbox", SANDBOX);
    line.add("-chardev", format!("socket,id=control,fd={}", control.as_raw_fd()));
    line.add("-mon", "chardev=control,mode=control");
    let (from, to) = (line.descriptor(source.as_raw_fd()), line.descriptor(target.as_raw_fd()));
    line.add("-blockdev", node(format, &from).to_string());
    let who = user::identity(&import.id, &Accelerator::Emulation { tsc_khz: 0 }).map_err(failed)?;
    let jail = Jail { limits: vec![(Resource::As, MEMORY)], ..qemu.jail_with(&import.view, who, Vec::new()) };
    let mut command = Command::new(qemu.program());
    command.args(line.words()).env_clear().env(ONE_POOL.0, ONE_POOL.1);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(logs.errors()?);
    let keep = [source.as_fd(), target.as_fd(), control.as_fd()];
    let child = jail.spawn(command, &keep).map_err(failed)?;
    Ok((Helper::new(child).map_err(failed)?, to))
}

/// The image as QEMU is to see it: of this form and no other, with nothing behind it.
fn node(format: DiskFormat, file: &str) -> Value {
    let driver = match format {
        DiskFormat::Vhd => "vpc",
        other => other.as_str(),
    };
    let medium = json!({
        "driver": "file", "filename": file, "locking": "off", "auto-read-only": false, "read-only": true,
    });
    let mut node = json!({"driver": driver, "node-name": "source", "read-only": true, "file": medium});
    if matches!(format, DiskFormat::Qcow2 | DiskFormat::Vmdk) {
        node["backing"] = Value::Null;
    }
    node
}

#[cfg(test)]
mod tests;
