//! Memory and CPUs that come to a guest while it runs, by the VMM and the agent alone.

use std::time::{Duration, Instant};

use proa_protocol::message::{Request, Response};
use proa_vm::CpuShortage;

use crate::fixture::{Guest, Setup};

const LIMIT: Duration = Duration::from_secs(60);

fn await_memory(guest: &mut Guest, added: u64) {
    let deadline = Instant::now() + LIMIT;
    while guest.vm.added_memory().unwrap() != added {
        assert!(Instant::now() < deadline, "{} of {added}", guest.vm.added_memory().unwrap());
        std::thread::yield_now();
    }
}

#[test]
fn cpus_come_to_a_guest_that_has_acpi() {
    let mut setup = Setup::new("echo ready; until [ $(busybox nproc) = 3 ]; do :; done; echo three");
    setup.spec.cpus = 2;
    let mut guest = setup.boot();
    guest.run_until("ready");
    assert!(!guest.vm.is_resized());
    assert_eq!(guest.vm.want_cpus(3).unwrap(), None);
    guest.send(&Request::Expand { memory: false, cpus: guest.vm.cpus() }.frame(0));
    assert_eq!(guest.response(0), Response::Ok);
    assert_eq!(guest.follow(None).0, "three\n");
    assert!(guest.vm.is_resized());
    // One more has a place, the fifth has none.
    assert_eq!(guest.vm.want_cpus(5).unwrap(), Some(CpuShortage { has: 4, no_acpi: false }));
    guest.shut_down();
}

#[test]
fn none_come_to_a_guest_without() {
    let mut guest = Setup::new("echo ready; busybox sleep 1000").boot();
    guest.run_until("ready");
    if let Some(shortage) = guest.vm.want_cpus(2).unwrap() {
        assert_eq!(shortage, CpuShortage { has: 1, no_acpi: true });
        assert!(!guest.vm.is_resized());
    }
}

/// With shares, memory must be such that their servers can work in it.
#[test]
fn files_of_a_share_are_read_into_memory_that_has_come() {
    let host = tempfile::tempdir().unwrap();
    std::fs::write(host.path().join("file"), vec![b'x'; 96 << 20]).unwrap();
    let mut setup = Setup::new(
        "echo ready; until [ $(busybox awk '/MemTotal/ { print $2 }' /proc/meminfo) -gt 500000 ]; do :; done; \
         busybox dd if=/share/file bs=96M count=1 2>/dev/null | busybox md5sum",
    );
    setup.spec.memory = 64 << 20;
    setup.bind(host.path(), "/share", &["rbind"]);
    let mut guest = setup.boot();
    guest.run_until("ready");
    let lacking = guest.vm.lacking_memory(512 << 20).unwrap();
    guest.vm.want_memory(lacking).unwrap();
    guest.send(&Request::Expand { memory: true, cpus: 1 }.frame(0));
    assert_eq!(guest.response(0), Response::Ok);
    await_memory(&mut guest, lacking);
    let (output, status) = guest.follow(None);
    let expected = std::process::Command::new("md5sum").arg(host.path().join("file")).output().unwrap();
    let sum = |text: &str| text.split_whitespace().next().unwrap_or_default().to_owned();
    assert_eq!(sum(&output), sum(&String::from_utf8_lossy(&expected.stdout)), "{output} {status:?}");
    guest.shut_down();
}
