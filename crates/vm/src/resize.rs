//! Memory, CPUs and shares that come to a machine while it runs.
//!
//! ```text
//!   memory   none ─ want_memory ─▶ a device at the bridge, of so much as may ever come, of which so much is wanted
//!            wanted ─ the guest's driver: plugs, unplugs, as far as it can ─▶ plugged            (virtio-mem)
//!   shares   of a clone: devices at the bridge, when it runs
//!   CPUs     few ─ want_cpus ─▶ CPUs that the guest hears of by ACPI, and takes when its agent says so
//! ```
//!
//! All that a start has of this are addresses and an empty bus: what comes is made when it is wanted. CPUs that have come
//! stay; that fewer are to be used is a limit of the guest's cgroup.
//!
//! How much memory can come is fixed at the start, since the VMM's own limits are ([`most_added`]). What has come is memory
//! of the VMM's alone, unless servers of shares work in the guest's memory; then they get it as they got the rest.
//!
//! What a guest has plugged is the VMM's word, and a guest may have taken that over: it decides on nothing but what the
//! user is told.

use serde_json::{Value, json};

use crate::VmError;
use crate::machine::{Machine, Vm, guest_memory};
use crate::qemu::{MAX_THREADS, SHARE_DEVICE, SHARE_QUEUE};
use crate::share::Share;

/// The least that can come to any machine, bytes.
const LEAST: u64 = 4 << 30;
/// How many times the memory of its start can come to a larger one.
const TIMES: u64 = 4;
/// Addresses of what comes begin at such a multiple, and one of them is left free for the registers of devices: a guest
/// without ACPI puts those at the first addresses above its memory.
const GRAIN: u64 = 1 << 30;
/// Where addresses above the first memory begin.
const ABOVE: u64 = 4 << 30;
/// Memory that a guest's kernel takes as one.
const BLOCK: u64 = 128 << 20;
/// What comes is a multiple of this: guests plug no less at once.
const STEP: u64 = 4 << 20;
/// What it is called on the VMM's side, and at which bus and slot it is: so that its line for interrupts is the first of
/// the bridge's own slot.
const MEMORY: &str = "more";
const DEVICE: &str = "moremem";
const BUS: &str = "bridge";
const SLOT: &str = "4";

/// Slots at that bus for shares: whose lines, of the four that slots take in turn, are the same.
const SHARE_SLOTS: [usize; 6] = [8, 12, 16, 20, 24, 28];
const FUNCTIONS: usize = 8;

/// So many shares can come to a machine that goes on.
pub(crate) const MOST_SHARES: usize = SHARE_SLOTS.len() * FUNCTIONS;

/// Where the numbered share is at that bus, of at most [`MOST_SHARES`].
fn place_of_share(number: usize) -> String {
    format!("{:#x}.{}", SHARE_SLOTS[number / FUNCTIONS], number % FUNCTIONS)
}

/// Bytes that can come to a machine of `memory` bytes.
pub(crate) fn most_added(memory: u64) -> u64 {
    memory.saturating_mul(TIMES).max(LEAST).next_multiple_of(GRAIN)
}

/// Addresses that are kept for it.
pub(crate) fn places(memory: u64) -> u64 {
    // Some lie below the first of what comes: as much as the board has of the memory below those of its devices, and what
    // makes multiples.
    most_added(memory) + 4 * GRAIN
}

/// What a machine has, and had at its start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Size {
    memory: u64,
    shared: bool,
    /// Bytes that are wanted on top, where there is a device for such.
    added: Option<u64>,
    /// Bytes that can come: no more than the host has, since its kernel would refuse them at once.
    most: u64,
    cpus: u32,
    first_cpus: u32,
    possible_cpus: u32,
}

impl Size {
    pub fn of(machine: &Machine) -> Self {
        Self {
            memory: machine.memory,
            shared: !machine.shares.is_empty(),
            added: None,
            most: most_added(machine.memory).min(memory_of_host()),
            cpus: machine.cpus,
            first_cpus: machine.cpus,
            possible_cpus: machine.possible_cpus(),
        }
    }

    /// Bytes that are lacking where the program is to have so many.
    fn lacking(&self, limit: u64) -> u64 {
        guest_memory(limit).saturating_sub(self.memory).next_multiple_of(STEP)
    }

    /// Where what comes begins.
    fn address(&self) -> u64 {
        (ABOVE + self.memory).next_multiple_of(GRAIN) + GRAIN
    }
}

/// In whole blocks of a guest's.
fn memory_of_host() -> u64 {
    let host = rustix::system::sysinfo();
    let bytes = (host.totalram as u64).saturating_mul(host.mem_unit.into());
    bytes - bytes % BLOCK
}

/// Why a machine has fewer CPUs than are wanted, until it is started anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuShortage {
    /// Those that it has.
    pub has: u32,
    /// It cannot hear of new ones at all.
    pub no_acpi: bool,
}

/// What a VMM fills beside the guest's memory, bytes: code that it has translated (256 MiB at the most), pools, stacks, and
/// pages of disks, which go when there is need of them.
pub(crate) const OVERHEAD: u64 = 512 << 20;

/// What the server of a share needs by itself.
const SERVER_OVERHEAD: u64 = 64 << 20;
/// Its pool has 64 threads at the most, by default.
const SERVER_THREADS: u32 = 128;

impl Vm {
    /// Bytes and tasks that its VMM and the servers of its shares need at the most. These hold open what the guest
    /// knows of their files, of which an honest one knows no more than fits its memory.
    pub fn bounds(&self) -> (u64, u32) {
        let memory = self.size.memory + self.wanted_memory();
        let servers = self.helper_pids().len() as u32;
        let known = if servers == 0 { 0 } else { memory + u64::from(servers) * SERVER_OVERHEAD };
        (memory + OVERHEAD + known, MAX_THREADS + servers * SERVER_THREADS)
    }

    /// Whether it has, or had, more than at its start.
    pub fn is_resized(&self) -> bool {
        self.size.added.is_some() || self.size.cpus != self.size.first_cpus
    }

    /// Bytes wanted on top of the memory of its start.
    pub fn wanted_memory(&self) -> u64 {
        self.size.added.unwrap_or(0)
    }

    /// What would be wanted on top where the program may use `limit` bytes, as in [`VmSpec::memory`].
    ///
    /// # Errors
    /// It is more than can come to this machine.
    ///
    /// [`VmSpec::memory`]: crate::VmSpec::memory
    pub fn lacking_memory(&self, limit: u64) -> Result<u64, VmError> {
        let (lacking, most) = (self.size.lacking(limit), self.size.most);
        if lacking <= most {
            return Ok(lacking);
        }
        Err(VmError::TooMuch { most: (self.size.memory + most).saturating_sub(guest_memory(1)) >> 20 })
    }

    /// Has the guest take so many bytes on top, or give back what is more; how far it has come, [`Vm::added_memory`] tells.
    ///
    /// # Errors
    /// The VMM refuses, or does not answer within some seconds.
    pub fn want_memory(&mut self, added: u64) -> Result<(), VmError> {
        match self.size.added {
            None if added == 0 => return Ok(()),
            None => self.make_memory(added)?,
            Some(_) => {
                let path = format!("/machine/peripheral/{DEVICE}");
                let wanted = json!({"path": path, "property": "requested-size", "value": added});
                self.control.ask("qom-set", wanted)?;
            }
        }
        self.size.added = Some(added);
        Ok(())
    }

    fn make_memory(&mut self, added: u64) -> Result<(), VmError> {
        // Servers of shares are handed descriptors of memory.
        let kind = if self.size.shared { "memory-backend-memfd" } else { "memory-backend-ram" };
        let (size, share) = (self.size.most, self.size.shared);
        let backend = json!({"qom-type": kind, "id": MEMORY, "size": size, "share": share});
        self.control.ask("object-add", backend)?;
        let device = json!({
            "driver": "virtio-mem-pci", "id": DEVICE, "memdev": MEMORY, "bus": BUS, "addr": SLOT,
            "memaddr": self.size.address(), "requested-size": added, "disable-legacy": "on",
        });
        self.control.ask("device_add", device).map(drop).inspect_err(|_| {
            // Without its device it is nothing's; the first failure is the one to tell.
            let _ = self.control.ask("object-del", json!({"id": MEMORY}));
        })
    }

    /// Has shares come to a machine that goes on from a template, where such devices cannot be in its state; its agent looks
    /// for them when it is configured. Waits until the machine runs.
    pub(crate) fn add_shares(&mut self, shares: &[Share]) -> Result<(), VmError> {
        self.control.await_restored()?;
        // A slot is closed by the first of its functions, which therefore comes last.
        for (number, Share { tag, .. }) in shares.iter().enumerate().rev() {
            let device = json!({
                "driver": SHARE_DEVICE, "chardev": tag, "tag": tag, "queue-size": SHARE_QUEUE, "bus": BUS,
                "addr": place_of_share(number), "multifunction": true,
            });
            self.control.ask("device_add", device)?;
        }
        Ok(())
    }

    /// Bytes that the guest has plugged.
    ///
    /// # Errors
    /// The VMM does not answer within some seconds.
    pub fn added_memory(&mut self) -> Result<u64, VmError> {
        if self.size.added.is_none() {
            return Ok(0);
        }
        let devices = self.control.ask("query-memory-devices", json!({}))?;
        Ok(devices[0]["data"]["size"].as_u64().unwrap_or(0))
    }

    /// CPUs that it has.
    pub fn cpus(&self) -> u32 {
        self.size.cpus
    }

    /// Adds CPUs until there are so many, or why there are fewer. Its agent has to take them.
    ///
    /// # Errors
    /// The VMM refuses, or does not answer within some seconds.
    pub fn want_cpus(&mut self, count: u32) -> Result<Option<CpuShortage>, VmError> {
        let target = count.min(self.size.possible_cpus);
        if target > self.size.cpus {
            let slots = self.control.ask("query-hotpluggable-cpus", json!({}))?;
            for slot in free_slots(&slots).into_iter().take((target - self.size.cpus) as usize) {
                self.control.ask("device_add", slot)?;
                self.size.cpus += 1;
            }
        }
        let no_acpi = self.size.possible_cpus == self.size.first_cpus;
        Ok((self.size.cpus < count).then_some(CpuShortage { has: self.size.cpus, no_acpi }))
    }
}

/// What makes a CPU of each place that has none, the lowest first.
fn free_slots(slots: &Value) -> Vec<Value> {
    let free = |slot: &Value| {
        let (driver, props) = (slot["type"].as_str()?, slot["props"].as_object()?);
        let place = ["socket-id", "die-id", "core-id", "thread-id"].map(|key| props.get(key)?.as_u64());
        let mut device = props.clone();
        device.insert("driver".to_owned(), driver.into());
        let name = place.iter().map(|part| part.unwrap_or(0).to_string()).collect::<Vec<_>>().join("-");
        device.insert("id".to_owned(), format!("cpu-{name}").into());
        slot.get("qom-path").is_none().then(|| (place, Value::from(device)))
    };
    let mut slots: Vec<_> = slots.as_array().into_iter().flatten().filter_map(free).collect();
    slots.sort_by_key(|(place, _)| *place);
    slots.into_iter().map(|(_, device)| device).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(memory: u64) -> Size {
        Size {
            memory,
            shared: false,
            added: None,
            most: most_added(memory),
            cpus: 1,
            first_cpus: 1,
            possible_cpus: 1,
        }
    }

    #[test]
    fn what_is_lacking_is_a_whole_number_of_steps_and_nothing_where_there_is_enough() {
        let size = size(guest_memory(64 << 20));
        assert_eq!((size.lacking(64 << 20), size.lacking(6 << 20)), (0, 0));
        assert_eq!(size.lacking(65 << 20), 4 << 20);
        assert_eq!(size.lacking(1 << 30), 960 << 20);
    }

    #[test]
    fn memory_that_comes_has_places_beyond_the_registers_of_devices() {
        for memory in [192 << 20, 2 << 30, (3 << 30) + 1, 100 << 30] {
            let (address, most) = (size(memory).address(), most_added(memory));
            // The board has two GiB of more than that below the registers of devices, and the rest from `ABOVE` on.
            let above: u64 = if memory > 0xb000_0000 { memory - (2 << 30) } else { 0 };
            let base = (ABOVE + above).next_multiple_of(GRAIN);
            assert!(address >= ABOVE + above + GRAIN && address.is_multiple_of(GRAIN), "{memory}");
            assert!(address + most <= base + places(memory), "{memory}");
        }
    }

    #[test]
    fn places_of_cpus_are_filled_from_the_lowest() {
        let slot = |core: u64| json!({"props": {"core-id": core, "socket-id": 0}, "type": "max-x86_64-cpu"});
        let mut slots = json!([slot(3), slot(2), slot(1)]);
        slots[2]["qom-path"] = "/machine/unattached/device[0]".into();
        let free = free_slots(&slots);
        let first = json!({"core-id": 2, "socket-id": 0, "driver": "max-x86_64-cpu", "id": "cpu-0-0-2-0"});
        assert_eq!((free.len(), &free[0]), (2, &first));
        assert!(free_slots(&Value::Null).is_empty());
    }
}
