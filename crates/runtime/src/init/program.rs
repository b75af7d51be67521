//! Finding and running the program, with Docker's words and sorts for what fails: "not found" (127) and "cannot
//! be run" (126).

use std::ffi::{CStr, CString};
use std::io;

use proa_protocol::message::ErrorKind;
use proa_sys::exec::{StringArray, execve};
use rustix::fs::{Access, AtFlags, CWD};
use rustix::io::Errno;

use super::{Call, Init};
use crate::mini_init::INIT_NAME;
use crate::plan::ProcessPlan;
use crate::{Error, Result, error};

pub(super) fn run(init: &mut Init) -> Result<()> {
    let process = init.job.process.spec;
    if init.job.process.is_none() {
        return Err(Error::invalid("the spec has no process: there is nothing to start"));
    }
    let env = StringArray::new(environment(init)).map_err(|error| Error::call("environment", error))?;
    let paths = process.candidates().into_iter().map(CString::new).collect::<Result<_, _>>();
    let paths = paths.map_err(|error| Error::call("program", error))?;
    proa_sys::process::reset_signals();
    if let Some(own) = &init.job.init {
        let program = find(process)?;
        let args = [INIT_NAME, &program].into_iter().chain(process.args[..].iter().map(String::as_str));
        let args = StringArray::new(args).map_err(|error| Error::call("arguments", error))?;
        // A signal that comes before the init waits for signals must wait for it, not be lost on a PID 1.
        proa_sys::sigwait::block_all().map_err(|error| Error::call("signal mask", error))?;
        let error = own.exec(&args, &env);
        return Err(Error::call("run the init (is this executable linked statically?)", error));
    }
    let args = StringArray::new(process.args.iter().map(String::as_str))
        .map_err(|error| Error::call("arguments", error))?;
    // Held where it can be found when the program runs.
    let Call { paths, args, env } = init.call.insert(Call { paths, args, env });
    let is_searched = !process.args[0].contains('/');
    let mut refused = None;
    for path in paths.iter() {
        let error = execve(path, args, env);
        match error.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::NOENT) if !exists(path) => {}
            Some(Errno::NOTDIR) if is_searched => {}
            // As in a shell: a later directory may have one that can be run.
            Some(Errno::ACCESS) => refused = refused.or(Some((path, error))),
            _ => return Err(cannot_run(&path.to_string_lossy(), &error)),
        }
    }
    let refuse = |(path, error): (&CString, _)| cannot_run(&path.to_string_lossy(), &error);
    Err(refused.map_or_else(|| not_found(&process.args[0]), refuse))
}

/// What the program finds in its environment.
pub(super) fn environment(init: &Init) -> impl Iterator<Item = String> {
    let env = &init.job.process.spec.env;
    let has_home = env.iter().any(|entry| entry.starts_with("HOME="));
    let home = (!has_home).then(|| format!("HOME={}", init.identity.home));
    env.iter().cloned().chain(home)
}

/// The program, if the user may run it. For an init, which cannot tell us once it runs.
fn find(process: &proa_oci::runtime::Process) -> Result<String> {
    let mut refused = None;
    for candidate in process.candidates() {
        match rustix::fs::accessat(CWD, candidate.as_str(), Access::EXEC_OK, AtFlags::EACCESS) {
            Ok(()) if is_dir(&candidate) => refused = refused.or(Some((candidate, Errno::ACCESS))),
            Ok(()) => return Ok(candidate),
            Err(Errno::NOENT | Errno::NOTDIR) => {}
            Err(errno) => refused = refused.or(Some((candidate, errno))),
        }
    }
    Err(refused.map_or_else(|| not_found(&process.args[0]), |(path, errno)| cannot_run(&path, &errno.into())))
}

/// Whoever creates a container that is to wait for its start hears then already of a program that is not there.
pub(super) fn look_up(process: &ProcessPlan) -> Result<()> {
    if process.is_none() {
        return Ok(());
    }
    match find(process.spec) {
        Err(error) if error.kind() == ErrorKind::CommandNotFound => Err(error.context("start")),
        // Why else it may not be run is the kernel's to say.
        _ => Ok(()),
    }
}

fn is_dir(path: &str) -> bool {
    rustix::fs::stat(path).is_ok_and(|stat| crate::inroot::is(&stat, rustix::fs::FileType::Directory))
}

fn exists(path: &CStr) -> bool {
    rustix::fs::lstat(path).is_ok()
}

fn not_found(name: &str) -> Error {
    let what =
        if name.contains('/') { "no such file or directory" } else { "executable file not found in $PATH" };
    Error::new(ErrorKind::CommandNotFound, format!("exec: \"{name}\": {what}"))
}

fn cannot_run(path: &str, error: &io::Error) -> Error {
    let reason = match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::ACCESS) if is_dir(path) => "is a directory".to_owned(),
        // The file is there, so it is its interpreter that is not.
        Some(Errno::NOENT) => {
            let message = format!("exec: \"{path}\": no such file or directory (its interpreter is missing)");
            return Error::new(ErrorKind::CommandNotFound, message);
        }
        _ => error::describe(error),
    };
    Error::new(ErrorKind::CommandNotExecutable, format!("exec: \"{path}\": {reason}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proa_oci::runtime::Process;

    fn process(name: &str, path: &str) -> Process {
        Process { args: vec![name.into()], env: vec![format!("PATH={path}")], ..Process::default() }
    }

    #[test]
    fn failures_have_dockers_sorts() {
        let find = |name| find(&process(name, "/nonexistent:/bin")).map_err(|error| error.kind());
        assert!(find("sh").unwrap().ends_with("/sh"));
        assert_eq!(find("no-such-program"), Err(ErrorKind::CommandNotFound));
        assert_eq!(find("/etc"), Err(ErrorKind::CommandNotExecutable));
        assert_eq!(find("/etc/passwd"), Err(ErrorKind::CommandNotExecutable));
    }
}
