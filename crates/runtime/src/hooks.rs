//! Hooks: programs of the host's administrator, run at six points of a container's life.
//!
//! | kind | run by | where | a failure |
//! | --- | --- | --- | --- |
//! | `prestart`, `createRuntime` | the runtime | its own namespaces, before `pivot_root` | ends the container |
//! | `createContainer` | a step of the table | the container's namespaces, before `pivot_root` | ends the container |
//! | `startContainer` | a step of the table | the container, before its program | ends the container |
//! | `poststart` | the runtime | its own namespaces | ends the container |
//! | `poststop` | the runtime | its own namespaces | is a warning |
//!
//! A hook has the arguments and the environment that the spec gives it and nothing else: what an image or a user
//! puts into the container's environment never reaches it (CVE-2025-23266). But `startContainer` is the container's
//! own affair, with no more rights than its program: a hook of this kind without an environment has the program's, as
//! in runc. Its standard input is the container's state; what it writes is shown when it fails.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use proa_oci::runtime::{Hook, Hooks};
use proa_oci::state::{State, Status};
use proa_sys::clone::{ExitOnDrop, Fork, exit_now, fork_into};
use proa_sys::exec::{StringArray, execve};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{MemfdFlags, SeekFrom, Timespec, memfd_create};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};
use rustix::time::{ClockId, clock_gettime};

use crate::{Error, Result};

/// Bytes of a hook's output that an error shows, from its end.
const MAX_OUTPUT: u64 = 1024;

/// A point of the life cycle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HookKind {
    /// Before `createRuntime`; deprecated.
    Prestart,
    /// The namespaces and mounts are there.
    CreateRuntime,
    /// The same, inside.
    CreateContainer,
    /// Before the program.
    StartContainer,
    /// The program runs.
    Poststart,
    /// The container is gone.
    Poststop,
}

impl HookKind {
    /// Its name in the specification.
    pub fn name(self) -> &'static str {
        match self {
            Self::Prestart => "prestart",
            Self::CreateRuntime => "createRuntime",
            Self::CreateContainer => "createContainer",
            Self::StartContainer => "startContainer",
            Self::Poststart => "poststart",
            Self::Poststop => "poststop",
        }
    }

    /// The state of the container at this point.
    pub fn status(self) -> Status {
        match self {
            Self::CreateRuntime | Self::CreateContainer => Status::Creating,
            // By the specification `prestart` belongs to the start, though it is run with `createRuntime`.
            Self::Prestart | Self::StartContainer => Status::Created,
            Self::Poststart => Status::Running,
            Self::Poststop => Status::Stopped,
        }
    }

    /// The hooks of this kind.
    pub fn of(self, hooks: &Hooks) -> &[Hook] {
        match self {
            Self::Prestart => &hooks.prestart,
            Self::CreateRuntime => &hooks.create_runtime,
            Self::CreateContainer => &hooks.create_container,
            Self::StartContainer => &hooks.start_container,
            Self::Poststart => &hooks.poststart,
            Self::Poststop => &hooks.poststop,
        }
    }
}

/// Runs the hooks of a kind in their order, and stops at the first that fails; of `poststop` hooks all are run. The
/// state's status is that of the kind, whatever it says. The caller has one thread.
///
/// # Errors
/// A hook could not be run, failed, or took longer than its timeout.
pub fn run(kind: HookKind, hooks: &Hooks, state: &State) -> Result<()> {
    run_with(kind, hooks, state, &Around { prepare: &|| Ok(()), env: Vec::new() })
}

/// What hooks run in.
pub(crate) struct Around<'a> {
    /// What each process does first.
    pub prepare: &'a dyn Fn() -> Result<()>,
    /// The environment of one that the spec gives none.
    pub env: Vec<String>,
}

/// The same, in the given surroundings.
pub(crate) fn run_with(kind: HookKind, hooks: &Hooks, state: &State, around: &Around) -> Result<()> {
    let hooks = kind.of(hooks);
    if hooks.is_empty() {
        return Ok(());
    }
    let state = State { status: kind.status(), ..state.clone() }.to_json();
    let mut failed = Vec::new();
    for hook in hooks {
        let result = run_one(hook, &state, around)
            .map_err(|error| error.context(format!("{} hook {}", kind.name(), hook.path)));
        match result {
            Ok(()) => {}
            Err(error) if kind == HookKind::Poststop => failed.push(error.to_string()),
            Err(error) => return Err(error),
        }
    }
    if failed.is_empty() { Ok(()) } else { Err(Error::internal(failed.join("; "))) }
}

/// Checks what the specification asks of hooks.
pub(crate) fn check(hooks: &Hooks) -> Result<()> {
    use HookKind::{CreateContainer, CreateRuntime, Poststart, Poststop, Prestart, StartContainer};
    for kind in [Prestart, CreateRuntime, CreateContainer, StartContainer, Poststart, Poststop] {
        for hook in kind.of(hooks) {
            let refuse =
                |what: &str| Err(Error::invalid(format!("{} hook '{}': {what}", kind.name(), hook.path)));
            if !hook.path.starts_with('/') {
                return refuse("the path is not absolute");
            }
            if hook.timeout.is_some_and(|seconds| seconds <= 0) {
                return refuse("the timeout is not above zero");
            }
            if hook.args.iter().chain(&hook.env).chain([&hook.path]).any(|text| text.contains('\0')) {
                return refuse("a text holds a NUL byte");
            }
        }
    }
    Ok(())
}

fn run_one(hook: &Hook, state: &str, around: &Around) -> Result<()> {
    let invalid = |error| Error::call("hook", std::io::Error::from(error));
    let path = CString::new(hook.path.as_str()).map_err(invalid)?;
    let name = hook.args.is_empty().then_some(&hook.path);
    let args = StringArray::new(name.into_iter().chain(&hook.args).map(String::as_str)).map_err(invalid)?;
    let inherited = around.env.iter().filter(|_| hook.env.is_empty()).map(String::as_str);
    let env = StringArray::new(hook.env.iter().map(String::as_str).chain(inherited)).map_err(invalid)?;
    let input = memory_file(state.as_bytes())?;
    let output = memory_file(b"")?;
    // SAFETY: this crate's callers have one thread (invariant 4); its documentation asks for that.
    let forked = unsafe { fork_into(0, None) };
    match forked.map_err(|error| Error::call("clone3", error))? {
        Fork::Child => {
            let _guard = ExitOnDrop;
            let error = match (around.prepare)() {
                Ok(()) => become_hook(&path, &args, &env, input.as_fd(), output.as_fd()),
                Err(error) => error,
            };
            let _ = rustix::io::write(&output, error.to_string().as_bytes());
            exit_now(127)
        }
        Fork::Parent { pid, pidfd } => {
            let ended = wait(pid, pidfd.as_fd(), hook.timeout);
            ended.map_err(|error| match tail(&output) {
                text if text.is_empty() => error,
                text => Error::internal(format!("{error}: {text}")),
            })
        }
    }
}

/// A file without a name, so that neither side waits for the other.
fn memory_file(bytes: &[u8]) -> Result<OwnedFd> {
    let fail = |errno| Error::call("memfd_create", errno);
    let file = memfd_create(c"proa-hook", MemfdFlags::CLOEXEC).map_err(fail)?;
    let mut rest = bytes;
    while !rest.is_empty() {
        rest = &rest[rustix::io::write(&file, rest).map_err(fail)?..];
    }
    rustix::fs::seek(&file, SeekFrom::Start(0)).map_err(fail)?;
    Ok(file)
}

fn become_hook(
    path: &CString,
    args: &StringArray,
    env: &StringArray,
    input: BorrowedFd,
    output: BorrowedFd,
) -> Error {
    let prepare = || {
        rustix::process::setsid()?;
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
        dup2_stdin(input)?;
        dup2_stdout(output)?;
        dup2_stderr(output)
    };
    if let Err(errno) = prepare() {
        return Error::call("prepare", errno);
    }
    if let Err(error) = proa_sys::process::close_on_exec_from(3) {
        return Error::call("close_range", error);
    }
    proa_sys::process::reset_signals();
    Error::call("exec", execve(path, args, env))
}

/// Waits for the end; kills it with all that it has started where it takes too long.
fn wait(pid: u32, pidfd: BorrowedFd, timeout: Option<i64>) -> Result<()> {
    let result = wait_readable(pidfd, timeout);
    if result.is_err()
        && let Some(group) = Pid::from_raw(pid as i32)
    {
        // It has a session of its own; where it could not make one, the kill below is enough.
        let _ = kill_process_group(group, Signal::KILL);
        let _ = rustix::process::pidfd_send_signal(pidfd, Signal::KILL);
    }
    let status = loop {
        match waitid(WaitId::PidFd(pidfd), WaitIdOptions::EXITED) {
            Err(Errno::INTR) => {}
            other => break other.map_err(|errno| Error::call("waitid", errno))?,
        }
    };
    result?;
    match status.and_then(|status| status.exit_status()) {
        Some(0) => Ok(()),
        Some(code) => Err(Error::internal(format!("exit code {code}"))),
        None => {
            let signal = status.and_then(|status| status.terminating_signal()).unwrap_or(0);
            Err(Error::internal(format!("killed by signal {signal}")))
        }
    }
}

fn wait_readable(pidfd: BorrowedFd, timeout: Option<i64>) -> Result<()> {
    let now = || clock_gettime(ClockId::Monotonic);
    let end = timeout.map(|seconds| {
        let now = now();
        Timespec { tv_sec: now.tv_sec.saturating_add(seconds), ..now }
    });
    loop {
        let left = end.map(|end| {
            let now = now();
            let nanoseconds = (end.tv_sec - now.tv_sec)
                .saturating_mul(1_000_000_000)
                .saturating_add(end.tv_nsec - now.tv_nsec)
                .max(0);
            Timespec { tv_sec: nanoseconds / 1_000_000_000, tv_nsec: nanoseconds % 1_000_000_000 }
        });
        match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], left.as_ref()) {
            Ok(0) => {
                return Err(Error::internal(format!("killed after {} s", timeout.unwrap_or_default())));
            }
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(Error::call("poll", errno)),
        }
    }
}

/// The end of what a hook wrote, in one line.
fn tail(output: &OwnedFd) -> String {
    let length = rustix::fs::fstat(output).map_or(0, |stat| u64::try_from(stat.st_size).unwrap_or(0));
    let mut buffer = vec![0; MAX_OUTPUT as usize];
    let read = rustix::io::pread(output, &mut buffer[..], length.saturating_sub(MAX_OUTPUT)).unwrap_or(0);
    String::from_utf8_lossy(&buffer[..read]).trim().replace('\n', "; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hooks(path: &str, timeout: Option<i64>) -> Hooks {
        let hook = Hook { path: path.into(), timeout, ..Hook::default() };
        Hooks { create_runtime: vec![hook], ..Hooks::default() }
    }

    #[test]
    fn nonsense_is_refused() {
        check(&hooks("/bin/true", Some(1))).unwrap();
        check(&hooks("/bin/true", None)).unwrap();
        assert!(check(&hooks("true", None)).unwrap_err().to_string().contains("absolute"));
        assert!(check(&hooks("/bin/true", Some(0))).unwrap_err().to_string().contains("timeout"));
    }
}
