//! Options of a network's driver, by Docker's names.

use proa_protocol::network::Driver;

use super::NetworkRecord;
use crate::error::{Error, Result};

pub(super) const TALK: &str = "com.docker.network.bridge.enable_icc";
pub(super) const MASQUERADE: &str = "com.docker.network.bridge.enable_ip_masquerade";
pub(super) const MTU: &str = "com.docker.network.driver.mtu";
/// Address at which ports are published where `-p` names none.
pub(super) const PUBLISH_AT: &str = "com.docker.network.bridge.host_binding_ipv4";
const NAME: &str = "com.docker.network.bridge.name";
const PARENT: &str = "parent";
const MACVLAN_MODE: &str = "macvlan_mode";
/// Longest name of an interface.
const MAX_NAME: usize = 15;

/// Checks them, and takes the name of the host's interface from them.
pub(super) fn check(record: &mut NetworkRecord) -> Result<()> {
    for (key, value) in record.options.clone() {
        let fits = match (key.as_str(), record.driver) {
            (TALK | MASQUERADE, Driver::Bridge) => value == "true" || value == "false",
            (MTU, _) => value.parse::<u32>().is_ok_and(|mtu| (68..=65535).contains(&mtu)),
            (PUBLISH_AT, Driver::Bridge) => value.parse::<std::net::Ipv4Addr>().is_ok(),
            (NAME, Driver::Bridge) | (PARENT, Driver::Macvlan) => {
                record.bridge.clone_from(&value);
                is_interface(&value)
            }
            (MACVLAN_MODE, Driver::Macvlan) => value == "bridge",
            _ => {
                return Err(Error::Invalid {
                    message: format!("unknown option {key:?} of this driver"),
                    hint: "COMPATIBILITY.md lists them".into(),
                });
            }
        };
        if !fits {
            return Err(Error::invalid(format!("option {key} cannot be {value:?}")));
        }
    }
    if record.driver == Driver::Macvlan && record.bridge.is_empty() {
        return Err(Error::Invalid {
            message: "a macvlan network needs an interface of the host".into(),
            hint: "name one with -o parent=INTERFACE".into(),
        });
    }
    Ok(())
}

fn is_interface(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    !name.is_empty() && name.len() <= MAX_NAME && !name.starts_with('.') && name.bytes().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(driver: Driver, key: &str, value: &str) -> Result<NetworkRecord> {
        let options = [(key.to_owned(), value.to_owned())].into();
        let mut record = NetworkRecord { driver, options, ..NetworkRecord::default() };
        check(&mut record).map(|()| record)
    }

    #[test]
    fn what_is_unknown_or_makes_no_sense_is_refused() {
        assert_eq!(with(Driver::Bridge, NAME, "br7").unwrap().bridge, "br7");
        assert_eq!(with(Driver::Macvlan, PARENT, "eth0.7").unwrap().bridge, "eth0.7");
        assert!(!with(Driver::Bridge, TALK, "false").unwrap().network().talk);
        for (driver, key, value) in [
            (Driver::Bridge, NAME, "a/b"),
            (Driver::Bridge, NAME, "0123456789abcdef"),
            (Driver::Bridge, TALK, "no"),
            (Driver::Bridge, MTU, "20"),
            (Driver::Bridge, "what", "1"),
            (Driver::Macvlan, MACVLAN_MODE, "vepa"),
            (Driver::Macvlan, MTU, "1400"),
        ] {
            assert!(with(driver, key, value).is_err(), "{key} {value}");
        }
    }
}
