//! Running the program again: the part of the loop's state machine that a restart policy adds.
//!
//! Each run has a backend of its own. At the vm level that is a new guest, as for a container it is a new set of
//! namespaces: so nothing of the last run is left, be it memory that a kernel has lost or a process that nobody
//! reaped, and a guest that was lost needs no other way. Starting it takes what any start takes.
//!
//! At the end of each run clients are told of it and let go, as Docker does: who was attached has seen one run.
//! Those that are silent wait for the monitor's own end, and stay.

use std::time::Instant;

use proa_protocol::instance::Status;
use proa_protocol::life::Restart;
use proa_protocol::message::{ErrorKind, ExitStatus, Response};
use rustix::process::Signal;

use super::{Outcome, Phase, Server, start_failure_code};
use crate::backend::Backend;
use crate::network::Remains;
use crate::volumes::Volumes;

/// What people send to a program for it to end.
const ENDING_SIGNALS: [i32; 4] =
    [Signal::KILL.as_raw(), Signal::TERM.as_raw(), Signal::INT.as_raw(), Signal::QUIT.as_raw()];

impl Server {
    /// Starts the instance by itself, as one whose last monitor was killed and whose policy asks for that.
    pub fn resume(&mut self) {
        self.state.monitor_pid = std::process::id();
        // Should it fail, the state says what is to be done all the same.
        let _ = self.record.write_state(&self.state);
        let until = Instant::now() + self.again.back_off.next_wait(Instant::now());
        self.phase = Phase::Waiting { until };
        for channel in self.clients.keys().copied().collect::<Vec<_>>() {
            self.answer(channel, &Response::Ok);
            self.close_client(channel);
        }
    }

    /// When the program is to be run again that has ended like this; `None` if it is not.
    pub(super) fn next_start(&mut self, outcome: &Outcome) -> Option<Instant> {
        if self.state.stopped || self.again.called_off || self.reaper.is_some() {
            return None;
        }
        let code = match outcome {
            Outcome::Exited { .. } if std::mem::take(&mut self.again.forced) => return Some(Instant::now()),
            Outcome::Exited { status, .. } => status.code,
            // The first start is its user's to try again.
            Outcome::Failed { kind, .. } if self.state.restart_count > 0 => start_failure_code(*kind),
            Outcome::Failed { .. } | Outcome::Nothing | Outcome::CalledOff(_) => return None,
        };
        let now = Instant::now();
        self.policy().again(code, self.state.restart_count).then(|| now + self.again.back_off.next_wait(now))
    }

    /// The policy as it is now: `update` may have changed it.
    fn policy(&mut self) -> Restart {
        if let Some(config) = self.record.changed_config(&mut self.again.stamp) {
            self.again.life = config.life;
        }
        self.again.life.restart
    }

    /// A run is over and another will follow: writes that down, and tells everybody of the end.
    pub(super) fn wait_for_next(
        &mut self,
        outcome: &Outcome,
        remains: Option<Remains>,
        left_behind: String,
        until: Instant,
    ) {
        self.log.end();
        self.note_end(outcome, left_behind);
        self.state.status = Status::Restarting;
        self.state.restart_count = self.state.restart_count.saturating_add(1);
        self.state.monitor_pid = std::process::id();
        // Should it fail, the state still says `running`, which is true enough for whoever repairs.
        let _ = self.record.write_state(&self.state);
        if let Outcome::Exited { status, .. } = outcome {
            self.events.died(*status, self.state.started_ns);
        }
        self.events.flush();
        self.phase = Phase::Waiting { until };
        let involved = |client: &crate::client::Client| client.asks || client.waits;
        let told: Vec<u32> =
            self.clients.iter().filter(|(_, client)| involved(client)).map(|(&channel, _)| channel).collect();
        for channel in told {
            self.tell_end(channel, outcome);
        }
        self.flush_clients();
        self.askers.clear();
        self.pauses.clear();
        self.kill_by = None;
        self.backend = Backend::Over;
        drop(remains);
    }

    /// Runs the program again.
    pub(super) fn start_again(&mut self) {
        // Parts of them are seen by mounts of one run.
        self.volumes.detach();
        let made = self.record.config().and_then(|mut config| {
            self.volumes = Volumes::attach(&self.again.args.run, &self.record, &mut config, false)?;
            self.again.life = config.life.clone();
            self.again.health = super::HealthChecks::new(&config, &self.record);
            // What there is to say was said at the first start.
            Backend::new(&self.again.args, &self.record, config, None, &mut |_| {})
        });
        match made {
            Ok(backend) => {
                self.backend = backend;
                self.begin();
            }
            Err(error) => {
                // Somebody has removed it behind our back: nobody will ever want it again.
                self.again.called_off |= !self.record.dir.exists();
                let outcome = Outcome::Failed { kind: error.kind(), message: error.to_string() };
                self.phase = Phase::Stopping(outcome);
            }
        }
    }

    /// A signal for the first process. One that asks for its end asks for no other start as well.
    pub(super) fn note_signal(&mut self, signal: i32) {
        let own = self.again.life.stop_signal;
        let ends = ENDING_SIGNALS.contains(&signal) || (own != 0 && signal == own);
        // Where somebody has said already how long it is to stay down, signals are his means.
        if ends && !self.again.called_off {
            self.note_stopped();
        }
    }

    /// A user wants it down.
    pub(super) fn note_stopped(&mut self) {
        if self.state.status.is_live() && !self.state.stopped {
            self.state.stopped = true;
            // Should it fail, the instance stays down all the same, but for a kill of this process.
            let _ = self.record.write_state(&self.state);
        }
    }

    /// The instance is to stay down when it has ended.
    pub(super) fn stay_down(&mut self, channel: u32, by_user: bool) {
        self.again.called_off = true;
        if by_user {
            self.note_stopped();
        }
        self.call_off();
        self.answer(channel, &Response::Ok);
    }

    /// While it waits to be run again, a signal can only say that it is not to be.
    pub(super) fn signal_waiting(&mut self, channel: u32, signal: i32) {
        self.note_signal(signal);
        if !self.state.stopped {
            return self.refuse(channel, ErrorKind::Conflict, RESTARTING);
        }
        self.call_off();
        self.answer(channel, &Response::Ok);
    }

    /// Whether a run is over and the next has not begun.
    pub(super) fn is_restarting(&self) -> bool {
        let starts_again = matches!(self.phase, Phase::Starting) && self.state.status == Status::Restarting;
        starts_again || matches!(self.phase, Phase::Waiting { .. })
    }

    /// Ends what has not been run again yet.
    fn call_off(&mut self) {
        if self.is_restarting() {
            let status = ExitStatus {
                code: self.state.exit_code,
                oom_killed: self.state.oom_killed,
                at_ns: self.state.finished_ns,
            };
            self.phase = Phase::Stopping(Outcome::CalledOff(status));
        }
    }
}

/// Why most requests must wait.
pub(super) const RESTARTING: &str = "the instance is restarting; wait until it runs";
