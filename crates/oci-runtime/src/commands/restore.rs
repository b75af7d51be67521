//! `restore`: makes a container anew from what `checkpoint` has written, by criu.
//!
//! The cgroups and their limits are made here, as at a creation; all else is in the images. criu mounts below a
//! root that must be a mount, so this process takes a mount namespace of its own first, and leaves no mount.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use proa_oci::runtime::Spec;
use proa_runtime::{CgroupPolicy, Container, remove_leftovers};
use rustix::mount::{MountPropagationFlags, mount_bind_recursive, mount_change};

use crate::args::{Opt, Parsed, flag, value};
use crate::commands::delete;
use crate::criu::{Beside, Criu, NETWORK, bind_mounts, check, network};
use crate::error::{Failure, Result};
use crate::foreground::Foreground;
use crate::global::{Global, absolute};
use crate::launch::{check_version, read_config, write_pid_file};
use crate::store::{Entry, Saved};

/// Its own options, beside those of [`crate::commands::checkpoint`].
pub const OPTIONS: &[Opt] = &[
    value("bundle").or('b'),
    value("pid-file"),
    value("console-socket"),
    value("lsm-profile"),
    value("lsm-mount-context"),
    flag("detach").or('d'),
    flag("no-pivot"),
    flag("no-subreaper"),
];

/// Where criu writes the id of the first process, beside its log.
const PID_FILE: &str = "restored.pid";
/// `CLONE_NEWNS`.
const MOUNT_NAMESPACE: u64 = 0x0002_0000;

/// Runs it.
///
/// # Errors
/// There is no criu, or it cannot make the container: nothing is left then.
pub fn run(global: &Global, parsed: &Parsed) -> Result<u8> {
    if global.cgroup != CgroupPolicy::Auto {
        return Err(Failure::new("restore works with the cgroupfs driver only: leave out --systemd-cgroup"));
    }
    let bundle = parsed.get("bundle").filter(|path| !path.is_empty()).unwrap_or(".");
    let bundle = absolute(bundle)?;
    let text = read_config(&bundle)?;
    let spec: Spec = serde_json::from_slice(&text)
        .map_err(|error| Failure::new(format!("{}: {error}", bundle.join("config.json").display())))?;
    check_version(&spec)?;
    check(&spec)?;
    let criu = Criu::new("restore", parsed)?;
    let pid_file = parsed.get("pid-file").filter(|path| !path.is_empty()).map(absolute).transpose()?;
    let foreground = if parsed.is("detach") { None } else { Some(Foreground::new()?) };
    // criu, the first process's parent, ends at once: without --detach it is ours to wait for.
    if foreground.is_some() {
        let own = Some(rustix::process::getpid());
        rustix::process::set_child_subreaper(own).map_err(|errno| Failure::new(format!("prctl: {errno}")))?;
    }
    let (entry, lock) = global.store.claim(parsed.id()?)?;
    let made = make(global, &entry, &spec, &text, &bundle, parsed, criu).and_then(|saved| {
        pid_file.as_deref().map_or(Ok(()), |path| write_pid_file(path, saved.pid)).map(|()| saved)
    });
    let saved = made.inspect_err(|_| {
        // What failed first is what counts.
        let _ = remove_leftovers(&entry.id, &spec, CgroupPolicy::Auto);
        let _ = entry.remove();
    })?;
    drop(lock);
    foreground.map_or(Ok(0), |foreground| wait(global, &entry, &saved, &foreground))
}

fn make(
    global: &Global,
    entry: &Entry,
    spec: &Spec,
    text: &[u8],
    bundle: &Path,
    parsed: &Parsed,
    mut criu: Criu,
) -> Result<Saved> {
    let beside = Beside::read(&criu.images)?;
    let cgroup = proa_runtime::cgroup_path(&entry.id, spec, CgroupPolicy::Auto)?;
    if cgroup != beside.cgroup {
        let (old, new) = (beside.cgroup.display(), cgroup.display());
        let text =
            format!("the checkpoint is of cgroup '{old}', not '{new}': give it that cgroupsPath or id");
        return Err(Failure::new(text));
    }
    entry.save_spec(text)?;
    rustix::process::chdir(bundle).map_err(|errno| Failure::at(bundle, errno))?;
    let root = spec.root.as_ref().ok_or_else(|| Failure::new("config.json has no root"))?;
    let rootfs = bundle.join(&root.path);
    global.warn(&proa_runtime::make_cgroup(&entry.id, spec)?);
    take_root(&rootfs)?;
    criu.make_directories()?;
    criu.arg("--root", &rootfs);
    criu.flag("--restore-detached");
    for (place, source) in bind_mounts(spec) {
        let source = bundle.join(source);
        criu.arg("--external", format!("mnt[{place}]:{}", source.display()));
    }
    for option in ["lsm-profile", "lsm-mount-context"] {
        parsed.get(option).into_iter().for_each(|given| criu.arg(&format!("--{option}"), given));
    }
    // Held until criu has ended.
    let _inherited = inherit(&mut criu, spec, &beside)?;
    let pid_path = criu.work.join(PID_FILE);
    let _ = fs::remove_file(&pid_path);
    criu.arg("--pidfile", &pid_path);
    criu.run()?;
    let pid = fs::read_to_string(&pid_path).map_err(|error| Failure::at(&pid_path, error))?;
    let _ = fs::remove_file(&pid_path);
    let pid: u32 = pid.trim().parse().map_err(|_| Failure::new(format!("criu made no process: '{pid}'")))?;
    let start_ticks = Container::start_ticks_of(pid)?;
    let saved = Saved { pid, start_ticks, ..Saved::new(&entry.id, spec, bundle, rootfs) };
    entry.save(&saved)?;
    Ok(saved)
}

/// Makes the root a mount, in a mount namespace that ends with this process.
fn take_root(rootfs: &PathBuf) -> Result<()> {
    proa_sys::process::unshare_namespaces(MOUNT_NAMESPACE)
        .map_err(|error| Failure::new(format!("a mount namespace: {error}")))?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).map_err(|errno| Failure::at("/", errno))?;
    mount_bind_recursive(rootfs, rootfs).map_err(|errno| Failure::at(rootfs, errno))
}

/// What criu gets by descriptor: our standard streams in place of the container's old ones, and its network.
fn inherit(criu: &mut Criu, spec: &Spec, beside: &Beside) -> Result<Vec<OwnedFd>> {
    let own = [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()];
    let mut held: Vec<OwnedFd> = Vec::new();
    let mut give = |fd: OwnedFd, name: &str| {
        criu.arg("--inherit-fd", format!("fd[{}]:{name}", fd.as_raw_fd()));
        held.push(fd);
    };
    // A copy is not closed when criu starts.
    let copy = |fd| rustix::io::dup(fd).map_err(|errno| Failure::new(format!("dup: {errno}")));
    let mut given: Vec<&str> = Vec::new();
    for (fd, name) in own.into_iter().zip(&beside.streams) {
        let Some(name) = name.as_deref().filter(|name| !given.contains(name)) else { continue };
        give(copy(fd)?, name);
        given.push(name);
    }
    if let Some(path) = network(spec) {
        let namespace = fs::File::open(path).map_err(|error| Failure::at(path, error))?;
        give(copy(namespace.as_fd())?, NETWORK);
    }
    Ok(held)
}

fn wait(global: &Global, entry: &Entry, saved: &Saved, foreground: &Foreground) -> Result<u8> {
    let (Some(container), spec) = entry.container(Some(saved))? else {
        return Err(Failure::new(format!("container '{}' has ended already", entry.id)));
    };
    let pidfd = container.duplicate_pidfd()?;
    foreground.wait(pidfd.as_fd(), None, None::<fn()>, |signal| {
        // It may just have ended.
        let _ = container.signal(signal, false);
    })?;
    let code = container.try_wait()?.unwrap_or(0);
    let _lock = entry.lock()?;
    delete::remove(global, entry, Some(container), &spec, Some(saved))?;
    Ok(code as u8)
}
