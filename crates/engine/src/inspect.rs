//! An instance in the shape of Docker's `inspect`, plus `IsolationLevel`.

use proa_protocol::instance::{InstanceConfig, IsolationLevel, LOG_FILE, Status};
use serde_json::{Value, json};

use crate::engine::{Engine, Instance};
use crate::error::Result;
use crate::mounts;
use crate::parse::{rfc3339_nano, rfc3339_or_zero};
use crate::trees;

/// The word for a status.
pub fn status_word(status: Status) -> &'static str {
    match status {
        Status::Created => "created",
        Status::Running => "running",
        Status::Paused => "paused",
        Status::Exited => "exited",
    }
}

impl Engine {
    /// The document for one instance; with its size on disk if asked for.
    ///
    /// # Errors
    /// What is stored of it cannot be read.
    pub fn inspect(&self, instance: &Instance, size: bool) -> Result<Value> {
        let record = &instance.record;
        let directory = self.paths.instance(&record.id);
        // An instance whose making was cut short has no configuration; it is still there to be looked at.
        let config = self.read_config(&record.id).unwrap_or_default();
        let args = config.spec.process.as_ref().map(|process| process.args.clone()).unwrap_or_default();
        let mut document = json!({
            "Id": record.id,
            "Created": rfc3339_nano(record.created_ns),
            "Path": args.first().cloned().unwrap_or_default(),
            "Args": args.iter().skip(1).collect::<Vec<_>>(),
            "State": state(instance),
            "Image": record.image_id,
            "ResolvConfPath": "",
            "HostnamePath": "",
            "HostsPath": "",
            "LogPath": directory.join(LOG_FILE),
            "Name": format!("/{}", record.name),
            "RestartCount": 0,
            "Driver": "erofs",
            "Platform": "linux",
            "MountLabel": "",
            "ProcessLabel": "",
            "AppArmorProfile": "",
            "ExecIDs": Value::Null,
            "HostConfig": host_config(instance, &config),
            "GraphDriver": graph_driver(&directory, &config),
            "Mounts": mount_points(instance),
            "Config": record.config,
            "NetworkSettings": network_settings(&record.host_config.network_mode),
            "IsolationLevel": record.level.as_str(),
        });
        if size {
            let (own, root) = self.sizes(instance);
            document["SizeRw"] = json!(own);
            document["SizeRootFs"] = json!(root);
        }
        Ok(document)
    }

    /// Bytes of an instance's writable layer, and of that and its image.
    pub fn sizes(&self, instance: &Instance) -> (u64, u64) {
        let directory = self.paths.instance(&instance.record.id);
        let own = match instance.record.level {
            IsolationLevel::Container => trees::disk_usage(&directory.join("upper")),
            IsolationLevel::Vm => {
                use std::os::unix::fs::MetadataExt;
                std::fs::metadata(directory.join("rw.img")).map_or(0, |metadata| metadata.blocks() * 512)
            }
        };
        let image = self.store().and_then(|store| Ok(store.resolve(&instance.record.image_id)?));
        (own, own + image.map_or(0, |image| image.size))
    }
}

fn state(instance: &Instance) -> Value {
    let state = &instance.state;
    let live = instance.is_live();
    json!({
        "Status": status_word(state.status),
        "Running": live,
        "Paused": state.status == Status::Paused,
        "Restarting": false,
        "OOMKilled": state.oom_killed,
        "Dead": false,
        "Pid": if live { state.pid } else { 0 },
        "MonitorPid": if live { state.monitor_pid } else { 0 },
        "ExitCode": state.exit_code,
        "Error": state.error,
        "StartedAt": rfc3339_or_zero(state.started_ns),
        "FinishedAt": rfc3339_or_zero(state.finished_ns),
    })
}

fn host_config(instance: &Instance, config: &InstanceConfig) -> Value {
    let mut host = json!(instance.record.host_config);
    if let Some(linux) = &config.spec.linux {
        host["MaskedPaths"] = json!(linux.masked_paths);
        host["ReadonlyPaths"] = json!(linux.readonly_paths);
    }
    if host["NetworkMode"] == "default" {
        host["NetworkMode"] = json!("none");
    }
    host
}

fn graph_driver(directory: &std::path::Path, config: &InstanceConfig) -> Value {
    let layers: Vec<_> = config.layers.iter().map(|layer| &layer.path).collect();
    let writable = match config.isolation {
        IsolationLevel::Container => "upper",
        IsolationLevel::Vm => "rw.img",
    };
    json!({ "Name": "erofs", "Data": { "Layers": layers, "UpperDir": directory.join(writable) } })
}

fn mount_points(instance: &Instance) -> Vec<Value> {
    let host = &instance.record.host_config;
    let bind = |source: &str, destination: &str, mode: &str, writable: bool, propagation: &str| {
        json!({
            "Type": "bind",
            "Source": source,
            "Destination": destination,
            "Mode": mode,
            "RW": writable,
            "Propagation": propagation,
        })
    };
    let binds = host.binds.iter().filter_map(|text| mounts::parse_bind(text).ok());
    let mut points: Vec<Value> = binds
        .map(|given| {
            bind(&given.source, &given.destination, &given.mode, !given.read_only, &given.propagation)
        })
        .collect();
    for mount in &host.mounts {
        if mount.kind == "bind" {
            let propagation = mount.bind_options.as_ref().map(|options| options.propagation.as_str());
            let propagation = propagation.filter(|text| !text.is_empty()).unwrap_or("rprivate");
            points.push(bind(&mount.source, &mount.target, "", !mount.read_only, propagation));
        } else {
            points.push(json!({
                "Type": "tmpfs", "Source": "", "Destination": mount.target, "Mode": "",
                "RW": !mount.read_only, "Propagation": "",
            }));
        }
    }
    points
}

fn network_settings(mode: &str) -> Value {
    let name = if mode == "host" { "host" } else { "none" };
    json!({
        "Bridge": "",
        "SandboxID": "",
        "SandboxKey": "",
        "Ports": {},
        "Gateway": "",
        "IPAddress": "",
        "MacAddress": "",
        "Networks": { name: { "NetworkID": "", "IPAddress": "", "Gateway": "", "MacAddress": "" } },
    })
}
