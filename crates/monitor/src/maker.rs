//! The making of templates: a process of its own that outlives the instance for which one was wanted.
//!
//! ```text
//!   monitor ─ start, waits ─▶ proa-monitor --template JSON detach ─ starts, ends ─▶ proa-monitor --template JSON
//! ```
//!
//! So the maker is nobody's child, and the monitor has none to reap. It has no client and no terminal; what went
//! wrong is in the store, beside the templates.

use std::ffi::{OsStr, OsString};
use std::process::{Command, ExitCode, Stdio};

use proa_protocol::template::MAKER_ARGUMENT;
use proa_vm::TemplateRequest;

/// Before the request.
pub const ARGUMENT: &str = MAKER_ARGUMENT;
/// After the request: have it done by another process.
const DETACH: &str = "detach";

/// What it asks of the CPU less than others.
const NICE: i32 = 10;

/// Starts the making and does not wait for it.
pub fn start(request: &TemplateRequest) {
    let Ok(text) = serde_json::to_string(request) else { return };
    // Without a template the next instance boots as this one did, and tries again.
    let _ = own_command(text.as_ref()).arg(DETACH).status();
}

/// The whole of such a process.
pub fn run(mut arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let text = arguments.next().unwrap_or_default();
    let Ok(request) = serde_json::from_slice::<TemplateRequest>(text.as_encoded_bytes()) else {
        return ExitCode::from(125);
    };
    let done = if arguments.next().is_some_and(|last| last == DETACH) {
        let _ = rustix::process::setsid();
        own_command(&text).spawn().is_ok()
    } else {
        let _ = rustix::thread::set_name(c"proa-template");
        proa_sys::signals::default_library_signals();
        // For it and its guest: others go first.
        let _ = rustix::process::nice(NICE);
        request.make().is_ok()
    };
    if done { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn own_command(text: &OsStr) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.arg(ARGUMENT).arg(text).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}
