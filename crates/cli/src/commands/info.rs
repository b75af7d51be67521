//! `proa info`: what Proa finds on this machine.

use std::path::Path;

use proa_engine::lsm;
use proa_image::layer::LayerForm;
use proa_protocol::instance::Status;
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
    let document = gather(context)?;
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
    Ok(json!({
        "ServerVersion": env!("CARGO_PKG_VERSION"),
        "Containers": instances.len(),
        "ContainersRunning": count(Status::Running) + count(Status::Restarting),
        "ContainersPaused": count(Status::Paused),
        "ContainersStopped": count(Status::Created) + count(Status::Exited),
        "Images": engine.store()?.list()?.len(),
        "Driver": if LayerForm::usable() == LayerForm::Erofs { "erofs" } else { "overlay" },
        "Rootless": !proa_sys::userns::is_initial(),
        "LoggingDriver": "json-file",
        "CgroupVersion": cgroup_version(),
        "SecurityOptions": security_options(),
        "IsolationLevels": ["container", "vm"],
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
        ("State", "Root"),
        ("Runtime state", "RunRoot"),
        ("Configuration", "ConfigFile"),
        ("Monitor", "Monitor"),
        ("Operating system", "OperatingSystem"),
        ("Kernel", "KernelVersion"),
        ("Architecture", "Architecture"),
        ("CPUs", "NCPU"),
        ("Cgroup version", "CgroupVersion"),
        ("Security", "SecurityOptions"),
        ("/dev/kvm", "KVM"),
    ];
    let value = |field: &str| match &document[field] {
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" "),
        Value::Bool(there) => {
            if *there { "there (usable only if a probe says so)" } else { "not there" }.to_owned()
        }
        other => other.to_string(),
    };
    let mut text: String =
        lines.iter().map(|(label, field)| format!("{label}: {}\n", value(field))).collect();
    let memory = document["MemTotal"].as_u64().unwrap_or(0);
    text.push_str(&format!("Memory: {}\n", format::binary_size(memory)));
    text.push_str("Network: bridge, host, macvlan, none\n");
    text
}
