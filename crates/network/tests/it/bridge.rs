//! Bridges as they are made.

use proa_network::link::Links;
use proa_protocol::network::{Network, Subnet};
use proa_sys::process::{aside, unshare_namespaces};
use rustix::thread::UnshareFlags;

#[test]
fn a_fresh_bridge_is_silent_for_nobody() {
    let subnet = |subnet: &str, gateway: &str| Subnet {
        subnet: subnet.parse().unwrap(),
        gateway: Some(gateway.parse().unwrap()),
    };
    let network = Network {
        id: "fresh".into(),
        bridge: "br-fresh".into(),
        subnets: vec![subnet("172.30.0.0/24", "172.30.0.1"), subnet("fd00:30::/64", "fd00:30::1")],
        ..Network::default()
    };
    let detection = aside(|| {
        unshare_namespaces(UnshareFlags::NEWNET.bits().into()).expect("these tests need root");
        Links::here().unwrap().ensure_bridge(&network).unwrap();
        std::fs::read_to_string("/proc/sys/net/ipv6/conf/br-fresh/accept_dad").unwrap()
    });
    // While it looks for duplicates of its address it cannot ask for neighbours.
    assert_eq!(detection.trim(), "0");
}
