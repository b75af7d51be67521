//! Rows of networks, and of the addresses that instances have claimed in them (`crate::db`).

use ipnet::IpNet;
use rusqlite::{OptionalExtension, Transaction, params};

use super::choose::{address_at, offset_of};
use super::{NetworkRecord, SubnetConfig};
use crate::db::{Database, is_constraint, key_of, key_range};
use crate::error::{Error, Result};

/// The key of what belongs to no instance: gateways and reserved addresses.
const NOBODY: i64 = -1;

impl Database {
    /// Claims a network's name, and the addresses in it that no instance gets.
    pub(super) fn insert_network(&self, record: &NetworkRecord) -> Result<()> {
        let failed = |error| self.failed("add a network")(error);
        let transaction = self.begin()?;
        let json = serde_json::to_string(record).unwrap_or_default();
        let sql = "INSERT INTO networks (key, id, name, created_ns, config) VALUES (?1, ?2, ?3, ?4, ?5)";
        let values = params![key_of(&record.id), record.id, record.name, record.created_ns, json];
        match transaction.execute(sql, values) {
            Err(error) if is_constraint(&error) => {
                return Err(Error::conflict(
                    format!("there is a network of the name {} already", record.name),
                    "choose another, or `proa network rm` it first",
                ));
            }
            other => other.map_err(failed)?,
        };
        for (version, config) in record.subnets.iter().enumerate() {
            let named = config.gateway.into_iter().chain(config.reserved.values().copied());
            for offset in named.filter_map(|address| offset_of(&config.subnet, address)) {
                let sql = "INSERT OR IGNORE INTO addresses VALUES (?1, ?2, ?3, ?4)";
                let values = params![key_of(&record.id), version as i64, offset as i64, NOBODY];
                transaction.execute(sql, values).map_err(failed)?;
            }
        }
        transaction.commit().map_err(failed)
    }

    /// The network with this name, id, or beginning of an id.
    pub(super) fn find_network(&self, text: &str) -> Result<Option<NetworkRecord>> {
        let failed = |error| self.failed("look up a network")(error);
        let sql = "SELECT config FROM networks WHERE name = ?1";
        let by_name = self.connection().query_row(sql, [text], network).optional().map_err(failed)?;
        if by_name.is_some() {
            return Ok(by_name);
        }
        let Some((low, high)) = key_range(text) else { return Ok(None) };
        let sql = "SELECT config FROM networks WHERE key BETWEEN ?1 AND ?2";
        let mut statement = self.connection().prepare(sql).map_err(failed)?;
        let rows = statement.query_map([low, high], network).map_err(failed)?;
        let mut found: Vec<NetworkRecord> = rows.collect::<rusqlite::Result<_>>().map_err(failed)?;
        found.retain(|record| record.id.starts_with(text));
        match (found.pop(), found.pop()) {
            (one, None) => Ok(one),
            _ => Err(Error::invalid(format!("more than one network id begins with {text}"))),
        }
    }

    /// All of them, the oldest first.
    pub(super) fn networks(&self) -> Result<Vec<NetworkRecord>> {
        let failed = |error| self.failed("list networks")(error);
        let mut statement = self
            .connection()
            .prepare("SELECT config FROM networks ORDER BY created_ns, id")
            .map_err(failed)?;
        let rows = statement.query_map([], network).map_err(failed)?;
        rows.collect::<rusqlite::Result<_>>().map_err(failed)
    }

    /// Names of the instances that have a place in a network.
    pub(super) fn network_users(&self, id: &str) -> Result<Vec<String>> {
        let failed = |error| self.failed("list a network's instances")(error);
        let sql =
            "SELECT DISTINCT name FROM addresses JOIN instances USING (key) WHERE network = ?1 ORDER BY name";
        let mut statement = self.connection().prepare(sql).map_err(failed)?;
        let rows = statement.query_map([key_of(id)], |row| row.get(0)).map_err(failed)?;
        rows.collect::<rusqlite::Result<_>>().map_err(failed)
    }

    /// Forgets a network, unless an instance has got a place in it meanwhile; false where it was not there or stays.
    pub(super) fn delete_network(&self, id: &str) -> Result<bool> {
        let failed = |error| self.failed("remove a network")(error);
        let transaction = self.begin()?;
        let sql = "DELETE FROM networks WHERE key = ?1 AND NOT EXISTS \
                   (SELECT 1 FROM addresses WHERE network = ?1 AND key <> ?2)";
        let count = transaction.execute(sql, params![key_of(id), NOBODY]).map_err(failed)?;
        if count > 0 {
            transaction.execute("DELETE FROM addresses WHERE network = ?1", [key_of(id)]).map_err(failed)?;
        }
        transaction.commit().map_err(failed)?;
        Ok(count > 0)
    }

    /// Claims an address in each of a network's subnets for an instance: the one that is wanted, else the first that
    /// is free.
    pub(super) fn claim_addresses(
        &self,
        instance: &str,
        network: &NetworkRecord,
        wanted: &[std::net::IpAddr],
    ) -> Result<Vec<IpNet>> {
        let failed = |error| self.failed("claim an address")(error);
        for address in wanted {
            if !network.subnets.iter().any(|config| config.subnet.contains(address)) {
                return Err(Error::invalid(format!("{address} is in no subnet of network {}", network.name)));
            }
        }
        let transaction = self.begin()?;
        let exists = "SELECT 1 FROM networks WHERE key = ?1";
        let there = transaction.query_row(exists, [key_of(&network.id)], |_| Ok(())).optional();
        if there.map_err(failed)?.is_none() {
            return Err(Error::NoSuchNetwork(network.name.clone()));
        }
        let mut claimed = Vec::new();
        for (version, config) in network.subnets.iter().enumerate() {
            let place = Place { network: key_of(&network.id), version: version as i64, config };
            let named = wanted.iter().find(|address| config.subnet.contains(*address)).copied();
            let offset = match named {
                Some(address) => offset_of(&config.subnet, address)
                    .ok_or_else(|| Error::invalid(format!("{address} is too far from its subnet's first")))?,
                None => place.first_free(&transaction).map_err(failed)?.ok_or_else(|| {
                    Error::conflict(
                        format!("network {} has no free address left in {}", network.name, config.subnet),
                        "remove instances, or make a network with a larger --subnet",
                    )
                })?,
            };
            let address = address_at(&config.subnet, offset);
            if !place.take(&transaction, offset, key_of(instance)).map_err(failed)? {
                return Err(Error::conflict(
                    format!("address {address} of network {} is taken", network.name),
                    "choose another, or leave --ip out",
                ));
            }
            claimed.extend(IpNet::new(address, config.subnet.prefix_len()));
        }
        transaction.commit().map_err(failed)?;
        Ok(claimed)
    }

    /// Gives back what an instance has claimed in a network.
    pub(super) fn free_addresses(&self, instance: &str, network: &str) -> Result<()> {
        let sql = "DELETE FROM addresses WHERE key = ?1 AND network = ?2";
        let freed = self.connection().execute(sql, params![key_of(instance), key_of(network)]);
        freed.map(drop).map_err(self.failed("free an address"))
    }
}

/// One subnet of a network, in the database.
struct Place<'a> {
    network: i64,
    /// Which of its subnets.
    version: i64,
    config: &'a SubnetConfig,
}

impl Place<'_> {
    /// Offsets that instances get by themselves: not the subnet's first address, nor (of IPv4) its last.
    fn bounds(&self) -> (i64, i64) {
        let subnet = &self.config.subnet;
        let range = self.config.range.unwrap_or(*subnet);
        let at = |address| offset_of(subnet, address).map_or(i64::MAX, |offset| offset as i64);
        let (first, last) = (at(range.network()), at(range.broadcast()));
        let is_last = subnet.addr().is_ipv4() && range.broadcast() == subnet.broadcast();
        (first.max(1), if is_last { last - 1 } else { last })
    }

    fn first_free(&self, transaction: &Transaction) -> rusqlite::Result<Option<u64>> {
        let (first, last) = self.bounds();
        let sql = "SELECT host FROM addresses WHERE network = ?1 AND version = ?2 AND host = ?3";
        let taken =
            transaction.query_row(sql, params![self.network, self.version, first], |_| Ok(())).optional()?;
        if taken.is_none() {
            return Ok((first <= last).then_some(first as u64));
        }
        let sql = "SELECT a.host + 1 FROM addresses a WHERE a.network = ?1 AND a.version = ?2 AND a.host >= ?3 \
                   AND NOT EXISTS (SELECT 1 FROM addresses b \
                   WHERE b.network = ?1 AND b.version = ?2 AND b.host = a.host + 1) ORDER BY a.host LIMIT 1";
        let values = params![self.network, self.version, first];
        let gap: Option<i64> = transaction.query_row(sql, values, |row| row.get(0)).optional()?;
        Ok(gap.filter(|gap| *gap <= last).map(|gap| gap as u64))
    }

    fn take(&self, transaction: &Transaction, offset: u64, key: i64) -> rusqlite::Result<bool> {
        let sql = "INSERT OR IGNORE INTO addresses VALUES (?1, ?2, ?3, ?4)";
        let count = transaction.execute(sql, params![self.network, self.version, offset as i64, key])?;
        Ok(count > 0)
    }
}

fn network(row: &rusqlite::Row) -> rusqlite::Result<NetworkRecord> {
    let text: String = row.get(0)?;
    serde_json::from_str(&text).map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, error.into())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names;

    fn record(name: &str, subnet: &str) -> NetworkRecord {
        let mut record = NetworkRecord {
            id: names::fresh_id().unwrap(),
            name: name.into(),
            subnets: vec![SubnetConfig::new(subnet.parse().unwrap())],
            ..NetworkRecord::default()
        };
        super::super::choose::complete(&mut record, &[]).unwrap();
        record
    }

    fn claim(database: &Database, network: &NetworkRecord, wanted: &[&str]) -> Result<String> {
        let wanted: Vec<_> = wanted.iter().map(|text| text.parse().unwrap()).collect();
        let claimed = database.claim_addresses(&names::fresh_id()?, network, &wanted)?;
        Ok(claimed[0].to_string())
    }

    #[test]
    fn addresses_are_claimed_once_and_the_lowest_is_first() {
        let directory = tempfile::tempdir().unwrap();
        let database = Database::open(directory.path()).unwrap();
        let network = record("web", "198.18.1.0/29");
        database.insert_network(&network).unwrap();
        assert!(matches!(
            database.insert_network(&record("web", "198.18.2.0/29")),
            Err(Error::Conflict { .. })
        ));
        assert_eq!(database.find_network("web").unwrap().unwrap(), network);
        assert_eq!(database.find_network(&network.id[..7]).unwrap().unwrap(), network);
        assert_eq!(claim(&database, &network, &["198.18.1.3"]).unwrap(), "198.18.1.3/29");
        assert!(claim(&database, &network, &["198.18.1.3"]).unwrap_err().to_string().contains("is taken"));
        assert!(claim(&database, &network, &["10.0.0.1"]).is_err());
        let rest: Vec<String> = (0..4).map(|_| claim(&database, &network, &[]).unwrap()).collect();
        assert_eq!(rest, ["198.18.1.2/29", "198.18.1.4/29", "198.18.1.5/29", "198.18.1.6/29"]);
        assert!(claim(&database, &network, &[]).unwrap_err().to_string().contains("no free address"));
        assert!(!database.delete_network(&network.id).unwrap());
    }
}
