//! What an instance sends to the server of names, and what a server elsewhere answers: whatever the bytes, a query that is
//! read has an answer that fits and is one to it, and an answer that is taken repeats the question.
#![no_main]

use libfuzzer_sys::fuzz_target;
use proa_resolver::update::{Entry, Segment};
use proa_resolver::wire::{Malformed, Query, Rcode, Record, Verdict, adopt, judge, reverse};
use proa_resolver::zone::{Found, Zone};

fn zone() -> Zone {
    let mut zone = Zone::new(Segment {
        id: "n".into(),
        name: "net".into(),
        subnets: vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()],
        gateways: vec!["10.0.0.1".parse().unwrap()],
        ..Segment::default()
    });
    let addresses = (2..250).map(|number| [10, 0, 0, number].into()).collect();
    zone.set("i", Some(Entry { names: vec!["a".into(), "b.c".into()], addresses, ..Entry::default() }));
    zone
}

fn answered(query: &Query, records: &[Record]) {
    let limit = query.udp_size();
    let mut reply = query.reply(Rcode::NoError, records, limit);
    assert!(reply.len() <= limit);
    assert_eq!(judge(&reply, query.id(), query.question), Verdict::Answer);
    let before = reply.clone();
    adopt(&mut reply, query.id(), query.question);
    assert_eq!(before, reply);
    assert_eq!(Query::read(&reply).unwrap_err(), Malformed::Silent);
}

fuzz_target!(|data: &[u8]| {
    let half = data.len() / 2;
    match Query::read(data) {
        Err(Malformed::Silent) => {}
        Err(Malformed::Answered(reply)) => {
            assert_eq!(reply[..2], data[..2]);
            assert_eq!(Query::read(&reply).unwrap_err(), Malformed::Silent);
        }
        Ok(query) => {
            let _ = reverse(query.name.as_bytes());
            match zone().find(&query) {
                Found::Records(records) => answered(&query, &records),
                Found::Unknown | Found::Elsewhere => answered(&query, &[]),
            }
        }
    }
    let (question, answer) = data.split_at(half);
    let mut answer = answer.to_vec();
    if judge(&answer, 0, question) != Verdict::Foreign {
        adopt(&mut answer, 7, question);
        assert_eq!(answer[..2], [0, 7]);
    }
});
