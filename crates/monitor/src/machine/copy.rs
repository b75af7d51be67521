//! A copy of a machine's disks as they are at one moment, while it runs.
//!
//! ```text
//!   files made, handed over, one job each ─▶ Copying ─ all disks are in step ─▶ Halting: stop
//!                                              │                                  │ the guest is halted, all is written
//!             failed, client gone, guest ended │                                  ▼
//!                                              └─────────▶ Ending ◀─ jobs told to end, variables copied
//!                                                            └─ all have ended ─▶ the guest goes on, the client is answered
//! ```
//!
//! QEMU mirrors each disk: what is there is copied, and what the guest writes meanwhile goes to both. When all are in step
//! the guest is halted for as long as it takes to end the jobs, some milliseconds, so that the disks are of one moment: what
//! they would be had the power failed then. Whatever fails or is killed on the way, the machine's own disks are its disks,
//! and the copy is half of one without a name.
//!
//! QEMU opens nothing: the copies reach it as descriptors, and are raw as the disks are. Blocks that hold nothing are not
//! written.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use proa_protocol::machine::{VARS_FILE, disk_file};
use proa_vm::Control;
use serde_json::{Value, json};

/// The first of the numbers under which QEMU gets the files.
const FILES: usize = 2000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Copying,
    Halting,
    Ending,
}

/// A copy that is being made.
pub struct Copy {
    /// Who waits for it.
    pub channel: u32,
    media: PathBuf,
    directory: PathBuf,
    phase: Phase,
    disks: usize,
    in_step: usize,
    /// Jobs that were started, or are about to be, and have not ended.
    jobs: usize,
    failure: Option<String>,
}

/// What is to be done next.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// Nothing.
    Wait,
    /// The guest is to be halted.
    Halt,
    /// The guest may go on if it was halted, and this is what the client is told.
    Done(Result<(), String>),
}

impl Copy {
    /// Has the disks among a machine's media copied into an empty directory; the numbers of the commands whose answers it
    /// wants to have.
    ///
    /// # Errors
    /// A file cannot be made.
    pub fn begin(
        control: &mut Control,
        channel: u32,
        media: &Path,
        directory: &Path,
        disks: usize,
    ) -> io::Result<(Self, Vec<u64>)> {
        let make = |number: usize| {
            let size = fs::metadata(media.join(disk_file(number)))?.len();
            let mut options = OpenOptions::new();
            options.read(true).write(true).create_new(true).mode(0o600);
            let file = options.open(directory.join(disk_file(number)))?;
            file.set_len(size).map(|()| file)
        };
        let files: Vec<File> = (0..disks).map(make).collect::<io::Result<_>>()?;
        let mut numbers = Vec::new();
        for (number, file) in files.into_iter().enumerate() {
            let set = FILES + number;
            // One after the other: QEMU does in order what it is told.
            control.send_with("add-fd", json!({"fdset-id": set}), file.into());
            let medium = json!({
                "driver": "file", "filename": format!("/dev/fdset/{set}"), "locking": "off",
                "auto-read-only": false, "discard": "unmap",
            });
            let node =
                json!({"driver": "raw", "node-name": name(number), "discard": "unmap", "file": medium});
            control.send("blockdev-add", node);
            let job = json!({
                "job-id": name(number), "device": format!("disk{number}"), "target": name(number),
                "sync": "full", "copy-mode": "write-blocking",
            });
            numbers.push(control.send("blockdev-mirror", job));
        }
        let (media, directory) = (media.to_owned(), directory.to_owned());
        let phase = if disks == 0 { Phase::Halting } else { Phase::Copying };
        let copy = Self { channel, media, directory, phase, disks, in_step: 0, jobs: disks, failure: None };
        Ok((copy, numbers))
    }

    /// Whether the guest is halted for it, or about to be.
    pub fn halts(&self) -> bool {
        self.phase != Phase::Copying && self.failure.is_none()
    }

    /// A job was not started.
    pub fn refused(&mut self, control: &mut Control, message: String) -> Next {
        self.jobs -= 1;
        self.give_up(control, message)
    }

    /// It is not wanted any more, or cannot be had.
    pub fn give_up(&mut self, control: &mut Control, why: String) -> Next {
        if self.failure.is_none() {
            self.failure = Some(why);
            self.phase = Phase::Ending;
            for number in 0..self.disks {
                control.send("block-job-cancel", json!({"device": name(number), "force": true}));
            }
        }
        self.next(control)
    }

    /// The guest is halted.
    pub fn halted(&mut self, control: &mut Control) -> Next {
        if self.failure.is_some() {
            return Next::Wait;
        }
        self.phase = Phase::Ending;
        let vars = self.media.join(VARS_FILE);
        if vars.exists()
            && let Err(error) = fs::copy(&vars, self.directory.join(VARS_FILE))
        {
            return self.give_up(control, format!("{}: {error}", vars.display()));
        }
        for number in 0..self.disks {
            // As it was in step, it ends as a copy of this moment.
            control.send("block-job-cancel", json!({"device": name(number)}));
        }
        self.next(control)
    }

    /// An event of QEMU's.
    pub fn happened(&mut self, control: &mut Control, event: &str, data: &Value) -> Next {
        if !(0..self.disks).any(|number| data["device"] == name(number)) {
            return Next::Wait;
        }
        match event {
            "BLOCK_JOB_READY" if self.phase == Phase::Copying => {
                self.in_step += 1;
                if self.in_step < self.disks {
                    return Next::Wait;
                }
                self.phase = Phase::Halting;
                Next::Halt
            }
            "BLOCK_JOB_COMPLETED" | "BLOCK_JOB_CANCELLED" => {
                self.jobs = self.jobs.saturating_sub(1);
                let is_early = self.phase != Phase::Ending;
                match data["error"].as_str() {
                    Some(error) => self.give_up(control, error.to_owned()),
                    None if is_early => self.give_up(control, "a disk was not copied to its end".into()),
                    None => self.next(control),
                }
            }
            _ => Next::Wait,
        }
    }

    fn next(&mut self, control: &mut Control) -> Next {
        if self.phase != Phase::Ending || self.jobs > 0 {
            return Next::Wait;
        }
        for number in 0..self.disks {
            control.send("blockdev-del", json!({"node-name": name(number)}));
            control.send("remove-fd", json!({"fdset-id": FILES + number}));
        }
        Next::Done(self.failure.take().map_or(Ok(()), Err))
    }
}

/// A copy's node, and its job.
fn name(number: usize) -> String {
    format!("copy{number}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    /// A copy of so many disks, QEMU's end, and where the files are.
    fn begin(disks: usize) -> (Copy, Control, UnixStream, tempfile::TempDir) {
        let scratch = tempfile::tempdir().unwrap();
        let (media, target) = (scratch.path().join("media"), scratch.path().join("new"));
        fs::create_dir(&media).unwrap();
        fs::create_dir(&target).unwrap();
        for number in 0..disks {
            File::create(media.join(disk_file(number))).unwrap().set_len(4096).unwrap();
        }
        fs::write(media.join(VARS_FILE), "vars").unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut control = Control::new(ours).unwrap();
        let (copy, numbers) = Copy::begin(&mut control, 7, &media, &target, disks).unwrap();
        assert_eq!(numbers.len(), disks);
        (copy, control, theirs, scratch)
    }

    fn job(number: usize) -> Value {
        json!({"device": name(number)})
    }

    #[test]
    fn the_guest_is_halted_when_all_disks_are_in_step_and_goes_on_when_all_jobs_have_ended() {
        let (mut copy, mut control, _qemu, scratch) = begin(2);
        let mut tell = |copy: &mut Copy, event: &str, data| copy.happened(&mut control, event, &data);
        assert_eq!(tell(&mut copy, "BLOCK_JOB_READY", job(0)), Next::Wait);
        assert_eq!(tell(&mut copy, "BLOCK_JOB_READY", job(5)), Next::Wait);
        assert!(!copy.halts());
        assert_eq!(tell(&mut copy, "BLOCK_JOB_READY", job(1)), Next::Halt);
        assert!(copy.halts());
        assert_eq!(copy.halted(&mut control), Next::Wait);
        assert_eq!(fs::read(scratch.path().join("new").join(VARS_FILE)).unwrap(), b"vars");
        assert_eq!(copy.happened(&mut control, "BLOCK_JOB_COMPLETED", &job(1)), Next::Wait);
        assert_eq!(copy.happened(&mut control, "BLOCK_JOB_COMPLETED", &job(0)), Next::Done(Ok(())));
    }

    #[test]
    fn what_fails_ends_the_others_and_is_told_once() {
        let (mut copy, mut control, _qemu, _scratch) = begin(2);
        assert_eq!(copy.refused(&mut control, "no room".into()), Next::Wait);
        assert!(!copy.halts());
        let error = json!({"device": name(1), "error": "later"});
        let told = copy.happened(&mut control, "BLOCK_JOB_COMPLETED", &error);
        assert_eq!(told, Next::Done(Err("no room".into())));
        let (mut copy, mut control, _qemu, _scratch) = begin(1);
        let told = copy.happened(&mut control, "BLOCK_JOB_COMPLETED", &job(0));
        assert!(matches!(told, Next::Done(Err(_))), "{told:?}");
        // The answer to what was asked before it failed.
        let (mut copy, mut control, _qemu, _scratch) = begin(1);
        assert_eq!(copy.happened(&mut control, "BLOCK_JOB_READY", &job(0)), Next::Halt);
        assert_eq!(copy.give_up(&mut control, "gone".into()), Next::Wait);
        assert_eq!(copy.halted(&mut control), Next::Wait);
        let told = copy.happened(&mut control, "BLOCK_JOB_CANCELLED", &job(0));
        assert_eq!(told, Next::Done(Err("gone".into())));
    }
}
