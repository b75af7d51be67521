//! QEMU's control protocol, as much of it as saving a machine and wiring its network devices need: a command is a line,
//! and so is its answer. What QEMU says is limited in length and time: a guest may have taken it over.

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::fd::{BorrowedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use proa_sys::sockets::send_with;
use serde_json::{Value, json};

use crate::VmError;
use crate::qemu::wire;

/// How long QEMU may take to answer: its main loop may have to wait for the guest's.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// How long QEMU may say nothing while it saves.
const SAVE_LIMIT: Duration = Duration::from_secs(60);
/// A copy may take as long as this without a word: for ever, but the clock must have room for it.
const JOB_LIMIT: Duration = Duration::from_secs(365 * 24 * 3600);
/// Name of a descriptor on QEMU's side.
const STATE: &str = "state";
/// The number of a set of them that no disk has.
const STATE_SET: u32 = 1_000_000;

/// The longest line that QEMU may say: a description of all a machine has is some ten KiB.
const LONGEST: usize = 64 * 1024;
/// What the reader keeps; most machines are never asked anything.
const BUFFER: usize = 512;

/// A connection whose other end QEMU has.
///
/// What QEMU must be told at its start is written before there is one; it reads that when it can. Its answers are read
/// when something else is asked.
pub(crate) struct Qmp {
    stream: BufReader<UnixStream>,
    /// Messages that were not read: the greeting, and an answer to each of these commands.
    owed: Vec<&'static str>,
    greeted: bool,
}

impl Qmp {
    /// A connection, and the end that is QEMU's.
    pub fn pair() -> Result<(Self, UnixStream), VmError> {
        let (ours, theirs) = UnixStream::pair().map_err(VmError::io("socketpair"))?;
        let stream = BufReader::with_capacity(BUFFER, ours);
        let mut qmp = Self { stream, owed: Vec::new(), greeted: false };
        qmp.order("qmp_capabilities", json!({}))?;
        Ok((qmp, theirs))
    }

    /// Tells a QEMU that has not been started yet how to go on from the state that it will have as descriptor `state`.
    pub fn order_restore(&mut self, state: RawFd) -> Result<(), VmError> {
        self.order("migrate-set-capabilities", capabilities(&["x-ignore-shared"]))?;
        self.order("migrate-incoming", json!({"uri": format!("fd:{state}")}))
    }

    /// Waits until a machine that goes on from a state has it, and runs.
    pub fn await_restored(&mut self) -> Result<(), VmError> {
        let deadline = Instant::now() + SAVE_LIMIT;
        while self.ask("query-status", json!({}))?["status"] == "inmigrate" {
            if Instant::now() > deadline {
                return Err(failed(ErrorKind::TimedOut.into()));
            }
            let moment = rustix::event::Timespec { tv_sec: 0, tv_nsec: 1_000_000 };
            let _ = rustix::event::poll(&mut [], Some(&moment));
        }
        Ok(())
    }

    /// Stops the machine and writes the state of its devices to `state`; its memory is in a shared file already. It is
    /// saved as one that runs, so its clones run: to be stopped is for QEMU to do.
    pub fn save(&mut self, state: BorrowedFd) -> Result<(), VmError> {
        self.ask("migrate-set-capabilities", capabilities(&["x-ignore-shared", "events"]))?;
        self.give(state, STATE)?;
        self.ask("migrate", json!({"uri": format!("fd:{STATE}")}))?;
        let deadline = Instant::now() + SAVE_LIMIT;
        loop {
            let message = self.message(deadline)?;
            match message["data"]["status"].as_str() {
                Some("completed") if message["event"] == "MIGRATION" => return Ok(()),
                Some("failed" | "cancelled") => return Err(refused("migrate", &Value::Null)),
                _ => {}
            }
        }
    }

    /// Has the machine stand still, all it has written to its disks written.
    pub fn stop(&mut self) -> Result<(), VmError> {
        self.ask("stop", json!({})).map(drop)
    }

    /// Has it go on.
    pub fn go_on(&mut self) -> Result<(), VmError> {
        self.ask("cont", json!({})).map(drop)
    }

    /// The same without waiting for its answer.
    pub fn order_go_on(&mut self) -> Result<(), VmError> {
        self.order("cont", json!({}))
    }

    /// Writes the state of the devices of a machine that stands still, and nothing else, to a file that is open for
    /// writing alone. The name of the command is of who needed that first.
    pub fn save_devices(&mut self, state: BorrowedFd) -> Result<(), VmError> {
        self.hand_over("add-fd", json!({"fdset-id": STATE_SET}), state)?;
        let file = format!("/dev/fdset/{STATE_SET}");
        let saved = self.ask("xen-save-devices-state", json!({"filename": file, "live": false}));
        self.ask("remove-fd", json!({"fdset-id": STATE_SET})).and(saved).map(drop)
    }

    /// Lets a machine that waits for its state have it; then it runs.
    pub fn load(&mut self, state: BorrowedFd) -> Result<(), VmError> {
        self.give(state, STATE)?;
        self.ask("migrate-incoming", json!({"uri": format!("fd:{STATE}")})).map(drop)
    }

    /// QEMU's version.
    pub fn version(&mut self) -> Result<String, VmError> {
        let version = self.ask("query-version", json!({}))?;
        let part = |name: &str| version["qemu"][name].as_u64().unwrap_or_default();
        Ok(format!("{}.{}.{}", part("major"), part("minor"), part("micro")))
    }

    /// Puts a tap at the hub of a spare network device.
    pub fn plug(&mut self, device: usize, tap: BorrowedFd) -> Result<(), VmError> {
        let (name, port) = (tap_name(device), port_name(device));
        self.give(tap, &name)?;
        self.ask("netdev_add", json!({"type": "tap", "id": name, "fd": name}))?;
        self.ask("netdev_add", json!({"type": "hubport", "id": port, "hubid": device, "netdev": name}))
            .map(drop)
    }

    /// Takes it away, as much of it as is there.
    pub fn unplug(&mut self, device: usize) -> Result<(), VmError> {
        let port = self.ask("netdev_del", json!({"id": port_name(device)}));
        self.ask("netdev_del", json!({"id": tap_name(device)})).and(port).map(drop)
    }

    /// Closes the tap that a network device has had from the start, which has no other after that.
    pub fn cut(&mut self, device: usize) -> Result<(), VmError> {
        self.ask("netdev_del", json!({"id": wire(device)})).map(drop)
    }

    /// Sends a descriptor along with the command that names it.
    fn give(&mut self, fd: BorrowedFd, name: &str) -> Result<(), VmError> {
        self.hand_over("getfd", json!({"fdname": name}), fd)
    }

    /// The same with any command that takes one.
    fn hand_over(&mut self, command: &str, arguments: Value, fd: BorrowedFd) -> Result<(), VmError> {
        self.settle()?;
        // A line this short is taken whole by an empty socket.
        let line = line(command, arguments);
        send_with(self.stream.get_ref(), &line, fd).map_err(|errno| failed(errno.into()))?;
        self.answer(command, Instant::now() + ANSWER_LIMIT).map(drop)
    }

    /// Waits until a mirror has copied everything, and ends it there. It takes as long as there is to copy; whoever
    /// wants to wait no longer ends this process.
    pub fn wait_job(&mut self, job: &str) -> Result<(), VmError> {
        loop {
            let message = self.message(Instant::now() + JOB_LIMIT)?;
            match message["event"].as_str() {
                Some("BLOCK_JOB_READY") => _ = self.ask("block-job-cancel", json!({"device": job}))?,
                Some("BLOCK_JOB_COMPLETED" | "BLOCK_JOB_CANCELLED") => match message["data"].get("error") {
                    Some(error) => return Err(refused("blockdev-mirror", error)),
                    None => return Ok(()),
                },
                _ => {}
            }
        }
    }

    /// Asks, and gives what is returned.
    pub fn ask(&mut self, command: &'static str, arguments: Value) -> Result<Value, VmError> {
        self.settle()?;
        self.stream.get_mut().write_all(&line(command, arguments)).map_err(failed)?;
        self.answer(command, Instant::now() + ANSWER_LIMIT)
    }

    fn order(&mut self, command: &'static str, arguments: Value) -> Result<(), VmError> {
        self.stream.get_mut().write_all(&line(command, arguments)).map_err(failed)?;
        self.owed.push(command);
        Ok(())
    }

    /// Reads what QEMU owes.
    fn settle(&mut self) -> Result<(), VmError> {
        let deadline = Instant::now() + ANSWER_LIMIT;
        if !self.greeted {
            self.message(deadline)?;
            self.greeted = true;
        }
        while !self.owed.is_empty() {
            let command = self.owed.remove(0);
            self.answer(command, deadline)?;
        }
        Ok(())
    }

    /// Waits for the answer; events are passed over.
    fn answer(&mut self, command: &str, deadline: Instant) -> Result<Value, VmError> {
        loop {
            let mut message = self.message(deadline)?;
            if let Some(error) = message.get("error") {
                return Err(refused(command, &error["desc"]));
            }
            if message.get("return").is_some() {
                return Ok(message["return"].take());
            }
        }
    }

    fn message(&mut self, deadline: Instant) -> Result<Value, VmError> {
        let mut text = Vec::new();
        while text.last() != Some(&b'\n') {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || text.len() > LONGEST {
                return Err(failed(ErrorKind::TimedOut.into()));
            }
            self.stream.get_ref().set_read_timeout(Some(left)).map_err(failed)?;
            let part = self.stream.fill_buf().map_err(failed)?;
            if part.is_empty() {
                return Err(failed(ErrorKind::UnexpectedEof.into()));
            }
            let end = part.iter().position(|byte| *byte == b'\n').map_or(part.len(), |place| place + 1);
            text.extend_from_slice(&part[..end]);
            self.stream.consume(end);
        }
        serde_json::from_slice(&text).map_err(|error| failed(error.into()))
    }
}

/// Of a tap that came while the guest ran, on QEMU's side.
fn tap_name(device: usize) -> String {
    format!("tap{device}")
}

/// Of its port at the hub.
fn port_name(device: usize) -> String {
    format!("port{device}")
}

/// `x-ignore-shared`: memory that is in a file is not part of the state. `events`: tell how it goes.
fn capabilities(names: &[&str]) -> Value {
    let on = |name: &&str| json!({"capability": name, "state": true});
    json!({"capabilities": names.iter().map(on).collect::<Vec<_>>()})
}

fn line(command: &str, arguments: Value) -> Vec<u8> {
    let mut line = json!({"execute": command, "arguments": arguments}).to_string().into_bytes();
    line.push(b'\n');
    line
}

fn failed(source: std::io::Error) -> VmError {
    VmError::Helper { program: "QEMU".to_owned(), reason: format!("its control socket: {source}") }
}

fn refused(command: &str, why: &Value) -> VmError {
    let why = why.as_str().unwrap_or("no reason given");
    VmError::Helper { program: "QEMU".to_owned(), reason: format!("{command}: {why}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    /// A QEMU that says these lines, whatever it is asked; what it was asked.
    fn scripted(lines: &[&str], talk: impl FnOnce(Qmp)) -> String {
        let (ours, theirs) = Qmp::pair().unwrap();
        for line in lines {
            (&theirs).write_all(format!("{line}\n").as_bytes()).unwrap();
        }
        theirs.shutdown(std::net::Shutdown::Write).unwrap();
        talk(ours);
        // Where not all lines were read, the end is told as an error.
        let mut asked = Vec::new();
        let _ = std::io::Read::read_to_end(&mut &theirs, &mut asked);
        String::from_utf8(asked).unwrap()
    }

    #[test]
    fn a_machine_is_stopped_and_saved_and_events_are_passed_over() {
        let lines = [
            r#"{"QMP": {}}"#,
            r#"{"return": {}}"#,
            r#"{"return": {}}"#,
            r#"{"return": {}}"#,
            r#"{"event": "STOP"}"#,
            r#"{"return": {}}"#,
            r#"{"event": "MIGRATION", "data": {"status": "active"}}"#,
            r#"{"event": "MIGRATION", "data": {"status": "completed"}}"#,
        ];
        let asked = scripted(&lines, |mut qmp| {
            let file = std::fs::File::open("/dev/null").unwrap();
            qmp.save(file.as_fd()).unwrap();
        });
        let wanted = ["qmp_capabilities", "migrate-set-capabilities", "getfd", "migrate"];
        assert_eq!(commands(&asked), wanted);
    }

    fn commands(asked: &str) -> Vec<String> {
        let name =
            |line| serde_json::from_str::<Value>(line).unwrap()["execute"].as_str().unwrap().to_owned();
        asked.lines().map(name).collect()
    }

    #[test]
    fn what_was_ordered_before_the_start_is_answered_before_anything_else() {
        let failure = r#"{"error": {"desc": "Duplicate ID"}}"#;
        let done = r#"{"return": {}}"#;
        // The greeting; three orders; the descriptor; one addition that works and one that does not.
        let lines = [r#"{"QMP": {}}"#, done, done, r#"{"event": "RESUME"}"#, done, done, done, failure];
        let asked = scripted(&lines, |mut qmp| {
            qmp.order_restore(7).unwrap();
            let tap = std::fs::File::open("/dev/null").unwrap();
            let error = qmp.plug(1, tap.as_fd()).unwrap_err().to_string();
            assert_eq!(error, "QEMU failed: netdev_add: Duplicate ID");
        });
        let orders = ["qmp_capabilities", "migrate-set-capabilities", "migrate-incoming"];
        assert_eq!(commands(&asked), [&orders[..], &["getfd", "netdev_add", "netdev_add"]].concat());
        assert!(asked.contains(r#""hubid":1,"id":"port1","netdev":"tap1","type":"hubport""#), "{asked}");
    }

    #[test]
    fn a_refusal_an_early_end_and_an_endless_line_are_told() {
        let cut = |lines: &[&str]| {
            let mut told = String::new();
            scripted(lines, |mut qmp| told = qmp.cut(0).unwrap_err().to_string());
            told
        };
        let refusal = r#"{"error": {"class": "GenericError", "desc": "not now"}}"#;
        assert_eq!(cut(&[r#"{"QMP": {}}"#, refusal]), "QEMU failed: qmp_capabilities: not now");
        assert!(cut(&[]).contains("control socket"));
        assert!(cut(&["{"]).contains("control socket"));
        assert!(cut(&[&"1".repeat(100 << 10)]).contains("timed out"));
    }
}
