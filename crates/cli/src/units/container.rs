//! `*.container`: an instance that runs as long as its service.

use super::convert::{Converted, How, flags, line, with_value, words_of};
use super::parse::{Entry, File};
use super::{At, Names};

const SECTION: &str = "Container";
const KEYS: &[(&str, How)] = &[
    ("AddCapability", How::Words("--cap-add")),
    ("AddDevice", How::Each("--device")),
    ("AddHost", How::Each("--add-host")),
    ("ContainerName", How::Special),
    ("DNS", How::Each("--dns")),
    ("DNSOption", How::Each("--dns-option")),
    ("DNSSearch", How::Each("--dns-search")),
    ("DropCapability", How::Words("--cap-drop")),
    ("Entrypoint", How::Last("--entrypoint")),
    ("Environment", How::Words("--env")),
    ("EnvironmentFile", How::Each("--env-file")),
    ("Exec", How::Special),
    ("ExposeHostPort", How::Each("--expose")),
    ("Group", How::Special),
    ("GroupAdd", How::Each("--group-add")),
    ("HealthCmd", How::Last("--health-cmd")),
    ("HealthInterval", How::Last("--health-interval")),
    ("HealthOnFailure", How::Last("--health-on-failure")),
    ("HealthRetries", How::Last("--health-retries")),
    ("HealthStartPeriod", How::Last("--health-start-period")),
    ("HealthTimeout", How::Last("--health-timeout")),
    ("HostName", How::Last("--hostname")),
    ("IP", How::Last("--ip")),
    ("IP6", How::Last("--ip6")),
    ("Image", How::Special),
    ("Isolation", How::Last("--isolation")),
    ("Label", How::Words("--label")),
    ("LogDriver", How::Last("--log-driver")),
    ("LogOpt", How::Each("--log-opt")),
    ("Memory", How::Last("--memory")),
    ("Mount", How::Each("--mount")),
    ("Network", How::Special),
    ("NetworkAlias", How::Each("--network-alias")),
    ("NoNewPrivileges", How::Fixed("--security-opt", "no-new-privileges")),
    ("PidsLimit", How::Last("--pids-limit")),
    ("PublishPort", How::Each("--publish")),
    ("Pull", How::Last("--pull")),
    ("ReadOnly", How::Switch("--read-only")),
    ("RunInit", How::Switch("--init")),
    ("SeccompProfile", How::Special),
    ("SecurityLabelDisable", How::Fixed("--security-opt", "label=disable")),
    ("ShmSize", How::Last("--shm-size")),
    ("StopSignal", How::Last("--stop-signal")),
    ("StopTimeout", How::Last("--stop-timeout")),
    ("Sysctl", How::Words("--sysctl")),
    ("Tmpfs", How::Each("--tmpfs")),
    ("Ulimit", How::Each("--ulimit")),
    ("User", How::Special),
    ("UserNS", How::Last("--userns")),
    ("Volume", How::Special),
    ("WorkingDir", How::Last("--workdir")),
];

pub(super) fn convert(file: &File, name: &str, names: &Names) -> Result<Converted, At> {
    let mut run = flags(file, SECTION, KEYS)?;
    let mut needs = Vec::new();
    let image = file.last(SECTION, "Image").filter(|entry| !entry.value.is_empty());
    let image = image.ok_or((0, "[Container] has no Image".to_owned()))?;
    if image.value.starts_with('-') || image.value.ends_with(".image") || image.value.ends_with(".build") {
        return Err((image.line, format!("{:?} is no reference of an image", image.value)));
    }
    for entry in file.entries(SECTION).filter(|entry| entry.key == "Volume") {
        run.push(with_value("--volume", &volume(entry, names, &mut needs)?));
    }
    for entry in file.entries(SECTION).filter(|entry| entry.key == "Network") {
        run.push(with_value("--network", &referred(entry, &entry.value, ".network", names, &mut needs)?));
    }
    if let Some(profile) = file.last(SECTION, "SeccompProfile") {
        run.push(with_value("--security-opt", &format!("seccomp={}", profile.value)));
    }
    run.extend(user(file)?);
    run.push(image.value.clone());
    if let Some(exec) = file.last(SECTION, "Exec") {
        run.extend(words_of(exec)?);
    }
    Ok(Converted { unit: unit(&needs), service: service(name, &run) })
}

/// Other units that this one needs, and the network that images come from.
fn unit(needs: &[String]) -> Vec<String> {
    let mut lines = vec!["Wants=network-online.target".to_owned(), "After=network-online.target".to_owned()];
    for service in needs {
        lines.extend([format!("Requires={service}"), format!("After={service}")]);
    }
    lines
}

/// The program is `proa run`, which passes signals on. What it starts beside the instance serves others as well and goes
/// on: so systemd ends nothing but that.
fn service(name: &str, run: &[String]) -> Vec<String> {
    let own = [name.to_owned()];
    let start = [&[with_value("--name", name)], run].concat();
    vec![
        "Type=exec".to_owned(),
        "KillMode=process".to_owned(),
        "Delegate=yes".to_owned(),
        line("ExecStartPre=-", &["rm", "-f"], &own),
        // The next one starts with the host, or when this one has failed: nothing is to stand by for that.
        line("ExecStart=", &["run", "--rm", "--no-standby"], &start),
        line("ExecStop=-", &["stop"], &own),
        line("ExecStopPost=-", &["rm", "-f", "-v"], &own),
    ]
}

/// `data.volume:/path` is the volume that `data.volume` makes.
fn volume(entry: &Entry, names: &Names, needs: &mut Vec<String>) -> Result<String, At> {
    let (source, rest) = entry
        .value
        .split_once(':')
        .map_or((entry.value.as_str(), None), |(source, rest)| (source, Some(rest)));
    if source.starts_with('.') {
        return Err((entry.line, format!("{source:?} is no absolute path")));
    }
    let source = referred(entry, source, ".volume", names, needs)?;
    Ok(rest.map_or_else(|| source.clone(), |rest| format!("{source}:{rest}")))
}

/// What a file with this ending makes, which the unit then needs; anything else is what it is.
fn referred(
    entry: &Entry,
    value: &str,
    end: &str,
    names: &Names,
    needs: &mut Vec<String>,
) -> Result<String, At> {
    if !value.ends_with(end) || value.starts_with('/') {
        return Ok(value.to_owned());
    }
    let (made, service) =
        names.get(value).ok_or((entry.line, format!("there is no usable file {value} beside it")))?;
    needs.push(service.clone());
    Ok(made.clone())
}

fn user(file: &File) -> Result<Option<String>, At> {
    let value = |key| file.last(SECTION, key).map(|entry| entry.value.as_str());
    match (value("User"), value("Group")) {
        (Some(user), Some(group)) => Ok(Some(with_value("--user", &format!("{user}:{group}")))),
        (Some(user), None) => Ok(Some(with_value("--user", user))),
        (None, Some(_)) => {
            let line = file.last(SECTION, "Group").map_or(0, |entry| entry.line);
            Err((line, "Group goes with User".to_owned()))
        }
        (None, None) => Ok(None),
    }
}
