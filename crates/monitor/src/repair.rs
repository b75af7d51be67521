//! After a monitor that died: kills what it started, and finishes its state.
//!
//! Done by the next monitor of the instance before it begins, and by `--repair`. Both hold the lock, which
//! proves that the last monitor is dead. Its processes were to die with it; where one did not (a program with
//! set-user-id bits loses that tie), it is known by its id and start time together and killed by a descriptor,
//! so that no other process is ever hit.
//!
//! Where the restart policy asks for it, and the host was not booted since, the finished state says `restarting`:
//! whoever looked at the instance then has it started again, by a monitor that finds that state under its lock.
//! After a boot nothing is started for being looked at; `proa system boot` does that.

use std::time::Duration;

use proa_protocol::instance::{InstanceConfig, InstanceState, Status};
use proa_protocol::message::ExitStatus;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::args::Args;
use crate::clock::now_ns;
use crate::error::Error;
use crate::events::Events;
use crate::record::{Record, StartedProcess};
use crate::volumes;

/// What an instance whose monitor was killed is said to have ended with.
const LOST: i32 = 137;
/// How long a killed process may take to be gone.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// Repairs one instance, unless it has a monitor.
pub fn run(args: &Args) -> Result<(), Error> {
    match Record::lock(&args.root, &args.run, &args.id) {
        Ok(record) => finish(args, &record).map(drop),
        // It lives: there is nothing to repair.
        Err(Error::HasMonitor) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Finishes what the last monitor of a locked record left. Returns the state as it is then.
pub fn finish(args: &Args, record: &Record) -> Result<InstanceState, Error> {
    let state = record.state()?;
    if !state.status.is_live() {
        return Ok(state);
    }
    for process in record.processes() {
        kill(process);
    }
    let config = record.config();
    if let Ok(config) = &config {
        proa_runtime::remove_leftovers(&config.id, &config.spec, proa_runtime::CgroupPolicy::Auto)?;
        let switch = proa_network::Switch::of(&args.run);
        proa_network::attach::clean_up(&args.run, &switch, &config.id, &config.networks)?;
        volumes::repair(record, config);
    }
    let waited = state.status == Status::Restarting;
    let again = record.ran_since_boot() && config.as_ref().is_ok_and(|config| is_again(config, &state));
    let finished = lost(state, again);
    record.remove_socket();
    record.write_state(&finished)?;
    if !again {
        record.remove_run_files();
    }
    if let (Ok(config), false) = (&config, waited) {
        let status = ExitStatus { code: LOST, oom_killed: false, at_ns: finished.finished_ns };
        let mut events = Events::new(&args.root, &record.dir, config);
        events.died(status, finished.started_ns);
        events.flush();
    }
    Ok(finished)
}

/// Whether the policy asks for another start of an instance whose monitor was killed in this state.
fn is_again(config: &InstanceConfig, state: &InstanceState) -> bool {
    // One that waited has been decided about already.
    let asked = state.status == Status::Restarting || config.life.restart.again(LOST, state.restart_count);
    asked && !state.stopped && !config.auto_remove
}

/// The state of an instance whose monitor was killed. One that waited to be started has told its end already.
fn lost(state: InstanceState, again: bool) -> InstanceState {
    let status = if again { Status::Restarting } else { Status::Exited };
    if state.status == Status::Restarting {
        return InstanceState { status, pid: 0, monitor_pid: 0, vmm_cgroup: String::new(), ..state };
    }
    InstanceState {
        status,
        pid: 0,
        monitor_pid: 0,
        exit_code: LOST,
        finished_ns: now_ns(),
        error: "its monitor was killed".into(),
        restart_count: state.restart_count + u32::from(again),
        vmm_cgroup: String::new(),
        ..state
    }
}

/// Kills the process and waits until it is gone, if it is still the one that was started.
fn kill(process: StartedProcess) {
    let Some(pid) = i32::try_from(process.pid).ok().and_then(Pid::from_raw) else { return };
    let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) else { return };
    // Asked after the descriptor was opened: if this is the same process, so is the descriptor's.
    if StartedProcess::of(process.pid) != Some(process) || pidfd_send_signal(&pidfd, Signal::KILL).is_err() {
        return;
    }
    let limit = Timespec::try_from(KILL_TIMEOUT).ok();
    let _ = poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], limit.as_ref());
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn a_killed_monitor_is_a_failure_like_another() {
        use proa_protocol::life::{Life, Restart};
        let with = |restart| InstanceConfig {
            life: Life { restart, ..Life::default() },
            ..InstanceConfig::default()
        };
        let running = InstanceState { status: Status::Running, restart_count: 2, ..InstanceState::default() };
        assert!(!is_again(&with(Restart::No), &running));
        assert!(!is_again(&with(Restart::OnFailure(2)), &running));
        assert!(
            is_again(&with(Restart::OnFailure(3)), &running) && is_again(&with(Restart::Always), &running)
        );
        let stopped = InstanceState { stopped: true, ..running.clone() };
        assert!(!is_again(&with(Restart::Always), &stopped));
        let again = lost(running.clone(), true);
        assert_eq!((again.status, again.exit_code, again.restart_count), (Status::Restarting, LOST, 3));
        // What waited stays as it was, however often it is repaired.
        assert!(is_again(&with(Restart::OnFailure(3)), &again));
        assert_eq!(lost(again.clone(), true), again);
        assert_eq!(lost(again, false).status, Status::Exited);
        assert_eq!((lost(running.clone(), false).exit_code, lost(running, false).restart_count), (LOST, 2));
    }

    #[test]
    fn only_the_process_that_was_started_is_killed() {
        let mut child = Command::new("/bin/cat").stdin(Stdio::piped()).spawn().unwrap();
        let started = StartedProcess::of(child.id()).unwrap();
        kill(StartedProcess { start_ticks: started.start_ticks + 1, ..started });
        assert!(child.try_wait().unwrap().is_none());
        kill(started);
        assert!(!child.wait().unwrap().success());
    }
}
