//! User namespaces of containers: `--userns`, `--uidmap`, `--gidmap`.
//!
//! | asked for | ids inside are |
//! | --- | --- |
//! | `host`, nothing | the host's; an ordinary user's, those of [`crate::rootless`] |
//! | `auto`, `auto:size=COUNT` | root's containers: a range that no other instance of this root has, claimed in the database |
//! | maps | root's containers: what the maps say |
//! | `keep-id`, `keep-id:uid=ID,gid=ID` | an ordinary user's containers: the user has its own id, or the one given |
//!
//! Ranges for `auto` are those of the user `containers` in `/etc/subuid` and `/etc/subgid`, else that of
//! `[security] userns-range`.
//!
//! For root, layers keep the owners they were unpacked with: the runtime mounts them with ids mapped by the kernel, below
//! an overlay whose writable layer belongs to the mapped root. Volumes keep the owners that the host knows.
//!
//! An ordinary user's namespace has ids 0 (the user) to N. In the container's own below it, with `keep-id` of 1000,
//! 1000 is that 0, those below 1000 are one higher outside, and those above are the same. The kernel maps owners of
//! mounts for root alone, so there layers are unpacked once more, with such owners ([`KeptIds`]).

use std::path::Path;

use proa_image::layer::KeptIds;
use proa_oci::runtime::{IdMapping, Namespace, NamespaceKind, Spec};
use proa_protocol::instance::IsolationLevel;

use crate::config::{ContainerConfig, HostConfig};
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
    /// User and group that the user is to have inside, where they are not its own.
    Keep([Option<u32>; 2]),
}

/// Writes out what the user left to a rule, and refuses what cannot be.
///
/// # Errors
/// The mode or a map makes no sense, or does not go with another option, the level or the user.
pub fn complete(
    config: &mut ContainerConfig,
    host: &mut HostConfig,
    level: IsolationLevel,
    settings: &SecuritySettings,
) -> Result<()> {
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
    // A guest's kernel is a wall of its own.
    if host.userns_mode.is_empty() && level == IsolationLevel::Container {
        host.userns_mode.push_str(default_mode(settings.userns, is_root));
    }
    match parse(&host.userns_mode, has_maps)? {
        Mode::Host => Ok(()),
        Mode::Keep(wanted) => {
            check_keep(host, level, is_root)?;
            let outer =
                ids::extents().map_err(|error| Error::io("read", Path::new("/proc/self/uid_map"), error))?;
            keep(config, host, wanted, &outer)
        }
        Mode::Auto(_) | Mode::Maps => {
            check(host, level, is_root)?;
            id_maps(host).map(drop)
        }
    }
}

/// `auto` is for root, whose root inside would be the host's, and `keep-id` for others.
fn default_mode(default: Option<DefaultUserns>, is_root: bool) -> &'static str {
    match default {
        Some(DefaultUserns::Auto) if is_root => "auto",
        Some(DefaultUserns::KeepId) if !is_root => "keep-id",
        _ => "",
    }
}

fn parse(mode: &str, has_maps: bool) -> Result<Mode> {
    match mode {
        "private" if has_maps => Ok(Mode::Maps),
        "" | "host" => Ok(Mode::Host),
        "auto" => Ok(Mode::Auto(DEFAULT_COUNT)),
        "keep-id" => Ok(Mode::Keep([None; 2])),
        other => {
            let size = other.strip_prefix("auto:size=").and_then(|count| count.parse().ok());
            let auto = size.filter(|count| *count > 0).map(Mode::Auto);
            let keep = || other.strip_prefix("keep-id:").and_then(parse_kept).map(Mode::Keep);
            auto.or_else(keep).ok_or_else(|| Error::Invalid {
                message: format!("invalid --userns {other:?}"),
                hint: "host, auto, auto:size=COUNT, keep-id, keep-id:uid=ID,gid=ID, or --uidmap and --gidmap"
                    .into(),
            })
        }
    }
}

fn parse_kept(options: &str) -> Option<[Option<u32>; 2]> {
    let mut kept = [None; 2];
    for option in options.split(',') {
        let (name, id) = option.split_once('=')?;
        let place = match name {
            "uid" => 0,
            "gid" => 1,
            _ => return None,
        };
        // The kernel's "no id" is none.
        kept[place] = Some(id.parse().ok().filter(|id| *id != u32::MAX)?);
    }
    Some(kept)
}

fn check_keep(host: &HostConfig, level: IsolationLevel, is_root: bool) -> Result<()> {
    let mode = &host.userns_mode;
    if level == IsolationLevel::Vm {
        return Err(means_nothing_in_a_guest(mode));
    }
    if is_root {
        return Err(Error::unsupported(
            format!("--userns {mode} is for ordinary users: root's containers have the host's ids already"),
            "leave it out, or use --userns auto for ids of the container's own",
        ));
    }
    Ok(())
}

/// Writes out the maps, whom the program runs as where nobody says it, and the user's own group.
fn keep(
    config: &mut ContainerConfig,
    host: &mut HostConfig,
    wanted: [Option<u32>; 2],
    outer: &[Vec<IdMapping>; 2],
) -> Result<()> {
    let ids = [0, 1].map(|kind: usize| wanted[kind].or_else(|| translate_root(&outer[kind])));
    let [Some(uid), Some(gid)] = ids else {
        return Err(Error::unsupported(
            "--userns keep-id: root of this user namespace is nobody outside",
            "",
        ));
    };
    for (id, outer, file) in [(uid, &outer[0], "/etc/subuid"), (gid, &outer[1], "/etc/subgid")] {
        let count: u64 = outer.iter().map(|range| u64::from(range.size)).sum();
        if id != 0 && count < 2 {
            return Err(Error::unsupported(
                format!("--userns keep-id needs more ids than your own: root inside is one of {file}"),
                format!(
                    "install newuidmap (package uidmap), and give the user a line as NAME:100000:65536 in {file}"
                ),
            ));
        }
    }
    host.id_mappings.uid_map = kept_map(uid, &outer[0]);
    host.id_mappings.gid_map = kept_map(gid, &outer[1]);
    if config.user.is_empty() {
        config.user = format!("{uid}:{gid}");
    }
    if !host.group_add.contains(&gid.to_string()) {
        host.group_add.push(gid.to_string());
    }
    Ok(())
}

/// Whom this namespace's root is outside it.
fn translate_root(map: &[IdMapping]) -> Option<u32> {
    map.iter().find(|range| range.container_id == 0).map(|range| range.host_id)
}

/// The map in which `kept` is this namespace's root. No line may have ids of two lines of the map outside.
fn kept_map(kept: u32, outer: &[IdMapping]) -> Vec<String> {
    let mut map = Vec::new();
    for range in outer {
        let end = u64::from(range.container_id) + u64::from(range.size);
        // Ids outside from 1 to `kept` are one lower inside, those above the same.
        let first = u64::from(range.container_id).max(1);
        let middle = end.min(u64::from(kept) + 1);
        if first < middle {
            map.push(format!("{}:{first}:{}", first - 1, middle - first));
        }
        let first = first.max(u64::from(kept) + 1);
        if first < end {
            map.push(format!("{first}:{first}:{}", end - first));
        }
        if range.container_id == 0 {
            map.push(format!("{kept}:0:1"));
        }
    }
    map
}

/// Which ids of the container's are the user's, where its layers must have other owners for it.
pub(crate) fn kept_ids(host: &HostConfig) -> Result<Option<KeptIds>> {
    let has_maps = !host.id_mappings.uid_map.is_empty();
    let Mode::Keep(_) = parse(&host.userns_mode, has_maps)? else { return Ok(None) };
    let [uids, gids] = id_maps(host)?;
    let of_user =
        |map: &[IdMapping]| map.iter().find(|range| range.host_id == 0).map_or(0, |range| range.container_id);
    let kept = KeptIds { uid: of_user(&uids), gid: of_user(&gids) };
    Ok((kept != KeptIds::default()).then_some(kept))
}

fn means_nothing_in_a_guest(mode: &str) -> Error {
    Error::unsupported(
        format!(
            "--userns {mode} means nothing at isolation level vm: root inside is root of the guest alone"
        ),
        "leave it out: the guest's kernel is the wall",
    )
}

fn check(host: &HostConfig, level: IsolationLevel, is_root: bool) -> Result<()> {
    let mode = &host.userns_mode;
    if level == IsolationLevel::Vm {
        return Err(means_nothing_in_a_guest(mode));
    }
    if !is_root {
        return Err(Error::unsupported(
            format!("--userns {mode} needs root: the kernel maps the owners of layers for root alone"),
            "leave it out, or use --userns keep-id: an ordinary user's containers never have root of the host",
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
            Mode::Maps | Mode::Keep(_) => {}
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
        let mut config = ContainerConfig::default();
        super::complete(&mut config, &mut host, level, &SecuritySettings::default()).map(|()| host)
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
        let wrong = ["keep-id:", "keep-id:uid=", "keep-id:uid=x", "keep-id:id=1", "keep-id:uid=4294967295"];
        let others = ["private", "auto:size=0", "auto:size=x", "auto:uidmapping=0:0:1", "ns:/x", "keep-id"];
        for mode in wrong.into_iter().chain(others) {
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
            let mut config = ContainerConfig::default();
            super::complete(&mut config, &mut host, IsolationLevel::Container, &settings)
                .map(|()| host.userns_mode)
        };
        assert_eq!(with(|_| (), "").unwrap(), "auto");
        assert_eq!(with(|_| (), "host").unwrap(), "host");
        assert_eq!(with(|host| host.privileged = true, "host").unwrap(), "host");
        assert!(with(|host| host.privileged = true, "").unwrap_err().hint().contains("--userns host"));
        assert!(with(|host| host.network_mode = "host".into(), "").is_err());
        let mut guest = host("", &[], &[]);
        let settings = SecuritySettings { userns: Some(DefaultUserns::Auto), ..Default::default() };
        let mut config = ContainerConfig::default();
        super::complete(&mut config, &mut guest, IsolationLevel::Vm, &settings).unwrap();
        assert_eq!(guest.userns_mode, "");
    }

    fn range(container_id: u32, host_id: u32, size: u32) -> IdMapping {
        IdMapping { container_id, host_id, size }
    }

    #[test]
    fn the_users_id_changes_places_with_those_below_it() {
        let outer = [range(0, 1000, 1), range(1, 100_000, 65536)];
        assert_eq!(kept_map(1000, &outer), ["1000:0:1", "0:1:1000", "1001:1001:64536"]);
        assert_eq!(kept_map(0, &outer), ["0:0:1", "1:1:65536"]);
        assert_eq!(kept_map(65536, &outer), ["65536:0:1", "0:1:65536"]);
        assert_eq!(kept_map(100_000, &outer), ["100000:0:1", "0:1:65536"]);
        // A line of ours must not reach over two of those outside.
        let two = [range(0, 7, 1), range(1, 1000, 10), range(11, 5000, 10)];
        assert_eq!(kept_map(5, &two), ["5:0:1", "0:1:5", "6:6:5", "11:11:10"]);
        assert_eq!(kept_map(15, &two), ["15:0:1", "0:1:10", "10:11:5", "16:16:5"]);
    }

    #[test]
    fn keep_id_says_whom_the_program_runs_as() {
        let outer = [
            vec![range(0, 1000, 1), range(1, 100_000, 65536)],
            vec![range(0, 7, 1), range(1, 100_000, 65536)],
        ];
        let kept = |user: &str, mode: &str| {
            let mut config = ContainerConfig { user: user.into(), ..ContainerConfig::default() };
            let mut host = host(mode, &[], &[]);
            let Mode::Keep(wanted) = parse(mode, false).unwrap() else { panic!("{mode}") };
            keep(&mut config, &mut host, wanted, &outer).unwrap();
            (config.user, host.group_add.join(","), kept_ids(&host).unwrap())
        };
        let ids = |uid, gid| Some(KeptIds { uid, gid });
        assert_eq!(kept("", "keep-id"), ("1000:7".into(), "7".into(), ids(1000, 7)));
        assert_eq!(kept("app", "keep-id:uid=5"), ("app".into(), "7".into(), ids(5, 7)));
        assert_eq!(kept("", "keep-id:gid=9,uid=0"), ("0:9".into(), "9".into(), ids(0, 9)));
        assert_eq!(kept("", "keep-id:uid=0,gid=0"), ("0:0".into(), "0".into(), None));
        let alone = [vec![range(0, 1000, 1)], vec![range(0, 1000, 1)]];
        let (mut config, mut host) = (ContainerConfig::default(), host("keep-id", &[], &[]));
        let refused = keep(&mut config, &mut host, [None; 2], &alone).unwrap_err();
        assert!(refused.to_string().contains("/etc/subuid") && refused.hint().contains("newuidmap"));
    }

    #[test]
    fn each_default_is_for_those_it_helps() {
        use DefaultUserns::{Auto, Host, KeepId};
        let modes = |is_root| [Auto, KeepId, Host].map(|default| default_mode(Some(default), is_root));
        assert_eq!(modes(true), ["auto", "", ""]);
        assert_eq!(modes(false), ["", "keep-id", ""]);
    }
}
