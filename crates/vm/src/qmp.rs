//! QEMU's control protocol, as much of it as saving a machine needs: a command is a line, and so is its answer.

use std::io::{BufRead, BufReader, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use serde_json::{Value, json};

use crate::VmError;

/// How long QEMU may take to answer: its main loop may have to wait for the guest's.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);
/// How long QEMU may say nothing while it saves.
const SAVE_LIMIT: Duration = Duration::from_secs(60);
/// Longest line that QEMU sends: a description of all a machine has is some ten KiB.
const LONGEST: u64 = 1024 * 1024;
/// Name of a descriptor on QEMU's side.
const STATE: &str = "state";

/// A connection whose other end QEMU has.
pub(crate) struct Qmp {
    stream: BufReader<UnixStream>,
}

impl Qmp {
    /// Waits for QEMU's greeting.
    pub fn connect(stream: UnixStream) -> Result<Self, VmError> {
        stream.set_read_timeout(Some(ANSWER_LIMIT)).map_err(failed)?;
        let mut qmp = Self { stream: BufReader::new(stream) };
        qmp.message()?;
        qmp.ask("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Stops the machine and writes the state of its devices to `state`; its memory is in a shared file already. It is
    /// saved as one that runs, so its clones run: to be stopped is for QEMU to do.
    pub fn save(&mut self, state: BorrowedFd) -> Result<(), VmError> {
        self.ask("migrate-set-capabilities", capabilities(&["x-ignore-shared", "events"]))?;
        self.give(state)?;
        self.ask("migrate", json!({"uri": format!("fd:{STATE}")}))?;
        let limit = Some(SAVE_LIMIT);
        self.stream.get_ref().set_read_timeout(limit).map_err(failed)?;
        loop {
            let message = self.message()?;
            match message["data"]["status"].as_str() {
                Some("completed") if message["event"] == "MIGRATION" => return Ok(()),
                Some("failed" | "cancelled") => return Err(refused("migrate", &Value::Null)),
                _ => {}
            }
        }
    }

    /// Sends a descriptor along with the command that names it.
    fn give(&mut self, fd: BorrowedFd) -> Result<(), VmError> {
        let line = line("getfd", json!({"fdname": STATE}));
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds = [fd];
        control.push(SendAncillaryMessage::ScmRights(&fds));
        let socket = self.stream.get_ref().as_fd();
        // A line this short is taken whole by an empty socket.
        rustix::net::sendmsg(socket, &[IoSlice::new(&line)], &mut control, SendFlags::empty())
            .map_err(|errno| failed(errno.into()))?;
        self.answer("getfd").map(drop)
    }

    /// Waits until a mirror has copied everything, and ends it there.
    pub fn wait_job(&mut self, job: &str) -> Result<(), VmError> {
        // It takes as long as there is to copy; whoever wants to wait no longer ends this process.
        self.stream.get_ref().set_read_timeout(None).map_err(failed)?;
        loop {
            let message = self.message()?;
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
    pub fn ask(&mut self, command: &str, arguments: Value) -> Result<Value, VmError> {
        self.stream.get_mut().write_all(&line(command, arguments)).map_err(failed)?;
        self.answer(command)
    }

    /// Waits for the answer; events are passed over.
    fn answer(&mut self, command: &str) -> Result<Value, VmError> {
        loop {
            let mut message = self.message()?;
            if let Some(error) = message.get("error") {
                return Err(refused(command, &error["desc"]));
            }
            if message.get("return").is_some() {
                return Ok(message["return"].take());
            }
        }
    }

    fn message(&mut self) -> Result<Value, VmError> {
        let mut text = String::new();
        match self.stream.by_ref().take(LONGEST).read_line(&mut text) {
            Ok(0) => Err(failed(std::io::ErrorKind::UnexpectedEof.into())),
            Ok(_) => serde_json::from_str(&text).map_err(|error| failed(error.into())),
            Err(error) => Err(failed(error)),
        }
    }
}

/// Tells a QEMU that has not been started yet how to go on from the state that it will have as descriptor `state`.
/// It reads this when it can, and its answers need not be read; the socket must stay open.
pub(crate) fn order_restore(mut stream: &UnixStream, state: RawFd) -> std::io::Result<()> {
    let orders = [
        line("qmp_capabilities", json!({})),
        line("migrate-set-capabilities", capabilities(&["x-ignore-shared"])),
        line("migrate-incoming", json!({"uri": format!("fd:{state}")})),
    ];
    stream.write_all(&orders.concat())
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

    /// A QEMU that says these lines, whatever it is asked; what it was asked.
    fn scripted(lines: &[&str], talk: impl FnOnce(UnixStream)) -> String {
        let (ours, theirs) = UnixStream::pair().unwrap();
        for line in lines {
            (&theirs).write_all(format!("{line}\n").as_bytes()).unwrap();
        }
        theirs.shutdown(std::net::Shutdown::Write).unwrap();
        talk(ours);
        std::io::read_to_string(theirs).unwrap()
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
        let asked = scripted(&lines, |stream| {
            let file = std::fs::File::open("/dev/null").unwrap();
            Qmp::connect(stream).unwrap().save(file.as_fd()).unwrap();
        });
        let commands: Vec<Value> = asked.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let names: Vec<&str> =
            commands.iter().filter_map(|command: &Value| command["execute"].as_str()).collect();
        let wanted = ["qmp_capabilities", "migrate-set-capabilities", "getfd", "migrate"];
        assert_eq!(names, wanted);
    }

    #[test]
    fn a_refusal_and_an_early_end_are_told() {
        let refusal = r#"{"error": {"class": "GenericError", "desc": "not now"}}"#;
        scripted(&[r#"{"QMP": {}}"#, refusal], |stream| {
            let error = Qmp::connect(stream).err().map(|error| error.to_string());
            assert_eq!(error.as_deref(), Some("QEMU failed: qmp_capabilities: not now"));
        });
        scripted(&[], |stream| assert!(Qmp::connect(stream).is_err()));
        scripted(&["{"], |stream| assert!(Qmp::connect(stream).is_err()));
    }
}
