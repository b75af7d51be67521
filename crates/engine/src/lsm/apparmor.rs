//! Our AppArmor profile: its text, and loading it.
//!
//! The profile is loaded by `apparmor_parser` from its standard input, and no file of it is kept. Which text was
//! loaded last is noted below the run directory, which a reboot empties like the kernel's own list.

use std::fs;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::error::{Error, Result};

/// Its name.
pub const DEFAULT_PROFILE: &str = "proa-default";

const ENABLED: &str = "/sys/module/apparmor/parameters/enabled";
const PROFILES: &str = "/sys/kernel/security/apparmor/profiles";
/// By absolute path: the loader runs as root, and no `PATH` is asked (it may be the user's).
const PARSERS: &[&str] = &["/usr/sbin/apparmor_parser", "/sbin/apparmor_parser"];
/// Below the run directory: the text that was loaded last.
const NOTE: &str = "apparmor-profile";
/// Where a distribution keeps what the text can include.
const INCLUDES: &str = "/etc/apparmor.d";

/// What can be had of our profile.
#[derive(Debug, PartialEq, Eq)]
pub enum Support {
    /// It is loaded.
    Loaded,
    /// The kernel has no AppArmor.
    None,
    /// The kernel has it, and something else is missing.
    Missing(String),
}

/// Whether the kernel has AppArmor and it is on.
pub fn is_enabled() -> bool {
    fs::read(ENABLED).is_ok_and(|text| text.starts_with(b"Y"))
}

/// Makes sure that our profile is loaded.
///
/// # Errors
/// The parser refuses it.
pub fn ensure_default(run: &Path) -> Result<Support> {
    if !is_enabled() {
        return Ok(Support::None);
    }
    let Some(loaded) = loaded_profiles() else {
        return Ok(Support::Missing(format!("{PROFILES} cannot be read: is securityfs mounted?")));
    };
    let text = profile(&Includes::of_host());
    let note = run.join(NOTE);
    let is_loaded = has_profile(&loaded, DEFAULT_PROFILE);
    if is_loaded && fs::read_to_string(&note).is_ok_and(|noted| noted == text) {
        return Ok(Support::Loaded);
    }
    // Root of a user namespace may not.
    if !rustix::process::geteuid().is_root() || !proa_sys::userns::is_initial() {
        let missing = || Support::Missing(format!("root has not loaded {DEFAULT_PROFILE} yet"));
        return Ok(if is_loaded { Support::Loaded } else { missing() });
    }
    let Some(parser) = PARSERS.iter().map(Path::new).find(|path| path.exists()) else {
        return Ok(Support::Missing(format!("there is no {}; install the package apparmor", PARSERS[0])));
    };
    load(parser, &text)?;
    // Closed to others, as whoever else makes it makes it.
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(run);
    made.and_then(|()| fs::write(&note, &text)).map_err(|error| Error::io("write", &note, error))?;
    Ok(Support::Loaded)
}

/// Forgets what was loaded: who wants it next loads it again.
pub fn forget(run: &Path) {
    // Most hosts have none.
    let _ = fs::remove_file(run.join(NOTE));
}

/// A profile that the user names must be loaded.
///
/// # Errors
/// It is not, or the kernel has no AppArmor.
pub fn check_named(name: &str) -> Result<()> {
    if !is_enabled() {
        return Err(super::missing("AppArmor", &format!("apparmor={name}")));
    }
    let path = PathBuf::from(PROFILES);
    let loaded = fs::read_to_string(&path).map_err(|error| match error.kind() {
        ErrorKind::PermissionDenied => Error::unsupported(
            format!("apparmor={name} needs root: nobody else sees whether that profile is loaded"),
            "leave --security-opt apparmor= out, or run it as root",
        ),
        _ => Error::io("read", &path, error),
    })?;
    if has_profile(&loaded, name) {
        return Ok(());
    }
    Err(Error::Invalid {
        message: format!("the AppArmor profile {name:?} is not loaded"),
        hint: "load it with apparmor_parser, or leave --security-opt apparmor= out for our own".into(),
    })
}

fn loaded_profiles() -> Option<String> {
    fs::read_to_string(PROFILES).ok()
}

/// Lines are `name (mode)`.
fn has_profile(list: &str, name: &str) -> bool {
    list.lines().any(|line| line.rsplit_once(" (").is_some_and(|(known, _)| known == name))
}

fn load(parser: &Path, text: &str) -> Result<()> {
    let failed = |error| Error::io("load our AppArmor profile with", parser, error);
    // Without a cache: this text is loaded once a boot.
    let mut child = Command::new(parser)
        .args(["--replace", "--skip-cache", "--quiet"])
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    // It may end before it has read all: what it says then is the error to tell.
    let written = child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(text.as_bytes()));
    let output = child.wait_with_output().map_err(failed)?;
    if output.status.success() {
        return written.map_err(failed);
    }
    let words = String::from_utf8_lossy(&output.stderr);
    Err(Error::unsupported(
        format!("{} refuses our AppArmor profile: {}", parser.display(), words.trim()),
        "--security-opt apparmor=unconfined runs without it",
    ))
}

/// Which files of the distribution the text can include.
#[derive(Debug, Clone, Copy, Default)]
struct Includes {
    abi: bool,
    tunables: bool,
    base: bool,
}

impl Includes {
    fn of_host() -> Self {
        let has = |name: &str| Path::new(INCLUDES).join(name).exists();
        Self { abi: has("abi/3.0"), tunables: has("tunables/global"), base: has("abstractions/base") }
    }
}

/// The profile. Files, capabilities and sockets stay what mounts, the runtime and seccomp leave of them; what is
/// denied here are the ways from a container to its kernel, whatever mounts or capabilities it may have.
fn profile(includes: &Includes) -> String {
    // With a newer ABI `network` no longer covers unix sockets.
    let abi = if includes.abi { "abi <abi/3.0>,\n" } else { "" };
    let tunables = if includes.tunables { "include <tunables/global>\n" } else { "@{PROC}=/proc/\n" };
    let base = if includes.base { "  include <abstractions/base>\n" } else { "" };
    format!(
        "{abi}{tunables}
profile {DEFAULT_PROFILE} flags=(attach_disconnected,mediate_deleted) {{
{base}  file,
  capability,
  umount,
  network,
  # The kernel's crypto (CVE-2026-31431) and the hypervisor's channel, also through 32-bit socketcall.
  deny network alg,
  deny network vsock,

  # The host's processes may signal and look in; the container's may do so among themselves.
  signal (receive) peer=unconfined,
  signal (send,receive) peer={DEFAULT_PROFILE},
  ptrace (readby,tracedby) peer=unconfined,
  ptrace (read,readby,trace,tracedby) peer={DEFAULT_PROFILE},

  deny mount,
  deny pivot_root,

  # In /proc nothing is written but what belongs to a process.
  deny @{{PROC}}/* w,
  deny @{{PROC}}/[^0-9s]*/** wklx,
  deny @{{PROC}}/s[^y]*/** wklx,
  deny @{{PROC}}/sy[^s]*/** wklx,
  deny @{{PROC}}/sys*/** wklx,
  deny @{{PROC}}/sysrq-trigger rwklx,
  deny @{{PROC}}/kcore rwklx,
  deny @{{PROC}}/kmsg rwklx,
  deny @{{PROC}}/kpage* rwklx,

  # In /sys nothing is written but cgroups, and the firmware's and the kernel's own secrets are not read.
  deny /sys/[^f]** wklx,
  deny /sys/f[^s]** wklx,
  deny /sys/fs/[^c]** wklx,
  deny /sys/fs/c[^g]** wklx,
  deny /sys/fs/cg[^r]** wklx,
  deny /sys/firmware/** rwklx,
  deny /sys/devices/virtual/powercap/** rwklx,
  deny /sys/kernel/security/** rwklx,
  deny /sys/kernel/debug/** rwklx,
  deny /sys/kernel/tracing/** rwklx,
}}
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_of_profiles() {
        let list = "proa-default (enforce)\nsnap.x (y) (complain)\n/usr/bin/man (enforce)\n";
        for name in ["proa-default", "snap.x (y)", "/usr/bin/man"] {
            assert!(has_profile(list, name), "{name}");
        }
        for name in ["proa", "proa-default (enforce)", "", "man"] {
            assert!(!has_profile(list, name), "{name}");
        }
    }

    #[test]
    fn the_text_is_closed_and_includes_what_is_there() {
        let bare = profile(&Includes::default());
        assert!(bare.contains("@{PROC}=/proc/") && !bare.contains("include") && !bare.contains("abi <"));
        let full = profile(&Includes { abi: true, tunables: true, base: true });
        assert!(full.starts_with("abi <abi/3.0>,\ninclude <tunables/global>\n"), "{full}");
        assert!(full.contains("  include <abstractions/base>\n"));
        for text in [bare, full] {
            assert_eq!(text.matches('{').count(), text.matches('}').count());
            let rules = text
                .lines()
                .map(str::trim)
                .filter(|line| !line.is_empty() && !line.starts_with('#') && !line.starts_with("include"));
            let ends = |line: &str| {
                line.ends_with(',') || line.ends_with('{') || line == "}" || line.contains("=/proc/")
            };
            rules.for_each(|rule| assert!(ends(rule), "{rule}"));
        }
    }

    /// The parser checks it, where there is one: no kernel is needed for that.
    #[test]
    fn the_parser_understands_it() {
        let Some(parser) = PARSERS.iter().find(|path| Path::new(path).exists()) else { return };
        for includes in [Includes::default(), Includes::of_host()] {
            let mut child = Command::new(parser)
                .args(["--skip-kernel-load", "--skip-cache", "--stdout"])
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            child.stdin.take().unwrap().write_all(profile(&includes).as_bytes()).unwrap();
            let output = child.wait_with_output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
    }
}
