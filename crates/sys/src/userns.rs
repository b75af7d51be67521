//! User namespaces: whether this process is in one, starting a program in a new one, joining one.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU8, Ordering};

use rustix::io::Errno;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// The kernel's fixed inode of the first user namespace (`PROC_USER_INIT_INO`).
const FIRST: u64 = 0xEFFF_FFFD;

/// What [`is_initial`] has found out.
static KNOWN: AtomicU8 = AtomicU8::new(UNKNOWN);
const UNKNOWN: u8 = 0;
const INITIAL: u8 = 1;
const OTHER: u8 = 2;

/// Whether this process has the host's own user namespace, in which root may do all that the kernel allows to
/// anybody. In any other one, EROFS cannot be mounted, devices cannot be made, and limits are the owner's.
/// The kernel is asked once, and again after [`join`].
pub fn is_initial() -> bool {
    match KNOWN.load(Ordering::Relaxed) {
        UNKNOWN => {
            // Without /proc nothing of ours works anyway.
            let initial = std::fs::metadata("/proc/self/ns/user").map_or(true, |ns| ns.ino() == FIRST);
            KNOWN.store(if initial { INITIAL } else { OTHER }, Ordering::Relaxed);
            initial
        }
        known => known == INITIAL,
    }
}

/// Whether a group has an id in this process's user namespace.
pub fn maps_group(gid: u32) -> bool {
    let map = std::fs::read_to_string("/proc/self/gid_map").unwrap_or_default();
    parse_map(&map).any(|[first, _, count]| gid.checked_sub(first).is_some_and(|offset| offset < count))
}

/// How many ids from 0 up this process's user namespace has in a row, users and groups alike.
pub fn count_ids() -> u32 {
    let count = |file: &str| {
        let map = std::fs::read_to_string(file).unwrap_or_default();
        let mut extents: Vec<[u32; 3]> = parse_map(&map).collect();
        extents.sort_unstable();
        extents
            .iter()
            .fold(0, |end, [first, _, count]| if *first == end { end.saturating_add(*count) } else { end })
    };
    count("/proc/self/uid_map").min(count("/proc/self/gid_map"))
}

/// The lines of a `uid_map` or `gid_map`: first id inside, first id outside, and how many.
pub fn parse_map(text: &str) -> impl Iterator<Item = [u32; 3]> {
    text.lines().filter_map(|line| {
        let numbers: Option<Vec<u32>> = line.split_whitespace().map(|number| number.parse().ok()).collect();
        numbers?.try_into().ok()
    })
}

/// Starts a program in a user namespace of its own, in which no id is mapped yet: whoever maps them does it from
/// outside, by the child's id.
///
/// # Errors
/// The namespace cannot be made, or the program cannot be run.
pub fn spawn_unmapped(command: &mut Command) -> io::Result<Child> {
    const NEWUSER: u64 = libc::CLONE_NEWUSER as u64;
    // SAFETY: between fork and exec this makes one system call, which takes an integer.
    unsafe { command.pre_exec(|| crate::process::unshare_namespaces(NEWUSER)) };
    command.spawn()
}

/// Starts a program in a user namespace that is there, and that belongs to the caller.
///
/// # Errors
/// It is another user's, or the program cannot be run.
pub fn spawn_in(command: &mut Command, namespace: impl AsFd) -> io::Result<Child> {
    let namespace = namespace.as_fd().try_clone_to_owned()?;
    let enter = move || Ok(move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::User))?);
    // SAFETY: between fork and exec this makes one system call, on a descriptor that the closure owns.
    unsafe { command.pre_exec(enter) };
    command.spawn()
}

/// Joins a user namespace, where this process is then whoever its user is mapped to and has all capabilities, if
/// its user owns that namespace; and makes a mount namespace that belongs to it, with the mounts there are.
///
/// # Errors
/// The namespace is another user's, or the process has several threads.
pub fn join(namespace: impl AsFd) -> io::Result<()> {
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::User))?;
    KNOWN.store(UNKNOWN, Ordering::Relaxed);
    crate::process::unshare_namespaces(libc::CLONE_NEWNS as u64)
}

/// Joins a user namespace and is its root there, with no groups and nothing of the user outside. A child that was to
/// die with its parent must ask for that again: the kernel forgets it with the change of user.
///
/// # Errors
/// The namespace is another user's or has no root, or the process has several threads.
pub fn become_root_of(namespace: impl AsFd) -> io::Result<()> {
    use rustix::process::{Gid, Uid};
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::User))?;
    KNOWN.store(UNKNOWN, Ordering::Relaxed);
    rustix::thread::set_thread_groups(&[])?;
    rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT)?;
    rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT)?;
    Ok(())
}

/// Why the kernel makes no user namespace for an ordinary user, as one line that names the switch.
pub fn forbidden(error: &io::Error) -> Option<String> {
    let read = |name: &str| {
        let text = std::fs::read_to_string(format!("/proc/sys/{name}")).ok()?;
        text.trim().parse::<i64>().ok()
    };
    let switch = |name: &str, dotted: &str, wanted: i64| {
        (read(name)? != wanted).then(|| format!("user namespaces are switched off: sysctl {dotted}={wanted}"))
    };
    match error.raw_os_error().map(Errno::from_raw_os_error)? {
        Errno::NOSPC | Errno::USERS if read("user/max_user_namespaces") == Some(0) => {
            Some("user namespaces are switched off: sysctl user.max_user_namespaces is 0".into())
        }
        Errno::NOSPC | Errno::USERS => {
            Some("no more user namespaces: raise sysctl user.max_user_namespaces".into())
        }
        Errno::PERM | Errno::ACCESS => {
            switch("kernel/unprivileged_userns_clone", "kernel.unprivileged_userns_clone", 1).or_else(|| {
                switch(
                    "kernel/apparmor_restrict_unprivileged_userns",
                    "kernel.apparmor_restrict_unprivileged_userns",
                    0,
                )
            })
        }
        Errno::INVAL => Some("the kernel has no user namespaces (CONFIG_USER_NS)".into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Stdio;

    #[test]
    fn a_program_runs_in_a_namespace_of_its_own() {
        assert!(is_initial(), "tests run on the host");
        assert!(maps_group(5) && maps_group(0));
        assert_eq!(count_ids(), u32::MAX);
        let mut command = Command::new("/bin/cat");
        let mut child = spawn_unmapped(command.stdin(Stdio::piped()).stdout(Stdio::null())).unwrap();
        let namespace = |pid: &str| std::fs::metadata(format!("/proc/{pid}/ns/user")).unwrap().ino();
        assert_ne!(namespace(&child.id().to_string()), namespace("self"));
        assert_eq!(std::fs::read_to_string(format!("/proc/{}/uid_map", child.id())).unwrap(), "");
        drop(child.stdin.take());
        child.wait().unwrap();
    }

    #[test]
    fn what_forbids_is_named() {
        let error = |errno: Errno| io::Error::from_raw_os_error(errno.raw_os_error());
        assert!(forbidden(&error(Errno::NOSPC)).unwrap().contains("user.max_user_namespaces"));
        assert_eq!(forbidden(&error(Errno::NOENT)), None);
    }
}
