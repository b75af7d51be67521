//! Whether `/dev/kvm` is of use, and how fast this CPU's time stamp counter runs.
//!
//! A device that answers proves little: where the host is itself a guest without nested paging, a virtual CPU
//! may be emulated instruction by instruction, or stop at one that the emulator lacks. So a small loop is run
//! as a guest in long mode, with a 16-byte compare-and-exchange as every 64-bit kernel uses it, and timed.

use std::arch::x86_64::_rdtsc;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::clone::exit_now;

/// What the loop showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It ran, in this time.
    Ran(Duration),
    /// It did not end in time.
    Hung,
    /// A step failed.
    Failed(String),
}

/// Rounds of the guest's loop: one to two milliseconds on hardware.
pub const ROUNDS: u64 = 100_000;

const CREATE_VM: u32 = 0xAE01;
const GET_VCPU_MMAP_SIZE: u32 = 0xAE04;
const GET_SUPPORTED_CPUID: u32 = 0xC008_AE05;
const CREATE_VCPU: u32 = 0xAE41;
const SET_USER_MEMORY_REGION: u32 = 0x4020_AE46;
const SET_TSS_ADDR: u32 = 0xAE47;
const RUN: u32 = 0xAE80;
const SET_REGS: u32 = 0x4090_AE82;
const GET_SREGS: u32 = 0x8138_AE83;
const SET_SREGS: u32 = 0x4138_AE84;
const SET_CPUID2: u32 = 0x4008_AE90;
const EXIT_HLT: u32 = 5;
const EXIT_INTERNAL_ERROR: u64 = 17;

const MEMORY: usize = 0x10000;
const CODE: usize = 0x4000;
const DATA: u64 = 0x8000;
/// `again: mov [rdi+16], rcx; lock cmpxchg16b [rdi]; dec rcx; jnz again; hlt`
const LOOP: [u8; 15] =
    [0x48, 0x89, 0x4F, 0x10, 0xF0, 0x48, 0x0F, 0xC7, 0x0F, 0x48, 0xFF, 0xC9, 0x75, 0xF2, 0xF4];
const CPUID_ENTRIES: usize = 256;

/// Runs the loop in a child process, for at most `limit`.
///
/// # Errors
/// There is no such device, it may not be opened, or no child can be made.
pub fn probe(device: &Path, limit: Duration) -> io::Result<Verdict> {
    let kvm = File::options().read(true).write(true).open(device)?;
    let (result, report) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    // SAFETY: the child makes system calls on memory of its own stack and of its own mappings, and ends; it
    // takes no lock and allocates nothing, so other threads of the parent do not matter.
    let pid = unsafe { libc::fork() };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            let words = run_loop(kvm.as_raw_fd());
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&words[0].to_le_bytes());
            bytes[8..].copy_from_slice(&words[1].to_le_bytes());
            let _ = rustix::io::write(&report, &bytes);
            exit_now(0)
        }
        pid => {
            drop(report);
            let verdict = wait_for_report(&result, limit);
            // SAFETY: integers and a null pointer; the child is ours and not yet reaped.
            unsafe {
                libc::kill(pid, libc::SIGKILL);
                libc::waitpid(pid, std::ptr::null_mut(), 0);
            }
            verdict
        }
    }
}

fn wait_for_report(result: &OwnedFd, limit: Duration) -> io::Result<Verdict> {
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = rustix::event::Timespec::try_from(left).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut fds = [rustix::event::PollFd::new(result, rustix::event::PollFlags::IN)];
        match rustix::event::poll(&mut fds, Some(&timeout)) {
            Ok(0) => return Ok(Verdict::Hung),
            Ok(_) => break,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let mut bytes = [0; 16];
    let count = rustix::io::read(result, &mut bytes)?;
    let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap_or_default());
    Ok(match (count, word(0), word(8)) {
        (16, STEP_DONE, nanoseconds) => Verdict::Ran(Duration::from_nanos(nanoseconds)),
        (16, STEP_EXIT, EXIT_INTERNAL_ERROR) => {
            Verdict::Failed("the host emulates the guest's instructions, and not all of them".to_owned())
        }
        (16, STEP_EXIT, reason) => Verdict::Failed(format!("the guest stopped with exit reason {reason}")),
        (16, _, errno) => Verdict::Failed(io::Error::from_raw_os_error(errno as i32).to_string()),
        _ => Verdict::Failed("the probe's process died".to_owned()),
    })
}

const STEP_DONE: u64 = 0;
const STEP_EXIT: u64 = 1;
const STEP_ERRNO: u64 = 2;

/// In the child: what happened and a number for it. Allocates nothing.
fn run_loop(kvm: RawFd) -> [u64; 2] {
    match try_loop(kvm) {
        Ok((EXIT_HLT, time)) => [STEP_DONE, time.as_nanos() as u64],
        Ok((reason, _)) => [STEP_EXIT, u64::from(reason)],
        Err(error) => [STEP_ERRNO, error.raw_os_error().unwrap_or_default() as u64],
    }
}

fn try_loop(kvm: RawFd) -> io::Result<(u32, Duration)> {
    let memory = map(-1, MEMORY)?;
    fill_memory(memory);
    let vm = number(kvm, CREATE_VM, 0)?;
    number(vm, SET_TSS_ADDR, 0xFFFB_D000)?;
    // struct kvm_userspace_memory_region: slot and flags, guest address, size, our address.
    structure(vm, SET_USER_MEMORY_REGION, &mut [0u64, 0, MEMORY as u64, memory as u64])?;
    let vcpu = number(vm, CREATE_VCPU, 0)?;
    // struct kvm_cpuid2: the number of entries, then 40 bytes each.
    let mut cpuid = [0u32; 2 + CPUID_ENTRIES * 10];
    cpuid[0] = CPUID_ENTRIES as u32;
    structure(kvm, GET_SUPPORTED_CPUID, &mut cpuid)?;
    structure(vcpu, SET_CPUID2, &mut cpuid)?;
    set_registers(vcpu)?;
    let size = number(kvm, GET_VCPU_MMAP_SIZE, 0)?;
    let run = map(vcpu, size as usize)?;
    let start = Instant::now();
    number(vcpu, RUN, 0)?;
    let time = start.elapsed();
    // SAFETY: `run` is a mapping of at least a page of `struct kvm_run`, whose exit reason is at byte 8.
    let reason = unsafe { run.add(8).cast::<u32>().read_volatile() };
    Ok((reason, time))
}

/// One page table that maps the first 2 MiB onto themselves, and the code.
fn fill_memory(memory: *mut u8) {
    const PRESENT_WRITABLE: u64 = 3;
    const LARGE: u64 = 0x80;
    // SAFETY: all offsets lie within the mapping of `MEMORY` bytes, and are aligned.
    unsafe {
        memory.add(0x1000).cast::<u64>().write(0x2000 | PRESENT_WRITABLE);
        memory.add(0x2000).cast::<u64>().write(0x3000 | PRESENT_WRITABLE);
        memory.add(0x3000).cast::<u64>().write(PRESENT_WRITABLE | LARGE);
        memory.add(CODE).copy_from_nonoverlapping(LOOP.as_ptr(), LOOP.len());
    }
}

/// Long mode, ring 0, at the code.
fn set_registers(vcpu: RawFd) -> io::Result<()> {
    let mut special = [0u64; 39];
    structure(vcpu, GET_SREGS, &mut special)?;
    // A segment is base, then limit and selector, then type, present, dpl, db, s, l, g … of a byte each.
    let segment = |kind: u8, long: u8| {
        let low =
            0xFFFF_FFFF | (if long == 1 { 0x08_u64 } else { 0x10 }) << 32 | u64::from(kind) << 48 | 1 << 56;
        let high = u64::from_le_bytes([0, 1 - long, 1, long, 1, 0, 0, 0]);
        [0, low, high]
    };
    special[..3].copy_from_slice(&segment(11, 1));
    for data in 1..6 {
        special[data * 3..data * 3 + 3].copy_from_slice(&segment(3, 0));
    }
    special[28] = 0x8005_0033; // CR0: PG, WP, NE, ET, MP, PE
    special[30] = 0x1000; // CR3
    special[31] = 0x620; // CR4: PAE, OSFXSR, OSXMMEXCPT
    special[33] = 0x500; // EFER: LME, LMA
    structure(vcpu, SET_SREGS, &mut special)?;
    let mut registers = [0u64; 18];
    registers[2] = ROUNDS;
    registers[5] = DATA;
    registers[6] = MEMORY as u64;
    registers[16] = CODE as u64;
    registers[17] = 2;
    structure(vcpu, SET_REGS, &mut registers)
}

fn map(fd: RawFd, size: usize) -> io::Result<*mut u8> {
    let flags = if fd == -1 { libc::MAP_PRIVATE | libc::MAP_ANONYMOUS } else { libc::MAP_SHARED };
    // SAFETY: a new mapping at an address of the kernel's choice.
    let address =
        unsafe { libc::mmap(std::ptr::null_mut(), size, libc::PROT_READ | libc::PROT_WRITE, flags, fd, 0) };
    if address == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(address.cast()) }
}

fn number(fd: RawFd, request: u32, argument: u64) -> io::Result<i32> {
    // SAFETY: these requests take an integer.
    let result = unsafe { libc::ioctl(fd, libc::c_ulong::from(request) as _, argument) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn structure<T>(fd: RawFd, request: u32, argument: &mut [T]) -> io::Result<()> {
    // SAFETY: each caller passes the structure of its request, of full size, alive across the call.
    let result = unsafe { libc::ioctl(fd, libc::c_ulong::from(request) as _, argument.as_mut_ptr()) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Ticks of the time stamp counter in a second, by the kernel's raw clock over `period`.
pub fn measure_tsc_hz(period: Duration) -> u64 {
    let start = clock_and_tsc();
    std::thread::sleep(period);
    let end = clock_and_tsc();
    let (time, ticks) = (end.0.saturating_sub(start.0).max(1), end.1.wrapping_sub(start.1));
    (u128::from(ticks) * 1_000_000_000 / time) as u64
}

/// Nanoseconds of the raw clock and the counter at that moment: the closest of some readings.
fn clock_and_tsc() -> (u128, u64) {
    let read = || {
        // SAFETY: the instruction reads a counter; every x86-64 CPU has it.
        let before = unsafe { _rdtsc() };
        let time = rustix::time::clock_gettime(rustix::time::ClockId::MonotonicRaw);
        // SAFETY: as above.
        let after = unsafe { _rdtsc() };
        let nanoseconds = time.tv_sec as u128 * 1_000_000_000 + time.tv_nsec as u128;
        (after.wrapping_sub(before), nanoseconds, before.wrapping_add(after.wrapping_sub(before) / 2))
    };
    let best = (0..16).map(|_| read()).min_by_key(|reading| reading.0).unwrap_or_else(read);
    (best.1, best.2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_probe_always_comes_to_an_end() {
        let device = Path::new("/dev/kvm");
        let start = Instant::now();
        match probe(device, Duration::from_secs(2)) {
            Ok(verdict) => assert!(matches!(verdict, Verdict::Ran(_) | Verdict::Hung | Verdict::Failed(_))),
            Err(error) => assert!(!device.exists() || error.raw_os_error().is_some()),
        }
        assert!(start.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn another_device_is_no_hypervisor() {
        let verdict = probe(Path::new("/dev/null"), Duration::from_secs(2)).unwrap();
        assert!(matches!(verdict, Verdict::Failed(_)), "{verdict:?}");
    }

    #[test]
    fn the_counter_runs_at_a_plausible_rate() {
        let hz = measure_tsc_hz(Duration::from_millis(10));
        assert!((100_000_000..20_000_000_000).contains(&hz), "{hz}");
    }
}
