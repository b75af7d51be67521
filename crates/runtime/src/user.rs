//! Docker's `--user`, resolved by the `/etc/passwd` and `/etc/group` of the container, which are hostile text:
//! read in our own process, without NSS (CVE-2019-14271), and never believed about numbers. A numeric user is
//! that uid, whatever entry of that *name* the file may hold (CVE-2026-46680), and no id is beyond `int32`,
//! where programs disagree about its meaning (CVE-2024-40635).

use std::os::fd::BorrowedFd;

use proa_oci::runtime::User;

use crate::{Error, Result, inroot};

/// Bytes of either file that are looked at.
const MAX_FILE: usize = 1 << 20;

/// Who a process is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Identity {
    pub uid: u32,
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Home directory by `/etc/passwd`, or `/`.
    pub home: String,
}

/// Resolves `user` in the root, or completes the spec's numeric user where `user` is empty.
pub(crate) fn resolve(root: BorrowedFd, user: &str, spec: &User, want_home: bool) -> Result<Identity> {
    let file = |path: &str| inroot::read(root, path, MAX_FILE).unwrap_or_default();
    let more = &spec.additional_groups;
    if !user.is_empty() {
        return lookup(user, more, &file("/etc/passwd"), || file("/etc/group"));
    }
    let passwd = if want_home { file("/etc/passwd") } else { String::new() };
    let home = accounts(&passwd).find(|account| account.uid == spec.uid).map_or("", |account| account.home);
    Ok(Identity {
        uid: check_id(spec.uid)?,
        gid: check_id(spec.gid)?,
        groups: with_more(spec.additional_gids.clone(), more, || file("/etc/group"))?,
        home: home_or_root(home),
    })
}

/// The groups and those that were asked for by name or number (`--group-add`), each once.
fn with_more(mut gids: Vec<u32>, more: &[String], group: impl FnOnce() -> String) -> Result<Vec<u32>> {
    if more.is_empty() {
        return Ok(gids);
    }
    let group = group();
    for name in more {
        let gid = find_group(&group, name)?;
        if !gids.contains(&gid) {
            gids.push(gid);
        }
    }
    Ok(gids)
}

/// Names of the machine's own users and groups, for who looks at its processes.
pub(crate) struct Names {
    passwd: String,
    group: String,
}

impl Names {
    /// By the files of where we run; a guest has none, and so numbers.
    pub(crate) fn here() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        Self { passwd: read("/etc/passwd"), group: read("/etc/group") }
    }

    /// The name of a user, or the number.
    pub(crate) fn user(&self, uid: u32) -> String {
        let found = accounts(&self.passwd).find(|account| account.uid == uid).map(|account| account.name);
        found.map_or_else(|| number_or_root(uid), ToOwned::to_owned)
    }

    /// The name of a group, or the number.
    pub(crate) fn group(&self, gid: u32) -> String {
        let found = groups(&self.group).find(|group| group.gid == gid).map(|group| group.name);
        found.map_or_else(|| number_or_root(gid), ToOwned::to_owned)
    }
}

fn number_or_root(id: u32) -> String {
    if id == 0 { "root".into() } else { id.to_string() }
}

struct Account<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

fn accounts(passwd: &str) -> impl Iterator<Item = Account<'_>> {
    passwd.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let (name, _password, uid, gid) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        Some(Account {
            name,
            uid: uid.parse().ok()?,
            gid: gid.parse().ok()?,
            home: fields.nth(1).unwrap_or(""),
        })
    })
}

fn groups(group: &str) -> impl Iterator<Item = Group<'_>> {
    group.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let (name, _password, gid) = (fields.next()?, fields.next()?, fields.next()?);
        Some(Group { name, gid: gid.parse().ok()?, members: fields.next().unwrap_or("") })
    })
}

fn lookup(user: &str, more: &[String], passwd: &str, group: impl FnOnce() -> String) -> Result<Identity> {
    let (name, group_name) = user.split_once(':').unwrap_or((user, ""));
    let name = if name.is_empty() { "0" } else { name };
    let number = number(name)?;
    let account =
        accounts(passwd).find(|account| number.map_or(account.name == name, |uid| account.uid == uid));
    let uid = match (number, &account) {
        (Some(uid), _) => uid,
        (None, Some(account)) => check_id(account.uid)?,
        (None, None) => {
            return Err(Error::invalid(format!(
                "user '{name}': no such name in the container's /etc/passwd"
            )));
        }
    };
    let group = group();
    let (gid, mut others) = match (group_name, &account) {
        ("", Some(account)) => (check_id(account.gid)?, memberships(&group, account.name)),
        ("", None) => (0, Vec::new()),
        (name, _) => (find_group(&group, name)?, Vec::new()),
    };
    // As Docker since CVE-2022-36109: a group that is only primary could be dropped to get at a file.
    if !others.contains(&gid) {
        others.insert(0, gid);
    }
    let groups = with_more(others, more, || group)?;
    Ok(Identity { uid, gid, groups, home: home_or_root(account.map_or("", |account| account.home)) })
}

fn memberships(group: &str, user: &str) -> Vec<u32> {
    groups(group)
        .filter(|group| group.members.split(',').any(|member| member == user))
        .map(|group| group.gid)
        .filter(|gid| i32::try_from(*gid).is_ok())
        .collect()
}

fn find_group(group: &str, name: &str) -> Result<u32> {
    if let Some(gid) = number(name)? {
        return Ok(gid);
    }
    match groups(group).find(|group| group.name == name) {
        Some(group) => check_id(group.gid),
        None => Err(Error::invalid(format!("group '{name}': no such name in the container's /etc/group"))),
    }
}

/// The id that a text of digits is; `None` for a name.
fn number(text: &str) -> Result<Option<u32>> {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(None);
    }
    match text.parse::<i32>() {
        Ok(id) if id >= 0 => Ok(Some(id as u32)),
        _ => Err(Error::invalid(format!("id '{text}' is not between 0 and {}", i32::MAX))),
    }
}

fn check_id(id: u32) -> Result<u32> {
    match i32::try_from(id) {
        Ok(_) => Ok(id),
        Err(_) => Err(Error::invalid(format!("id {id} is not between 0 and {}", i32::MAX))),
    }
}

fn home_or_root(home: &str) -> String {
    if home.is_empty() { "/".to_owned() } else { home.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nweb:x:33:33:web:/var/www:\n1000:x:0:0::/:/bin/sh\n\
        broken line\nhuge:x:4294967295:0::/:\nnohome:x:5:5\n";
    const GROUP: &str = "root:x:0:\nwheel:x:10:root,web\nweb:x:33:\nadm:x:4:web\nhuge:x:4000000000:web\n";

    fn id(user: &str) -> Result<Identity> {
        lookup(user, &[], PASSWD, || GROUP.to_owned())
    }

    #[test]
    fn more_groups_by_name_and_number() {
        let with = |more: &[&str]| {
            let more: Vec<String> = more.iter().map(ToString::to_string).collect();
            lookup("77", &more, PASSWD, || GROUP.to_owned())
        };
        assert_eq!(with(&["adm", "4242", "4", "wheel"]).unwrap().groups, [0, 4, 4242, 10]);
        assert!(with(&["nobody"]).unwrap_err().to_string().contains("'nobody'"));
        assert!(with(&["-1"]).is_err() && with(&["huge"]).is_err());
    }

    #[test]
    fn names_and_numbers() {
        let web = Identity { uid: 33, gid: 33, groups: vec![33, 10, 4], home: "/var/www".into() };
        assert_eq!(id("web").unwrap(), web);
        assert_eq!(id("33").unwrap(), web);
        assert_eq!(id("0").unwrap(), Identity { uid: 0, gid: 0, groups: vec![0, 10], home: "/root".into() });
        assert_eq!(id(":adm").unwrap().gid, 4);
        assert_eq!(id("web:adm").unwrap().groups, [4]);
        assert_eq!(id("77").unwrap(), Identity { uid: 77, gid: 0, groups: vec![0], home: "/".into() });
        assert_eq!(id("77:88").unwrap().gid, 88);
        assert_eq!(id("nohome").unwrap().home, "/");
    }

    #[test]
    fn a_number_is_never_a_name() {
        assert_eq!(id("1000").unwrap().uid, 1000);
    }

    #[test]
    fn ids_beyond_int32_are_refused() {
        for user in
            ["2147483648", "4294967296", "-1", "huge", "0:2147483648", "0:huge", "99999999999999999999"]
        {
            assert!(id(user).unwrap_err().to_string().contains("not between"), "{user}");
        }
        assert_eq!(id("2147483647").unwrap().uid, 2147483647);
    }

    #[test]
    fn unknown_names_are_named() {
        assert!(id("nobody").unwrap_err().to_string().contains("'nobody'"));
        assert!(id("web:nobody").unwrap_err().to_string().contains("/etc/group"));
    }
}
