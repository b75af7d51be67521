//! Interfaces that move into a container. All of it happens in network namespaces of the test's own.

use std::fs::File;
use std::os::fd::AsFd;
use std::process::Command;

use proa_oci::runtime::{NamespaceKind, NetDevice, Spec};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::support::{Fixture, process};

crate::tests![
    an_interface_moves_with_its_lasting_addresses,
    a_template_gets_a_number_that_is_free,
    a_name_that_is_taken_moves_nothing,
    an_interface_that_is_not_there_is_an_error,
    hooks_of_the_runtime_see_the_interface,
];

/// A network namespace that stands for the host's, with one end of a pair in it, and the way back.
struct Host(File);

impl Host {
    fn new() -> Self {
        let back = File::open("/proc/self/ns/net").unwrap();
        proa_sys::process::unshare_namespaces(0x4000_0000).unwrap();
        let host = Self(back);
        ip("link add mv0 type veth peer name mv1");
        host
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
    }
}

fn ip(arguments: &str) -> String {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().expect("these tests need ip");
    assert!(output.status.success(), "ip {arguments}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn moves(name: &str, inside: Option<&str>) -> impl FnOnce(&mut Spec) {
    let (name, device) = (name.to_owned(), NetDevice { name: inside.map(ToOwned::to_owned) });
    move |spec| drop(spec.linux_mut().net_devices.insert(name, device))
}

fn an_interface_moves_with_its_lasting_addresses() {
    let _host = Host::new();
    ip("link set mv0 up mtu 1400 address 02:00:00:00:00:07");
    ip("addr add 192.0.2.7/24 dev mv0");
    ip("addr add 2001:db8::7/64 dev mv0 nodad");
    ip("addr add 198.51.100.8/24 dev mv0 scope link");
    ip("addr add 203.0.113.9/24 dev mv0 valid_lft 600 preferred_lft 600");
    let outcome = Fixture::shell("ip addr show net9; cat /sys/class/net/net9/mtu")
        .with(moves("mv0", Some("net9")))
        .run();
    let shown = &outcome.stdout;
    for wanted in ["inet 192.0.2.7/24", "inet6 2001:db8::7/64", "02:00:00:00:00:07", ",UP", "\n1400\n"] {
        assert!(shown.contains(wanted), "{wanted}: {outcome:?}");
    }
    // Addresses of one link, and those that end, stay behind.
    assert!(!shown.contains("198.51.100.8") && !shown.contains("203.0.113.9"), "{outcome:?}");
    assert!(!ip("link show").contains("mv0"));
}

fn a_template_gets_a_number_that_is_free() {
    let _host = Host::new();
    ip("addr add 192.0.2.7/24 dev mv0");
    ip("addr add 198.51.100.7/24 dev mv1");
    let outcome =
        Fixture::shell("ip addr").with(moves("mv0", Some("eth%d"))).with(moves("mv1", Some("eth%d"))).run();
    for wanted in ["eth0", "eth1", "192.0.2.7/24", "198.51.100.7/24"] {
        assert!(outcome.stdout.contains(wanted), "{wanted}: {outcome:?}");
    }
}

fn a_name_that_is_taken_moves_nothing() {
    let _host = Host::new();
    let error = Fixture::shell("true").with(moves("mv0", None)).with(moves("mv1", Some("lo"))).fails();
    let text = error.to_string();
    assert!(text.contains("mv1") && text.contains("'lo' already"), "{text}");
    let left = ip("link show");
    assert!(left.contains("mv0") && left.contains("mv1"), "{left}");
    let hosts = Fixture::shell("true").with(moves("mv0", None)).with(|spec| {
        spec.linux_mut().namespaces.retain(|namespace| namespace.kind != NamespaceKind::Network);
    });
    assert!(hosts.fails().to_string().contains("network namespace of the container's own"));
}

fn an_interface_that_is_not_there_is_an_error() {
    let _host = Host::new();
    let text = Fixture::shell("true").with(moves("mv7", None)).fails().to_string();
    assert!(text.contains("mv7") && text.contains("the host has no interface"), "{text}");
}

fn hooks_of_the_runtime_see_the_interface() {
    let _host = Host::new();
    let fixture = Fixture::shell("cat /sys/class/net/mv0/ifalias").with(moves("mv0", None)).with(|spec| {
        let script = "read -r state; pid=${state#*\\\"pid\\\":}; nsenter -t ${pid%%[,\\}]*} -n ip link set mv0 alias hooked";
        spec.hooks = Some(proa_oci::runtime::Hooks {
            create_runtime: vec![proa_oci::runtime::Hook {
                path: "/bin/sh".into(),
                args: vec!["sh".into(), "-c".into(), script.into()],
                env: vec!["PATH=/usr/sbin:/usr/bin:/sbin:/bin".into()],
                ..Default::default()
            }],
            ..Default::default()
        });
        process(spec).terminal = false;
    });
    let outcome = fixture.run();
    assert_eq!(outcome.stdout, "hooked\n", "{outcome:?}");
}
