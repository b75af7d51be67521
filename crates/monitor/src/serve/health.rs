//! Health checks: the part of the loop that runs them, as a client of the backend like any other.
//!
//! A check is an `Exec` on a channel of its own, so it is the same at both levels, and never has more than a window
//! of output on its way. What it finds is written to `health.json` and told as an event when it changes.

use std::time::{Duration, Instant};

use proa_protocol::frame::{Frame, Kind};
use proa_protocol::health::{HealthStatus, OnFailure};
use proa_protocol::instance::InstanceConfig;
use proa_protocol::message::{ExecConfig, Happening, Request, Response};

use super::{KILL, KILL_TIMEOUT, Phase, Server};
use crate::clock::now_ns;
use crate::health::{Checks, Due};
use crate::record::Record;

/// SIGTERM.
const TERM: i32 = rustix::process::Signal::TERM.as_raw();
/// How long what is to be stopped may take where nobody says otherwise.
const STOP_TIMEOUT: i64 = 10;

/// An instance's checks, and how to run one.
pub struct HealthChecks {
    checks: Checks,
    exec: Box<ExecConfig>,
    /// Killed if it has not ended by then.
    stop_by: Option<Instant>,
}

impl HealthChecks {
    /// Those that the configuration asks for.
    pub fn new(config: &InstanceConfig, record: &Record) -> Option<Box<Self>> {
        let check = config.life.health.clone()?;
        let mut process = config.spec.process.clone().unwrap_or_default();
        process.args.clone_from(&check.command);
        (process.terminal, process.console_size) = (false, None);
        let user = config.launch.user.clone();
        let exec = Box::new(ExecConfig { process, user, stdin: false, attach: true });
        let checks = Checks::new(check, record.health(), Instant::now());
        Some(Box::new(Self { checks, exec, stop_by: None }))
    }
}

impl Server {
    /// When [`Server::check_health`] is to be called.
    pub(super) fn health_deadline(&self) -> Option<Instant> {
        let health = self.again.health.as_ref().filter(|_| matches!(self.phase, Phase::Running))?;
        [health.checks.deadline(), health.stop_by].into_iter().flatten().min()
    }

    /// Does what is due.
    pub(super) fn check_health(&mut self) {
        let now = Instant::now();
        if self.health_deadline().is_none_or(|deadline| now < deadline) {
            return;
        }
        let Some(health) = &mut self.again.health else { return };
        if health.stop_by.is_some_and(|until| now >= until) {
            health.stop_by = None;
            return self.end_unhealthy(KILL);
        }
        let before = health.checks.health().status;
        match health.checks.due(now, now_ns()) {
            Some(Due::Check) => self.begin_check(),
            Some(Due::Abort(channel)) => {
                self.backend.send(Request::Abort.frame(channel));
                self.backend.send(Frame::close(channel));
                self.judged(before);
            }
            Some(Due::Noted) => self.judged(before),
            None => {}
        }
    }

    fn begin_check(&mut self) {
        let channel = self.next_channel;
        self.next_channel += 1;
        let Some(health) = &mut self.again.health else { return };
        health.checks.begun(channel, Instant::now(), now_ns());
        self.events.exec(channel, &health.exec.process.args);
        let request = Request::Exec(health.exec.clone());
        self.backend.send(request.frame(channel));
    }

    /// Whether this is a frame of the check that runs, which is taken then.
    pub(super) fn take_check_frame(&mut self, frame: &Frame) -> bool {
        let Some(health) = &mut self.again.health else { return false };
        if health.checks.channel() != Some(frame.channel) {
            return false;
        }
        let before = health.checks.health().status;
        let now = Instant::now();
        match frame.kind {
            Kind::Stdout | Kind::Stderr => {
                health.checks.output(&frame.payload);
                self.backend.send(Frame::credit(frame.channel, frame.payload.len() as u32));
            }
            Kind::Response => {
                match Response::parse(&frame.payload) {
                    Ok(Response::Exited(status)) => health.checks.ended(status.code, now, now_ns()),
                    Ok(Response::Error { message, .. }) => health.checks.failed(&message, now, now_ns()),
                    _ => {}
                }
                self.exec_answer(frame.channel, frame);
                if self.again.health.as_ref().is_some_and(|health| health.checks.channel().is_none()) {
                    self.judged(before);
                }
            }
            _ => {}
        }
        true
    }

    /// A check has been judged: writes that down, and does what follows.
    fn judged(&mut self, before: HealthStatus) {
        let Some(health) = &self.again.health else { return };
        let (now, action) = (health.checks.health().status, health.checks.config().on_failure);
        self.record.write_health(health.checks.health());
        if now == before {
            return;
        }
        self.events.tell(&format!("health_status: {}", now.as_str()), &[]);
        if now == HealthStatus::Unhealthy && matches!(self.phase, Phase::Running) {
            match action {
                OnFailure::None => {}
                OnFailure::Kill => self.end_unhealthy(KILL),
                OnFailure::Restart => {
                    self.again.forced = true;
                    self.stop_unhealthy();
                }
                OnFailure::Stop => {
                    self.note_stopped();
                    self.stop_unhealthy();
                }
            }
        }
    }

    fn stop_unhealthy(&mut self) {
        let (signal, seconds) = (self.again.life.stop_signal, self.again.life.stop_timeout);
        if let Some(health) = &mut self.again.health {
            let limit = u64::try_from(seconds.unwrap_or(STOP_TIMEOUT)).ok();
            health.stop_by = limit.map(|seconds| Instant::now() + Duration::from_secs(seconds));
        }
        self.end_unhealthy(if signal == 0 { TERM } else { signal });
    }

    fn end_unhealthy(&mut self, signal: i32) {
        self.events.tell("kill", &[("signal", signal.to_string())]);
        if signal == KILL {
            self.kill_by.get_or_insert_with(|| Instant::now() + KILL_TIMEOUT);
        }
        // On a channel that is gone at once: there is nothing to do about an error.
        let channel = self.next_channel;
        self.next_channel += 1;
        self.backend.send(Request::Signal { signal, all: false }.frame(channel));
        self.backend.send(Frame::close(channel));
    }

    /// The program runs.
    pub(super) fn health_started(&mut self) {
        if let Some(health) = &mut self.again.health {
            health.checks.started(Instant::now());
            self.record.write_health(health.checks.health());
        }
    }

    /// The program has ended.
    pub(super) fn health_stopped(&mut self) {
        if let Some(health) = &mut self.again.health {
            health.stop_by = None;
            health.checks.stopped();
            self.record.write_health(health.checks.health());
        }
    }

    /// The instance was frozen, or thawed.
    pub(super) fn health_paused(&mut self, paused: bool) {
        match &mut self.again.health {
            Some(health) if paused => health.checks.pause(Instant::now()),
            Some(health) => health.checks.resume(Instant::now()),
            None => {}
        }
    }

    /// Something happened by itself, perhaps the end of a check.
    pub(super) fn health_happened(&mut self, what: Happening) {
        if let (Some(health), Happening::ExecEnded { channel, .. }) = (&mut self.again.health, what) {
            health.checks.gone(channel);
        }
    }
}
