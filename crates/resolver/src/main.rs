//! The DNS server of the networks of one root.
//!
//! ```text
//!   proa-resolver --run DIR [--table NAME] [--resolv-conf FILE] [--idle SECONDS] [--switch]
//! ```
//!
//! Whoever makes the first endpoint starts it, in a session of its own. It ends by itself when there has been nobody to
//! serve for a while, and at once, with success, where another serves already.

use std::process::ExitCode;

use proa_resolver::args::Args;
use proa_resolver::steward;

fn main() -> ExitCode {
    let args = match Args::parse(std::env::args_os().skip(1)) {
        Ok(args) => args,
        Err(message) => {
            say(&format!("{message}; it is started by proa, not by hand"));
            return ExitCode::from(125);
        }
    };
    // Run by a descriptor, it is named after that.
    let _ = rustix::thread::set_name(c"proa-resolver");
    match steward::run(&args, say, detach) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&error.to_string());
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stderr, reason = "for whoever keeps what it says; nobody else would learn of it")]
fn say(line: &str) {
    eprintln!("proa-resolver: {line}");
}

/// Whoever waits for what an ordinary user needs reads standard error to its end. It is nobody's from now on, but for the
/// descriptor that is given, which is to be closed when all is there.
fn detach() -> Option<std::os::fd::OwnedFd> {
    let waiting = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stderr(), 3).ok()?;
    let null = std::fs::OpenOptions::new().write(true).open("/dev/null").ok()?;
    rustix::stdio::dup2_stderr(null).ok()?;
    Some(waiting)
}
