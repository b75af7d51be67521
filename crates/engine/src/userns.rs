//! User namespaces of root's containers: `--userns`, `--uidmap`, `--gidmap`.
//!
//! | asked for | ids inside are |
//! | --- | --- |
//! | `host`, nothing | the host's |
//! | `auto`, `auto:size=COUNT` | a range that no other instance of this root has, claimed in the database |
//! | maps | what the maps say |
//!
//! Ranges for `auto` are those of the user `containers` in `/etc/subuid` and `/etc/subgid`, else that of
//! `[security] userns-range`.
//!
//! Layers keep the owners they were unpacked with: the runtime mounts them with ids mapped by the kernel, below an
//! overlay whose writable layer belongs to the mapped root. Volumes keep the owners that the host knows.

use proa_oci::runtime::{IdMapping, Namespace, NamespaceKind, Spec};
use proa_protocol::instance::IsolationLevel;

use crate::config::HostConfig;
use crate::db::{IdPools, Record};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::rootless::ids;
use crate::settings::{DefaultUserns, SecuritySettings};

/// Ids of a container where nobody says how many: what images use.
const DEFAULT_COUNT: u32 = 65536;
/// Lines of a map that the kernel takes.
const MAX_LINES: usize = 340;

/// What `--userns` and the maps come to.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Mode {
    Host,
    Auto(u32),
    Maps,
}

/// Writes out what the user left to a rule, and refuses what cannot be.
///
/// # Errors
/// The mode or a map makes no sense, or does not go with another option, the level or the user.
pub fn complete(host: &mut HostConfig, level: IsolationLevel, settings: &SecuritySettings) -> Result<()> {
    let maps = &mut host.id_mappings;
    let has_maps = !maps.uid_map.is_empty() || !maps.gid_map.is_empty();
    if has_maps {
        if maps.uid_map.is_empty() {
            maps.uid_map.clone_from(&maps.gid_map);
        } else if maps.gid_map.is_empty() {
            maps.gid_map.clone_from(&maps.uid_map);
        }
        if !matches!(host.userns_mode.as_str(), "" | "private") {
            return Err(Error::invalid("--userns and --uidmap or --gidmap exclude each other"));
        }
        "private".clone_into(&mut host.userns_mode);
    }
    let is_root = proa_sys::userns::is_initial();
    // A guest's kernel is a wall of its own, and an ordinary user's root is no root of the host's already.
    let takes_default = host.userns_mode.is_empty() && level == IsolationLevel::Container && is_root;
    if takes_default && settings.userns == Some(DefaultUserns::Auto) {
        "auto".clone_into(&mut host.userns_mode);
    }
    if parse(&host.userns_mode, has_maps)? == Mode::Host {
        return Ok(());
    }
    check(host, level, is_root)?;
    id_maps(host).map(drop)
}

fn parse(mode: &str, has_maps: bool) -> Result<Mode> {
    match mode {
        "private" if has_maps => Ok(Mode::Maps),
        "" | "host" => Ok(Mode::Host),
        "auto" => Ok(Mode::Auto(DEFAULT_COUNT)),
        "keep-id" => Err(Error::unsupported(
            "--userns keep-id is not there: it needs layers with other owners, which the kernel maps for root alone",
            "as an ordinary user, root inside is that user: leave it out; as root, use --userns auto",
        )),
        other => match other.strip_prefix("auto:size=").and_then(|count| count.parse().ok()) {
            Some(count) if count > 0 => Ok(Mode::Auto(count)),
            _ => Err(Error::Invalid {
                message: format!("invalid --userns {other:?}"),
                hint: "host, auto, auto:size=COUNT, or --uidmap and --gidmap".into(),
            }),
        },
    }
}

fn check(host: &HostConfig, level: IsolationLevel, is_root: bool) -> Result<()> {
    let mode = &host.userns_mode;
    if level == IsolationLevel::Vm {
        return Err(Error::unsupported(
            format!(
                "--userns {mode} means nothing at isolation level vm: root inside is root of the guest alone"
            ),
            "leave it out: the guest's kernel is the wall",
        ));
    }
    if !is_root {
        return Err(Error::unsupported(
            format!("--userns {mode} needs root: the kernel maps the owners of layers for root alone"),
            "leave it out: as an ordinary user, root inside is that user and never root of the host",
        ));
    }
    if host.privileged {
        return Err(Error::invalid_with_hint(
            format!("--privileged does not go with --userns {mode}"),
            "--userns host gives it the host's ids",
        ));
    }
    if host.network_mode == "host" {
        return Err(Error::invalid_with_hint(
            format!("--network host does not go with --userns {mode}"),
            "--userns host gives it the host's ids",
        ));
    }
    Ok(())
}

/// The maps that were asked for or claimed.
fn id_maps(host: &HostConfig) -> Result<[Vec<IdMapping>; 2]> {
    let maps = &host.id_mappings;
    Ok([parse_map("--uidmap", &maps.uid_map)?, parse_map("--gidmap", &maps.gid_map)?])
}

fn parse_map(flag: &str, texts: &[String]) -> Result<Vec<IdMapping>> {
    let wrong = |message: String| {
        Err(Error::invalid_with_hint(
            message,
            "INSIDE:OUTSIDE:COUNT, as 0:100000:65536; without COUNT it is 1",
        ))
    };
    let mut map: Vec<IdMapping> = Vec::new();
    for text in texts {
        let Some(range) = parse_range(text) else { return wrong(format!("invalid {flag} {text:?}")) };
        let meets = |a: u32, b: u32, other: &IdMapping| {
            u64::from(a) < u64::from(b) + u64::from(other.size)
                && u64::from(b) < u64::from(a) + u64::from(range.size)
        };
        if map.iter().any(|other| {
            meets(range.container_id, other.container_id, other) || meets(range.host_id, other.host_id, other)
        }) {
            return wrong(format!("{flag} {text:?} has ids of another {flag}"));
        }
        map.push(range);
    }
    if map.len() > MAX_LINES {
        return wrong(format!("more than {MAX_LINES} of {flag}"));
    }
    if !map.is_empty() && !map.iter().any(|range| range.container_id == 0) {
        return wrong(format!("no {flag} begins with 0, the id of root inside"));
    }
    Ok(map)
}

fn parse_range(text: &str) -> Option<IdMapping> {
    let numbers: Option<Vec<u32>> = text.split(':').map(|number| number.parse().ok()).collect();
    let (container_id, host_id, size) = match numbers?[..] {
        [inside, outside] => (inside, outside, 1),
        [inside, outside, count] => (inside, outside, count),
        _ => return None,
    };
    let fits = |first: u32| first.checked_add(size).is_some();
    (size > 0 && fits(container_id) && fits(host_id)).then_some(IdMapping { container_id, host_id, size })
}

/// Where ranges for `auto` come from.
fn pools(settings: &SecuritySettings) -> Result<IdPools> {
    let pools = IdPools { uids: ids::of_containers("/etc/subuid"), gids: ids::of_containers("/etc/subgid") };
    if !pools.uids.is_empty() && !pools.gids.is_empty() {
        return Ok(pools);
    }
    let Some(range) = settings.userns_range else {
        return Err(Error::unsupported(
            "--userns auto needs ids: the user `containers` has no range in /etc/subuid and /etc/subgid",
            "add containers:2147483647:2147483648 to both, or userns-range = \"2147483647:2147483648\" to \
             [security] in the configuration file",
        ));
    };
    let range = vec![(range.first, range.count)];
    Ok(IdPools { uids: range.clone(), gids: range })
}

impl Engine {
    /// Gives an instance its user namespace, if it is to have one; the record is in the database already.
    ///
    /// # Errors
    /// No ids are left.
    pub(crate) fn claim_ids(
        &self,
        record: &mut Record,
        spec: &mut Spec,
        settings: &SecuritySettings,
    ) -> Result<()> {
        let host = &mut record.host_config;
        match parse(&host.userns_mode, !host.id_mappings.uid_map.is_empty())? {
            Mode::Host => return Ok(()),
            Mode::Maps => {}
            Mode::Auto(count) => {
                let (uid, gid) = self.db.claim_ids(&record.id, count, &pools(settings)?)?;
                host.id_mappings.uid_map = vec![format!("0:{uid}:{count}")];
                host.id_mappings.gid_map = vec![format!("0:{gid}:{count}")];
                self.db.set_host_config(&record.id, host)?;
            }
        }
        let linux = spec.linux_mut();
        [linux.uid_mappings, linux.gid_mappings] = id_maps(host)?;
        linux.namespaces.push(Namespace { kind: NamespaceKind::User, path: None });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::IdMappings;

    fn host(mode: &str, uids: &[&str], gids: &[&str]) -> HostConfig {
        let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        HostConfig {
            userns_mode: mode.into(),
            id_mappings: IdMappings { uid_map: texts(uids), gid_map: texts(gids) },
            ..HostConfig::default()
        }
    }

    fn complete(mut host: HostConfig, level: IsolationLevel) -> Result<HostConfig> {
        super::complete(&mut host, level, &SecuritySettings::default()).map(|()| host)
    }

    #[test]
    fn one_map_serves_for_both_and_makes_a_namespace() {
        let host = complete(host("", &["0:100000:10", "10:5"], &[]), IsolationLevel::Container).unwrap();
        assert_eq!(host.userns_mode, "private");
        assert_eq!(host.id_mappings.gid_map, ["0:100000:10", "10:5"]);
        assert_eq!(id_maps(&host).unwrap()[0][1], IdMapping { container_id: 10, host_id: 5, size: 1 });
    }

    #[test]
    fn nonsense_is_refused() {
        let container = |mode: &str, map: &[&str]| complete(host(mode, map, &[]), IsolationLevel::Container);
        for map in ["0", "0:1:0", "x:1:1", "0:4294967295:2", "1:100000:5", "0:1:1:1", ""] {
            assert!(container("", &[map]).is_err(), "{map}");
        }
        assert!(container("", &["0:100:5", "4:200:1"]).is_err());
        assert!(container("", &["0:100:5", "9:104:1"]).is_err());
        assert!(container("auto", &["0:100:5"]).is_err());
        for mode in ["private", "auto:size=0", "auto:size=x", "auto:uidmapping=0:0:1", "ns:/x", "keep-id"] {
            assert!(container(mode, &[]).is_err(), "{mode}");
        }
    }

    #[test]
    fn what_does_not_go_together_is_refused_and_the_default_gives_way() {
        assert!(complete(host("auto", &[], &[]), IsolationLevel::Vm).unwrap_err().hint().contains("wall"));
        let with = |change: fn(&mut HostConfig), mode: &str| {
            let mut host = host(mode, &[], &[]);
            change(&mut host);
            let settings = SecuritySettings { userns: Some(DefaultUserns::Auto), ..Default::default() };
            super::complete(&mut host, IsolationLevel::Container, &settings).map(|()| host.userns_mode)
        };
        assert_eq!(with(|_| (), "").unwrap(), "auto");
        assert_eq!(with(|_| (), "host").unwrap(), "host");
        assert_eq!(with(|host| host.privileged = true, "host").unwrap(), "host");
        assert!(with(|host| host.privileged = true, "").unwrap_err().hint().contains("--userns host"));
        assert!(with(|host| host.network_mode = "host".into(), "").is_err());
        let mut guest = host("", &[], &[]);
        let settings = SecuritySettings { userns: Some(DefaultUserns::Auto), ..Default::default() };
        super::complete(&mut guest, IsolationLevel::Vm, &settings).unwrap();
        assert_eq!(guest.userns_mode, "");
    }
}
