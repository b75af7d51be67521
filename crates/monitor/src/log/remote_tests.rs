//! Listeners that are slow, go away, or want a file.

use std::io::Read;
use std::net::{TcpListener, UdpSocket};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::PathBuf;

use proa_protocol::log::{LogConfig, SyslogConfig};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use super::super::Identity;
use super::*;

/// Longest that a test waits.
const LIMIT: Duration = Duration::from_secs(20);

fn socket_path(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("proa-remote-{}-{name}", std::process::id()));
    let _ = std::fs::remove_file(&path);
    path
}

fn syslog(address: SyslogAddress, max_buffer: Option<u64>) -> Remote {
    let form = Form::Syslog(Syslog::new(&SyslogConfig::default(), "tag"));
    Remote::open(Target::Syslog(address), form, max_buffer).unwrap()
}

fn push(remote: &mut Remote, text: &str) {
    remote.push(&Entry { stderr: false, at_ns: 0, text: text.as_bytes(), ends: Ends::Line });
}

/// Sends until `done` holds.
fn send_until(remote: &mut Remote, mut done: impl FnMut(&Remote) -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !done(remote) {
        assert!(Instant::now() < deadline, "waited too long");
        remote.send();
        std::thread::yield_now();
    }
}

/// What comes over a stream until `wanted` stands there.
fn read_until(remote: &mut Remote, stream: &mut (impl Read + AsFd), wanted: &str) -> String {
    rustix::io::ioctl_fionbio(&*stream, true).unwrap();
    let mut text = Vec::new();
    send_until(remote, |_| {
        let mut bytes = [0; 65536];
        if let Ok(count) = stream.read(&mut bytes) {
            text.extend_from_slice(&bytes[..count]);
        }
        String::from_utf8_lossy(&text).contains(wanted)
    });
    String::from_utf8(text).unwrap()
}

#[test]
fn a_slow_server_holds_up_the_instance_and_loses_nothing() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut remote = syslog(SyslogAddress::Tcp(listener.local_addr().unwrap()), None);
    let mut count = 0;
    // Until the kernel takes no more and as many wait as may.
    while !remote.is_full() {
        push(&mut remote, &format!("line {count} {}", "x".repeat(10_000)));
        remote.send();
        count += 1;
        assert!(count < 10_000);
    }
    assert!(!remote.is_drained() && remote.lost() > 0);
    let (mut stream, _) = listener.accept().unwrap();
    push(&mut remote, "last");
    let text = read_until(&mut remote, &mut stream, "last\n");
    let seen: Vec<u32> =
        text.lines().filter_map(|line| line.split("line ").nth(1)?.split(' ').next()?.parse().ok()).collect();
    assert!(seen.iter().copied().eq(0..count), "{} of {count}", seen.len());
    assert!(remote.is_drained() && !remote.is_full() && remote.lost() == 0);
}

#[test]
fn without_waiting_the_oldest_are_dropped_and_counted() {
    let path = socket_path("drop");
    let listener = UnixListener::bind(&path).unwrap();
    let address = SyslogAddress::Unix(path.to_str().unwrap().to_owned());
    let mut remote = syslog(address, Some(50_000));
    for number in 0..200 {
        push(&mut remote, &format!("line {number} {}", "x".repeat(10_000)));
        remote.send();
        assert!(!remote.is_full());
    }
    let (mut stream, _) = listener.accept().unwrap();
    push(&mut remote, "last");
    let text = read_until(&mut remote, &mut stream, "last\n");
    let got = text.lines().filter(|line| line.contains(": line ")).count();
    let told: Vec<usize> = text
        .lines()
        .filter_map(|line| line.split("proa: ").nth(1)?.split(' ').next()?.parse().ok())
        .collect();
    assert_eq!(got + told.iter().sum::<usize>(), 200, "{told:?}");
    assert!(!told.is_empty() && text.contains(": line 199 "));
    std::fs::remove_file(path).unwrap();
}

#[test]
fn a_server_that_comes_back_gets_the_rest() {
    let path = socket_path("again");
    let listener = UnixDatagram::bind(&path).unwrap();
    // Not a stream: that is found out.
    let mut remote = syslog(SyslogAddress::Unix(path.to_str().unwrap().to_owned()), None);
    push(&mut remote, "one");
    send_until(&mut remote, Remote::is_drained);
    drop(listener);
    std::fs::remove_file(&path).unwrap();
    push(&mut remote, "two");
    remote.send();
    assert!(!remote.is_drained());
    assert!(remote.timeout().is_some_and(|left| left <= FIRST_PAUSE));
    let listener = UnixDatagram::bind(&path).unwrap();
    send_until(&mut remote, Remote::is_drained);
    let mut bytes = [0; 1000];
    let count = listener.recv(&mut bytes).unwrap();
    assert!(String::from_utf8_lossy(&bytes[..count]).ends_with("two\n"));
    std::fs::remove_file(path).unwrap();
}

#[test]
fn datagrams_that_nobody_wants_stop_nobody() {
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut remote = syslog(SyslogAddress::Udp(server.local_addr().unwrap()), None);
    push(&mut remote, "here");
    send_until(&mut remote, Remote::is_drained);
    let mut bytes = [0; 1000];
    let count = server.recv(&mut bytes).unwrap();
    assert!(String::from_utf8_lossy(&bytes[..count]).ends_with("]: here\n"));
    drop(server);
    for number in 0..20 {
        push(&mut remote, &format!("{number}"));
        send_until(&mut remote, Remote::is_drained);
    }
    assert_eq!(remote.lost(), 0);
}

#[test]
fn the_journal_gets_long_messages_in_a_sealed_file() {
    let path = socket_path("journal");
    let listener = UnixDatagram::bind(&path).unwrap();
    // Attributes make a message long; a line alone is not longer than a datagram.
    let attributes = [("big".to_owned(), "y".repeat(400_000))].into();
    let config = LogConfig { attributes, ..LogConfig::default() };
    let form = Form::Journal(Journal::new(&Identity::default(), &config));
    let mut remote = Remote::open(Target::Journal(path.to_str().unwrap().to_owned()), form, None).unwrap();
    push(&mut remote, "hello");
    send_until(&mut remote, Remote::is_drained);
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    recvmsg(&listener, &mut [], &mut control, RecvFlags::CMSG_CLOEXEC).unwrap();
    let file = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    let file = file.expect("no file came");
    let seals = rustix::fs::fcntl_get_seals(&file).unwrap();
    assert!(seals.contains(SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL));
    let mut bytes = vec![0; 500_000];
    let count = rustix::io::pread(&file, &mut bytes, 0).unwrap();
    let text = String::from_utf8_lossy(&bytes[..count]);
    assert!(text.ends_with("MESSAGE=hello\n") && text.contains(&"y".repeat(400_000)));
    std::fs::remove_file(path).unwrap();
}

#[test]
fn a_server_that_is_not_there_is_an_error_at_the_start() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    for address in [SyslogAddress::Tcp(address), SyslogAddress::Unix("/no/such/socket".into())] {
        let form = Form::Syslog(Syslog::new(&SyslogConfig::default(), "tag"));
        assert!(Remote::open(Target::Syslog(address), form, None).is_err());
    }
}
