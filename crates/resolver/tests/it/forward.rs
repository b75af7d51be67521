//! Questions that servers elsewhere answer.

use std::io::{Read, Write};
use std::net::{TcpListener, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::dns::{A, Answer, TXT, ask_stream, respond};
use crate::fixture::{Host, until};

const SERVFAIL: u8 = 2;
const NXDOMAIN: u8 = 3;

/// A server on the host at `127.0.0.<number>` that sends what `answers` makes of each query; how often it was asked.
fn server(number: u8, answers: impl Fn(&[u8]) -> Vec<Vec<u8>> + Send + 'static) -> Arc<AtomicUsize> {
    let socket = UdpSocket::bind(format!("127.0.0.{number}:53")).unwrap();
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    // It ends with the test's process.
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            counted.fetch_add(1, Ordering::SeqCst);
            for answer in answers(&buffer[..length]) {
                // Who asked may have heard enough.
                let _ = socket.send_to(&answer, from);
            }
        }
    });
    count
}

/// The same by TCP, with one answer each.
fn stream_server(number: u8, data: &'static [u8]) {
    let listener = TcpListener::bind(format!("127.0.0.{number}:53")).unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut length = [0; 2];
            stream.read_exact(&mut length).unwrap();
            let mut query = vec![0; usize::from(u16::from_be_bytes(length))];
            stream.read_exact(&mut query).unwrap();
            let answer = respond(&query, data);
            let length = (answer.len() as u16).to_be_bytes();
            // In pieces.
            stream.write_all(&length[..1]).unwrap();
            stream.write_all(&length[1..]).unwrap();
            stream.write_all(&answer).unwrap();
        }
    });
}

fn failing(query: &[u8]) -> Vec<Vec<u8>> {
    let mut answer = query.to_vec();
    answer[2] |= 0x80;
    answer[3] |= SERVFAIL;
    vec![answer]
}

#[test]
fn names_of_elsewhere_are_asked_where_the_host_or_the_endpoint_says() {
    let mut host = Host::new();
    let network = host.network(1, false);
    host.endpoint(&network, 2, &["one"], &[]);
    host.endpoint(&network, 3, &["two"], &["127.0.0.6"]);
    let (one, two) = (host.instance(&network, 2), host.instance(&network, 3));
    server(5, |query| vec![respond(query, &[5, 5, 5, 5])]);
    server(6, |query| vec![respond(query, &[6, 6, 6, 6])]);
    host.servers(&["127.0.0.5"]);
    host.start(&[]);
    assert_eq!(one.ask("www.Example.com", A), Answer::addresses(&["5.5.5.5"]));
    assert_eq!(two.ask("www.example.com", A), Answer::addresses(&["6.6.6.6"]));
    assert_eq!(one.ask("www.example.com", TXT).records, [[5, 5, 5, 5]]);
    host.servers(&["127.0.0.6"]);
    until("the host's other server is asked", || {
        one.ask("www.example.com", A) == Answer::addresses(&["6.6.6.6"])
    });
}

#[test]
fn a_server_that_fails_or_is_silent_is_followed_by_the_next() {
    let (mut host, _, one) = Host::with_one();
    let silent = server(5, |_| Vec::new());
    let failed = server(6, failing);
    server(7, |query| vec![respond(query, &[7, 7, 7, 7])]);
    host.servers(&["127.0.0.5", "127.0.0.6", "127.0.0.7"]);
    host.start(&[]);
    assert_eq!(one.ask("a.example", A), Answer::addresses(&["7.7.7.7"]));
    assert_eq!([&silent, &failed].map(|count| count.load(Ordering::SeqCst)), [1, 1]);
    // Nobody listens at 8.
    host.servers(&["127.0.0.8", "127.0.0.6"]);
    until("none answers", || one.ask("a.example", A) == Answer::empty(SERVFAIL));
}

#[test]
fn who_asks_by_tcp_gets_the_long_answer() {
    let (mut host, _, one) = Host::with_one();
    static LONG: [u8; 20_000] = [7; 20_000];
    stream_server(5, &LONG);
    server(5, |query| {
        let mut answer = query.to_vec();
        answer[2] |= 0x82;
        vec![answer]
    });
    host.servers(&["127.0.0.5"]);
    host.start(&[]);
    assert!(one.ask("long.example", TXT).truncated);
    let mut stream = one.connect();
    assert_eq!(ask_stream(&mut stream, "long.example", TXT).records, [LONG]);
    assert_eq!(ask_stream(&mut stream, "one", A), Answer::addresses(&["10.1.0.2"]));
}

#[test]
fn answers_that_do_not_fit_the_question_are_not_taken() {
    let (mut host, _, one) = Host::with_one();
    server(5, |query| {
        let lie = respond(query, &[6, 6, 6, 6]);
        let (mut identifier, mut question, mut no_answer) = (lie.clone(), lie.clone(), lie.clone());
        identifier[1] ^= 1;
        question[14] ^= 1;
        no_answer[2] &= 0x7f;
        let short = lie[..20].to_vec();
        vec![identifier, question, no_answer, short, respond(query, &[5, 5, 5, 5])]
    });
    host.servers(&["127.0.0.5"]);
    host.start(&[]);
    assert_eq!(one.ask("bank.example", A), Answer::addresses(&["5.5.5.5"]));
}

#[test]
fn who_guesses_identifiers_makes_the_question_go_by_tcp() {
    let (mut host, _, one) = Host::with_one();
    server(5, |query| {
        let lie = respond(query, &[6, 6, 6, 6]);
        let guess = |number: u16| {
            let mut lie = lie.clone();
            lie[1] ^= 1 + number as u8;
            lie
        };
        // The last one is right, but comes too late.
        (0..200).map(guess).chain([lie.clone()]).collect()
    });
    stream_server(5, &[5, 5, 5, 5]);
    host.servers(&["127.0.0.5"]);
    host.start(&[]);
    assert_eq!(one.ask("bank.example", A), Answer::addresses(&["5.5.5.5"]));
}

#[test]
fn nothing_leaves_an_internal_network_but_to_servers_in_it() {
    let mut host = Host::new();
    let network = host.network(1, true);
    host.endpoint(&network, 2, &["one"], &["127.0.0.5"]);
    host.endpoint(&network, 3, &["two"], &["10.1.0.2"]);
    let (one, two) = (host.instance(&network, 2), host.instance(&network, 3));
    let asked = server(5, |query| vec![respond(query, &[5, 5, 5, 5])]);
    let inside = one.inside(|| UdpSocket::bind("10.1.0.2:53").unwrap());
    std::thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((length, from)) = inside.recv_from(&mut buffer) {
            inside.send_to(&respond(&buffer[..length], &[9, 9, 9, 9]), from).unwrap();
        }
    });
    host.servers(&["127.0.0.5"]);
    host.start(&[]);
    assert_eq!(one.ask("two", A), Answer::addresses(&["10.1.0.3"]));
    assert_eq!(one.ask("data.example", A), Answer::empty(NXDOMAIN));
    assert_eq!(two.ask("data.example", A), Answer::addresses(&["9.9.9.9"]));
    assert_eq!(asked.load(Ordering::SeqCst), 0);
}

#[test]
fn a_flood_of_one_leaves_room_for_others() {
    let mut host = Host::new();
    let network = host.network(1, false);
    host.endpoint(&network, 2, &["one"], &["127.0.0.6"]);
    host.endpoint(&network, 3, &["two"], &[]);
    let (one, two) = (host.instance(&network, 2), host.instance(&network, 3));
    server(5, |query| vec![respond(query, &[5, 5, 5, 5])]);
    let silent = server(6, |_| Vec::new());
    host.servers(&["127.0.0.5"]);
    host.start(&[]);
    assert_eq!(one.ask("one", A), Answer::addresses(&["10.1.0.2"]));
    let (socket, to) = (one.socket(), one.server());
    for number in 0..3000_u16 {
        socket.send_to(&crate::dns::query(number, "slow.example", A), to).unwrap();
    }
    assert_eq!(two.ask("www.example", A), Answer::addresses(&["5.5.5.5"]));
    assert_eq!(two.ask("one", A), Answer::addresses(&["10.1.0.2"]));
    // What is too much is refused at once, and nobody is asked.
    let mut buffer = [0; 512];
    socket.set_read_timeout(Some(crate::dns::LIMIT)).unwrap();
    socket.recv_from(&mut buffer).unwrap();
    assert_eq!(buffer[3] & 0xf, 5);
    assert!(silent.load(Ordering::SeqCst) <= 200, "{silent:?}");
}
