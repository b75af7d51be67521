//! The networks that are always there: `bridge`, `host` and `none`.
//!
//! `bridge` has a row once it is first needed. `host` and `none` are words for what an instance has in place of networks:
//! the host's own stack (a container alone has that: a guest's kernel has a stack of its own), or a loopback interface
//! alone. They are listed and looked at as networks, as in Docker, and nothing of them can be made, changed or removed.
//! Ids follow from the state directory, so that each of them has the same one from the start.

use proa_protocol::network::Endpoint;

use super::{DEFAULT, NetworkRecord, NetworkView};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::paths::fnv;

const HOST: &str = "host";
const NONE: &str = "none";

/// Whether a network of this name is always there.
pub fn is_predefined(name: &str) -> bool {
    [DEFAULT, HOST, NONE].contains(&name)
}

/// Refuses the name of a network that is no place: what goes with no other, and is chosen when an instance is made.
pub(super) fn refuse_word(name: &str) -> Result<()> {
    if ![HOST, NONE].contains(&name) {
        return Ok(());
    }
    Err(Error::conflict(
        format!("{name} is chosen when an instance is made, and goes with no other network"),
        format!("make another instance with --network {name}"),
    ))
}

impl NetworkRecord {
    /// The word for its driver.
    pub fn driver_word(&self) -> &'static str {
        match self.name.as_str() {
            HOST => HOST,
            NONE => "null",
            _ => self.driver.as_str(),
        }
    }
}

impl Engine {
    /// The id of a predefined network.
    pub(super) fn predefined_id(&self, name: &str) -> String {
        let root = self.paths.root.as_os_str().as_encoded_bytes();
        let part = |number: u8| fnv(&[&[number], name.as_bytes(), b"/", root].concat());
        (0..4).map(|number| format!("{:016x}", part(number))).collect()
    }

    fn predefined(&self, name: &str) -> NetworkRecord {
        NetworkRecord { id: self.predefined_id(name), name: name.into(), ..NetworkRecord::default() }
    }

    /// All networks by their names, those that are always there among them.
    ///
    /// # Errors
    /// The database failed.
    pub fn all_networks(&self) -> Result<Vec<NetworkRecord>> {
        let mut all = self.networks()?;
        for name in [DEFAULT, HOST, NONE] {
            if !all.iter().any(|record| record.name == name) {
                all.push(self.predefined(name));
            }
        }
        all.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(all)
    }

    /// `host` or `none`, by its name, its id or the beginning of that, with the instances that have it now.
    pub(super) fn view_word(&self, text: &str) -> Result<Option<NetworkView>> {
        let words = [HOST, NONE].map(|name| self.predefined(name));
        let is_meant =
            |record: &&NetworkRecord| record.name == text || text.len() >= 4 && record.id.starts_with(text);
        let Some(record) = words.iter().find(is_meant).cloned() else { return Ok(None) };
        let instances = self.instances()?.into_iter();
        let users =
            instances.filter(|found| found.is_live() && found.record.host_config.network_mode == record.name);
        let endpoints =
            users.map(|found| (found.record.id, found.record.name, Endpoint::default())).collect();
        Ok(Some(NetworkView { record, endpoints }))
    }
}
