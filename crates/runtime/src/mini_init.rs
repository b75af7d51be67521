//! PID 1 of `--init`: runs one program, hands its own signals on to it, reaps whatever is orphaned, and ends as
//! the program ends. It is this executable, run from its seal under the name [`INIT_NAME`].

use std::os::unix::process::CommandExt;
use std::process::Command;

use proa_sys::sigwait;
use rustix::process::{Pid, Signal, WaitOptions, kill_process, wait};

/// `argv[0]` by which an executable knows that it is to be PID 1.
pub const INIT_NAME: &str = "proa-init";

/// Runs the program given by the arguments: its path, then its `argv` from 0. Does not return.
pub fn init_main() -> ! {
    let mut args = std::env::args_os().skip(1);
    let (Some(path), Some(name)) = (args.next(), args.next()) else { std::process::exit(125) };
    let mut command = Command::new(path);
    command.arg0(name).args(args);
    std::process::exit(run(command))
}

/// The program shares our process group, so a terminal's signals reach it without us.
fn run(mut command: Command) -> i32 {
    // Shown by `ps`; the executable's own name would be that of the monitor or agent.
    let _ = rustix::thread::set_name(c"proa-init");
    if sigwait::block_all().is_err() {
        return 125;
    }
    // SAFETY: between fork and exec it makes system calls and nothing else; we have one thread.
    unsafe {
        command.pre_exec(|| {
            proa_sys::process::reset_signals();
            Ok(())
        });
    }
    let pid = match command.spawn() {
        Ok(child) => Pid::from_child(&child),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return 127,
        Err(_) => return 126,
    };
    loop {
        let Ok(received) = sigwait::wait() else { continue };
        if received.signal == Signal::CHILD.as_raw() {
            if let Some(code) = reap(pid) {
                return code;
            }
        } else if let (false, Some(signal)) = (received.by_kernel, Signal::from_named_raw(received.signal)) {
            // That it has just ended is told by the next SIGCHLD.
            let _ = kill_process(pid, signal);
        }
    }
}

/// Reaps all that have ended; the program's exit code if it is among them.
fn reap(program: Pid) -> Option<i32> {
    let mut code = None;
    while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
        if pid == program {
            code = status.exit_status().or(status.terminating_signal().map(|signal| 128 + signal));
        }
    }
    code
}
