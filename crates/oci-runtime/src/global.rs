//! Options of every command, and where they lead.

use std::path::PathBuf;
use std::sync::OnceLock;

use proa_runtime::CgroupPolicy;

use crate::args::{Opt, Parsed, flag, value};
use crate::error::{Failure, Result};
use crate::log::Log;
use crate::store::Store;

/// Options that stand before the command, or among its own.
pub const OPTIONS: &[Opt] = &[
    value("root"),
    value("log"),
    value("log-format"),
    value("log-level"),
    flag("debug"),
    flag("systemd-cgroup"),
    value("rootless"),
    value("criu"),
    flag("help").or('h'),
    flag("version").or('v'),
];

/// Where containers are kept by root, and below the directory that a login gives an ordinary user.
const ROOT: &str = "/run/proa-runtime";
const ROOTLESS: &str = "proa-runtime";
/// Where root's systemd is reached.
const SYSTEM_BUS: &str = "unix:path=/run/dbus/system_bus_socket";

/// What the global options say.
#[derive(Debug)]
pub struct Global {
    /// The containers.
    pub store: Store,
    /// Where failures are told.
    pub log: Log,
    /// How cgroups of new containers are made.
    pub cgroup: CgroupPolicy,
    debug: bool,
}

impl Global {
    /// Where failures are told, as early as can be.
    ///
    /// # Errors
    /// The format is not known.
    pub fn log(parsed: &Parsed) -> Result<Log> {
        let path = parsed.get("log").filter(|path| !path.is_empty()).map(absolute).transpose()?;
        Log::new(path, parsed.get("log-format"))
    }

    /// Reads them.
    ///
    /// # Errors
    /// One of them cannot be followed.
    pub fn new(parsed: &Parsed, log: Log) -> Result<Self> {
        match parsed.get("rootless") {
            None | Some("auto" | "true" | "false") => {}
            Some(other) => {
                return Err(Failure::usage(format!("--rootless {other}: use true, false or auto")));
            }
        }
        if let Some(level) = parsed.get("log-level")
            && !matches!(level, "debug" | "info" | "warning" | "warn" | "error" | "fatal" | "panic")
        {
            return Err(Failure::usage(format!("--log-level {level} is not known")));
        }
        let root = match parsed.get("root") {
            Some(root) => absolute(root)?,
            None => default_root(parsed.get("rootless"))?,
        };
        let debug = parsed.is("debug") || parsed.get("log-level") == Some("debug");
        let cgroup = if parsed.is("systemd-cgroup") { systemd() } else { CgroupPolicy::Auto };
        Ok(Self { store: Store::new(root), log, cgroup, debug })
    }

    /// What was asked for and could not be granted.
    pub fn warn(&self, warnings: &[String]) {
        warnings.iter().for_each(|warning| self.log.tell("warning", warning));
    }

    /// For `--debug`.
    pub fn debug(&self, message: &str) {
        if self.debug {
            self.log.tell("debug", message);
        }
    }
}

/// Cgroups by systemd, and the bus to reach it by: root's, or that of the user whose root we are.
pub fn systemd() -> CgroupPolicy {
    static ADDRESS: OnceLock<String> = OnceLock::new();
    CgroupPolicy::Systemd(ADDRESS.get_or_init(|| {
        let given = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let of_system = || given("DBUS_SYSTEM_BUS_ADDRESS").unwrap_or_else(|| SYSTEM_BUS.to_owned());
        if proa_sys::userns::is_initial() {
            return of_system();
        }
        let of_login = || given("XDG_RUNTIME_DIR").map(|dir| format!("unix:path={dir}/bus"));
        given("DBUS_SESSION_BUS_ADDRESS").or_else(of_login).unwrap_or_else(of_system)
    }))
}

fn default_root(rootless: Option<&str>) -> Result<PathBuf> {
    let as_root = match rootless {
        Some("true") => false,
        Some("false") => true,
        _ => rustix::process::geteuid().is_root(),
    };
    let given = std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty());
    // As runc: an engine of an ordinary user's is root in a user namespace, and no root of the host.
    let is_users = rootless != Some("false")
        && !proa_sys::userns::is_initial()
        && std::env::var_os("USER").is_none_or(|user| user != "root");
    if as_root && !(is_users && given.is_some()) {
        return Ok(ROOT.into());
    }
    match given {
        Some(dir) => Ok(PathBuf::from(dir).join(ROOTLESS)),
        None => Err(Failure::new("no place for the state: set XDG_RUNTIME_DIR, or give --root")),
    }
}

/// A path that stays the same when the working directory changes to the bundle.
///
/// # Errors
/// There is no working directory.
pub fn absolute(path: &str) -> Result<PathBuf> {
    std::path::absolute(path).map_err(|error| Failure::at(path, error))
}
