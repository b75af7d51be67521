//! `proa info`: what Proa finds on this machine.

mod levels;

use std::path::Path;

use proa_engine::logging::DEFAULT_DRIVER;
use proa_engine::lsm;
use proa_image::layer::LayerForm;
use proa_protocol::instance::Status;
use proa_protocol::log::LogDriver;
use serde_json::{Value, json};

use crate::context::{self, Context};
use crate::error::{Failure, Outcome};
use crate::format;
use crate::template::Template;

/// Print what Proa finds on this machine
#[derive(Debug, clap::Args)]
pub struct Args {
    /// json, or a Go template
    #[arg(short, long)]
    format: Option<String>,
}

/// Runs the command.
pub fn run(context: &Context, args: &Args) -> Outcome {
    let mut document = gather(context)?;
    // It takes a moment, and most templates ask for something else.
    if args
        .format
        .as_deref()
        .is_none_or(|format| format.contains("json") || format.contains("VMAcceleration"))
    {
        document["VMAcceleration"] = levels::acceleration().into();
    }
    let text = match args.format.as_deref() {
        Some("json") => format!("{document}\n"),
        Some(template) => Template::parse(template)?.render(&document)? + "\n",
        None => plain(&document),
    };
    format::print(&text)?;
    Ok(0)
}

fn gather(context: &Context) -> Result<Value, Failure> {
    let engine = context.engine()?;
    let instances = engine.instances()?;
    let count = |status| instances.iter().filter(|instance| instance.state.status == status).count();
    let uname = rustix::system::uname();
    let system = rustix::system::sysinfo();
    let programs = context::programs()?;
    let (there, missing) = levels::levels();
    let driver = context.log_settings()?.driver;
    let drivers: Vec<&str> = LogDriver::ALL.iter().map(|(name, _)| *name).collect();
    Ok(json!({
        "ServerVersion": env!("CARGO_PKG_VERSION"),
        "Containers": instances.len(),
        "ContainersRunning": count(Status::Running) + count(Status::Restarting),
        "ContainersPaused": count(Status::Paused),
        "ContainersStopped": count(Status::Created) + count(Status::Exited),
        "Images": engine.store()?.list()?.len(),
        "Driver": if LayerForm::usable() == LayerForm::Erofs { "erofs" } else { "overlay" },
        "Rootless": !proa_sys::userns::is_initial(),
        "DriverStatus": [["Backing Filesystem", backing(&engine.paths.root)]],
        "LoggingDriver": if driver.is_empty() { DEFAULT_DRIVER.to_owned() } else { driver },
        "Plugins": { "Log": drivers, "Network": ["host", "none"] },
        "CgroupDriver": "cgroupfs",
        "Controllers": controllers(),
        "SystemTime": proa_engine::parse::rfc3339_nano(proa_engine::parse::now_ns()),
        "Debug": context.is_debug(),
        "Warnings": warnings(),
        "CgroupVersion": cgroup_version(),
        "SecurityOptions": security_options(),
        "IsolationLevels": there,
        "IsolationLevelsMissing": missing,
        "StandbyMachines": engine.count_standby()?,
        "KernelVersion": uname.release().to_string_lossy(),
        "OSType": "linux",
        "OperatingSystem": operating_system(),
        "Architecture": uname.machine().to_string_lossy(),
        "NCPU": std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        "MemTotal": system.totalram as u64 * u64::from(system.mem_unit),
        "KVM": Path::new("/dev/kvm").exists(),
        "DockerRootDir": engine.paths.root,
        "Root": engine.paths.root,
        "RunRoot": engine.paths.run,
        "ConfigFile": context.config_file(),
        "Monitor": programs.monitor,
        "Agent": programs.agent,
        "Name": uname.nodename().to_string_lossy(),
    }))
}

/// What confines an instance here by default, as Docker lists it.
fn security_options() -> Vec<&'static str> {
    let known = [
        (lsm::apparmor::is_enabled(), "name=apparmor"),
        (true, "name=seccomp,profile=builtin"),
        (lsm::selinux::policy().is_some(), "name=selinux"),
        (proa_sys::landlock::abi() > 0, "name=landlock"),
        (true, "name=cgroupns"),
    ];
    known.into_iter().filter(|(there, _)| *there).map(|(_, name)| name).collect()
}

/// 2 where all controllers are there, 1 where they are in hierarchies of their own.
fn cgroup_version() -> &'static str {
    let controllers = std::fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
    if controllers.split_whitespace().any(|name| name == "memory") { "2" } else { "1" }
}

/// Controllers of cgroups, of either version.
fn controllers() -> Vec<String> {
    let unified = std::fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
    if !unified.trim().is_empty() {
        return unified.split_whitespace().map(str::to_owned).collect();
    }
    let text = std::fs::read_to_string("/proc/cgroups").unwrap_or_default();
    let lines = text.lines().filter(|line| !line.starts_with('#') && line.ends_with('1'));
    lines.filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

/// What a limit would not find, as Docker says it.
fn warnings() -> Vec<String> {
    let controllers = controllers();
    let missing = ["cpu", "cpuset", "memory", "pids"].into_iter();
    let missing = missing.filter(|name| !controllers.iter().any(|found| found == name));
    missing.map(|name| format!("WARNING: no cgroup controller {name}: its limits cannot be set")).collect()
}

/// The type of the file system at a path: of the mount whose path is the longest that it begins with.
fn backing(path: &Path) -> String {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let over = fields.filter(|fields| fields.len() > 2 && path.starts_with(fields[1]));
    over.max_by_key(|fields| fields[1].len()).map_or_else(|| "unknown".into(), |fields| fields[2].to_owned())
}

fn operating_system() -> String {
    let text = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    name.map_or_else(|| "Linux".into(), |name| name.trim_matches('"').to_owned())
}

fn plain(document: &Value) -> String {
    let lines = [
        ("Version", "ServerVersion"),
        ("Instances", "Containers"),
        (" Running", "ContainersRunning"),
        (" Paused", "ContainersPaused"),
        (" Stopped", "ContainersStopped"),
        ("Images", "Images"),
        ("Layers", "Driver"),
        ("Log driver", "LoggingDriver"),
        ("State", "Root"),
        ("Runtime state", "RunRoot"),
        ("Configuration", "ConfigFile"),
        ("Monitor", "Monitor"),
        ("Operating system", "OperatingSystem"),
        ("Kernel", "KernelVersion"),
        ("Architecture", "Architecture"),
        ("CPUs", "NCPU"),
        ("Cgroup version", "CgroupVersion"),
        ("Cgroup controllers", "Controllers"),
        ("Isolation levels", "IsolationLevels"),
        ("Standby machines", "StandbyMachines"),
        ("Virtual machines run by", "VMAcceleration"),
        ("Security", "SecurityOptions"),
    ];
    let value = |field: &str| match &document[field] {
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" "),
        other => other.to_string(),
    };
    let mut text: String =
        lines.iter().map(|(label, field)| format!("{label}: {}\n", value(field))).collect();
    let missing = document["IsolationLevelsMissing"].as_object();
    for (level, why) in missing.into_iter().flatten() {
        text.push_str(&format!("Level {level} is missing: {}\n", why.as_str().unwrap_or_default()));
    }
    let memory = document["MemTotal"].as_u64().unwrap_or(0);
    text.push_str(&format!("Memory: {}\n", format::binary_size(memory)));
    for warning in document["Warnings"].as_array().into_iter().flatten() {
        text.push_str(&format!(
            "{}
",
            warning.as_str().unwrap_or_default()
        ));
    }
    text.push_str(
        "Network: bridge, host, macvlan, none
",
    );
    text
}
