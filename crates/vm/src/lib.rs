//! Hypervisor backends, the KVM probe, guest kernels and initramfs.
//!
//! ```text
//!   VmSpec ─▶ kernel ─▶ initramfs ─▶ accelerator ─▶ disks      (made once, kept under VmSpec::store)
//!               ├─▶ template, where one fits: memory and state of a guest that has booted
//!               └─▶ Machine ─▶ Hypervisor::launch ─▶ Vm        (QEMU in a jail, virtiofsd for each share)
//!                                                     ├ stream()   frames to and from the guest agent
//!                                                     ├ pidfd()    readable when the VMM has ended
//!                                                     └ console()  what the guest's kernel said last
//! ```
//!
//! A [`Pc`] is the other kind of machine: it boots disks of its own, has no agent, and is spoken to by its serial
//! console and QEMU's control ([`Control`]). [`import::run`] makes such disks of files of other forms.
//!
//! One can be started before it is known for which instance, and stand by ([`Standby`]).
//!
//! A machine that runs can be captured and gone on from ([`Vm::capture`], [`pack_snapshot`], [`Vm::resume`]).
//!
//! Starting does not wait for the guest: the caller writes its `Configure` request at once and polls.
//! Nothing here starts a thread or reads what a guest wrote to a disk. Dropping a [`Vm`] kills its
//! processes; so does the death of the process that started it.

mod accelerator;
mod control;
mod cpio;
mod disk;
mod error;
pub mod import;
mod initramfs;
mod kernel;
mod machine;
mod pc;
mod prune;
mod qemu;
mod qmp;
mod resize;
mod share;
mod snapshot;
mod standby;
mod store;
mod template;
mod user;
mod virtiofsd;

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use proa_protocol::message::GuestConfig;

pub use control::{Control, Said};
pub use error::VmError;
pub use kernel::add_kernel;
pub use machine::{ANSWER_TIMEOUT, Vm, VmExit};
pub use pc::{Pc, PcSpec};
pub use prune::prune_kernels;
pub use resize::CpuShortage;
pub use share::{Share, plan_shares};
pub use snapshot::{check as check_snapshot, pack as pack_snapshot};
pub use standby::{Standby, StandbySpec};
pub use template::TemplateRequest;

/// Guest memory where the user names none, bytes.
pub const DEFAULT_MEMORY: u64 = 512 * 1024 * 1024;
/// Size of the writable disk where the user names none, bytes. The file is sparse.
pub const DEFAULT_DISK: u64 = 64 * 1024 * 1024 * 1024;

/// Network devices that a guest has beside those that it was started with, each for one more network while it runs. Two
/// cost a start from a template nothing that can be measured and a boot less than a tenth, while to add one to a bus costs a
/// bridge and a second of the guest's.
pub const SPARE_DEVICES: usize = 2;

/// All that starting a virtual machine needs, as plain data.
#[derive(Debug, Clone, Default)]
pub struct VmSpec {
    /// Instance id; names the VMM process.
    pub id: String,
    /// Kernel the user named (`vmlinux` or `bzImage`); `None` takes the host's newest, else the distribution's.
    pub kernel: Option<PathBuf>,
    /// The static `proa-agent` to pack as the guest's `/init`.
    pub agent: PathBuf,
    /// Where kernels, initramfs images and probe results are kept (`<root>/vm`).
    pub store: PathBuf,
    /// The instance's runtime directory (`<run>/instances/<id>`).
    pub run_dir: PathBuf,
    /// Memory that the program may use, bytes; the guest's kernel gets its own on top. 0 for a guest of
    /// [`DEFAULT_MEMORY`] that leaves the program all it can.
    pub memory: u64,
    /// Virtual CPUs; 0 for one.
    pub cpus: u32,
    /// EROFS layers, lowest first; the guest sees them as read-only disks with serials `layer0` upwards.
    pub layers: Vec<PathBuf>,
    /// The writable disk, serial `rw`; made (sparse, ext4) where it does not exist.
    pub rw_disk: PathBuf,
    /// Size of the writable disk when it is made, bytes; 0 for [`DEFAULT_DISK`].
    pub rw_size: u64,
    /// Host directories and files shown to the guest; see [`plan_shares`].
    pub shares: Vec<Share>,
    /// Taps that the guest's network devices are wired to, in their order on the bus.
    pub taps: Vec<Arc<OwnedFd>>,
    /// Start from a template where there is one, and want one where there is none.
    pub templates: bool,
    /// What the instance has in common with others of its kind, for a template of that kind.
    pub kind: Option<Box<GuestConfig>>,
    /// Files of the image one of which is the program, for such a template.
    pub programs: Vec<String>,
    /// What a guest that is not an instance boots with on top.
    pub extras: Extras,
}

impl VmSpec {
    /// Whether its guest has shares.
    pub(crate) fn is_sharing(&self) -> bool {
        !self.shares.is_empty()
    }
}

/// Makes a guest with an init of its own of what else would be an instance: for tests that need a kernel's own
/// features. The init is packed in the agent's place, and may be a script.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Extras {
    /// Files of the host packed into the initramfs, and their paths there.
    pub files: Vec<(PathBuf, String)>,
    /// Modules beside those of every guest; what the kernel lacks is left out.
    pub modules: Vec<String>,
    /// Words for the kernel's command line.
    pub words: Vec<String>,
}

// The order on the serial port: the host may ask `Request::Ready`; it sends `Request::Configure` on channel 0 and the agent answers it
// there with `Ok` or `Error`, perhaps after `Notice`s. All other channels belong to the guest's supervisor.
// `Request::Shutdown`, on any channel, makes the agent unmount, sync, answer `Ok` and power off; the VMM then
// ends with code 0.
