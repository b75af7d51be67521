//! The import of a disk image: a process of its own, which whoever wants the disk waits for.
//!
//! What was found goes to standard output as JSON, and what is wrong to standard error: the engine, which links no
//! hypervisor, reads both. It ends with who started it.

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use proa_protocol::machine::DiskImport;
use rustix::process::{Signal, set_parent_process_death_signal};

/// The whole of such a process.
pub fn run(mut arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let text = arguments.next().unwrap_or_default();
    let Ok(import) = serde_json::from_slice::<DiskImport>(text.as_encoded_bytes()) else {
        return ExitCode::from(125);
    };
    let _ = rustix::thread::set_name(c"proa-import");
    let _ = set_parent_process_death_signal(Some(Signal::KILL));
    match proa_vm::import::run(&import) {
        Ok(imported) => {
            let json = serde_json::to_vec(&imported).unwrap_or_default();
            // Who does not read it has gone.
            let _ = std::io::stdout().write_all(&json);
            ExitCode::SUCCESS
        }
        Err(error) => {
            complain(&error.to_string());
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stderr, reason = "the engine reads what an import says")]
fn complain(error: &str) {
    eprintln!("{error}");
}
