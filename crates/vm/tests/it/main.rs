//! Whole guests: a kernel that really boots, an agent that answers. Needs root, qemu-system-x86, busybox-static,
//! erofs-utils, and the agent that `cargo xtask dist` builds; the first run fetches a kernel.

mod fixture;

use fixture::Setup;

#[test]
fn a_guest_boots_runs_a_program_and_powers_off() {
    let mut setup = Setup::new("uname -r; cat /proc/sys/kernel/hostname; busybox date +%s; exit 7");
    let mut guest = setup.boot();
    let (output, status) = guest.run();
    let lines: Vec<&str> = output.lines().collect();
    let host = rustix::system::uname();
    assert_ne!(lines[0], host.release().to_string_lossy(), "{output}");
    assert_eq!(lines[1], "guest");
    let time: u64 = lines[2].parse().unwrap();
    assert!((1_700_000_000..1_700_000_600).contains(&time), "{time}");
    assert_eq!(status.code, 7);
    guest.shut_down();
}
