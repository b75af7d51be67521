//! From boot to power-off.

use std::fs;

use proa_oci::runtime::{DeviceRule, Resources};
use proa_vm::VmExit;

use crate::fixture::Setup;

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

#[test]
fn two_cpus_are_two() {
    let mut setup = Setup::new("busybox nproc; busybox grep -c ^processor /proc/cpuinfo");
    setup.spec.cpus = 2;
    let mut guest = setup.boot();
    assert_eq!(guest.run().0, "2\n2\n");
    guest.shut_down();
}

#[test]
fn a_hundred_layers_are_one_root() {
    let mut setup = Setup::new("cat /number; busybox ls /layers | busybox wc -l; exit 3");
    for number in 1..100 {
        setup.add_layer(|root| {
            fs::create_dir(root.join("layers")).unwrap();
            fs::write(root.join("layers").join(number.to_string()), "").unwrap();
            fs::write(root.join("number"), format!("{number}\n")).unwrap();
        });
    }
    let mut guest = setup.boot();
    let (output, status) = guest.run();
    assert_eq!((output.as_str(), status.code), ("99\n99\n", 3));
    guest.shut_down();
}

#[test]
fn what_was_written_survives_a_stop_and_a_crash() {
    let mut setup = Setup::new("cat /kept /synced; echo one > /kept; busybox rm /bin/sh");
    let mut guest = setup.boot();
    guest.run();
    guest.shut_down();
    setup.script(
        "cat /kept; busybox ls /bin; echo two > /synced; busybox sync; echo done; busybox sleep 1000",
    );
    setup.call_busybox();
    let mut guest = setup.boot();
    let output = guest.run_until("done");
    assert_eq!(output, "one\nbusybox\ndone\n");
    guest.vm.kill();
    guest.await_end();
    setup.script("cat /kept /synced");
    let mut guest = setup.boot();
    assert_eq!(guest.run().0, "one\ntwo\n");
    guest.shut_down();
}

#[test]
fn disks_are_out_of_the_programs_reach() {
    let script = "cd /tmp; for minor in 0 16 32; do busybox mknod d$minor b 254 $minor; done; \
                  busybox dd if=d0 of=/dev/null count=1; busybox dd if=d16 of=/dev/null count=1; \
                  busybox mount -t devtmpfs x /sys; busybox dd if=/sys/vda of=/dev/null count=1; \
                  busybox mount -o remount,dev /; busybox dd if=d0 of=/dev/null count=1; echo end";
    let mut setup = Setup::new(script);
    setup.grant(&["CAP_MKNOD", "CAP_SYS_ADMIN", "CAP_DAC_OVERRIDE", "CAP_CHOWN", "CAP_FOWNER"]);
    let all = DeviceRule { access: Some("rwm".to_owned()), ..DeviceRule::default() };
    setup.config.linux_mut().resources = Some(Resources { devices: vec![all], ..Resources::default() });
    let mut guest = setup.boot();
    let (output, _) = guest.run();
    assert!(output.ends_with("end\n"), "{output}");
    assert!(!output.contains("records in"), "a block device was read: {output}");
    assert!(
        output.matches("Operation not permitted").count() + output.matches("Permission denied").count() >= 3,
        "{output}"
    );
    guest.shut_down();
}

/// A guest whose kernel takes free memory for zeros must keep what it has.
#[test]
fn free_memory_is_told_where_nobody_counts_on_its_content() {
    let script = "busybox cut -c 6 /sys/bus/virtio/drivers/virtio_balloon/virtio*/features";
    for (words, told) in [("", "1\n"), ("init_on_free=1", "0\n")] {
        let mut setup = Setup::new(script);
        setup.spec.extras.words = vec![words.to_owned()];
        assert_eq!(setup.boot().run().0, told, "{words}");
    }
}

#[test]
fn a_kernel_that_panics_ends_its_vmm_and_leaves_its_last_words() {
    let mut setup = Setup::new("echo c > /proc/sysrq-trigger; busybox sleep 1000");
    let mut guest = setup.boot();
    guest.begin();
    guest.await_end();
    let exit = guest.vm.try_wait().unwrap().unwrap();
    assert_eq!(exit, VmExit::Code(0));
    let error = guest.vm.died(exit).to_string();
    assert!(error.contains("Kernel panic") && error.contains("the guest restarted"), "{error}");
    assert!(error.lines().count() <= 8, "{error}");
}

#[test]
fn orphans_are_reaped() {
    let script = "for n in 1 2 3 4 5; do (busybox sleep 0 &); done; busybox sleep 1; \
                  for p in /proc/[0-9]*; do busybox grep -sH '^State:.Z' $p/status; done; echo end";
    let mut setup = Setup::new(script);
    // In the guest's own pid namespace the orphans are the agent's children.
    let kinds = &mut setup.config.linux_mut().namespaces;
    kinds.retain(|namespace| namespace.kind != proa_oci::runtime::NamespaceKind::Pid);
    let mut guest = setup.boot();
    assert_eq!(guest.run().0, "end\n");
    guest.shut_down();
}
