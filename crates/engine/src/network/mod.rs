//! Networks: which there are, and which place an instance has in them.
//!
//! ```text
//!   create ─ subnet chosen, row claimed, bridge made ─▶ there ─ no instance has a place in it ─▶ rm
//!   an instance's create  ─ addresses claimed in the database, endpoints written into instance.json
//!   an instance's start   ─ its monitor makes links, published ports and the firewall's elements (`proa_network`)
//! ```
//!
//! Claims are rows: of two that want a name or an address, one inserts and the other learns that it is taken. They are
//! free again when the instance is removed, so a stopped instance keeps its addresses. Ports of the host are claimed by
//! the kernel, which lets a start bind each of them once.
//!
//! The network `bridge` is where instances are that name none; it is made when first needed. `none` and `host` are no
//! networks of the database, only words (`predefined`).

mod check;
mod choose;
mod connect;
mod db;
mod endpoints;
mod mode;
mod options;
pub mod ports;
mod predefined;
mod resolver;
mod rows;
mod view;

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use proa_network::firewall::Firewall;
use proa_network::{Switch, attach, files};
use proa_protocol::network::{Driver, Endpoint, Live, Network, Subnet, table_name};
use serde::{Deserialize, Serialize};

use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::prune::PruneFilters;
use crate::{names, parse};

pub use endpoints::EndpointConfig;
pub use mode::Mode;
pub use predefined::is_predefined;
pub use rows::NetworkFilters;
pub(crate) use view::settings;
pub use view::{ports_text, published};

/// The network of instances that name none.
pub const DEFAULT: &str = "bridge";

/// A network as it was asked for.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct NetworkRecord {
    /// 64 hexadecimal digits.
    pub id: String,
    /// Its name.
    pub name: String,
    /// When it was made, nanoseconds since the epoch.
    pub created_ns: i64,
    /// Kind of its interfaces.
    pub driver: Driver,
    /// The host's interface.
    pub bridge: String,
    /// Its addresses, at most one subnet for each IP version.
    pub subnets: Vec<SubnetConfig>,
    /// Cut off from everything outside.
    pub internal: bool,
    /// Whether `--ipv6` was given.
    pub ipv6: bool,
    /// Driver's options, as given.
    pub options: BTreeMap<String, String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

/// The addresses of a network in one IP version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubnetConfig {
    /// All of them.
    pub subnet: IpNet,
    /// The way out, and where the network's names are answered.
    pub gateway: Option<IpAddr>,
    /// Those that instances get by themselves; all where it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub range: Option<IpNet>,
    /// Addresses that no instance gets.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub reserved: BTreeMap<String, IpAddr>,
}

/// A network with those that have a place in it.
#[derive(Debug, Clone, PartialEq)]
pub struct NetworkView {
    /// The network.
    pub record: NetworkRecord,
    /// Instances that run: id, name, place.
    pub endpoints: Vec<(String, String, Endpoint)>,
}

impl NetworkRecord {
    /// What monitors and the resolver have to know of it.
    pub fn network(&self) -> Network {
        let flag = |name: &str| self.options.get(name).is_none_or(|value| value != "false");
        let subnet = |config: &SubnetConfig| Subnet { subnet: config.subnet, gateway: config.gateway };
        Network {
            id: self.id.clone(),
            name: self.name.clone(),
            driver: self.driver,
            bridge: self.bridge.clone(),
            subnets: self.subnets.iter().map(subnet).collect(),
            internal: self.internal,
            talk: flag(options::TALK),
            masquerade: flag(options::MASQUERADE),
            mtu: self.options.get(options::MTU).and_then(|mtu| mtu.parse().ok()).unwrap_or(0),
        }
    }
}

impl Engine {
    /// Makes a network; gives its id. An empty `bridge` and no subnets are chosen here.
    ///
    /// # Errors
    /// The name is taken, something makes no sense, or the host refuses.
    pub fn create_network(&self, mut record: NetworkRecord) -> Result<NetworkRecord> {
        if record.driver == Driver::Macvlan && !proa_sys::userns::is_initial() {
            return Err(Error::unsupported(
                "a macvlan is root's: an ordinary user has no rights over the host's interfaces",
                "use the driver bridge, or run proa as root",
            ));
        }
        names::check_name(&record.name)?;
        if is_predefined(&record.name) || ["default", "container"].contains(&record.name.as_str()) {
            return Err(Error::invalid_with_hint(
                format!("{} is no name for a network: it has a meaning", record.name),
                "choose another",
            ));
        }
        record.id = names::fresh_id()?;
        self.make_network(record)
    }

    /// Makes a network with the id and the name that it has.
    fn make_network(&self, mut record: NetworkRecord) -> Result<NetworkRecord> {
        options::check(&mut record)?;
        record.created_ns = parse::now_ns();
        if record.bridge.is_empty() {
            record.bridge = format!("pr-{}", names::short(&record.id));
        }
        if record.ipv6 && !proa_network::link::has_version_6() {
            return Err(Error::unsupported(
                "this host has no IPv6",
                "boot it without ipv6.disable=1, or leave --ipv6 out",
            ));
        }
        // Of two roots that look for a free subnet at once, one sees the other's bridge. A user's are its own.
        let _host = proa_sys::userns::is_initial().then(files::Lock::of_host).transpose()?;
        choose::complete(&mut record, &self.db.networks()?)?;
        self.db.insert_network(&record)?;
        if let Err(error) = self.bring_up(&record.network()) {
            // A network without its bridge can be removed; the first failure is the one to tell.
            let _ = self.forget_network(&record);
            return Err(error);
        }
        self.tell_network(&record, "create", &[]);
        Ok(record)
    }

    fn bring_up(&self, network: &Network) -> Result<()> {
        Ok(attach::ensure(&self.paths.run, &self.switch()?, &self.firewall(), network)?)
    }

    /// The tables of this root.
    pub(crate) fn firewall(&self) -> Firewall {
        Firewall::new(table_name(&self.paths.run))
    }

    /// The network of this name, id, or beginning of an id; the default one is made if it is not there.
    ///
    /// # Errors
    /// There is none, or more than one.
    pub fn network(&self, text: &str) -> Result<NetworkRecord> {
        if let Some(found) = self.db.find_network(text)? {
            return Ok(found);
        }
        if text == DEFAULT {
            let id = self.predefined_id(DEFAULT);
            let made =
                self.make_network(NetworkRecord { id, name: DEFAULT.into(), ..NetworkRecord::default() });
            return match made {
                // Another command was faster.
                Err(Error::Conflict { .. }) => self.network(text),
                other => other,
            };
        }
        predefined::refuse_word(text)?;
        Err(Error::NoSuchNetwork(text.to_owned()))
    }

    /// All networks, the oldest first.
    ///
    /// # Errors
    /// The database failed.
    pub fn networks(&self) -> Result<Vec<NetworkRecord>> {
        self.db.networks()
    }

    /// A network with the instances that are in it now.
    ///
    /// # Errors
    /// There is none.
    pub fn view_network(&self, text: &str) -> Result<NetworkView> {
        let record = match self.db.find_network(text)? {
            Some(record) => record,
            None => match self.view_word(text)? {
                Some(view) => return Ok(view),
                None => self.network(text)?,
            },
        };
        let (_, places) = files::read_all(&self.paths.run);
        let mut endpoints = Vec::new();
        for (instance, Live { endpoint, .. }) in places {
            if endpoint.network.id == record.id
                && let Some(found) = self.db.by_id(&instance)?
            {
                endpoints.push((instance, found.name, endpoint));
            }
        }
        Ok(NetworkView { record, endpoints })
    }

    /// Removes a network that no instance has a place in.
    ///
    /// # Errors
    /// One has, or it is one that is always there.
    pub fn remove_network(&self, record: &NetworkRecord) -> Result<()> {
        if is_predefined(&record.name) {
            return Err(Error::conflict(
                format!("network {} is always there, and cannot be removed", record.name),
                "",
            ));
        }
        self.forget_network(record)
    }

    fn forget_network(&self, record: &NetworkRecord) -> Result<()> {
        let users = self.db.network_users(&record.id)?;
        if !users.is_empty() {
            return Err(Error::conflict(
                format!("network {} is in use by {}", record.name, users.join(", ")),
                format!("`proa network disconnect {} NAME`, or remove the instances", record.name),
            ));
        }
        if !self.db.delete_network(&record.id)? {
            return Ok(());
        }
        self.take_down(&record.network())?;
        self.tell_network(record, "destroy", &[]);
        Ok(())
    }

    /// Takes a network's bridge away.
    fn take_down(&self, network: &Network) -> Result<()> {
        let run = &self.paths.run;
        Ok(attach::remove(run, &Switch::of(run), &self.firewall(), network)?)
    }

    /// Removes networks that no instance has a place in, but not the default one. Gives their names.
    ///
    /// # Errors
    /// One cannot be removed.
    pub fn prune_networks(&self, filters: &PruneFilters) -> Result<Vec<String>> {
        let mut removed = Vec::new();
        for record in self.db.networks()? {
            if is_predefined(&record.name) || !filters.matches(record.created_ns, &record.labels) {
                continue;
            }
            match self.remove_network(&record) {
                Ok(()) => removed.push(record.name),
                Err(Error::Conflict { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(removed)
    }

    /// Takes all bridges and the firewall's tables of this root away; they come back when they are needed.
    pub(crate) fn take_down_networks(&self) -> Result<()> {
        if !self.paths.run.join(proa_protocol::network::DIRECTORY).exists() {
            return Ok(());
        }
        // An ordinary user's bridges go with their namespace, which the resolver keeps.
        self.end_resolver()?;
        for record in self.db.networks()? {
            self.take_down(&record.network())?;
        }
        let run = &self.paths.run;
        Ok(attach::remove_all(run, &Switch::of(run), &self.firewall())?)
    }

    fn tell_network(&self, record: &NetworkRecord, action: &str, more: &[(&str, String)]) {
        let fixed = [("name", record.name.clone()), ("type", record.driver_word().to_owned())];
        let attributes = fixed.iter().chain(more).map(|(key, value)| ((*key).to_owned(), value.clone()));
        self.tell_of("network", action, &record.id, attributes.collect());
    }
}
