//! What an instance sends to the server of addresses: whatever the bytes, an answer is one packet that every client takes,
//! gives the sender its own address or none, and is no request itself.
#![no_main]

use libfuzzer_sys::fuzz_target;
use proa_resolver::dhcp::{Lease, Request, datagram, wrap};

fn lease() -> Lease {
    Lease {
        mac: [2, 0, 0, 0, 0, 2],
        address: [10, 0, 0, 2].into(),
        prefix: 24,
        server: [10, 0, 0, 1].into(),
        router: Some([10, 0, 0, 1].into()),
        mtu: 1400,
        hostname: "one".into(),
        search: vec!["net".into()],
    }
}

fn answered(packet: &[u8]) {
    let Some(answer) = lease().answer(packet) else { return };
    assert!((300..=576).contains(&answer.len()));
    assert!(matches!(answer[44..48], [10, 0, 0, 2] | [0, 0, 0, 0]));
    assert_eq!(answer[56..62], lease().mac);
    assert_eq!(lease().answer(&answer), None);
}

fuzz_target!(|data: &[u8]| {
    // As it is, and within heads that are right, so that the message is reached.
    let _ = datagram(data);
    answered(data);
    if data.len() > 1500 {
        return;
    }
    let _ = Request::read(data);
    answered(&wrap(([0; 4].into(), 68), ([255; 4].into(), 67), data));
    let mut message = vec![0; 240];
    message[..3].copy_from_slice(&[1, 1, 6]);
    message[28..34].copy_from_slice(&lease().mac);
    message[236..].copy_from_slice(&[99, 130, 83, 99]);
    message.extend(data);
    answered(&wrap(([10, 0, 0, 2].into(), 68), ([10, 0, 0, 1].into(), 67), &message));
});
