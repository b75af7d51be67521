//! `network connect` and `disconnect`: places of an instance that is there already.

use proa_protocol::message::Request;

use super::endpoints::{change_files, check_level};
use super::{EndpointConfig, NetworkRecord};
use crate::engine::{Engine, Instance};
use crate::error::{Error, Result};

impl Engine {
    /// Gives an instance a place in a network, at once if it runs.
    ///
    /// # Errors
    /// It has one there, shares another's network, or is a virtual machine that runs and has no device left.
    pub fn connect_network(
        &self,
        instance: &Instance,
        network: &NetworkRecord,
        mut asked: EndpointConfig,
    ) -> Result<()> {
        let (name, id) = (&instance.record.name, &instance.record.id);
        self.check_change(instance)?;
        check_level(network, instance.record.level)?;
        let _alone = self.alone(id)?;
        let mut config = self.read_config(id)?;
        if config.networks.iter().any(|endpoint| endpoint.network.id == network.id) {
            return Err(Error::conflict(
                format!("instance {name} is in network {} already", network.name),
                "",
            ));
        }
        let taken = |number: &usize| {
            config.networks.iter().any(|endpoint| endpoint.interface.name == format!("eth{number}"))
        };
        let number = (0..).find(|number| !taken(number)).unwrap_or_default();
        let mut endpoint = self.claim_endpoint(&instance.record, network, &asked, number)?;
        if config.networks.iter().any(|endpoint| !endpoint.interface.gateways.is_empty()) {
            endpoint.interface.gateways.clear();
        }
        let change = instance.is_live().then(|| Request::Connect(Box::new(endpoint.clone())));
        let before = config.networks.clone();
        config.networks.push(endpoint);
        change_files(&instance.record, &mut config, &before)?;
        if let Err(error) = self.change_places(instance, &config, change) {
            // The failure is what is to be told.
            let _ = self.db.free_addresses(id, &network.id);
            return Err(error);
        }
        asked.network.clone_from(&network.name);
        let mut host = (*instance.record.host_config).clone();
        host.networks.push(asked);
        self.note_places(instance, host)?;
        self.tell_network(network, "connect", &[("container", id.clone())]);
        Ok(())
    }

    /// Takes an instance's place in a network away, at once if it runs.
    ///
    /// # Errors
    /// It has none there, or its monitor refuses.
    pub fn disconnect_network(&self, instance: &Instance, network: &NetworkRecord) -> Result<()> {
        let (name, id) = (&instance.record.name, &instance.record.id);
        self.check_change(instance)?;
        let _alone = self.alone(id)?;
        let mut config = self.read_config(id)?;
        let before = config.networks.clone();
        config.networks.retain(|endpoint| endpoint.network.id != network.id);
        if config.networks.len() == before.len() {
            return Err(Error::conflict(format!("instance {name} is not in network {}", network.name), ""));
        }
        change_files(&instance.record, &mut config, &before)?;
        let change = instance.is_live().then(|| Request::Disconnect { network: network.id.clone() });
        self.change_places(instance, &config, change)?;
        self.db.free_addresses(id, &network.id)?;
        let mut host = (*instance.record.host_config).clone();
        host.networks.retain(|asked| asked.network != network.name);
        self.note_places(instance, host)?;
        self.tell_network(network, "disconnect", &[("container", id.clone())]);
        Ok(())
    }

    fn check_change(&self, instance: &Instance) -> Result<()> {
        let host = &instance.record.host_config;
        let mode = host.network_mode.as_str();
        if ["host", "none"].contains(&mode) || mode.starts_with("container:") {
            return Err(Error::conflict(
                format!("instance {} has --network {mode}, which goes with no other", instance.record.name),
                "make another instance with --network",
            ));
        }
        Ok(())
    }

    /// The configuration first: whoever starts the instance after a crash finds what was wanted.
    fn change_places(
        &self,
        instance: &Instance,
        config: &proa_protocol::instance::InstanceConfig,
        change: Option<Request>,
    ) -> Result<()> {
        let before = self.read_config(&instance.record.id)?;
        self.write_config(config)?;
        let Some(change) = change else { return Ok(()) };
        let mut monitor = self.connect(instance)?;
        monitor.command(change).inspect_err(|_| {
            // What does not hold now is not to hold later.
            let _ = self.write_config(&before);
        })?;
        // The place is there or gone by now: programs that look names up are to know.
        monitor.command(Request::Rewrite { files: config.launch.files.clone() })
    }

    fn note_places(&self, instance: &Instance, mut host: crate::config::HostConfig) -> Result<()> {
        // What has no place any more may get one again, unlike what was made with none.
        if let Some(first) = host.networks.first() {
            host.network_mode.clone_from(&first.network);
        }
        self.db.set_host_config(&instance.record.id, &host)
    }
}
