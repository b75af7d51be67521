//! Packets that nobody would send who only wants a name.

use std::io::{Read, Write};
use std::time::Duration;

use crate::dns::{A, Answer, LIMIT, ask_stream, query};
use crate::fixture::{Host, until};

#[test]
fn strange_packets_harm_nobody_and_answers_get_none() {
    let (mut host, _, one) = Host::with_one();
    let pid = host.start(&[]);
    assert_eq!(one.ask("one", A), Answer::addresses(&["10.1.0.2"]));
    let server = children(pid);
    let (socket, to) = (one.socket(), one.server());
    let good = query(7, "one", A);
    for length in 0..good.len() {
        socket.send_to(&good[..length], to).unwrap();
    }
    for at in 2..good.len() {
        for byte in [0, 1, 0x3f, 0x7f, 0xc0, 0xff] {
            let mut packet = good.clone();
            packet[at] = byte;
            socket.send_to(&packet, to).unwrap();
        }
    }
    socket.send_to(&[0xff; 4000], to).unwrap();
    socket.send_to(&[&[0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0xc0, 12][..], &[0; 100]].concat(), to).unwrap();
    assert_eq!(one.ask("one", A), Answer::addresses(&["10.1.0.2"]));
    // Answers lead to nothing.
    let quiet = one.socket();
    quiet.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let mut answer = good;
    answer[2] |= 0x80;
    quiet.send_to(&answer, to).unwrap();
    assert!(quiet.recv_from(&mut [0; 512]).is_err());
    assert_eq!(children(pid), server, "the server is another");
}

#[test]
fn strange_connections_are_closed_and_idle_ones_do_not_fill_the_server() {
    let mut host = Host::new();
    let network = host.network(1, false);
    host.endpoint(&network, 2, &["one"], &[]);
    host.endpoint(&network, 3, &["two"], &[]);
    let (one, two) = (host.instance(&network, 2), host.instance(&network, 3));
    host.start(&[]);
    for message in [&[0, 0][..], &[0, 3, 1, 2, 3], &[0xff, 0xff, 1]] {
        let mut stream = one.connect();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.write_all(message).unwrap();
        // An end, or that it was reset: either way it is over.
        assert!(matches!(stream.read(&mut [0; 16]), Ok(0) | Err(_)), "{message:?}");
    }
    let idle: Vec<_> = (0..100).map(|_| one.connect()).collect();
    assert_eq!(ask_stream(&mut two.connect(), "one", A), Answer::addresses(&["10.1.0.2"]));
    drop(idle);
    until("its own connections are served again", || {
        let mut stream = one.connect();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        let message = query(1, "two", A);
        let sent = stream.write_all(&[&[0, message.len() as u8][..], &message].concat());
        sent.is_ok() && stream.read_exact(&mut [0; 2]).is_ok()
    });
}

/// Process ids of a process's children.
pub fn children(pid: u32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap()
}
