//! Which ids a user may have in a user namespace, and how they get there.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use proa_oci::runtime::IdMapping;

/// A user as the host knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mapping {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

/// What a user may have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ids {
    /// More ids, mapped by the setuid helpers.
    Ranges {
        /// First and number, of users.
        uids: Vec<(u32, u32)>,
        /// The same of groups.
        gids: Vec<(u32, u32)>,
    },
    /// Its own alone, and why.
    Single(String),
}

/// What `user` has been granted on this host.
pub(super) fn granted(user: Mapping) -> Ids {
    let missing: Vec<&str> =
        ["newuidmap", "newgidmap"].into_iter().filter(|name| helper(name).is_none()).collect();
    if let Some(missing) = missing.first() {
        return Ids::Single(format!("{missing} is not installed (package uidmap)"));
    }
    let name = user_name(&read("/etc/passwd"), user.uid);
    let of = |path: &str| ranges(&read(path), name.as_deref(), user.uid);
    let (uids, gids) = (of("/etc/subuid"), of("/etc/subgid"));
    let who = name.clone().unwrap_or_else(|| user.uid.to_string());
    for (file, found) in [("/etc/subuid", &uids), ("/etc/subgid", &gids)] {
        if found.is_empty() {
            return Ids::Single(format!("{file} has no range for {who}, as {who}:100000:65536"));
        }
    }
    Ids::Ranges { uids, gids }
}

/// The ranges that the host gives containers of root's: those of the user `containers`, as for Podman.
pub(crate) fn of_containers(file: &str) -> Vec<(u32, u32)> {
    ranges(&read(file), Some("containers"), u32::MAX)
}

fn read(path: &str) -> String {
    // A file that is not there grants nothing.
    std::fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

/// The setuid helpers are looked for where a system puts them, not where a user's PATH leads.
fn helper(name: &str) -> Option<PathBuf> {
    ["/usr/bin", "/bin", "/usr/local/bin", "/usr/sbin"]
        .into_iter()
        .map(|directory| Path::new(directory).join(name))
        .find(|path| path.exists())
}

fn user_name(passwd: &str, uid: u32) -> Option<String> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    })
}

/// The ranges that a file of subordinate ids gives to a name or a number.
pub(crate) fn ranges(text: &str, name: Option<&str>, uid: u32) -> Vec<(u32, u32)> {
    let number = uid.to_string();
    let range = |line: &str| {
        let mut fields = line.trim().split(':');
        let owner = fields.next()?;
        let (first, count): (u32, u32) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        let sound = count > 0 && first.checked_add(count).is_some();
        (sound && (Some(owner) == name || owner == number)).then_some((first, count))
    };
    text.lines().filter_map(range).collect()
}

/// Gives a new user namespace, that of the process `pid`, its ids.
///
/// # Errors
/// What the helper or the kernel says.
pub(super) fn map(pid: u32, user: Mapping, ids: &Ids) -> io::Result<()> {
    match ids {
        Ids::Ranges { uids, gids } => {
            // Both at once: each is a program of its own.
            let first = run_helper("newuidmap", pid, user.uid, uids)?;
            let second = run_helper("newgidmap", pid, user.gid, gids)?;
            finish("newuidmap", first).and_then(|()| finish("newgidmap", second))
        }
        Ids::Single(_) => {
            let write = |file: &str, text: String| std::fs::write(format!("/proc/{pid}/{file}"), text);
            // The kernel's condition for mapping one's own group without privilege.
            write("setgroups", "deny".into())?;
            write("uid_map", format!("0 {} 1\n", user.uid))?;
            write("gid_map", format!("0 {} 1\n", user.gid))
        }
    }
}

fn run_helper(name: &str, pid: u32, own: u32, ranges: &[(u32, u32)]) -> io::Result<std::process::Child> {
    let program = helper(name).ok_or(io::ErrorKind::NotFound)?;
    let mut command = Command::new(program);
    command.args([pid.to_string(), "0".into(), own.to_string(), "1".into()]);
    let mut inside = 1u32;
    for (first, count) in ranges {
        let count = (*count).min(u32::MAX - inside);
        command.args([inside, *first, count].map(|number| number.to_string()));
        inside += count;
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()
}

fn finish(name: &str, child: std::process::Child) -> io::Result<()> {
    let output = child.wait_with_output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', ": ");
    Err(io::Error::other(if said.is_empty() { format!("{name}: {}", output.status) } else { said }))
}

/// The maps of this process's namespace, as text.
pub(super) fn current() -> io::Result<String> {
    let read = |file: &str| -> io::Result<String> {
        let text = std::fs::read_to_string(format!("/proc/self/{file}"))?;
        let line = |line: &str| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            format!("{file} {}\n", fields.join(" "))
        };
        Ok(text.lines().map(line).collect())
    };
    Ok(read("uid_map")? + &read("gid_map")?)
}

/// The maps of this process's namespace, of users and of groups.
pub(crate) fn extents() -> io::Result<[Vec<IdMapping>; 2]> {
    let read = |file: &str| -> io::Result<Vec<IdMapping>> {
        let text = std::fs::read_to_string(format!("/proc/self/{file}"))?;
        let extents = proa_sys::userns::parse_map(&text);
        Ok(extents.map(|[container_id, host_id, size]| IdMapping { container_id, host_id, size }).collect())
    };
    Ok([read("uid_map")?, read("gid_map")?])
}

/// Whether every id that has a meaning by the maps `old` has the same by `new`.
pub(super) fn extends(new: &str, old: &str) -> bool {
    let extents = |text: &str| -> Vec<(String, u64, u64, u64)> {
        let extent = |line: &str| {
            let mut fields = line.split(' ');
            let kind = fields.next()?.to_owned();
            let mut number = || fields.next()?.parse().ok();
            Some((kind, number()?, number()?, number()?))
        };
        text.lines().filter_map(extent).collect()
    };
    let new = extents(new);
    extents(old).iter().all(|(kind, inside, outside, count)| {
        new.iter().any(|(new_kind, new_inside, new_outside, new_count)| {
            kind == new_kind
                && inside >= new_inside
                && inside + count <= new_inside + new_count
                && outside.checked_sub(*new_outside) == Some(inside - new_inside)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_belong_to_a_name_or_a_number() {
        let text =
            "ann:100000:65536\nbob:165536:65536\n1001:300000:10\nann:x:5\nann:5:0\nann:4294967295:2\n\n#\n";
        assert_eq!(ranges(text, Some("ann"), 1001), [(100_000, 65536), (300_000, 10)]);
        assert_eq!(ranges(text, None, 7), []);
    }

    #[test]
    fn names_of_users() {
        let passwd = "root:x:0:0::/root:/bin/sh\nann:x:1001:1001::/home/ann:/bin/sh\n";
        assert_eq!(user_name(passwd, 1001).as_deref(), Some("ann"));
        assert_eq!(user_name(passwd, 5), None);
    }

    #[test]
    fn maps_may_grow_and_not_change() {
        let single = "uid_map 0 1000 1\ngid_map 0 1000 1\n";
        let ranges = "uid_map 0 1000 1\nuid_map 1 100000 65536\ngid_map 0 1000 1\ngid_map 1 100000 65536\n";
        let moved = "uid_map 0 1000 1\nuid_map 1 200000 65536\ngid_map 0 1000 1\ngid_map 1 100000 65536\n";
        assert!(extends(single, ""));
        assert!(extends(ranges, single));
        assert!(extends(ranges, ranges));
        assert!(!extends(single, ranges));
        assert!(!extends(moved, ranges));
        assert!(!extends("uid_map 0 1001 1\ngid_map 0 1000 1\n", single));
    }
}
