//! QEMU as the hypervisor.
//!
//! The machine is a `q35` with what a guest of ours needs and nothing else: a serial port for the kernel's last
//! words, one virtio-serial port for frames, a balloon, disks, shares, network devices. No display; the control socket's other
//! end is with whoever started it. Under KVM the guest is told of its hardware by ACPI; under emulation a guest with
//! one CPU does without, which saves a sixth of its boot (and costs an idle guest one percent of a CPU, since it has
//! the oldest of timers).
//!
//! What comes while it runs needs no more of a start than places for it: addresses above the memory, a bridge without
//! devices at which memory comes (the board's own bus takes none), and, where there is ACPI to tell of them, CPUs that
//! are not there ([`crate::resize`]).
//!
//! A spare network device is wired to a hub of QEMU's with no other port; a network that comes while the guest runs
//! gets a tap at that hub. The guest sees nothing of that, so nothing needs its consent.
//!
//! QEMU runs as a user of its own that owns nothing, without capabilities, in namespaces where the file system
//! holds its program, the kernel and the initramfs, read-only. Disks and sockets reach it as open descriptors. Its
//! own system call filter is on, and where the kernel has Landlock, it has no more of files than that either, should it find
//! its way out of its root, and no TCP, and runs no other program.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use proa_sys::jail::{Entry, Identity, Jail, Opened, View};
use rustix::process::Resource;
use rustix::thread::UnshareFlags;

use crate::accelerator::Accelerator;
use crate::machine::{Disk, Helper, Hypervisor, Machine, Origin, SharePort};
use crate::{SPARE_DEVICES, VmError, disk, resize, user};

const PROGRAM: &str = "qemu-system-x86_64";
const PLACES: &[&str] =
    &["/usr/bin/qemu-system-x86_64", "/usr/local/bin/qemu-system-x86_64", "/usr/libexec/qemu-kvm"];
/// Where the jail shows what the guest boots from.
const KERNEL: &str = "/guest/kernel";
const INITRAMFS: &str = "/guest/initramfs";
/// Where it shows a template's memory while that is made. A clone opens the same path, and gets a descriptor.
const MEMORY: &str = "/guest/memory";
/// How long QEMU may take to ask for a clone's memory; it does so within some ten milliseconds.
const MEMORY_LIMIT: Duration = Duration::from_secs(10);
/// What programs need to be loaded.
const SYSTEM: &[&str] = &["/usr", "/lib", "/lib64", "/etc/ld.so.cache"];
/// Functions of a PCI slot, and slots that the machine itself leaves free (1 to 30).
const FUNCTIONS: usize = 8;
const SLOTS: usize = 30;
/// What its own filter of system calls forbids beside what nobody needs.
pub(crate) const SANDBOX: &str = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";
/// Everything a guest may have: disks, shares, network devices and the serial port.
pub(crate) const MAX_DEVICES: usize = FUNCTIONS * SLOTS;
/// Those of them that every guest has: the serial port, the bridge, the balloon and the writable disk.
pub(crate) const OWN_DEVICES: usize = 4;
/// Size of a place for a disk, bytes. A clone believes that the disk in it is as large; it reads no more of it than
/// its file system says, and where it does, QEMU reports an error.
const PLACE: u64 = 8 << 40;
/// What a VMM needs beside the guest's memory: addresses, most of them for stacks, pools and translated code, of which
/// it fills little; and bytes in the file of a saved machine.
const OWN_ADDRESSES: u64 = 4 << 30;
const OWN_BYTES: u64 = 1 << 30;
/// Threads of its user, which are those of one VMM, or for ordinary users of few: one for each CPU and some hundred
/// that wait for disks.
pub(crate) const MAX_THREADS: u32 = 1024;
/// Tells the host of the guest's free memory, which is dropped then; it is never inflated. What such memory holds when
/// it is used again is nobody's promise (in a clone it is what the template has there): a guest whose kernel wants
/// zeros in it is not offered to say so, and gives nothing back then.
const BALLOON: &str =
    "virtio-balloon-pci,id=balloon,free-page-reporting=on,page-poison=off,disable-legacy=on";
/// An empty bus. It shares its slot, and so its line for interrupts, with the serial port, which the firmware has told the
/// guest of: without ACPI, the agent finds that of a new device in this way. The standard hot-plug controller, for which our
/// guests have no driver, has the firmware keep addresses for the bus; nothing of it is ever pressed.
const BRIDGE: &str = "pci-bridge,id=bridge,chassis_nr=1,shpc=on,msi=off";
/// A share, and how many requests may be on their way.
pub(crate) const SHARE_DEVICE: &str = "vhost-user-fs-pci";
pub(crate) const SHARE_QUEUE: u32 = 1024;
/// Memory for translated code under emulation, MiB. More is not used by what runs for less than hours.
const TRANSLATIONS: u32 = 256;

/// Security modules that work without a policy, which our guests load for none: the others only cost each call. And no
/// grouping of sessions, which counts for processes outside of cgroups.
const LESS: &str = "lsm=landlock,yama noautogroup";
/// No machine code of BPF programs.
const INTERPRETED: &str = "sysctl.net.core.bpf_jit_enable=0";

/// The distribution's QEMU.
pub(crate) struct Qemu {
    program: PathBuf,
}

impl Qemu {
    /// Looks for it where distributions put it.
    pub fn find() -> Result<Self, VmError> {
        let mut places = PLACES.iter().map(PathBuf::from);
        let program = places.find(|path| path.is_file()).ok_or(VmError::MissingVmm { program: PROGRAM })?;
        Ok(Self { program })
    }

    /// Where it is.
    pub fn program(&self) -> &Path {
        &self.program
    }

    fn jail(&self, machine: &Machine) -> io::Result<Jail> {
        let mut shown = Vec::new();
        if let Accelerator::Kvm { .. } = machine.accelerator {
            shown.push(Entry::Device("/dev/kvm".into()));
        }
        let mut show = |source: &Path, target: &str, writable| {
            let target = target.trim_start_matches('/').into();
            shown.push(Entry::Bind { source: source.to_owned(), target, writable });
        };
        if let Some((kernel, initramfs)) = &machine.boots {
            show(kernel, KERNEL, false);
            show(initramfs, INITRAMFS, false);
        }
        if let Origin::Template { memory, .. } = &machine.origin {
            show(memory, MEMORY, true);
        }
        let who = user::identity(&machine.id, &machine.accelerator)?;
        let disks = machine.disks.iter().filter_map(|disk| disk.file.as_ref());
        // A limit cannot be raised by who may not do everything, as an ordinary user: so it has room for what may come.
        let limits = limits(machine.memory + resize::most_added(machine.memory), disks)?;
        Ok(Jail { limits, ..self.jail_with(&machine.run_dir, who, shown) })
    }

    /// A jail in which it can run, as `who`, and sees what is `shown`; in its own view that covers `at`.
    pub fn jail_with(&self, at: &Path, who: Identity, shown: Vec<Entry>) -> Jail {
        let mut entries: Vec<Entry> =
            SYSTEM.iter().filter_map(|path| system_entry(Path::new(path))).collect();
        if !self.program.starts_with("/usr") {
            entries.extend(system_entry(&self.program));
        }
        entries.push(Entry::Device("/dev/urandom".into()));
        entries.extend(shown);
        let namespaces =
            UnshareFlags::NEWNS | UnshareFlags::NEWNET | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS;
        Jail {
            identity: Some(who),
            namespaces: namespaces.bits().into(),
            view: Some(View { at: at.to_owned(), entries, root: true }),
            no_new_privileges: true,
            limits: Vec::new(),
            landlock: true,
        }
    }
}

/// What a VMM may have at most, whatever has become of it: addresses beside the guest's memory, threads, and bytes in a
/// file, which are those of its largest disk, or of the memory where that is saved.
pub(crate) fn limits<'a, F: AsFd + 'a>(
    memory: u64,
    disks: impl Iterator<Item = &'a F>,
) -> io::Result<Vec<(Resource, u64)>> {
    let mut largest = memory;
    for disk in disks {
        let length = rustix::fs::fstat(disk)?.st_size;
        largest = largest.max(u64::try_from(length).unwrap_or(0));
    }
    let file = (Resource::Fsize, largest.saturating_add(OWN_BYTES));
    Ok(vec![
        (Resource::As, memory.saturating_add(OWN_ADDRESSES)),
        (Resource::Nproc, MAX_THREADS.into()),
        file,
    ])
}

impl Hypervisor for Qemu {
    fn launch(&self, machine: &Machine) -> Result<Helper, VmError> {
        let failed = |source| VmError::Spawn { program: self.program.clone(), source };
        let mut command = Command::new(&self.program);
        command.args(arguments(machine)).env_clear();
        let duplicate = |log: &OwnedFd| log.try_clone().map_err(failed);
        command.stdin(Stdio::null()).stdout(duplicate(&machine.console)?).stderr(duplicate(&machine.errors)?);
        let (jail, keep) = (self.jail(machine).map_err(failed)?, descriptors(machine));
        let child = match &machine.origin {
            Origin::Blank { memory } | Origin::Clone { memory, .. } | Origin::Resume { memory } => {
                let opened = Opened { file: memory.as_fd(), is_common: true, limit: MEMORY_LIMIT };
                jail.spawn_with_file(command, &keep, &opened, || Ok(()))
            }
            Origin::Copy { memory, template, .. } => {
                let opened = Opened { file: memory.as_fd(), is_common: false, limit: MEMORY_LIMIT };
                jail.spawn_with_file(command, &keep, &opened, || disk::copy_data(template, memory))
            }
            Origin::Boot | Origin::Template { .. } => jail.spawn(command, &keep),
        };
        Helper::new(child.map_err(failed)?).map_err(failed)
    }
}

/// Shows a path of the host as it is there: itself, or the link that it is.
fn system_entry(path: &Path) -> Option<Entry> {
    let metadata = std::fs::symlink_metadata(path).ok()?;
    let inside = path.strip_prefix("/").ok()?.to_owned();
    Some(if metadata.is_symlink() {
        Entry::Link { path: inside, target: std::fs::read_link(path).ok()? }
    } else {
        Entry::Bind { source: path.to_owned(), target: inside, writable: false }
    })
}

fn descriptors(machine: &Machine) -> Vec<BorrowedFd<'_>> {
    let disks = machine.disks.iter().filter_map(|disk| disk.file.as_ref()).map(AsFd::as_fd);
    let shares = machine.shares.iter().map(|share| share.socket.as_fd());
    let state = machine.origin.state().map(AsFd::as_fd);
    let sockets = [machine.agent.as_fd(), machine.control.as_fd()];
    let taps = machine.taps.iter().map(|tap| tap.as_fd());
    disks.chain(shares).chain(taps).chain(sockets).chain(state).collect()
}

/// The command line, one setting after the other.
fn arguments(machine: &Machine) -> Vec<String> {
    let mut line = CommandLine::default();
    line.add("-name", format!("guest=proa-{}", machine.id));
    for flag in ["-nodefaults", "-no-user-config", "-no-reboot"] {
        line.flag(flag);
    }
    line.add("-display", "none");
    line.add("-sandbox", SANDBOX);
    add_board(&mut line, machine);
    add_origin(&mut line, machine);
    // Its standard output, which is a log of fixed size: a file it opened, QEMU would want to truncate.
    line.add("-chardev", "stdio,id=console,signal=off");
    line.add("-serial", "chardev:console");
    line.add("-chardev", format!("socket,id=control,fd={}", machine.control.as_raw_fd()));
    line.add("-mon", "chardev=control,mode=control");
    line.add("-chardev", format!("socket,id=agent,fd={}", machine.agent.as_raw_fd()));
    // Two ports instead of 31: the guest sets up two queues for each.
    line.device("virtio-serial-pci,id=ports,max_ports=2,disable-legacy=on");
    line.device(BRIDGE);
    line.add("-device", "virtserialport,bus=ports.0,nr=1,chardev=agent,name=proa");
    line.device(BALLOON);
    for disk in &machine.disks {
        add_disk(&mut line, disk);
    }
    for share in &machine.shares {
        add_share(&mut line, share, machine.origin.state().is_some());
    }
    for (number, tap) in machine.taps.iter().enumerate() {
        line.add("-netdev", format!("tap,id={},fd={}", wire(number), tap.as_raw_fd()));
        add_network_device(&mut line, number);
    }
    for number in (machine.taps.len()..).take(SPARE_DEVICES) {
        line.add("-netdev", format!("hubport,id={},hubid={number}", wire(number)));
        add_network_device(&mut line, number);
    }
    line.words()
}

/// To a guest that goes on its shares come when it runs.
fn add_share(line: &mut CommandLine, SharePort { tag, socket }: &SharePort, goes_on: bool) {
    line.add("-chardev", format!("socket,id={tag},fd={}", socket.as_raw_fd()));
    if !goes_on {
        line.device(&format!("{SHARE_DEVICE},chardev={tag},tag={tag},queue-size={SHARE_QUEUE}"));
    }
}

/// What the numbered network device is wired to: a tap, or that of a spare one to a hub, to which a tap comes later.
pub(crate) fn wire(device: usize) -> String {
    format!("net{device}")
}

fn add_network_device(line: &mut CommandLine, number: usize) {
    // The guest takes another address when it is configured.
    let mac = format!("52:54:00:00:00:{number:02x}");
    // What a clone would announce when it goes on is the template's address.
    let options = "guest_announce=off,romfile=,disable-legacy=on";
    line.device(&format!("virtio-net-pci,netdev={},mac={mac},{options}", wire(number)));
}

/// What the guest boots from, or goes on from.
fn add_origin(line: &mut CommandLine, machine: &Machine) {
    match &machine.origin {
        Origin::Boot | Origin::Blank { .. } | Origin::Template { .. } => add_kernel(line, machine),
        // It waits to be told how to read the state.
        Origin::Clone { .. } | Origin::Copy { .. } => line.add("-incoming", "defer"),
        Origin::Resume { .. } => {
            line.add("-incoming", "defer");
            // The state is that of the devices alone, without what goes before it on the way to another host.
            line.add("-global", "migration.send-configuration=off");
        }
    }
}

fn add_kernel(line: &mut CommandLine, machine: &Machine) {
    line.add("-kernel", KERNEL);
    line.add("-initrd", INITRAMFS);
    line.add("-append", kernel_command_line(machine));
}

fn add_board(line: &mut CommandLine, machine: &Machine) {
    let mut board =
        "q35,vmport=off,hpet=off,sata=off,smbus=off,usb=off,dump-guest-core=off,mem-merge=off".to_owned();
    let size = machine.memory;
    let backend = match &machine.origin {
        Origin::Template { .. } | Origin::Copy { .. } => {
            Some(format!("memory-backend-file,mem-path={MEMORY},share=on"))
        }
        Origin::Blank { .. } | Origin::Clone { .. } | Origin::Resume { .. } => {
            Some(format!("memory-backend-file,mem-path={MEMORY},share=off"))
        }
        // The servers read and write the guest's memory themselves.
        Origin::Boot if !machine.shares.is_empty() => Some("memory-backend-memfd,share=on".to_owned()),
        Origin::Boot => None,
    };
    if let Some(backend) = backend {
        line.add("-object", format!("{backend},id=memory,size={size}"));
        board.push_str(",memory-backend=memory");
    }
    if matches!(machine.origin, Origin::Resume { .. }) {
        // Nor is there what comes after it.
        board.push_str(",suppress-vmdesc=on");
    }
    line.add("-machine", board);
    // Who puts what comes on that bus is the agent, with or without ACPI.
    line.add("-global", "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off");
    line.add("-m", format!("{}K,maxmem={}K", size / 1024, (size + resize::places(size)) / 1024));
    line.add("-smp", format!("{},maxcpus={}", machine.cpus, machine.possible_cpus()));
    accelerate(line, &machine.accelerator, machine.cpus);
}

/// What executes the guest's instructions, and what CPU it sees.
pub(crate) fn accelerate(line: &mut CommandLine, accelerator: &Accelerator, cpus: u32) {
    match accelerator {
        Accelerator::Kvm { .. } => {
            line.add("-accel", "kvm");
            line.add("-cpu", "host");
        }
        Accelerator::Emulation { .. } => {
            let threads = if cpus == 1 { "single" } else { "multi" };
            line.add("-accel", format!("tcg,thread={threads},tb-size={TRANSLATIONS}"));
            // All that is emulated but what is slower to emulate than to do without: a fifth level of page
            // tables, and string instructions that copy byte by byte.
            line.add("-cpu", "max,la57=off,erms=off,fsrm=off");
        }
    }
}

/// Reads and writes report errors to the guest: by default QEMU would halt it when the host's disk is full.
fn add_disk(line: &mut CommandLine, disk: &Disk) {
    let serial = &disk.serial;
    let medium = match &disk.file {
        Some(file) => {
            let file = line.descriptor(file.as_raw_fd());
            let access = if disk.readonly { "read-only=on" } else { "read-only=off,discard=unmap" };
            format!("driver=file,filename={file},locking=off,auto-read-only=off,{access}")
        }
        None => {
            let access = if disk.readonly { "on" } else { "off" };
            format!("driver=null-co,size={PLACE},read-zeroes=on,read-only={access}")
        }
    };
    line.add("-blockdev", format!("{medium},node-name={serial}"));
    line.device(&format!(
        "virtio-blk-pci,drive={serial},serial={serial},num-queues=1,werror=report,rerror=report,disable-legacy=on"
    ));
}

fn kernel_command_line(machine: &Machine) -> String {
    // Each line on the serial port costs an emulated guest ten milliseconds: only what is fatal is worth that.
    // The self-tests of the kernel's ciphers take a quarter of an emulated boot. `reboot=t` with `-no-reboot`
    // ends the machine, with or without ACPI.
    let quiet = "console=ttyS0 quiet loglevel=3 8250.nr_uarts=1";
    // To free the pages of the initramfs takes longer than to fill them, and the guest has no need of them.
    let mut words = vec![format!("{quiet} panic=-1 reboot=t cryptomgr.notests retain_initrd {LESS}")];
    if machine.cpus == 1 {
        words.push("noreplace-smp".to_owned());
    }
    if machine.has_acpi() {
        // ACPI tells of places for memory beyond what some devices reach, none of which it has: no buffers for those.
        words.push("swiotlb=noforce".to_owned());
    }
    if let Accelerator::Emulation { tsc_khz } = machine.accelerator {
        // Calibration against emulated timers is slow, wrong, and on a busy host sometimes endless. The counter
        // is the host's own, which is the same on all its CPUs. Filters of system calls are answered from what the kernel
        // keeps of them; to make machine code of one costs an emulated guest more than it ever gives back.
        words.push(format!("tsc_early_khz={tsc_khz} tsc=reliable no_timer_check {INTERPRETED}"));
        if machine.has_acpi() {
            // Nor measured anew for a CPU that comes; delays go by the counter.
            words.push(format!("lpj={}", tsc_khz * 4));
        } else {
            words.push("acpi=off".to_owned());
        }
    }
    words.extend_from_slice(&machine.words);
    words.join(" ")
}

/// A command line of QEMU's in the making.
#[derive(Default)]
pub(crate) struct CommandLine {
    words: Vec<String>,
    devices: usize,
    descriptors: usize,
}

impl CommandLine {
    /// An option without a value.
    pub fn flag(&mut self, option: &str) {
        self.words.push(option.to_owned());
    }

    /// An option and its value.
    pub fn add(&mut self, option: &str, value: impl Into<String>) {
        self.words.extend([option.to_owned(), value.into()]);
    }

    /// A device at the next free place of the bus.
    fn device(&mut self, description: &str) {
        let (slot, function) = (1 + self.devices / FUNCTIONS, self.devices % FUNCTIONS);
        self.devices += 1;
        let place = format!("bus=pcie.0,addr={slot:#x}.{function},multifunction=on");
        self.add("-device", format!("{description},{place}"));
    }

    /// All of it.
    pub fn words(self) -> Vec<String> {
        self.words
    }

    /// Announces an inherited descriptor, and gives the path that it is opened by.
    pub fn descriptor(&mut self, fd: RawFd) -> String {
        self.descriptors += 1;
        self.add("-add-fd", format!("fd={fd},set={}", self.descriptors));
        format!("/dev/fdset/{}", self.descriptors)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::SharePort;
    use std::fs::File;

    fn machine(layers: usize, shares: usize, cpus: u32, accelerator: Accelerator) -> Machine {
        let null = || -> OwnedFd { File::open("/dev/null").unwrap().into() };
        let layer = |number| Disk { file: Some(null()), serial: format!("layer{number}"), readonly: true };
        let mut disks: Vec<Disk> = (0..layers).map(layer).collect();
        disks.push(Disk { file: Some(null()), serial: "rw".into(), readonly: false });
        Machine {
            id: "abc".into(),
            run_dir: "/run/x".into(),
            boots: Some(("/k".into(), "/i".into())),
            memory: 256 << 20,
            cpus,
            words: Vec::new(),
            accelerator,
            disks,
            shares: (0..shares).map(|n| SharePort { tag: format!("share{n}"), socket: null() }).collect(),
            taps: Vec::new(),
            agent: null(),
            control: null(),
            console: null(),
            errors: null(),
            origin: Origin::Boot,
        }
    }

    fn line(machine: &Machine) -> String {
        let mut text = arguments(machine).join(" ");
        // The longest numbers first, so that 1 is not found in 12.
        let mut fds: Vec<RawFd> = descriptors(machine).iter().map(AsRawFd::as_raw_fd).collect();
        fds.sort_unstable_by_key(|fd| std::cmp::Reverse(fd.to_string().len()));
        for fd in fds {
            text = text.replace(&format!("fd={fd}"), "fd=N");
        }
        text.replace(" -", "\n-")
    }

    #[test]
    fn the_whole_command_line_of_an_emulated_guest() {
        let text = line(&machine(1, 1, 1, Accelerator::Emulation { tsc_khz: 2_600_000 }));
        assert_eq!(text, include_str!("../tests/qemu-emulated.txt").trim_end());
    }

    #[test]
    fn a_clone_differs_from_its_template_in_where_it_comes_from_and_its_disks() {
        let null = || -> OwnedFd { File::open("/dev/null").unwrap().into() };
        let mut machine = machine(1, 0, 1, Accelerator::Emulation { tsc_khz: 1 });
        machine.origin = Origin::Clone { memory: null(), state: null() };
        let clone = line(&machine);
        machine.origin = Origin::Template { memory: "/m".into() };
        machine.disks = vec![Disk::place(0), Disk::writable(None)];
        let template = line(&machine);
        let only = |one: &str, other: &str| -> Vec<String> {
            one.lines().filter(|line| !other.lines().any(|found| found == *line)).map(str::to_owned).collect()
        };
        let options = |lines: Vec<String>| -> Vec<String> {
            lines.iter().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect()
        };
        let disks = ["-add-fd", "-blockdev", "-device", "-add-fd", "-blockdev"];
        assert_eq!(options(only(&clone, &template)), [&["-object", "-incoming"], &disks[..]].concat());
        let booted = ["-object", "-kernel", "-initrd", "-append", "-blockdev", "-device", "-blockdev"];
        assert_eq!(options(only(&template, &clone)), booted);
        assert!(clone.contains("mem-path=/guest/memory,share=off") && clone.contains("-incoming defer"));
        assert!(
            template.contains("driver=null-co,size=8796093022208,read-zeroes=on,read-only=off,node-name=rw")
        );
    }

    #[test]
    fn a_guest_on_hardware_keeps_acpi_and_its_own_clock() {
        let text = line(&machine(0, 0, 2, Accelerator::Kvm { group: 0 }));
        assert!(text.contains("-accel kvm\n-cpu host") && text.contains("-smp 2"), "{text}");
        for absent in ["acpi=off", "tsc_early_khz", "noreplace-smp", "memfd", "tcg"] {
            assert!(!text.contains(absent), "{absent}: {text}");
        }
    }

    #[test]
    fn a_hundred_layers_have_places_of_their_own() {
        let text = line(&machine(100, 2, 1, Accelerator::Kvm { group: 0 }));
        let mut places: Vec<&str> =
            text.split("addr=").skip(1).map(|rest| rest.split(',').next().unwrap_or_default()).collect();
        assert_eq!(places.len(), 102 + OWN_DEVICES + SPARE_DEVICES);
        places.sort_unstable();
        places.dedup();
        assert_eq!(places.len(), 102 + OWN_DEVICES + SPARE_DEVICES);
        assert!(text.contains("serial=layer99,") && !text.contains("addr=0x1f"), "{text}");
    }
}
