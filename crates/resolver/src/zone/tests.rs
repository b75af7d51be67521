use super::*;
use crate::wire::{A, AAAA, ANY, PTR, encode};

const MX: u16 = 15;

fn zone() -> Zone {
    let mut zone = Zone::new(Segment {
        id: "n1".into(),
        name: "MyNet".into(),
        internal: false,
        subnets: vec!["10.1.0.0/24".parse().unwrap(), "fd01::/64".parse().unwrap()],
        gateways: vec!["10.1.0.1".parse().unwrap(), "fd01::1".parse().unwrap()],
        hosts: Vec::new(),
        ..Segment::default()
    });
    zone.set("i1", Some(entry(&["One", "web"], &["10.1.0.2", "fd01::2"])));
    zone.set("i2", Some(entry(&["two", "web", "my.app"], &["10.1.0.3"])));
    zone
}

fn entry(names: &[&str], addresses: &[&str]) -> Entry {
    Entry {
        names: names.iter().map(|&name| name.into()).collect(),
        addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
        servers: Vec::new(),
        ..Entry::default()
    }
}

fn find(zone: &Zone, name: &str, kind: u16) -> Found {
    let mut packet = vec![0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    packet.extend(encode(name).unwrap());
    packet.extend([0, kind as u8, 0, 1]);
    zone.find(&Query::read(&packet).unwrap())
}

fn found(addresses: &[&str]) -> Found {
    Found::Records(addresses.iter().map(|address| Record::Address(address.parse().unwrap())).collect())
}

#[test]
fn names_are_found_whatever_their_case_with_and_without_the_networks() {
    let zone = zone();
    for name in ["one", "ONE", "one.mynet", "One.MYNET"] {
        assert_eq!(find(&zone, name, A), found(&["10.1.0.2"]), "{name}");
        assert_eq!(find(&zone, name, AAAA), found(&["fd01::2"]), "{name}");
    }
    assert_eq!(find(&zone, "my.app", A), found(&["10.1.0.3"]));
    assert_eq!(find(&zone, "one", ANY), found(&["10.1.0.2", "fd01::2"]));
}

#[test]
fn a_known_name_has_no_records_of_other_types() {
    let zone = zone();
    assert_eq!(find(&zone, "two", AAAA), found(&[]));
    assert_eq!(find(&zone, "one", MX), found(&[]));
}

#[test]
fn addresses_of_one_name_take_turns() {
    let zone = zone();
    let both = ["10.1.0.2", "10.1.0.3"];
    assert_eq!(find(&zone, "web", A), found(&both));
    // As clients ask for both kinds, these do not count for the other.
    assert_eq!(find(&zone, "web", AAAA), found(&["fd01::2"]));
    assert_eq!(find(&zone, "web", A), found(&[both[1], both[0]]));
    assert_eq!(find(&zone, "web", A), found(&both));
}

#[test]
fn what_is_gone_or_changed_is_answered_no_more() {
    let mut zone = zone();
    zone.set("i1", Some(entry(&["uno"], &["10.1.0.9"])));
    assert_eq!(find(&zone, "one", A), Found::Unknown);
    assert_eq!(find(&zone, "web", A), found(&["10.1.0.3"]));
    assert_eq!(find(&zone, "uno", A), found(&["10.1.0.9"]));
    zone.set("i2", None);
    assert_eq!(find(&zone, "web", A), Found::Unknown);
    assert_eq!(find(&zone, "3.0.1.10.in-addr.arpa", PTR), Found::Unknown);
    assert!(zone.knows("10.1.0.9".parse().unwrap()) && !zone.knows("10.1.0.2".parse().unwrap()));
}

#[test]
fn an_address_that_was_taken_over_stays_its_new_owners() {
    let mut zone = zone();
    zone.set("i3", Some(entry(&["three"], &["10.1.0.2"])));
    zone.set("i1", None);
    assert_eq!(
        find(&zone, "2.0.1.10.in-addr.arpa", PTR),
        Found::Records(vec![Record::Pointer("three.MyNet".into())])
    );
}

#[test]
fn addresses_of_the_network_have_names_and_no_others_are_asked() {
    let zone = zone();
    let name = Found::Records(vec![Record::Pointer("One.MyNet".into())]);
    assert_eq!(find(&zone, "2.0.1.10.in-addr.arpa", PTR), name);
    assert_eq!(find(&zone, "2.0.1.10.in-addr.arpa", A), found(&[]));
    let v6 = format!("2.{}1.0.d.f.ip6.arpa", "0.".repeat(27));
    assert_eq!(find(&zone, &v6, PTR), name);
    assert_eq!(find(&zone, "200.0.1.10.in-addr.arpa", PTR), Found::Unknown);
    assert_eq!(find(&zone, "2.0.2.10.in-addr.arpa", PTR), Found::Elsewhere);
}

#[test]
fn the_host_is_found_and_lone_names_do_not_leave() {
    let zone = zone();
    for name in ["host.docker.internal", "host.proa.internal", "gateway.docker.internal"] {
        assert_eq!(find(&zone, name, A), found(&["10.1.0.1"]), "{name}");
        assert_eq!(find(&zone, name, AAAA), found(&["fd01::1"]), "{name}");
    }
    assert_eq!(find(&zone, "nobody", A), Found::Unknown);
    assert_eq!(find(&zone, "com", 2), Found::Elsewhere);
    assert_eq!(find(&zone, "example.com", A), Found::Elsewhere);
}

#[test]
fn servers_are_the_endpoints_or_the_hosts_and_never_ourselves() {
    let mut zone = zone();
    let host: Vec<SocketAddr> = ["127.0.0.53:53", "10.1.0.1:53", "10.9.0.1:53", "10.1.0.2:53"]
        .iter()
        .map(|server| server.parse().unwrap())
        .collect();
    let ourselves = ["10.1.0.1".parse().unwrap(), "10.9.0.1".parse().unwrap()];
    let one = "10.1.0.2".parse().unwrap();
    assert_eq!(zone.servers(one, &host, &ourselves), [host[0]]);
    let mut own = entry(&["one"], &["10.1.0.2"]);
    own.servers = vec!["8.8.4.4".parse().unwrap(), "10.1.0.3".parse().unwrap()];
    zone.set("i1", Some(own));
    let own: Vec<String> = zone.servers(one, &host, &ourselves).iter().map(ToString::to_string).collect();
    assert_eq!(own, ["8.8.4.4:53", "10.1.0.3:53"]);
    // What is internal asks inside alone.
    let mut segment = zone.segment.clone();
    segment.internal = true;
    zone.change(segment);
    assert_eq!(zone.servers(one, &host, &ourselves), ["10.1.0.3:53".parse().unwrap()]);
    assert!(zone.servers("10.1.0.3".parse().unwrap(), &host[..1], &ourselves).is_empty());
}
