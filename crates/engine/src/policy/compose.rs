//! The services of a Compose file.
//!
//! Variables are not filled in, since their values are those of a moment: a value that decides a control and holds
//! one is an error, and a source of a volume that begins with one counts as a path of the host.

use serde_json::Value;

use super::kube::{boolean, items, names, text};
use super::{Dialect, FileError, RunAs, Subject, run_as, short_capability, yaml};
use crate::settings::SecuritySettings;

/// One subject a service.
///
/// # Errors
/// It is no YAML, a key is not what it must be, it is spread over files, or it has no services.
pub fn parse(text: &str, settings: &SecuritySettings) -> Result<Vec<Subject>, FileError> {
    let documents = yaml::documents(text)?;
    let [file] = documents.as_slice() else {
        return Err(FileError("a Compose file is one YAML document".into()));
    };
    if !file["include"].is_null() {
        return Err(FileError("include: is not followed; check what `docker compose config` prints".into()));
    }
    let services = file["services"].as_object().filter(|services| !services.is_empty());
    let services = services.ok_or_else(|| FileError("it has no services".into()))?;
    let subject = |(name, service): (&String, &Value)| {
        let place = format!("service {name}");
        let subject = of_service(service, file, settings).map_err(|error| FileError::at(&place, error))?;
        Ok(Subject { name: place, ..subject })
    };
    services.iter().map(subject).collect()
}

fn of_service(service: &Value, file: &Value, settings: &SecuritySettings) -> Result<Subject, FileError> {
    if !service.is_object() {
        return Err(FileError("it is no mapping".into()));
    }
    if !service["extends"].is_null() {
        return Err(FileError("extends: is not followed; check what `docker compose config` prints".into()));
    }
    let options: Vec<String> = plain_names(service, "security_opt")?.into_iter().map(str::to_owned).collect();
    let options = Subject::of_options(&options, settings).map_err(|error| FileError(error.to_string()))?;
    let mut subject = Subject { dialect: Dialect::Compose, ..options };
    for (key, kind) in [("network_mode", "network"), ("pid", "pid"), ("ipc", "ipc")] {
        if plain(key, text(service, key)?)? == Some("host") {
            subject.host_namespaces.push(kind);
        }
    }
    subject.privileged = boolean(service, "privileged")? == Some(true);
    subject.added = plain_names(service, "cap_add")?.iter().map(|name| short_capability(name)).collect();
    let dropped = plain_names(service, "cap_drop")?;
    subject.drops_all = dropped.iter().any(|name| short_capability(name) == "ALL");
    volumes(service, file, &mut subject)?;
    devices(service, &mut subject)?;
    subject.host_ports = ports(service)?;
    subject.sysctls = keys(service, "sysctls")?;
    // A number stands for itself.
    let user = match &service["user"] {
        Value::Number(number) => Some(number.to_string()),
        _ => plain("user", text(service, "user")?)?.map(str::to_owned),
    };
    // Without one it is the image's, which is not here.
    subject.user = user.map_or(RunAs::Open, |user| run_as(&user));
    Ok(subject)
}

fn plain<'a>(key: &str, value: Option<&'a str>) -> Result<Option<&'a str>, FileError> {
    match value {
        Some(text) if text.replace("$$", "").contains('$') => {
            Err(FileError(format!("{key} holds a variable; check what `docker compose config` prints")))
        }
        value => Ok(value),
    }
}

fn plain_names<'a>(service: &'a Value, key: &str) -> Result<Vec<&'a str>, FileError> {
    let list = names(service, key)?;
    list.iter().try_for_each(|name| plain(key, Some(name)).map(drop))?;
    Ok(list)
}

fn volumes(service: &Value, file: &Value, subject: &mut Subject) -> Result<(), FileError> {
    for volume in items(service, "volumes")? {
        let (source, kind) = match volume {
            Value::String(short) => {
                // A path alone is an anonymous volume.
                let Some((source, _)) = short.split_once(':') else { continue };
                (source, if is_path(source) { "bind" } else { "volume" })
            }
            long => (text(long, "source")?.unwrap_or_default(), text(long, "type")?.unwrap_or("volume")),
        };
        match kind {
            "bind" => subject.host_paths.push(source.to_owned()),
            "volume" => subject.host_paths.extend(bound_volume(source, file)?),
            "tmpfs" | "image" => {}
            other => subject.other_volumes.push((source.to_owned(), other.to_owned())),
        }
    }
    Ok(())
}

fn is_path(source: &str) -> bool {
    source.starts_with(['/', '.', '~', '$'])
}

/// A named volume can be a bind mount by its driver's options.
fn bound_volume(name: &str, file: &Value) -> Result<Option<String>, FileError> {
    let options = &file["volumes"][name]["driver_opts"];
    let device = text(options, "device")?;
    let mount = text(options, "o")?.unwrap_or_default();
    let binds = mount.split(',').any(|option| matches!(option, "bind" | "rbind"));
    Ok(device.filter(|device| binds || device.starts_with('/')).map(str::to_owned))
}

fn devices(service: &Value, subject: &mut Subject) -> Result<(), FileError> {
    for device in items(service, "devices")? {
        let source = match device {
            Value::String(short) => short.split(':').next().unwrap_or_default(),
            long => text(long, "source")?.unwrap_or_default(),
        };
        // Names of the container device interface are devices too.
        subject.host_paths.push(source.to_owned());
    }
    for rule in names(service, "device_cgroup_rules")? {
        subject.host_paths.push(format!("the devices {rule:?}"));
    }
    Ok(())
}

/// Published ports; a port that is only named is published at one that the engine picks, which is a host's as well.
fn ports(service: &Value) -> Result<Vec<String>, FileError> {
    let port = |port: &Value| match port {
        Value::String(short) => Ok(short.clone()),
        Value::Number(number) => Ok(number.to_string()),
        long => match (&long["published"], &long["target"]) {
            (Value::String(text), _) => Ok(text.clone()),
            (Value::Number(number), _) | (Value::Null, Value::Number(number)) => Ok(number.to_string()),
            _ => Err(FileError("ports: an entry has no target".into())),
        },
    };
    items(service, "ports")?.iter().map(port).collect()
}

/// The names of a mapping, or of a list of `name=value`.
fn keys(service: &Value, key: &str) -> Result<Vec<String>, FileError> {
    if let Some(mapping) = service[key].as_object() {
        return Ok(mapping.keys().cloned().collect());
    }
    let list = plain_names(service, key)?;
    Ok(list.iter().map(|text| text.split('=').next().unwrap_or_default().to_owned()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{Level, check};

    fn subjects(text: &str) -> Result<Vec<Subject>, FileError> {
        parse(text, &SecuritySettings::default())
    }

    fn controls(text: &str, level: Level) -> Vec<&'static str> {
        let subjects = subjects(text).unwrap();
        subjects.iter().flat_map(|subject| check(subject, level)).map(|found| found.control).collect()
    }

    #[test]
    fn a_hardened_service_is_restricted() {
        let text = "
x-hard: &hard
  user: '65532:65532'
  cap_drop: [ALL]
  security_opt: ['no-new-privileges:true']
services:
  web:
    <<: *hard
    image: web
    cap_add: [NET_BIND_SERVICE]
    volumes: ['data:/data', {type: tmpfs, target: /tmp}, /anonymous]
    expose: [80]
    network_mode: none
volumes: {data: {}}
";
        assert_eq!(controls(text, Level::Restricted), Vec::<&str>::new());
        assert_eq!(
            controls("services: {a: {image: b}}", Level::Restricted),
            ["Privilege Escalation", "Running as Non-root", "Capabilities"]
        );
    }

    #[test]
    fn every_key_is_read() {
        for (keys, control) in [
            ("network_mode: host", "Host Namespaces"),
            ("pid: host", "Host Namespaces"),
            ("ipc: host", "Host Namespaces"),
            ("privileged: true", "Privileged Containers"),
            ("cap_add: [CAP_SYS_ADMIN]", "Capabilities"),
            ("volumes: ['./data:/data']", "HostPath Volumes"),
            ("volumes: ['~/data:/data:ro']", "HostPath Volumes"),
            ("volumes: ['${DATA}:/data']", "HostPath Volumes"),
            ("volumes: [{type: bind, source: /etc, target: /x}]", "HostPath Volumes"),
            ("volumes: ['bound:/x']", "HostPath Volumes"),
            ("devices: ['/dev/fuse:/dev/fuse']", "HostPath Volumes"),
            ("device_cgroup_rules: ['c 1:1 r']", "HostPath Volumes"),
            ("ports: ['80:80']", "Host Ports"),
            ("ports: [80]", "Host Ports"),
            ("ports: [{target: 80, published: '8080'}]", "Host Ports"),
            ("security_opt: ['apparmor:unconfined']", "AppArmor"),
            ("security_opt: ['label:disable']", "SELinux"),
            ("security_opt: ['seccomp:unconfined']", "Seccomp"),
            ("security_opt: ['systempaths=unconfined']", "/proc Mount Type"),
            ("sysctls: {net.core.somaxconn: 1}", "Sysctls"),
            ("sysctls: ['net.core.somaxconn=1']", "Sysctls"),
        ] {
            let bound = "volumes: {bound: {driver_opts: {type: none, o: bind, device: /srv}}}";
            let text = format!("services: {{a: {{{keys}}}}}\n{bound}\n");
            assert_eq!(controls(&text, Level::Baseline), [control], "{keys}");
        }
        let root = controls("services: {a: {user: 0}}", Level::Restricted);
        assert!(root.contains(&"Running as Non-root user"), "{root:?}");
    }

    #[test]
    fn what_cannot_be_judged_is_an_error() {
        for text in [
            "",
            "services: {}",
            "services: {a: b}",
            "include: [x.yaml]\nservices: {a: {}}",
            "services: {a: {extends: b}}",
            "services: {a: {network_mode: '${MODE}'}}",
            "services: {a: {privileged: '${P}'}}",
            "services: {a: {cap_add: ['${C}']}}",
            "services: {a: {user: '${U}'}}",
            "services: {a: {security_opt: ['colour=red']}}",
            "services: {a: {ports: [{mode: host}]}}",
            "services: {a: {}}\n---\nservices: {b: {}}",
        ] {
            assert!(subjects(text).is_err(), "{text}");
        }
    }
}
