//! The life of an instance: stop, kill, wait, pause, remove, rename.

use std::time::{Duration, Instant};

use proa_protocol::instance::{IsolationLevel, Status};
use proa_protocol::message::{ProcessInfo, Request, Response, Stats};

use crate::channel::Channel;
use crate::db::Record;
use crate::engine::{Engine, Instance, MONITOR_END, does_not_end, not_running};
use crate::error::{Error, Result};
use crate::{events, logging, names, signals};

/// Seconds between the stop signal and SIGKILL where nobody says otherwise.
const STOP_TIMEOUT: i64 = 10;

/// How to stop.
#[derive(Debug, Clone, Default)]
pub struct StopOptions {
    /// Seconds before SIGKILL; negative for never.
    pub timeout: Option<i64>,
    /// Signal to send first.
    pub signal: Option<String>,
    /// Nobody wants it down for good: the host's next boot may start it.
    pub until_boot: bool,
}

/// Waits for the end of the instance at the other end of a channel. A monitor that has not heard of the channel any
/// more had told of the end before.
fn has_ended(channel: &mut Channel, limit: Option<Duration>) -> Result<bool> {
    match channel.wait_exit(limit) {
        Err(Error::MonitorGone(_)) => Ok(true),
        other => Ok(other?.is_some()),
    }
}

impl Engine {
    /// Asks an instance to end, and kills it when it does not. One that does not run is fine.
    ///
    /// # Errors
    /// The signal makes no sense, or the monitor fails.
    pub fn stop(&self, instance: &Instance, options: &StopOptions) -> Result<()> {
        let config = &instance.record.config;
        let name = options.signal.as_deref().unwrap_or(&config.stop_signal);
        let signal = if name.is_empty() { signals::TERM } else { signals::number(name)? };
        if !instance.is_live() {
            return Ok(());
        }
        let stop = Request::Stop { by_user: !options.until_boot };
        let Some(mut channel) = self.waiting_channel(instance, &[stop])? else { return Ok(()) };
        if instance.state.status == Status::Paused {
            self.connect(instance)?.command(Request::Resume)?;
        }
        let seconds = options.timeout.or(config.stop_timeout).unwrap_or(STOP_TIMEOUT);
        self.signal_unless_ended(instance, signal)?;
        let limit = u64::try_from(seconds).ok().map(Duration::from_secs);
        if !has_ended(&mut channel, limit)? {
            self.signal_unless_ended(instance, signals::KILL)?;
            has_ended(&mut channel, None)?;
        }
        self.wait_monitor(&mut channel)?;
        drop(self.settle(&instance.record.id)?);
        self.tell(&instance.record, "stop", &[]);
        Ok(())
    }

    /// A channel on which [`Request::Wait`] has been sent, and more; `None` if the instance has just ended.
    fn waiting_channel(&self, instance: &Instance, more: &[Request]) -> Result<Option<Channel>> {
        match self.connect(instance) {
            Ok(mut channel) => match channel.send(&[&[Request::Wait], more].concat()) {
                Ok(()) => Ok(Some(channel)),
                Err(_) => self.settle(&instance.record.id).map(|_| None),
            },
            Err(Error::Conflict { .. }) => self.settle(&instance.record.id).map(|_| None),
            Err(error) => Err(error),
        }
    }

    fn signal_unless_ended(&self, instance: &Instance, signal: i32) -> Result<()> {
        match self
            .connect(instance)
            .and_then(|mut channel| channel.command(Request::Signal { signal, all: false }))
        {
            // It ended in between, which is what was wanted.
            Err(Error::Conflict { .. } | Error::MonitorGone(_)) => Ok(()),
            Err(error) if error.kind() == crate::error::Kind::Conflict => Ok(()),
            other => other,
        }
    }

    /// Sends a signal; after SIGKILL, waits for the end.
    ///
    /// # Errors
    /// There is no such signal, or the instance does not run.
    pub fn kill(&self, instance: &Instance, signal: &str) -> Result<()> {
        let signal = signals::number(signal)?;
        if !instance.is_live() {
            return Err(not_running(&instance.record));
        }
        if signal != signals::KILL {
            return self.connect(instance)?.command(Request::Signal { signal, all: false });
        }
        self.kill_at_once(instance, &[])
    }

    /// Kills what runs and waits for its end, with something told to the monitor before.
    fn kill_at_once(&self, instance: &Instance, before: &[Request]) -> Result<()> {
        let Some(mut channel) = self.waiting_channel(instance, before)? else { return Ok(()) };
        self.signal_unless_ended(instance, signals::KILL)?;
        has_ended(&mut channel, None)?;
        self.wait_monitor(&mut channel)
    }

    /// Waits until an instance does not run, or is about to be run again; its exit code.
    ///
    /// # Errors
    /// Its monitor dies and cannot be cleaned up after.
    pub fn wait(&self, instance: &Instance) -> Result<i32> {
        if !instance.is_live() {
            return Ok(instance.state.exit_code);
        }
        let Some(mut channel) = self.waiting_channel(instance, &[])? else {
            return Ok(self.read_state(&instance.record.id)?.exit_code);
        };
        match channel.wait_exit(None) {
            Ok(status) => Ok(status.map_or(0, |status| status.code)),
            // Its last words are in the state, if need be after a repair.
            Err(Error::MonitorGone(_)) => Ok(self.find(&instance.record.id)?.state.exit_code),
            Err(error) => Err(error),
        }
    }

    /// Freezes an instance.
    ///
    /// # Errors
    /// It does not run, or is frozen.
    pub fn pause(&self, instance: &Instance) -> Result<()> {
        if instance.state.status == Status::Paused {
            return Err(Error::conflict(format!("instance {} is paused already", instance.record.name), ""));
        }
        self.connect(instance)?.command(Request::Pause)
    }

    /// Thaws an instance.
    ///
    /// # Errors
    /// It is not frozen.
    pub fn unpause(&self, instance: &Instance) -> Result<()> {
        if instance.state.status != Status::Paused {
            return Err(Error::conflict(format!("instance {} is not paused", instance.record.name), ""));
        }
        self.connect(instance)?.command(Request::Resume)
    }

    /// Runs an instance that does not run, without streams. One that runs is fine.
    ///
    /// # Errors
    /// It does not start.
    pub fn start(&self, instance: &Instance) -> Result<()> {
        if instance.is_live() {
            return match instance.state.status {
                Status::Paused => Err(Error::conflict(
                    format!("instance {} is paused", instance.record.name),
                    format!("`proa unpause {}` thaws it", instance.record.name),
                )),
                _ => Ok(()),
            };
        }
        self.prepare_start(instance)?.start().map(drop)
    }

    /// A monitor that is ready to run an instance that does not run, once what it depends on is as it must be.
    ///
    /// # Errors
    /// That can never be, the instance was never completed, or the monitor's program cannot be run.
    pub fn prepare_start(&self, instance: &Instance) -> Result<Channel> {
        let config = self.read_config(&instance.record.id)?;
        self.wait_dependencies(&instance.record)?;
        self.restore_confinement(&config)?;
        drop(self.settle(&instance.record.id)?);
        self.spawn_monitor(&instance.record)
    }

    /// Removes an instance; with `force` even if it runs, or is started at this moment, with `volumes` those as well that
    /// nobody named.
    ///
    /// # Errors
    /// It runs.
    pub fn remove(&self, instance: &Instance, force: bool, volumes: bool) -> Result<()> {
        let deadline = Instant::now() + MONITOR_END;
        let mut seen = instance.clone();
        loop {
            let live = seen.is_live();
            let done =
                if live { self.end(&seen, force) } else { self.remove_ended(&seen.record.id, volumes) };
            match done {
                Ok(()) if !live => return Ok(()),
                Ok(()) | Err(Error::Conflict { .. }) if force && Instant::now() < deadline => {}
                Ok(()) => return Err(does_not_end(&seen.record.id)),
                Err(error) => return Err(error),
            }
            // What a killed monitor left is repaired here, while there is a record to do it by.
            let record = self.db.by_id(&seen.record.id)?;
            let Some(next) = record.map(|record| self.observe(record)).transpose()?.flatten() else {
                return self.see_off(&seen.record.id);
            };
            seen = next;
        }
    }

    /// Waits for the removal of an instance that has ended, and goes by itself; whoever does it. Until then it still has
    /// its name and its volumes.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn see_off(&self, text: &str) -> Result<()> {
        let record = match self.db.find(text) {
            Err(Error::NoSuchInstance(_)) => return Ok(()),
            other => other?,
        };
        if record.auto_remove && self.read_state(&record.id)?.status == Status::Exited {
            return self.remove_ended(&record.id, true);
        }
        Ok(())
    }

    /// Kills what runs, for it to be removed.
    fn end(&self, instance: &Instance, force: bool) -> Result<()> {
        if !force {
            let name = &instance.record.name;
            return Err(Error::conflict(
                format!("instance {name} is running"),
                format!("`proa stop {name}` first, or `proa rm -f {name}`"),
            ));
        }
        match self.kill_at_once(instance, &[Request::Discard]) {
            // It has just ended, or somebody else has removed it.
            Err(Error::MonitorGone(_) | Error::NoSuchInstance(_)) => Ok(()),
            other => other,
        }
    }

    /// Removes an instance that was to go when it ended, if it has; what monitors call.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn reap(&self, id: &str) -> Result<()> {
        let Some(record) = self.db.by_id(id)? else { return Ok(()) };
        if !record.auto_remove {
            return Ok(());
        }
        // The monitor that calls us has told the end and is about to go.
        let lock = self.settle(id)?;
        match self.read_state(id)?.status {
            Status::Exited => self.remove_locked(id, lock, true),
            Status::Created | Status::Running | Status::Paused | Status::Restarting => Ok(()),
        }
    }

    /// Gives an instance another name.
    ///
    /// # Errors
    /// The name makes no sense or is taken.
    pub fn rename(&self, instance: &Instance, name: &str) -> Result<()> {
        let name = name.strip_prefix('/').unwrap_or(name);
        names::check_name(name)?;
        if name == instance.record.name {
            return Err(Error::invalid(format!("instance {name} has that name already")));
        }
        let _alone = self.alone(&instance.record.id)?;
        self.db.rename(&instance.record.id, name)?;
        let record = Record { name: name.to_owned(), ..instance.record.clone() };
        // One whose making was cut short has none, and no monitor that could tell of it.
        if let Ok(mut config) = self.read_config(&record.id) {
            config.actor = events::actor(&record);
            logging::identify(&mut config.log, &record)?;
            self.write_config(&config)?;
        }
        self.tell(&record, "rename", &[("oldName", &format!("/{}", instance.record.name))]);
        Ok(())
    }

    /// An instance's processes.
    ///
    /// # Errors
    /// It does not run.
    pub fn processes(&self, instance: &Instance) -> Result<Vec<ProcessInfo>> {
        match self.connect(instance)?.call(Request::Processes)? {
            Response::Processes { processes } => Ok(processes),
            other => Err(unexpected(instance, &other)),
        }
    }

    /// An instance's use of resources.
    ///
    /// # Errors
    /// It does not run.
    pub fn stats(&self, channel: &mut Channel, instance: &Instance) -> Result<Stats> {
        match channel.call(Request::Stats)? {
            Response::Stats(stats) => Ok(*stats),
            other => Err(unexpected(instance, &other)),
        }
    }
}

pub(crate) fn unexpected(instance: &Instance, response: &Response) -> Error {
    Error::Protocol {
        instance: instance.record.name.clone(),
        what: format!("unexpected answer {response:?}"),
    }
}

/// The level a user names.
///
/// # Errors
/// There is no such level.
pub fn parse_level(text: &str) -> Result<IsolationLevel> {
    match text {
        "" | "default" | "container" => Ok(IsolationLevel::Container),
        "vm" => Ok(IsolationLevel::Vm),
        other => Err(Error::Invalid {
            message: format!("no such isolation level: {other:?}"),
            hint: "container or vm".into(),
        }),
    }
}
