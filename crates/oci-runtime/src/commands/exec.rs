//! `exec`: another process in a running container.

use std::os::fd::AsFd;
use std::path::PathBuf;

use proa_oci::runtime::{Capabilities, Process};
use proa_runtime::{Child, Detach, Handles, SubCgroup};

use crate::args::{Opt, Parsed, flag, value};
use crate::console;
use crate::error::{Failure, Result};
use crate::foreground::Foreground;
use crate::global::{Global, absolute};
use crate::launch::{join_late, pass_listeners, preserved, terminal, write_pid_file};
use crate::store::Status;

/// Its options.
pub const OPTIONS: &[Opt] = &[
    value("process").or('p'),
    value("cwd"),
    value("env").or('e'),
    flag("tty").or('t'),
    value("user").or('u'),
    value("additional-gids").or('g'),
    flag("detach").or('d'),
    value("pid-file"),
    value("console-socket"),
    value("process-label"),
    value("apparmor"),
    flag("no-new-privs"),
    value("cap").or('c'),
    value("preserve-fds"),
    value("cgroup"),
    flag("ignore-paused"),
];

/// Runs it.
///
/// # Errors
/// The container does not run, or the program cannot be run.
pub fn run(global: &Global, parsed: &Parsed) -> Result<u8> {
    exec(global, parsed).map_err(Failure::of_exec)
}

fn exec(global: &Global, parsed: &Parsed) -> Result<u8> {
    let entry = global.store.open(parsed.id()?)?;
    let saved = entry.saved()?;
    let status = entry.status(saved.as_ref(), None)?;
    let (container, spec) = entry.container(saved.as_ref())?;
    let mut container = match (status, container) {
        (Status::Created | Status::Running, Some(container)) => container,
        (Status::Paused, Some(container)) if parsed.is("ignore-paused") => container,
        (Status::Paused, _) => {
            return Err(Failure::new(format!("container '{}' is paused: resume it", entry.id)));
        }
        _ => return Err(Failure::new(format!("container '{}' is not running", entry.id))),
    };
    let mut process = process(parsed, spec.process.as_ref())?;
    pass_listeners(Some(&mut process));
    let detach = parsed.is("detach");
    let socket = parsed.get("console-socket").map(absolute).transpose()?;
    let pid_file = parsed.get("pid-file").map(absolute).transpose()?;
    let stdio = terminal(&process, socket.is_some(), !detach)?;
    let sub_cgroups = parsed.all("cgroup").map(SubCgroup::parse).collect::<std::result::Result<_, _>>();
    let sub_cgroups = sub_cgroups.map_err(|error| Failure::from(error).context("--cgroup"))?;
    let wish = Detach { preserve_fds: preserved(parsed)?, sub_cgroups, ..Detach::default() };
    let foreground = if detach { None } else { Some(Foreground::new()?) };
    let (child, handles) = container.exec_detached(&spec, &process, stdio, &wish)?;
    if let Some(initial) = process.exec_cpu_affinity.as_ref().and_then(|affinity| affinity.initial.as_deref())
    {
        global.debug(&format!("initial CPU affinity: {}", proa_runtime::hex_mask(initial)?));
    }
    global.warn(&child.warnings);
    hand_over(&child, &handles, socket, pid_file).inspect_err(|_| {
        // It may have ended.
        let _ = child.signal(9);
    })?;
    let settle = |container: &mut _| {
        join_late(
            &entry,
            container,
            child.pidfd.try_clone().map_err(|error| Failure::new(error.to_string()))?,
        )
    };
    match foreground {
        None => settle(&mut container).map(|()| 0),
        Some(foreground) => {
            let settled = || {
                // It runs; that it is not accounted for is no reason to end it.
                let _ = settle(&mut container);
            };
            let master = handles.terminal.filter(|_| parsed.get("console-socket").is_none());
            foreground.wait(child.pidfd.as_fd(), master.as_ref(), Some(settled), |signal| {
                // It may just have ended.
                let _ = child.signal(signal);
            })?;
            Ok(child.try_wait()?.unwrap_or(0) as u8)
        }
    }
}

fn hand_over(
    child: &Child,
    handles: &Handles,
    socket: Option<PathBuf>,
    pid_file: Option<PathBuf>,
) -> Result<()> {
    if let (Some(socket), Some(master)) = (&socket, &handles.terminal) {
        console::send(socket, master.as_fd())?;
    }
    pid_file.map_or(Ok(()), |path| write_pid_file(&path, child.pid))
}

/// The process: as the file says, or like the container's own with what the options change.
fn process(parsed: &Parsed, own: Option<&Process>) -> Result<Process> {
    let program = &parsed.words[1..];
    if let Some(path) = parsed.get("process") {
        if !program.is_empty() {
            return Err(Failure::usage("--process and a program exclude each other"));
        }
        let text = std::fs::read(path).map_err(|error| Failure::at(path, error))?;
        return serde_json::from_slice(&text).map_err(|error| Failure::new(format!("{path}: {error}")));
    }
    if program.is_empty() {
        return Err(Failure::usage("a program to run, or --process, is needed"));
    }
    let mut process = own.cloned().unwrap_or_default();
    process.args = program.to_vec();
    process.terminal = parsed.is("tty");
    process.no_new_privileges |= parsed.is("no-new-privs");
    parsed.all("env").for_each(|variable| set_variable(&mut process.env, variable));
    if let Some(cwd) = parsed.get("cwd") {
        process.cwd = cwd.to_owned();
    }
    if let Some(label) = parsed.get("process-label") {
        process.selinux_label = Some(label.to_owned());
    }
    if let Some(profile) = parsed.get("apparmor") {
        process.apparmor_profile = Some(profile.to_owned());
    }
    if let Some(user) = parsed.get("user") {
        set_user(&mut process, user)?;
    }
    for gid in parsed.all("additional-gids").flat_map(|list| list.split(',')) {
        process.user.additional_gids.push(number(gid)?);
    }
    let capabilities: Vec<String> = parsed.all("cap").map(capability).collect();
    add_capabilities(&mut process, &capabilities);
    Ok(process)
}

/// `UID[:GID]`, by number: names are the engine's to look up.
fn set_user(process: &mut Process, user: &str) -> Result<()> {
    let (uid, gid) = user.split_once(':').map_or((user, None), |(uid, gid)| (uid, Some(gid)));
    process.user.uid = number(uid)?;
    if let Some(gid) = gid {
        process.user.gid = number(gid)?;
    }
    Ok(())
}

fn number(text: &str) -> Result<u32> {
    text.parse().map_err(|_| Failure::usage(format!("'{text}' is not a user or group id")))
}

fn capability(name: &str) -> String {
    let upper = name.to_ascii_uppercase();
    if upper.starts_with("CAP_") { upper } else { format!("CAP_{upper}") }
}

/// In all sets but the inheritable and ambient, from which programs run by others would gain (CVE-2022-24769).
fn add_capabilities(process: &mut Process, names: &[String]) {
    if names.is_empty() {
        return;
    }
    let sets = process.capabilities.get_or_insert_with(Capabilities::default);
    for set in [&mut sets.bounding, &mut sets.effective, &mut sets.permitted] {
        set.extend(names.iter().filter(|name| !set.contains(name)).cloned().collect::<Vec<_>>());
    }
}

/// Sets a variable, `NAME=VALUE`, in the place of one with that name.
fn set_variable(env: &mut Vec<String>, variable: &str) {
    let name_of = |text: &str| text.split('=').next().unwrap_or_default().to_owned();
    let name = name_of(variable);
    env.retain(|known| name_of(known) != name);
    env.push(variable.to_owned());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Words;

    fn read(line: &str) -> Result<Process> {
        let mut parsed = Parsed::default();
        let args = line.split_whitespace().map(Into::into).collect();
        parsed.read(args, &[OPTIONS], Words::ThenProgram(1))?;
        let own = Process { cwd: "/own".into(), env: vec!["A=1".into()], ..Process::default() };
        process(&parsed, Some(&own))
    }

    #[test]
    fn options_change_the_containers_own_process() {
        let made = read("-t -e B=2 --user 5:6 -g 7,8 --cap sys_time --cwd /x id sh -c y").unwrap();
        assert_eq!((made.args.join(" ").as_str(), made.cwd.as_str(), made.terminal), ("sh -c y", "/x", true));
        assert_eq!(made.env, ["A=1", "B=2"]);
        let mut env = vec!["A=1".to_owned(), "AB=2".to_owned()];
        set_variable(&mut env, "A=3");
        assert_eq!(env, ["AB=2", "A=3"]);
        assert_eq!((made.user.uid, made.user.gid, made.user.additional_gids), (5, 6, vec![7, 8]));
        let sets = made.capabilities.unwrap();
        assert_eq!(sets.effective, ["CAP_SYS_TIME"]);
        assert!(sets.inheritable.is_empty() && sets.ambient.is_empty());
        assert_eq!(read("id true").unwrap().cwd, "/own");
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for line in ["id", "id --user root true", "id --process /x true", "-g x id true"] {
            assert!(read(line).is_err(), "{line}");
        }
    }
}
