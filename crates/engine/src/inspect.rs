//! An instance in the shape of Docker's `inspect`, plus `IsolationLevel`.

use std::path::PathBuf;

use proa_protocol::instance::{InstanceConfig, IsolationLevel, Status};
use proa_protocol::machine::{MEDIA, SCREEN_SOCKET, disk_file};
use proa_protocol::volume::{DRIVER, MountPoint, PointKind};
use proa_sys::trees;
use serde::Serialize;
use serde_json::{Value, json};

use crate::engine::{Engine, Instance};
use crate::logging;
use crate::parse::{rfc3339_nano, rfc3339_or_zero};
use crate::{health, network};

/// The word for a status.
pub fn status_word(status: Status) -> &'static str {
    match status {
        Status::Created => "created",
        Status::Running => "running",
        Status::Paused => "paused",
        Status::Restarting => "restarting",
        Status::Exited => "exited",
    }
}

/// The document, its fields in Docker's order.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Document {
    id: String,
    created: String,
    path: String,
    args: Vec<String>,
    state: Value,
    image: String,
    resolv_conf_path: &'static str,
    hostname_path: &'static str,
    hosts_path: &'static str,
    log_path: PathBuf,
    name: String,
    restart_count: u32,
    driver: &'static str,
    platform: &'static str,
    mount_label: String,
    process_label: String,
    app_armor_profile: String,
    #[serde(rename = "ExecIDs")]
    exec_ids: Value,
    host_config: Value,
    graph_driver: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    size_rw: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    size_root_fs: Option<u64>,
    mounts: Vec<Value>,
    config: Value,
    network_settings: Value,
    isolation_level: &'static str,
}

impl Engine {
    /// The document for one instance; with its size on disk if asked for.
    pub fn inspect(&self, instance: &Instance, size: bool) -> Document {
        let record = &instance.record;
        let directory = self.paths.instance(&record.id);
        // An instance whose making was cut short has no configuration; it is still there to be looked at.
        let config = self.read_config(&record.id).unwrap_or_default();
        let process = config.spec.process.as_ref();
        let linux = config.spec.linux.as_ref();
        let mut args = process.map(|process| process.args.clone()).unwrap_or_default().into_iter();
        let sizes = size.then(|| self.sizes(instance));
        Document {
            id: record.id.clone(),
            created: rfc3339_nano(record.created_ns),
            path: args.next().unwrap_or_default(),
            args: args.collect(),
            state: self.state_document(instance),
            image: record.image_id.clone(),
            resolv_conf_path: "",
            hostname_path: "",
            hosts_path: "",
            log_path: logging::file(&record.host_config).map(|name| directory.join(name)).unwrap_or_default(),
            name: format!("/{}", record.name),
            restart_count: instance.state.restart_count,
            driver: "erofs",
            platform: "linux",
            mount_label: linux.and_then(|linux| linux.mount_label.clone()).unwrap_or_default(),
            process_label: process.and_then(|process| process.selinux_label.clone()).unwrap_or_default(),
            app_armor_profile: process
                .and_then(|process| process.apparmor_profile.clone())
                .unwrap_or_default(),
            exec_ids: Value::Null,
            host_config: host_config(instance, &config),
            graph_driver: graph_driver(&directory, &config),
            size_rw: sizes.map(|(own, _)| own),
            size_root_fs: sizes.map(|(_, root)| root),
            mounts: mount_points(&config),
            config: container_config(instance),
            network_settings: network::settings(self, instance, &config),
            isolation_level: record.level.as_str(),
        }
    }

    fn state_document(&self, instance: &Instance) -> Value {
        let mut state = state(instance);
        if let Some(found) = self.health(instance) {
            state["Health"] = health::document(&found);
        }
        if instance.record.host_config.machine.is_some() && instance.is_live() {
            state["Screen"] = json!(self.paths.instance_run(&instance.record.id).join(SCREEN_SOCKET));
        }
        state
    }

    /// Bytes of an instance's writable layer, and of that and its image.
    pub fn sizes(&self, instance: &Instance) -> (u64, u64) {
        let directory = self.paths.instance(&instance.record.id);
        if instance.record.host_config.machine.is_some() {
            let own = trees::disk_usage(&directory.join(MEDIA));
            return (own, own);
        }
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
    let mut told = json!({
        "Status": status_word(state.status),
        "Running": live,
        "Paused": state.status == Status::Paused,
        "Restarting": state.status == Status::Restarting,
        "OOMKilled": state.oom_killed,
        "Dead": false,
        "Pid": if live { state.pid } else { 0 },
        "MonitorPid": if live { state.monitor_pid } else { 0 },
        "ExitCode": state.exit_code,
        "Error": state.error,
        "StartedAt": rfc3339_or_zero(state.started_ns),
        "FinishedAt": rfc3339_or_zero(state.finished_ns),
    });
    if live && !state.vmm_cgroup.is_empty() {
        told["VmmCgroup"] = json!(state.vmm_cgroup);
    }
    told
}

fn host_config(instance: &Instance, config: &InstanceConfig) -> Value {
    let mut host = json!(instance.record.host_config);
    if let Some(linux) = &config.spec.linux {
        host["MaskedPaths"] = json!(linux.masked_paths);
        host["ReadonlyPaths"] = json!(linux.readonly_paths);
    }
    if instance.record.host_config.privileged {
        (host["MaskedPaths"], host["ReadonlyPaths"]) = (Value::Null, Value::Null);
    }
    let whole = json!({
        "Cgroup": "",
        "CgroupParent": "",
        "CgroupnsMode": "private",
        "CpuCount": 0,
        "DeviceCgroupRules": null,
        "DeviceRequests": null,
        "GroupAdd": null,
        "IpcMode": "private",
        "Links": null,
        "PidMode": "",
        "Runtime": "proa",
        "UTSMode": "",
        "VolumeDriver": "",
        "VolumesFrom": null,
    });
    add_missing(&mut host, whole);
    host
}

/// What scripts written for Docker look for, as it is where nothing was asked for.
fn add_missing(document: &mut Value, defaults: Value) {
    if let (Value::Object(document), Value::Object(defaults)) = (document, defaults) {
        for (key, value) in defaults {
            document.entry(key).or_insert(value);
        }
    }
}

fn container_config(instance: &Instance) -> Value {
    let mut config = json!(instance.record.config);
    add_missing(
        &mut config,
        json!({ "OnBuild": null, "Volumes": null, "ExposedPorts": null, "StopSignal": "" }),
    );
    config
}

fn graph_driver(directory: &std::path::Path, config: &InstanceConfig) -> Value {
    if let Some(machine) = &config.machine {
        let disks = (0..machine.disks).map(|number| directory.join(MEDIA).join(disk_file(number)));
        return json!({ "Name": "raw", "Data": { "Disks": disks.collect::<Vec<_>>() } });
    }
    let layers: Vec<_> = config.layers.iter().map(|layer| &layer.path).collect();
    let writable = match config.isolation {
        IsolationLevel::Container => "upper",
        IsolationLevel::Vm => "rw.img",
    };
    json!({ "Name": "erofs", "Data": { "Layers": layers, "UpperDir": directory.join(writable) } })
}

fn mount_points(config: &InstanceConfig) -> Vec<Value> {
    config.mount_points.iter().map(mount_point).collect()
}

fn mount_point(point: &MountPoint) -> Value {
    let (kind, volume) = match point.kind {
        PointKind::Bind => ("bind", None),
        PointKind::Volume => ("volume", point.volume.as_ref()),
        PointKind::Tmpfs => ("tmpfs", None),
    };
    let mut document = serde_json::Map::from_iter([("Type".to_owned(), json!(kind))]);
    let mut add = |key: &str, value: Value| drop(document.insert(key.to_owned(), value));
    if volume.is_some() {
        add("Name", json!(point.name));
    }
    add("Source", volume.map_or_else(|| json!(point.source), |volume| json!(volume.directory.join("_data"))));
    add("Destination", json!(point.destination));
    if volume.is_some() {
        add("Driver", json!(DRIVER));
    }
    add("Mode", json!(point.mode));
    add("RW", json!(!point.read_only));
    add("Propagation", json!(point.propagation));
    document.into()
}
