use super::*;

fn query(name: &str, kind: u16, edns: bool) -> Vec<u8> {
    let mut packet = Vec::new();
    put(&mut packet, &[0x1234, RECURSION_DESIRED, 1, 0, 0, u16::from(edns)]);
    packet.extend(encode(name).unwrap());
    put(&mut packet, &[kind, INTERNET]);
    if edns {
        packet.push(0);
        put(&mut packet, &[OPT, 1232, 0, 0x8000, 0]);
    }
    packet
}

fn refused(packet: &[u8]) -> Option<u8> {
    match Query::read(packet) {
        Err(Malformed::Answered(reply)) => {
            assert_eq!(reply[..2], packet[..2]);
            assert!(reply[2] & 0x80 != 0);
            Some(reply[3] & 0xf)
        }
        _ => None,
    }
}

#[test]
fn a_query_is_read_in_lower_case_and_kept_as_it_came() {
    let packet = query("Web.MyNet", AAAA, true);
    let query = Query::read(&packet).unwrap();
    assert_eq!((query.name.as_bytes(), query.name.labels()), (&b"web.mynet"[..], 2));
    assert_eq!((query.kind, query.class, query.udp_size()), (AAAA, INTERNET, 1232));
    assert_eq!(&query.question[..4], b"\x03Web");
}

#[test]
fn what_is_no_query_gets_no_answer_or_an_error() {
    let good = query("web", A, false);
    assert_eq!(Query::read(&good[..11]).unwrap_err(), Malformed::Silent);
    let mut answer = good.clone();
    answer[2] |= 0x80;
    assert_eq!(Query::read(&answer).unwrap_err(), Malformed::Silent);
    let mut update = good.clone();
    update[2] |= 5 << 3;
    assert_eq!(refused(&update), Some(Rcode::NotImp as u8));
    for count in [0, 2, 1000] {
        let mut many = good.clone();
        many[4..6].copy_from_slice(&u16::to_be_bytes(count));
        assert_eq!(refused(&many), Some(Rcode::FormErr as u8), "{count}");
    }
    for length in HEADER..good.len() {
        assert_eq!(refused(&good[..length]), Some(Rcode::FormErr as u8), "{length}");
    }
    let mut counts = good.clone();
    counts[11] = 200;
    assert_eq!(refused(&counts), Some(Rcode::FormErr as u8));
}

#[test]
fn pointers_and_giant_names_are_refused() {
    let mut header = Vec::new();
    put(&mut header, &[1, 0, 1, 0, 0, 0]);
    let to_itself = [&header[..], &[0xc0, 12, 0, 1, 0, 1]].concat();
    assert_eq!(refused(&to_itself), Some(Rcode::FormErr as u8));
    let giant = [
        &header[..],
        &b"\x3faaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa".repeat(5),
        &[0, 0, 1, 0, 1],
    ];
    assert_eq!(refused(&giant.concat()), Some(Rcode::FormErr as u8));
    let dots = [&header[..], b"\x03a.b\0\0\x01\0\x01"].concat();
    assert_eq!(Query::read(&dots).unwrap().name.as_bytes(), b"a\0b");
    let root = [&header[..], b"\0\0\x02\0\x01"].concat();
    assert_eq!(Query::read(&root).unwrap().name.labels(), 0);
}

#[test]
fn edns_is_read_once_and_of_version_0_only() {
    let mut packet = query("web", A, true);
    let at = packet.len() - 5;
    packet[at] = 1;
    let Err(Malformed::Answered(reply)) = Query::read(&packet) else { panic!("version 1 was read") };
    // The upper bits of the code are in the OPT record: 1, so that all of it is 16.
    assert_eq!((reply[3] & 0xf, reply[reply.len() - 6]), (0, 1));
    packet[at] = 0;
    let opt = packet[packet.len() - 11..].to_vec();
    packet.extend(opt);
    packet[11] = 2;
    assert_eq!(refused(&packet), Some(Rcode::FormErr as u8));
}

#[test]
fn an_answer_fits_what_the_client_takes() {
    let packet = query("web", A, false);
    let query = Query::read(&packet).unwrap();
    let records: Vec<Record> = (0..100).map(|n| Record::Address(Ipv4Addr::new(10, 0, 0, n).into())).collect();
    let reply = query.reply(Rcode::NoError, &records, PLAIN_SIZE);
    let count = usize::from(number(&reply, 6));
    assert!(reply.len() <= PLAIN_SIZE && reply[2] & 0x02 != 0);
    assert_eq!(reply.len(), HEADER + query.question.len() + 16 * count);
    let whole = query.reply(Rcode::NoError, &records, MAX_MESSAGE);
    assert_eq!((number(&whole, 6), whole[2] & 0x02), (100, 0));
    assert_eq!(whole[whole.len() - 4..], [10, 0, 0, 99]);
}

#[test]
fn reverse_names_are_addresses() {
    assert_eq!(reverse(b"4.3.2.1.in-addr.arpa"), Some("1.2.3.4".parse().unwrap()));
    let v6 = format!("{}d.f.ip6.arpa", "1.".to_owned() + &"0.".repeat(29));
    assert_eq!(reverse(v6.as_bytes()), Some("fd00::1".parse().unwrap()));
    for wrong in ["3.2.1.in-addr.arpa", "5.4.3.2.1.in-addr.arpa", "256.3.2.1.in-addr.arpa", "1.ip6.arpa", "x"]
    {
        assert_eq!(reverse(wrong.as_bytes()), None, "{wrong}");
    }
}

#[test]
fn only_an_answer_to_this_question_is_taken() {
    let packet = query("Web.example", A, false);
    let asked = Query::read(&packet).unwrap();
    let mut answer = packet.clone();
    answer[2] |= 0x80;
    answer[13] = b'w';
    assert_eq!(judge(&answer, 0x1234, asked.question), Verdict::Answer);
    assert_eq!(judge(&answer, 0x1235, asked.question), Verdict::Foreign);
    assert_eq!(judge(&packet, 0x1234, asked.question), Verdict::Foreign);
    let mut other = answer.clone();
    other[13] = b'x';
    assert_eq!(judge(&other, 0x1234, asked.question), Verdict::Foreign);
    assert_eq!(judge(&answer[..20], 0x1234, asked.question), Verdict::Foreign);
    adopt(&mut answer, 7, asked.question);
    assert_eq!((number(&answer, 0), &answer[HEADER..], answer[2]), (7, asked.question, packet[2] | 0x80));
    let failure = header_only(0x1234, 0, Rcode::NotImp);
    assert_eq!(judge(&failure, 0x1234, asked.question), Verdict::Failure);
    assert_eq!(judge(&header_only(0x1234, 0, Rcode::NoError), 0x1234, asked.question), Verdict::Foreign);
}

#[test]
fn whatever_a_byte_is_changed_to_is_read_or_refused() {
    let good = query("web.example", A, true);
    for at in 0..good.len() {
        for byte in 0..=255 {
            let mut packet = good.clone();
            packet[at] = byte;
            let _ = judge(&packet, 0x1234, &good[HEADER..]);
            if let Ok(query) = Query::read(&packet) {
                let reply = query.reply(Rcode::NoError, &[Record::Pointer("a.b".into())], query.udp_size());
                assert!(reply.len() <= query.udp_size());
                assert_eq!(judge(&reply, query.id(), query.question), Verdict::Answer);
            }
        }
    }
}
