//! QEMU's control protocol without waiting: commands go out as the socket takes them, answers and events come back when
//! they do. [`crate::qmp`] is the same protocol for who has nothing else to do.
//!
//! What comes back was written by a process that serves a guest: it is bounded, and is trusted in nothing but what is to
//! become of that guest.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use proa_sys::sockets::send_with;
use rustix::io::Errno;
use rustix::net::SendFlags;
use serde_json::{Value, json};

/// Longest line: a description of all a machine has is some ten KiB.
const LONGEST: usize = 1024 * 1024;
/// Commands that may wait to be written.
const MOST_WAITING: usize = 256;

/// What QEMU said.
#[derive(Debug, Clone, PartialEq)]
pub enum Said {
    /// The answer to the command with this number: what it returns, or what went wrong.
    Answer(u64, Result<Value, String>),
    /// Something that happened by itself: its name and what belongs to it.
    Event(String, Value),
}

/// The end of the control connection that is not QEMU's.
#[derive(Debug)]
pub struct Control {
    stream: UnixStream,
    read: Vec<u8>,
    waiting: VecDeque<(Vec<u8>, Option<OwnedFd>)>,
    last: u64,
    broken: bool,
}

impl Control {
    /// On a connected socket.
    ///
    /// # Errors
    /// The socket cannot be made to return at once.
    pub fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        let mut control = Self { stream, read: Vec::new(), waiting: VecDeque::new(), last: 0, broken: false };
        control.send("qmp_capabilities", json!({}));
        Ok(control)
    }

    /// Queues a command; its number.
    pub fn send(&mut self, command: &str, arguments: Value) -> u64 {
        self.queue(command, arguments, None)
    }

    /// The same with a descriptor, for a command that takes one.
    pub fn send_with(&mut self, command: &str, arguments: Value, fd: OwnedFd) -> u64 {
        self.queue(command, arguments, Some(fd))
    }

    fn queue(&mut self, command: &str, arguments: Value, fd: Option<OwnedFd>) -> u64 {
        self.last += 1;
        let mut line =
            json!({"execute": command, "arguments": arguments, "id": self.last}).to_string().into_bytes();
        line.push(b'\n');
        // A VMM that reads no commands any more is of no use, and is not waited for.
        self.broken |= self.waiting.len() >= MOST_WAITING;
        if !self.broken {
            self.waiting.push_back((line, fd));
            self.write();
        }
        self.last
    }

    /// What to wait for: always something to read, and where [`Control::wants_to_write`], room to write.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    /// Whether a command could not be written yet.
    pub fn wants_to_write(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Whether nothing more will come.
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// Writes what the socket takes.
    pub fn write(&mut self) {
        while let Some((line, fd)) = self.waiting.front_mut() {
            match send_line(&self.stream, line, fd.as_ref()) {
                Ok(count) => {
                    line.drain(..count);
                    *fd = None;
                    if line.is_empty() {
                        self.waiting.pop_front();
                    }
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => return self.broken = true,
            }
        }
    }

    /// Reads once, and gives what was said.
    pub fn read(&mut self) -> Vec<Said> {
        let mut bytes = Vec::with_capacity(64 * 1024);
        match rustix::io::read(&self.stream, rustix::buffer::spare_capacity(&mut bytes)) {
            Ok(0) => self.broken = true,
            Ok(_) => self.read.extend(bytes),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => self.broken = true,
        }
        let mut said = Vec::new();
        while let Some(end) = self.read.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.read.drain(..=end).collect();
            said.extend(parse(&line));
        }
        self.broken |= self.read.len() > LONGEST;
        said
    }
}

/// A line of QEMU's; nothing for its greeting and for what we do not know.
fn parse(line: &[u8]) -> Option<Said> {
    let mut message: Value = serde_json::from_slice(line).ok()?;
    if let Some(name) = message["event"].as_str() {
        let name = name.to_owned();
        return Some(Said::Event(name, message["data"].take()));
    }
    let id = message["id"].as_u64()?;
    if let Some(error) = message.get("error") {
        return Some(Said::Answer(id, Err(error["desc"].as_str().unwrap_or("refused").to_owned())));
    }
    message.get("return")?;
    Some(Said::Answer(id, Ok(message["return"].take())))
}

fn send_line(stream: &UnixStream, line: &[u8], fd: Option<&OwnedFd>) -> Result<usize, Errno> {
    match fd {
        Some(fd) => send_with(stream, line, fd.as_fd()),
        None => rustix::net::send(stream, line, SendFlags::NOSIGNAL),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader, Write};

    #[test]
    fn commands_are_answered_by_number_and_events_have_none() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut control = Control::new(ours).unwrap();
        assert!(control.read().is_empty());
        let number = control.send("stop", json!({}));
        let mut lines = BufReader::new(theirs.try_clone().unwrap()).lines();
        assert!(lines.next().unwrap().unwrap().contains("qmp_capabilities"));
        assert!(lines.next().unwrap().unwrap().contains("\"stop\""));
        let answers = format!(
            "{{\"QMP\":{{}}}}\n{{\"return\":{{}},\"id\":1}}\n{{\"event\":\"RESET\",\"data\":{{\"guest\":true}}}}\nnonsense\n{{\"error\":{{\"desc\":\"no\"}},\"id\":{number}}}\n{{\"half"
        );
        theirs.write_all(answers.as_bytes()).unwrap();
        let expected = [
            Said::Answer(1, Ok(json!({}))),
            Said::Event("RESET".into(), json!({"guest": true})),
            Said::Answer(number, Err("no".into())),
        ];
        assert_eq!(control.read(), expected);
        assert!(!control.is_broken());
        drop((theirs, lines));
        control.read();
        assert!(control.is_broken());
    }

    #[test]
    fn a_line_without_end_and_a_vmm_that_does_not_read_are_given_up() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut control = Control::new(ours).unwrap();
        let writer = std::thread::spawn(move || {
            let mut theirs = theirs;
            while theirs.write_all(&[b'x'; 65536]).is_ok() {}
        });
        while !control.is_broken() {
            assert!(control.read().is_empty());
        }
        drop(control);
        writer.join().unwrap();
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let mut control = Control::new(ours).unwrap();
        let long = "x".repeat(8192);
        (0..1000).for_each(|_| _ = control.send("stop", json!({"x": long})));
        assert!(control.is_broken());
    }
}
