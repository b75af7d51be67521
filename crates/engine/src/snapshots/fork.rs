//! Instances that go on from where another is, or was.

use std::thread::available_parallelism;

use proa_protocol::message::Request;
use proa_protocol::snapshot::Resume;
use rustix::fs::FlockOperation;

use super::{Work, check_vm};
use crate::channel::Channel;
use crate::create::{CreateRequest, Created};
use crate::db::Record;
use crate::engine::{Engine, Instance};
use crate::error::Result;
use crate::logging::LogSettings;
use crate::names;
use crate::network::EndpointConfig;
use crate::settings::{NetworkSettings, SecuritySettings};

/// The snapshot of an instance as it is, for forks alone; gone when they run.
const NOW: &str = ".fork";

/// Which forks to make.
#[derive(Debug, Clone)]
pub struct ForkRequest {
    /// Snapshot to go on from; that of now where there is none.
    pub snapshot: Option<String>,
    /// How many.
    pub count: u32,
    /// Their name; where there are several, before a number.
    pub name: Option<String>,
    /// What holds for every instance of the host.
    pub settings: SecuritySettings,
    /// The same of networks.
    pub network: NetworkSettings,
    /// What becomes of output where nobody says so.
    pub log: LogSettings,
}

impl Engine {
    /// Makes instances like this one that go on from where it is, or was. `running` is given each as it runs.
    ///
    /// # Errors
    /// It does not run or cannot be copied, there is no such snapshot, or one of them does not start: those that run
    /// stay.
    pub fn fork(
        &self,
        instance: &Instance,
        request: &ForkRequest,
        running: &mut dyn FnMut(&Record),
    ) -> Result<()> {
        check_vm(instance)?;
        let directory = self.snapshots_of(instance);
        match &request.snapshot {
            Some(name) => {
                let work = Work::begin(directory, FlockOperation::LockShared)?;
                let snapshot = work.existing(instance, name)?;
                self.start_forks(instance, request, &Resume { snapshot, is_fork: true }, running)
            }
            None => {
                let work = Work::begin(directory, FlockOperation::LockExclusive)?;
                self.fill(instance, &work, None)?;
                let snapshot = work.shelf.publish(NOW)?;
                let started =
                    self.start_forks(instance, request, &Resume { snapshot, is_fork: true }, running);
                started.and(work.shelf.clear())
            }
        }
    }

    /// As many at a time as there are CPUs.
    fn start_forks(
        &self,
        instance: &Instance,
        request: &ForkRequest,
        resume: &Resume,
        running: &mut dyn FnMut(&Record),
    ) -> Result<()> {
        let at_once = available_parallelism().map_or(1, |count| count.get() as u32);
        let numbers: Vec<u32> = (1..=request.count).collect();
        for numbers in numbers.chunks(at_once as usize) {
            let begun: Vec<_> =
                numbers.iter().map(|&number| self.begin_fork(instance, request, number, resume)).collect();
            let mut done = Ok(());
            // Of those that were begun together each is waited for, whatever becomes of the others.
            for begun in begun {
                let ended = begun.and_then(|begun| self.finish_fork(begun)).map(|record| running(&record));
                done = done.and(ended);
            }
            done?;
        }
        Ok(())
    }

    fn begin_fork(
        &self,
        instance: &Instance,
        request: &ForkRequest,
        number: u32,
        resume: &Resume,
    ) -> Result<(Created, Channel)> {
        let name = request.name.as_ref().map(|name| match request.count {
            1 => name.clone(),
            _ => format!("{name}-{number}"),
        });
        // What there is to say of one there is of each.
        let notice = if number == 1 { self.notice } else { |_: &str| {} };
        let created = self.create(request_of(self, &instance.record, name, request)?)?;
        let channel = self.write_resume(&created.record.id, resume).and_then(|()| {
            let mut channel = self.spawn_monitor_with(&created.record, notice)?;
            channel.send(&[Request::Start])?;
            Ok(channel)
        });
        match channel {
            Ok(channel) => Ok((created, channel)),
            Err(error) => {
                self.undo(&created.record);
                Err(error)
            }
        }
    }

    fn finish_fork(&self, (created, mut channel): (Created, Channel)) -> Result<Record> {
        match channel.response() {
            Ok(_) => Ok(created.record),
            Err(error) => {
                // The first failure is the one to tell.
                let _ = self.remove_ended(&created.record.id, true);
                Err(error)
            }
        }
    }
}

/// An instance like that of the record, without what only one can have.
fn request_of(
    engine: &Engine,
    record: &Record,
    name: Option<String>,
    request: &ForkRequest,
) -> Result<CreateRequest> {
    let (mut config, mut host_config) = (record.config.clone(), (*record.host_config).clone());
    if config.hostname == names::short(&record.id) {
        config.hostname.clear();
    }
    for network in &mut host_config.networks {
        let (network_name, aliases) =
            (std::mem::take(&mut network.network), std::mem::take(&mut network.aliases));
        *network = EndpointConfig { network: network_name, aliases, ..EndpointConfig::default() };
    }
    for binding in host_config.port_bindings.values_mut().flatten() {
        // Any that is free.
        binding.host_port.clear();
    }
    host_config.container_id_file.clear();
    let image = engine.store()?.resolve(&record.image_id)?;
    let ForkRequest { settings, network, log, .. } = request.clone();
    Ok(CreateRequest {
        name,
        image,
        config,
        host_config,
        level: record.level,
        settings,
        network,
        log,
        standby: 0,
    })
}
