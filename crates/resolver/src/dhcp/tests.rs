use super::message::checksum;
use super::*;

const SERVER: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 1);
const OWN: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 2);
const NOBODY: Ipv4Addr = Ipv4Addr::UNSPECIFIED;

fn lease() -> Lease {
    Lease {
        mac: [2, 0, 0, 0, 0, 2],
        address: OWN,
        prefix: 20,
        server: SERVER,
        router: Some(SERVER),
        mtu: 1400,
        hostname: "one".into(),
        search: vec!["net1".into(), "example.org".into()],
    }
}

/// A message with these options, from an address, for an address.
fn packet(has: Ipv4Addr, to: Ipv4Addr, options: &[&[u8]]) -> Vec<u8> {
    let mut message = vec![0; 236];
    message[..12].copy_from_slice(&[1, 1, 6, 0, 7, 7, 7, 7, 0, 0, 0, 0]);
    message[12..16].copy_from_slice(&has.octets());
    message[28..34].copy_from_slice(&lease().mac);
    message.extend([99, 130, 83, 99, 0]);
    message.extend(options.concat());
    message.push(255);
    wrap((has, 68), (to, 67), &message)
}

/// What an answer is: its kind, where it goes, and which address it gives.
fn judged(packet: &[u8]) -> Option<(u8, Ipv4Addr, Ipv4Addr)> {
    let answer = lease().answer(packet)?;
    let at = |place: usize| Ipv4Addr::from(<[u8; 4]>::try_from(&answer[place..place + 4]).unwrap());
    assert_eq!(checksum(&answer[..20]), [0, 0]);
    assert_eq!(option(&answer, 54).unwrap(), SERVER.octets());
    Some((option(&answer, 53).unwrap()[0], at(16), at(28 + 16)))
}

fn option(answer: &[u8], wanted: u8) -> Option<Vec<u8>> {
    let mut at = 28 + 240;
    while answer[at] != 255 {
        let length = usize::from(answer[at + 1]);
        if answer[at] == wanted {
            return Some(answer[at + 2..at + 2 + length].to_vec());
        }
        at += 2 + length;
    }
    None
}

#[test]
fn each_request_has_the_answer_that_its_client_waits_for() {
    let all = Ipv4Addr::BROADCAST;
    let other = Ipv4Addr::new(10, 1, 0, 9);
    let wished = |address: Ipv4Addr| [&[50, 4][..], &address.octets()].concat();
    let of = |address: Ipv4Addr| [&[54, 4][..], &address.octets()].concat();
    let request: &[u8] = &[53, 1, 3];
    // Init.
    assert_eq!(judged(&packet(NOBODY, all, &[&[53, 1, 1]])), Some((2, OWN, OWN)));
    assert_eq!(judged(&packet(NOBODY, all, &[&[53, 1, 1], &wished(other)])), Some((2, OWN, OWN)));
    assert_eq!(judged(&packet(NOBODY, all, &[request, &of(SERVER), &wished(OWN)])), Some((5, OWN, OWN)));
    assert_eq!(judged(&packet(NOBODY, all, &[request, &of(SERVER), &wished(other)])), Some((6, all, NOBODY)));
    assert_eq!(judged(&packet(NOBODY, all, &[request, &of(other), &wished(OWN)])), None);
    // Init-reboot.
    assert_eq!(judged(&packet(NOBODY, all, &[request, &wished(OWN)])), Some((5, OWN, OWN)));
    assert_eq!(judged(&packet(NOBODY, all, &[request, &wished(other)])), Some((6, all, NOBODY)));
    // Renew and rebind.
    assert_eq!(judged(&packet(OWN, SERVER, &[request])), Some((5, OWN, OWN)));
    assert_eq!(judged(&packet(OWN, all, &[request])), Some((5, OWN, OWN)));
    assert_eq!(judged(&packet(other, all, &[request])), Some((6, all, NOBODY)));
    assert_eq!(judged(&packet(OWN, other, &[request])), None);
    // Inform: whoever is not that address is told nothing.
    assert_eq!(judged(&packet(OWN, all, &[&[53, 1, 8]])), Some((5, OWN, NOBODY)));
    assert_eq!(judged(&packet(other, all, &[&[53, 1, 8]])), None);
    // Decline, release, an answer, none of these, and nothing that is wished for.
    for kind in [2, 4, 5, 6, 7, 9, 255] {
        assert_eq!(judged(&packet(NOBODY, all, &[&[53, 1, kind], &wished(OWN)])), None, "{kind}");
    }
    assert_eq!(judged(&packet(NOBODY, all, &[request])), None);
    assert_eq!(judged(&packet(NOBODY, all, &[])), None);
}

#[test]
fn who_is_deaf_is_answered_by_what_is_sent_to_all() {
    let mut deaf = packet(NOBODY, Ipv4Addr::BROADCAST, &[&[53, 1, 1]]);
    deaf[28 + 10] = 0x80;
    assert_eq!(judged(&deaf), Some((2, Ipv4Addr::BROADCAST, OWN)));
}

#[test]
fn an_answer_has_all_that_there_is_to_know() {
    let ask = packet(NOBODY, Ipv4Addr::BROADCAST, &[&[53, 1, 1], &[61, 3, 1, 2, 3]]);
    let answer = lease().answer(&ask).unwrap();
    let expected: [(u8, &[u8]); 10] = [
        (1, &[255, 255, 240, 0]),
        (3, &[10, 1, 0, 1]),
        (6, &[10, 1, 0, 1]),
        (12, b"one"),
        (15, b"net1"),
        (26, &[5, 120]),
        (51, &[0, 0, 0xa8, 0xc0]),
        (61, &[1, 2, 3]),
        (119, b"\x04net1\0\x07example\x03org\0"),
        (54, &[10, 1, 0, 1]),
    ];
    for (number, value) in expected {
        assert_eq!(option(&answer, number).as_deref(), Some(value), "{number}");
    }
    assert_eq!(answer[28 + 4..28 + 8], [7; 4]);
    let bare = Lease { router: None, mtu: 0, search: Vec::new(), hostname: String::new(), ..lease() };
    let answer = bare.answer(&ask).unwrap();
    assert!([3, 12, 15, 26, 119].iter().all(|number| option(&answer, *number).is_none()));
    // What an endpoint is called may be long; what it must know comes first.
    let long = Lease { hostname: "h".repeat(200), search: vec!["s".repeat(60); 8], ..lease() };
    let answer = long.answer(&ask).unwrap();
    assert!(answer.len() <= 576 && option(&answer, 26).is_some() && option(&answer, 119).is_none());
}

#[test]
fn what_is_no_request_of_its_own_has_no_answer() {
    let good = packet(NOBODY, Ipv4Addr::BROADCAST, &[&[53, 1, 1]]);
    assert!(lease().answer(&good).is_some());
    for length in 0..good.len() - 1 {
        let short = &good[..length];
        assert_eq!(lease().answer(short), None, "{length}");
    }
    // Version, protocol, fragment, port, kind of message, hardware, relay, another's MAC, magic, an option's length.
    let wrong =
        [(0, 0x65), (9, 6), (6, 0x20), (23, 68), (28, 2), (29, 6), (30, 8), (52, 1), (61, 9), (264, 0)];
    for (at, byte) in wrong {
        let mut packet = good.clone();
        packet[at] = byte;
        assert_eq!(lease().answer(&packet), None, "{at}");
    }
    for options in [&[53, 1, 1, 50, 3, 1, 2, 3][..], &[53, 1, 1, 54, 200], &[53, 0, 1], &[53, 1, 1, 12]] {
        let mut packet = packet(NOBODY, Ipv4Addr::BROADCAST, &[options]);
        // Without what ends the list.
        packet.pop();
        let (total, udp) = ((packet.len() as u16).to_be_bytes(), (packet.len() as u16 - 20).to_be_bytes());
        packet[2..4].copy_from_slice(&total);
        packet[24..26].copy_from_slice(&udp);
        assert_eq!(lease().answer(&packet), None, "{options:?}");
    }
}

#[test]
fn a_mac_is_the_latest_ones() {
    let mut leases = Leases::default();
    leases.set("old", Some(lease()));
    leases.set("new", Some(Lease { hostname: "new".into(), ..lease() }));
    leases.set("old", None);
    assert_eq!(leases.of(lease().mac).unwrap().hostname, "new");
    leases.set("new", Some(Lease { mac: [2, 0, 0, 0, 0, 3], ..lease() }));
    assert_eq!(leases.of(lease().mac), None);
    leases.set("new", None);
    assert!(leases.0.is_empty());
}

/// Every jump of the filter leads to one of its instructions, and its end says yes or no.
#[test]
fn the_filter_is_a_program() {
    let program = keep();
    for (at, insn) in program.iter().enumerate() {
        let jumps = insn.code & 7 == 5;
        assert!(!jumps || at + 1 + usize::from(insn.jt.max(insn.jf)) < program.len());
    }
    assert_eq!(program.last().map(|insn| (insn.code, insn.k)), Some((6, 0)));
}
