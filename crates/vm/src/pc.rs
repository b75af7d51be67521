//! A PC: QEMU as the machine that whole disks boot on, with firmware, a screen and a serial console of its own, and
//! nothing of ours inside.
//!
//! ```text
//!   PcSpec ─▶ Pc::start ─▶ QEMU in its jail, halted ─ control: cont ─▶ runs
//!                            ├ console    the first serial port, both ways
//!                            ├ control    QMP: power button, pause, screen, and what happens
//!                            └ pidfd()    readable when the VMM has ended
//! ```
//!
//! Disks reach it as descriptors and are raw, which is said: what a guest writes to their first sectors is data. The
//! VMM listens nowhere; who wants to see the screen is handed to it. That it ends with code 0 after it has said
//! `SHUTDOWN` is the guest's own doing; a reset does not end it.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use proa_protocol::machine::{Chipset, DiskBus, FIRMWARE, Firmware, MachineConfig, NicModel};
use proa_sys::jail::{Entry, Jail};

use crate::accelerator::Accelerator;
use crate::control::Control;
use crate::machine::{Helper, Logs, VmExit, check_memory};
use crate::qemu::{CommandLine, MAX_THREADS, Qemu, SANDBOX, accelerate, limits};
use crate::resize::OVERHEAD;
use crate::store::Store;
use crate::{VmError, user};

/// Where the jail shows the firmware.
const CODE: &str = "/guest/code.fd";

/// All that starting a machine needs.
#[derive(Debug, Clone, Default)]
pub struct PcSpec {
    /// Instance id; names the VMM process.
    pub id: String,
    /// Where probe results are kept (`<root>/vm`).
    pub store: PathBuf,
    /// The instance's runtime directory.
    pub run_dir: PathBuf,
    /// Memory, bytes.
    pub memory: u64,
    /// Virtual CPUs.
    pub cpus: u32,
    /// The board and what is on it.
    pub machine: MachineConfig,
    /// Its disks, raw, the one it boots first.
    pub disks: Vec<PathBuf>,
    /// Variables of UEFI, where that starts it.
    pub vars: PathBuf,
    /// The seed of cloud-init, if it has one.
    pub seed: Option<PathBuf>,
    /// Taps that its network devices are wired to, and their MACs.
    pub nics: Vec<(Arc<OwnedFd>, String)>,
}

/// A machine's VMM; dropping it kills it.
pub struct Pc {
    /// QEMU's control.
    pub control: Control,
    console: OwnedFd,
    vmm: Helper,
    logs: Logs,
    /// Of the guest, bytes.
    memory: u64,
}

impl Pc {
    /// Starts the VMM, whose guest runs from the first `cont` on. Lines for the user go to `notice`.
    ///
    /// # Errors
    /// A file or a program is missing, or what was asked for does not go together.
    pub fn start(spec: &PcSpec, notice: &mut dyn FnMut(String)) -> Result<Self, VmError> {
        if let Some(reason) = spec.machine.refusal() {
            return Err(VmError::BadShape(reason.to_owned()));
        }
        check_memory(spec.memory)?;
        let qemu = Qemu::find()?;
        let store = Store::open(&spec.store)?;
        let accelerator = Accelerator::find(&store, notice)?;
        let media = Media::open(spec)?;
        let logs = Logs::new()?;
        let pair = || UnixStream::pair().map_err(VmError::io("socketpair"));
        let ((control, control_end), (console, console_end)) = (pair()?, pair()?);
        let ends = Ends { control: control_end.into(), console: console_end.into() };
        let vmm = launch(&qemu, spec, &accelerator, &media, &ends, &logs)?;
        Ok(Self {
            control: Control::new(control).map_err(VmError::io("QEMU's control socket"))?,
            console: console.into(),
            vmm,
            logs,
            memory: spec.memory,
        })
    }

    /// Another descriptor of the console.
    ///
    /// # Errors
    /// There are too many descriptors.
    pub fn console(&self) -> Result<OwnedFd, VmError> {
        self.console.try_clone().map_err(VmError::io("the console"))
    }

    /// Process id of the VMM.
    pub fn pid(&self) -> u32 {
        self.vmm.pid()
    }

    /// Bytes and tasks that its VMM needs at the most.
    pub fn bounds(&self) -> (u64, u32) {
        (self.memory + OVERHEAD, MAX_THREADS)
    }

    /// Readable when the VMM has ended.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.vmm.pidfd()
    }

    /// How the VMM ended, if it has.
    ///
    /// # Errors
    /// Waiting failed.
    pub fn try_wait(&mut self) -> Result<Option<VmExit>, VmError> {
        self.vmm.try_wait()
    }

    /// Kills the VMM, and waits until it is gone.
    ///
    /// # Errors
    /// Waiting failed.
    pub fn kill(&mut self) -> Result<VmExit, VmError> {
        self.vmm.kill();
        self.vmm.wait()
    }

    /// The error to report for a VMM that ended by itself.
    pub fn died(&self, exit: VmExit) -> VmError {
        self.logs.explain(exit.to_string())
    }
}

/// The files that it works on.
struct Media {
    disks: Vec<File>,
    cdrom: Option<File>,
    seed: Option<File>,
    vars: Option<File>,
}

impl Media {
    fn open(spec: &PcSpec) -> Result<Self, VmError> {
        let writable =
            |path: &PathBuf| OpenOptions::new().read(true).write(true).open(path).map_err(VmError::io(path));
        let readable = |path: &PathBuf| File::open(path).map_err(VmError::io(path));
        let uefi = spec.machine.firmware != Firmware::Bios;
        Ok(Self {
            disks: spec.disks.iter().map(writable).collect::<Result<_, _>>()?,
            cdrom: spec.machine.cdrom.as_ref().map(readable).transpose()?,
            seed: spec.seed.as_ref().map(readable).transpose()?,
            vars: uefi.then(|| writable(&spec.vars)).transpose()?,
        })
    }

    fn all(&self) -> impl Iterator<Item = &File> {
        self.disks.iter().chain(&self.cdrom).chain(&self.seed).chain(&self.vars)
    }
}

/// QEMU's ends of what leads to it.
struct Ends {
    control: OwnedFd,
    console: OwnedFd,
}

/// UEFI's code; that which secure boot needs protects its variables by the board's system management mode.
fn code(firmware: Firmware) -> Result<Option<PathBuf>, VmError> {
    let name = match firmware {
        Firmware::Bios => return Ok(None),
        Firmware::Uefi => "OVMF_CODE_4M.fd",
        Firmware::SecureBoot => "OVMF_CODE_4M.secboot.fd",
    };
    let path = Path::new(FIRMWARE).join(name);
    if path.exists() { Ok(Some(path)) } else { Err(VmError::MissingFirmware { path }) }
}

fn launch(
    qemu: &Qemu,
    spec: &PcSpec,
    accelerator: &Accelerator,
    media: &Media,
    ends: &Ends,
    logs: &Logs,
) -> Result<Helper, VmError> {
    let failed = |source| VmError::Spawn { program: qemu.program().to_owned(), source };
    let code = code(spec.machine.firmware)?;
    let mut shown = Vec::new();
    if let Some(source) = &code {
        let target = CODE.trim_start_matches('/').into();
        shown.push(Entry::Bind { source: source.clone(), target, writable: false });
    }
    if let Accelerator::Kvm { .. } = accelerator {
        shown.push(Entry::Device("/dev/kvm".into()));
    }
    let who = user::identity(&spec.id, accelerator).map_err(failed)?;
    let limits = limits(spec.memory, media.all()).map_err(failed)?;
    let jail = Jail { limits, ..qemu.jail_with(&spec.run_dir, who, shown) };
    let mut command = Command::new(qemu.program());
    command.args(arguments(spec, accelerator, media, ends)).env_clear();
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(logs.errors()?);
    let taps = spec.nics.iter().map(|(tap, _)| tap.as_fd());
    let keep: Vec<BorrowedFd> = media
        .all()
        .map(AsFd::as_fd)
        .chain(taps)
        .chain([ends.control.as_fd(), ends.console.as_fd()])
        .collect();
    Helper::new(jail.spawn(command, &keep).map_err(failed)?).map_err(failed)
}

fn arguments(spec: &PcSpec, accelerator: &Accelerator, media: &Media, ends: &Ends) -> Vec<String> {
    let mut line = CommandLine::default();
    line.add("-name", format!("guest=proa-{}", spec.id));
    for flag in ["-nodefaults", "-no-user-config", "-S"] {
        line.flag(flag);
    }
    line.add("-sandbox", SANDBOX);
    add_board(&mut line, spec, media);
    accelerate(&mut line, accelerator, spec.cpus);
    line.add("-chardev", format!("socket,id=control,fd={}", ends.control.as_raw_fd()));
    line.add("-mon", "chardev=control,mode=control");
    line.add("-chardev", format!("socket,id=console,fd={}", ends.console.as_raw_fd()));
    line.add("-serial", "chardev:console");
    // A screen that nobody can connect to but who is handed over.
    line.add("-display", "none");
    line.add("-vnc", "none");
    line.add("-device", "VGA");
    // Its clock is UTC, and random numbers are at hand before there is anything to gather them from.
    line.add("-rtc", "base=utc");
    line.add("-device", "virtio-rng-pci");
    add_drives(&mut line, spec, media);
    for (number, (tap, mac)) in spec.nics.iter().enumerate() {
        line.add("-netdev", format!("tap,id=net{number},fd={}", tap.as_raw_fd()));
        let model = match spec.machine.nic {
            NicModel::Virtio => "virtio-net-pci",
            NicModel::E1000 => "e1000",
        };
        line.add("-device", format!("{model},netdev=net{number},mac={mac},romfile="));
    }
    line.words()
}

fn add_board(line: &mut CommandLine, spec: &PcSpec, media: &Media) {
    let mut board = match spec.machine.chipset {
        Chipset::Q35 => "q35".to_owned(),
        Chipset::I440fx => "pc".to_owned(),
    };
    board.push_str(",vmport=off,dump-guest-core=off,mem-merge=off");
    if spec.machine.firmware == Firmware::Bios {
        // It shows on the serial console what it shows on the screen, boot loaders included.
        board.push_str(",graphics=off");
    }
    if spec.machine.firmware == Firmware::SecureBoot {
        board.push_str(",smm=on");
        line.add("-global", "driver=cfi.pflash01,property=secure,value=on");
    }
    if let Some(vars) = &media.vars {
        line.add("-blockdev", format!("driver=file,filename={CODE},read-only=on,node-name=code"));
        let file = line.descriptor(vars.as_raw_fd());
        line.add("-blockdev", format!("driver=file,filename={file},locking=off,node-name=vars"));
        board.push_str(",pflash0=code,pflash1=vars");
    }
    line.add("-machine", board);
    line.add("-m", format!("{}K", spec.memory / 1024));
    line.add("-smp", spec.cpus.to_string());
}

/// Reads and writes report errors to the guest: by default QEMU would halt it when the host's disk is full. The disks
/// are tried first, so that a disc installs what an empty disk then boots.
fn add_drives(line: &mut CommandLine, spec: &PcSpec, media: &Media) {
    let bus = spec.machine.disk_bus;
    // Where the disks are elsewhere, the drive for discs is on the board's own.
    let (sata, ide) = (spec.machine.chipset == Chipset::Q35, spec.machine.chipset == Chipset::I440fx);
    if bus == DiskBus::Sata && !sata {
        line.add("-device", "ich9-ahci,id=ahci");
    }
    let mut places = 0;
    let mut place = |of_disc: bool| {
        let number = places;
        places += 1;
        match bus {
            DiskBus::Sata if !sata && !of_disc => format!("bus=ahci.{number}"),
            _ if ide => format!("bus=ide.{},unit={}", number / 2, number % 2),
            _ => format!("bus=ide.{number}"),
        }
    };
    for (number, file) in media.disks.iter().enumerate() {
        let node = format!("disk{number}");
        add_medium(line, &node, file, "read-only=off,discard=unmap");
        let device = match bus {
            DiskBus::Virtio => "virtio-blk-pci".to_owned(),
            DiskBus::Sata | DiskBus::Ide => format!("ide-hd,{}", place(false)),
        };
        let boot = 1 + number;
        line.add(
            "-device",
            format!("{device},drive={node},serial={node},bootindex={boot},werror=report,rerror=report"),
        );
    }
    if let Some(file) = &media.cdrom {
        add_medium(line, "cdrom", file, "read-only=on");
        line.add("-device", format!("ide-cd,{},drive=cdrom,bootindex=20", place(true)));
    }
    if let Some(file) = &media.seed {
        add_medium(line, "seed", file, "read-only=on");
        line.add("-device", "virtio-blk-pci,drive=seed,serial=seed");
    }
}

fn add_medium(line: &mut CommandLine, node: &str, file: &File, access: &str) {
    let file = line.descriptor(file.as_raw_fd());
    line.add(
        "-blockdev",
        format!("driver=raw,node-name={node},{access},file.driver=file,file.filename={file},file.locking=off,file.auto-read-only=off"),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(machine: MachineConfig) -> String {
        let null = || File::open("/dev/null").unwrap();
        let disks = (0..machine.disks).map(|_| null()).collect();
        let media = Media {
            disks,
            cdrom: machine.cdrom.as_ref().map(|_| null()),
            seed: machine.seed.then(null),
            vars: (machine.firmware != Firmware::Bios).then(null),
        };
        let ends = Ends { control: null().into(), console: null().into() };
        let spec = PcSpec {
            id: "abc".into(),
            memory: 1 << 30,
            cpus: 2,
            machine,
            nics: vec![(Arc::new(null().into()), "02:42:0a:01:00:02".into())],
            ..PcSpec::default()
        };
        arguments(&spec, &Accelerator::Kvm { group: 0 }, &media, &ends).join(" ")
    }

    #[test]
    fn disks_are_raw_whatever_is_on_them() {
        let text = line(MachineConfig {
            disks: 2,
            cdrom: Some("/c".into()),
            seed: true,
            ..MachineConfig::default()
        });
        assert_eq!(text.matches("driver=raw,node-name=").count(), 4, "{text}");
        assert_eq!(text.matches(",read-only=off,").count(), 2, "{text}");
        for part in [
            "-machine q35,vmport=off,dump-guest-core=off,mem-merge=off,graphics=off",
            "virtio-blk-pci,drive=disk0,serial=disk0,bootindex=1,werror=report,rerror=report",
            "virtio-blk-pci,drive=disk1,serial=disk1,bootindex=2,",
            "ide-cd,bus=ide.0,drive=cdrom,bootindex=20",
            "virtio-net-pci,netdev=net0,mac=02:42:0a:01:00:02,romfile=",
            "-m 1048576K -smp 2 -accel kvm",
            "-vnc none",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        for absent in ["pflash", "smm", "format=", "driver=qcow2"] {
            assert!(!text.contains(absent), "{absent}: {text}");
        }
    }

    #[test]
    fn secure_boot_protects_its_variables_and_old_boards_have_old_buses() {
        let secure =
            line(MachineConfig { disks: 1, firmware: Firmware::SecureBoot, ..MachineConfig::default() });
        assert!(secure.contains("smm=on,pflash0=code,pflash1=vars"), "{secure}");
        assert!(secure.contains("-global driver=cfi.pflash01,property=secure,value=on"), "{secure}");
        assert!(!secure.contains("graphics=off"), "{secure}");
        let old = MachineConfig {
            disks: 3,
            chipset: Chipset::I440fx,
            disk_bus: DiskBus::Ide,
            nic: NicModel::E1000,
            cdrom: Some("/c".into()),
            ..MachineConfig::default()
        };
        let text = line(old.clone());
        for part in [
            "ide-hd,bus=ide.0,unit=1,drive=disk1",
            "ide-hd,bus=ide.1,unit=0,drive=disk2",
            "ide-cd,bus=ide.1,unit=1,",
            "e1000,netdev=net0",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let text = line(MachineConfig { disk_bus: DiskBus::Sata, ..old });
        assert!(text.contains("ich9-ahci,id=ahci") && text.contains("ide-hd,bus=ahci.2,"), "{text}");
    }
}
