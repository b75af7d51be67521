//! What one level alone has. The other refuses it, with the reason.

use super::{Bed, at_both_levels};

at_both_levels!(
    words_for_the_kernel,
    a_boot_without_a_template,
    a_size_of_the_writable_layer;;
    the_hosts_network,
    the_network_of_another_instance,
    devices_of_the_host,
    rules_for_devices,
    chosen_cpus,
);

/// Runs a command that one level has alone: what it shows there.
fn only_at(bed: &Bed, level: &str, flags: &[&str], command: &[&str]) -> Option<String> {
    if bed.level == level {
        return Some(bed.run_ok(flags, command));
    }
    bed.lacks(&bed.run(flags, command));
    assert_eq!(bed.ok(&["ps", "-aq"]), "");
    None
}

fn words_for_the_kernel(bed: &Bed) {
    let seen = only_at(bed, "vm", &["--kernel-arg", "proa.test=1"], &["cat", "/proc/cmdline"]);
    assert!(seen.is_none_or(|line| line.contains("proa.test=1")));
}

fn a_boot_without_a_template(bed: &Bed) {
    let seen = only_at(bed, "vm", &["--no-template"], &["echo", "booted"]);
    assert!(seen.is_none_or(|word| word == "booted"));
}

fn a_size_of_the_writable_layer(bed: &Bed) {
    let fill = "head -c 100M /dev/zero > /filled 2> /dev/null || echo full";
    let seen = only_at(bed, "vm", &["--disk-size", "64m"], &["sh", "-c", fill]);
    assert!(seen.is_none_or(|word| word == "full"));
}

fn the_hosts_network(bed: &Bed) {
    let own = std::fs::read_link("/proc/self/ns/net").unwrap();
    let seen = only_at(bed, "container", &["--network", "host"], &["readlink", "/proc/self/ns/net"]);
    assert!(seen.is_none_or(|name| own.to_str() == Some(&name)));
}

fn the_network_of_another_instance(bed: &Bed) {
    bed.detach("first", &[], &["sleep", "1000"]);
    let flags = ["--network", "container:first"];
    let addresses = ["ip", "-4", "-o", "address"];
    if bed.is_vm() {
        bed.lacks(&bed.run(&flags, &addresses));
    } else {
        let first = bed.ok(&[&["exec", "first"], &addresses[..]].concat());
        assert_eq!(bed.run_ok(&flags, &addresses), first);
    }
    bed.ok(&["rm", "-f", "first"]);
}

fn devices_of_the_host(bed: &Bed) {
    let seen =
        only_at(bed, "container", &["--device", "/dev/net/tun"], &["stat", "-c", "%t:%T", "/dev/net/tun"]);
    assert!(seen.is_none_or(|number| number == "a:c8"));
}

fn rules_for_devices(bed: &Bed) {
    let seen = only_at(bed, "container", &["--device-cgroup-rule", "c 10:200 rwm"], &["echo", "allowed"]);
    assert!(seen.is_none_or(|word| word == "allowed"));
}

fn chosen_cpus(bed: &Bed) {
    let seen = only_at(bed, "container", &["--cpuset-cpus", "0"], &["nproc"]);
    assert!(seen.is_none_or(|count| count == "1"));
}
