//! A connection to a D-Bus, for the few calls that a container's scope needs.
//!
//! A crate for D-Bus would bring an async runtime or macros by the dozen for five calls of one peer, one after the
//! other; this is a socket, and [`super::wire`].

use std::io::{self, Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::time::{Duration, Instant};

use super::wire::{self, ERROR, HEAD, Message, RETURN, SIGNAL, Target, Writer};
use crate::{Error, Result};

/// Longest that systemd may take for anything, as in runc.
const LIMIT: Duration = Duration::from_secs(30);
/// Longest line of the greeting.
const MAX_LINE: usize = 1024;

const DAEMON: Target = Target {
    destination: "org.freedesktop.DBus",
    path: "/org/freedesktop/DBus",
    interface: "org.freedesktop.DBus",
};

/// A connection that has been greeted.
#[derive(Debug)]
pub(super) struct Bus {
    stream: UnixStream,
    serial: u32,
    /// Signals that came before somebody waited for them.
    signals: Vec<Message>,
}

/// Why a call failed.
#[derive(Debug)]
pub(super) enum CallError {
    /// The peer said so: the error's name, and its text.
    Refused(String, String),
    /// The connection does not work.
    Broken(Error),
}

impl From<CallError> for Error {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Refused(name, text) => Self::internal(format!("systemd: {text} ({name})")),
            CallError::Broken(error) => error,
        }
    }
}

impl Bus {
    /// Connects to an address as `unix:path=/run/dbus/system_bus_socket`.
    pub(super) fn connect(address: &str) -> Result<Self> {
        let fail = |error: io::Error| Error::call(address, error);
        let stream = open(address).map_err(fail)?;
        stream.set_read_timeout(Some(LIMIT)).map_err(fail)?;
        stream.set_write_timeout(Some(LIMIT)).map_err(fail)?;
        let mut bus = Self { stream, serial: 0, signals: Vec::new() };
        bus.authenticate().map_err(fail)?;
        bus.call(&DAEMON, "Hello", "", Writer::default())?;
        Ok(bus)
    }

    /// By what the kernel tells the other side of us: our own number may be another in a user namespace.
    fn authenticate(&mut self) -> io::Result<()> {
        self.stream.write_all(b"\0AUTH EXTERNAL\r\n")?;
        let mut line = self.line()?;
        if line == "DATA" {
            self.stream.write_all(b"DATA\r\n")?;
            line = self.line()?;
        }
        if !line.starts_with("OK ") {
            return Err(io::Error::other(format!("the bus does not let us in: {line}")));
        }
        self.stream.write_all(b"BEGIN\r\n")
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") && line.len() < MAX_LINE {
            let mut byte = [0];
            self.stream.read_exact(&mut byte)?;
            line.push(byte[0]);
        }
        Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
    }

    /// Has signals that match a rule of the bus sent to us.
    pub(super) fn listen(&mut self, rule: &str) -> Result<()> {
        let mut body = Writer::default();
        body.text(rule);
        self.call(&DAEMON, "AddMatch", "s", body)?;
        Ok(())
    }

    /// Calls, and waits for the answer.
    pub(super) fn call(
        &mut self,
        target: &Target,
        member: &str,
        signature: &str,
        body: Writer,
    ) -> Result<Message, CallError> {
        let broken = |error: io::Error| CallError::Broken(Error::call(&format!("D-Bus {member}"), error));
        self.serial += 1;
        let message = wire::call(target, member, self.serial, signature, body);
        self.stream.write_all(&message).map_err(broken)?;
        let end = Instant::now() + LIMIT;
        loop {
            let message = self.next(end).map_err(broken)?;
            match message.kind {
                SIGNAL => self.signals.push(message),
                RETURN if message.reply_to == self.serial => return Ok(message),
                ERROR if message.reply_to == self.serial => {
                    let text = message.texts.into_iter().next().unwrap_or_default();
                    return Err(CallError::Refused(message.error, text));
                }
                _ => {}
            }
        }
    }

    /// Waits for the first signal that is the one: `wanted` makes something of it.
    pub(super) fn wait<T>(&mut self, wanted: impl Fn(&Message) -> Option<T>) -> Result<T> {
        let early = self.signals.iter().find_map(&wanted);
        if let Some(found) = early {
            return Ok(found);
        }
        let end = Instant::now() + LIMIT;
        loop {
            let message = self.next(end).map_err(|error| Error::call("wait for systemd", error))?;
            if let Some(found) = Some(&message).filter(|message| message.kind == SIGNAL).and_then(&wanted) {
                return Ok(found);
            }
        }
    }

    fn next(&mut self, end: Instant) -> io::Result<Message> {
        if Instant::now() >= end {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let broken = || io::Error::new(io::ErrorKind::InvalidData, "unexpected bytes from the bus");
        let mut bytes = vec![0; HEAD];
        self.stream.read_exact(&mut bytes).map_err(|error| match error.kind() {
            // That is what the kernel calls it.
            io::ErrorKind::WouldBlock => io::Error::from(io::ErrorKind::TimedOut),
            _ => error,
        })?;
        let head = bytes[..].try_into().map_err(|_| broken())?;
        bytes.resize(wire::length(head).filter(|length| *length >= HEAD).ok_or_else(broken)?, 0);
        self.stream.read_exact(&mut bytes[HEAD..])?;
        wire::parse(&bytes).ok_or_else(broken)
    }
}

/// The first of the addresses, parted by `;`, that is of a kind we know.
fn open(addresses: &str) -> io::Result<UnixStream> {
    let known = addresses.split(';').find_map(|address| {
        let mut keys = address.strip_prefix("unix:")?.split(',');
        keys.find_map(|key| {
            let (name, value) = key.split_once('=')?;
            matches!(name, "path" | "abstract").then(|| (name == "path", unescape(value)))
        })
    });
    match known {
        Some((true, path)) => UnixStream::connect(std::path::Path::new(&as_path(path))),
        Some((false, name)) => UnixStream::connect_addr(&SocketAddr::from_abstract_name(name)?),
        None => Err(io::Error::new(io::ErrorKind::InvalidInput, "not the address of a unix socket")),
    }
}

fn as_path(bytes: Vec<u8>) -> std::ffi::OsString {
    std::os::unix::ffi::OsStringExt::from_vec(bytes)
}

/// `%2c` stands for a comma.
fn unescape(value: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = value.as_bytes();
    while let [first, tail @ ..] = rest {
        let escaped = tail
            .get(..2)
            .filter(|_| *first == b'%')
            .and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok());
        bytes.push(escaped.unwrap_or(*first));
        rest = &tail[if escaped.is_some() { 2 } else { 0 }..];
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_unix_sockets() {
        assert_eq!(unescape("/a%2cb%20%zz%"), b"/a,b %zz%");
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a,b");
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let address = format!("tcp:host=x;unix:guid=1,path={}/a%2cb", dir.path().display());
        open(&address).unwrap();
        assert!(open("tcp:host=x,port=1").is_err());
        let refused = Bus::connect("unix:path=/no/such/bus").unwrap_err().to_string();
        assert!(refused.contains("/no/such/bus") && refused.contains("no such file"), "{refused}");
    }
}
