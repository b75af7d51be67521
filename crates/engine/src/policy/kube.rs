//! Pods, and what holds a template of one, as Kubernetes' API has them.
//!
//! Every container is a subject of its own, with what its pod says where it says nothing itself.

use serde_json::Value;

use super::{Dialect, FileError, RunAs, Seccomp, SelinuxOptions, Subject, short_capability, yaml};

/// Volume types that restricted lists.
const VOLUME_TYPES: &[&str] = &[
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "image",
    "persistentVolumeClaim",
    "projected",
    "secret",
];

/// What runs in a file: one subject a container. Objects that run nothing are passed over.
///
/// # Errors
/// It is no YAML, a field is not what it must be, or nothing in it runs.
pub fn parse(text: &str) -> Result<Vec<Subject>, FileError> {
    let mut subjects = Vec::new();
    for document in yaml::documents(text)? {
        object(&document, &mut subjects, true)?;
    }
    if subjects.is_empty() {
        return Err(FileError("nothing in it runs: no pod, and nothing with a pod template".into()));
    }
    Ok(subjects)
}

fn object(object: &Value, subjects: &mut Vec<Subject>, lists: bool) -> Result<(), FileError> {
    let kind = text(object, "kind")?.ok_or_else(|| FileError("an object has no kind".into()))?;
    let name = object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or("unnamed");
    let place = format!("{}/{name}", kind.to_ascii_lowercase());
    let template = |path: &str| object.pointer(path);
    let (pod, metadata) = match kind {
        "List" if lists => {
            return items(object, "items")?.iter().try_for_each(|item| self::object(item, subjects, false));
        }
        "Pod" => (template("/spec"), template("/metadata")),
        "PodTemplate" => (template("/template/spec"), template("/template/metadata")),
        "Deployment" | "ReplicaSet" | "DaemonSet" | "StatefulSet" | "Job" | "ReplicationController" => {
            (template("/spec/template/spec"), template("/spec/template/metadata"))
        }
        "CronJob" => (
            template("/spec/jobTemplate/spec/template/spec"),
            template("/spec/jobTemplate/spec/template/metadata"),
        ),
        // Of a kind that is not Kubernetes' own, perhaps one with a template.
        _ if object.pointer("/spec/template/spec/containers").is_some() => {
            (template("/spec/template/spec"), template("/spec/template/metadata"))
        }
        _ => return Ok(()),
    };
    let pod = pod.ok_or_else(|| FileError::at(&place, "it has no pod spec"))?;
    containers(&place, pod, metadata.unwrap_or(&Value::Null), subjects)
}

fn containers(
    place: &str,
    pod: &Value,
    metadata: &Value,
    subjects: &mut Vec<Subject>,
) -> Result<(), FileError> {
    let of_pod = of_pod(pod).map_err(|error| FileError::at(place, error))?;
    let mut count = 0;
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        for container in items(pod, list)? {
            let name = text(container, "name")?.unwrap_or("unnamed");
            let place = format!("{place} {name}");
            let subject = of_container(name, container, pod, metadata, &of_pod);
            let subject = subject.map_err(|error| FileError::at(&place, error))?;
            subjects.push(Subject { name: place, ..subject });
            count += 1;
        }
    }
    if count == 0 { Err(FileError::at(place, "it has no containers")) } else { Ok(()) }
}

/// What a pod says for all its containers.
fn of_pod(pod: &Value) -> Result<Subject, FileError> {
    let mut subject = Subject { dialect: Dialect::Kube, ..Subject::default() };
    for (field, kind) in [("hostNetwork", "network"), ("hostPID", "pid"), ("hostIPC", "ipc")] {
        if boolean(pod, field)? == Some(true) {
            subject.host_namespaces.push(kind);
        }
    }
    subject.user_namespace = boolean(pod, "hostUsers")? == Some(false);
    for volume in items(pod, "volumes")? {
        let name = text(volume, "name")?.unwrap_or("unnamed").to_owned();
        let types = volume
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(key, value)| *key != "name" && !value.is_null());
        for (kind, source) in types {
            if kind == "hostPath" {
                let path = source.get("path").and_then(Value::as_str).unwrap_or(&name);
                subject.host_paths.push(path.to_owned());
            } else if !VOLUME_TYPES.contains(&kind.as_str()) {
                subject.other_volumes.push((name.clone(), kind.clone()));
            }
        }
    }
    let context = &pod["securityContext"];
    for sysctl in items(context, "sysctls")? {
        subject.sysctls.extend(text(sysctl, "name")?.map(str::to_owned));
    }
    Ok(subject)
}

fn of_container(
    name: &str,
    container: &Value,
    pod: &Value,
    metadata: &Value,
    of_pod: &Subject,
) -> Result<Subject, FileError> {
    let contexts = [&container["securityContext"], &pod["securityContext"]];
    let [own, _] = contexts;
    let mut subject = Subject {
        privileged: boolean(own, "privileged")? == Some(true),
        escalation: boolean(own, "allowPrivilegeEscalation")? != Some(false),
        proc_unmasked: text(own, "procMount")?.is_some_and(|kind| kind != "Default"),
        seccomp: seccomp(contexts, name, metadata)?,
        apparmor_unconfined: apparmor(contexts, name, metadata)?,
        selinux: selinux(contexts)?,
        user: user(contexts)?,
        ..of_pod.clone()
    };
    for context in contexts {
        subject.host_process |= boolean(&context["windowsOptions"], "hostProcess")? == Some(true);
    }
    let capabilities = &own["capabilities"];
    subject.added = names(capabilities, "add")?.iter().map(|name| short_capability(name)).collect();
    // Kubernetes takes this one in capitals alone.
    subject.drops_all = names(capabilities, "drop")?.contains(&"ALL");
    for port in items(container, "ports")? {
        let host = integer(port, "hostPort")?.filter(|port| *port != 0);
        subject.host_ports.extend(host.map(|port| port.to_string()));
    }
    let handlers =
        ["/livenessProbe", "/readinessProbe", "/startupProbe", "/lifecycle/postStart", "/lifecycle/preStop"];
    for handler in handlers.iter().filter_map(|path| container.pointer(path)) {
        for action in ["httpGet", "tcpSocket"] {
            let host = text(&handler[action], "host")?.filter(|host| !host.is_empty());
            subject.probe_hosts.extend(host.map(str::to_owned));
        }
    }
    Ok(subject)
}

/// The container's own type counts, else the pod's; a forbidden one at either place is forbidden.
fn types<'a>(contexts: [&'a Value; 2], profile: &str) -> Result<[Option<&'a str>; 2], FileError> {
    let [own, pod] = contexts;
    Ok([text(&own[profile], "type")?, text(&pod[profile], "type")?])
}

fn seccomp(contexts: [&Value; 2], name: &str, metadata: &Value) -> Result<Seccomp, FileError> {
    let types = types(contexts, "seccompProfile")?;
    let bad = |kind: &str| !["RuntimeDefault", "Localhost"].contains(&kind);
    if types.iter().flatten().any(|kind| bad(kind)) {
        return Ok(Seccomp::Unconfined);
    }
    let annotations = &metadata["annotations"];
    let keys = [
        "seccomp.security.alpha.kubernetes.io/pod".to_owned(),
        format!("container.seccomp.security.alpha.kubernetes.io/{name}"),
    ];
    for key in keys {
        let fine = |value: &str| {
            ["runtime/default", "docker/default"].contains(&value) || value.starts_with("localhost/")
        };
        if text(annotations, &key)?.is_some_and(|value| !fine(value)) {
            return Ok(Seccomp::Unconfined);
        }
    }
    Ok(if types.iter().flatten().next().is_some() { Seccomp::Confined } else { Seccomp::Open })
}

fn apparmor(contexts: [&Value; 2], name: &str, metadata: &Value) -> Result<bool, FileError> {
    let bad = |kind: &&str| !["RuntimeDefault", "Localhost"].contains(kind);
    if types(contexts, "appArmorProfile")?.iter().flatten().any(bad) {
        return Ok(true);
    }
    let key = format!("container.apparmor.security.beta.kubernetes.io/{name}");
    let fine =
        |value: &str| value.is_empty() || value == "runtime/default" || value.starts_with("localhost/");
    Ok(text(&metadata["annotations"], &key)?.is_some_and(|value| !fine(value)))
}

fn selinux(contexts: [&Value; 2]) -> Result<SelinuxOptions, FileError> {
    let mut options = SelinuxOptions::default();
    let given = |value: Option<&str>| value.is_some_and(|text| !text.is_empty());
    // The container's own last: its type is the one that is told.
    for context in contexts.into_iter().rev() {
        let label = &context["seLinuxOptions"];
        options.user |= given(text(label, "user")?);
        options.role |= given(text(label, "role")?);
        if let Some(kind) = text(label, "type")?.filter(|kind| !kind.is_empty()) {
            options.kind = Some(kind.to_owned());
        }
    }
    Ok(options)
}

/// `runAsUser: 0` at either place is forbidden; else a promise of `runAsNonRoot` is needed, and a number is none.
fn user(contexts: [&Value; 2]) -> Result<RunAs, FileError> {
    let [own, pod] = contexts;
    for context in contexts {
        if integer(context, "runAsUser")? == Some(0) {
            return Ok(RunAs::Root);
        }
    }
    let promise = boolean(own, "runAsNonRoot")?.or(boolean(pod, "runAsNonRoot")?);
    let denied = boolean(pod, "runAsNonRoot")? == Some(false);
    Ok(if promise == Some(true) && !denied { RunAs::NonRoot } else { RunAs::Open })
}

/// A field that is absent or null is `None`.
fn field<'a>(value: &'a Value, name: &str) -> Option<&'a Value> {
    value.get(name).filter(|value| !value.is_null())
}

fn wrong(name: &str, what: &str) -> FileError {
    FileError(format!("{name} is not {what}"))
}

pub(super) fn boolean(value: &Value, name: &str) -> Result<Option<bool>, FileError> {
    field(value, name).map(|value| value.as_bool().ok_or_else(|| wrong(name, "true or false"))).transpose()
}

fn integer(value: &Value, name: &str) -> Result<Option<i64>, FileError> {
    field(value, name).map(|value| value.as_i64().ok_or_else(|| wrong(name, "a number"))).transpose()
}

pub(super) fn text<'a>(value: &'a Value, name: &str) -> Result<Option<&'a str>, FileError> {
    field(value, name).map(|value| value.as_str().ok_or_else(|| wrong(name, "a text"))).transpose()
}

pub(super) fn items<'a>(value: &'a Value, name: &str) -> Result<&'a [Value], FileError> {
    let list = field(value, name).map(|value| value.as_array().ok_or_else(|| wrong(name, "a list")));
    Ok(list.transpose()?.map_or(&[], Vec::as_slice))
}

pub(super) fn names<'a>(value: &'a Value, name: &str) -> Result<Vec<&'a str>, FileError> {
    items(value, name)?
        .iter()
        .map(|item| item.as_str().ok_or_else(|| wrong(name, "a list of texts")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{Level, check};

    const RESTRICTED: &str = "
apiVersion: v1
kind: Pod
metadata: {name: web}
spec:
  securityContext:
    runAsNonRoot: true
    seccompProfile: {type: RuntimeDefault}
  containers:
  - name: app
    image: app
    ports: [{containerPort: 80}]
    securityContext:
      allowPrivilegeEscalation: false
      capabilities: {drop: [ALL], add: [NET_BIND_SERVICE]}
  volumes:
  - name: tmp
    emptyDir: {}
";

    fn controls(text: &str, level: Level) -> Vec<&'static str> {
        let subjects = parse(text).unwrap();
        subjects.iter().flat_map(|subject| check(subject, level)).map(|found| found.control).collect()
    }

    #[test]
    fn a_restricted_pod_is_restricted_and_a_plain_one_baseline() {
        assert_eq!(controls(RESTRICTED, Level::Restricted), Vec::<&str>::new());
        let plain = "kind: Pod\nspec: {containers: [{name: a}]}";
        assert_eq!(controls(plain, Level::Baseline), Vec::<&str>::new());
        assert_eq!(
            controls(plain, Level::Restricted),
            ["Privilege Escalation", "Running as Non-root", "Seccomp", "Capabilities"]
        );
    }

    #[test]
    fn every_field_is_read() {
        let pod = |fields: &str| format!("kind: Pod\nspec: {{containers: [{{name: a}}], {fields}}}");
        let container = |fields: &str| format!("kind: Pod\nspec: {{containers: [{{name: a, {fields}}}]}}");
        let annotated = |text: &str| {
            format!("kind: Pod\nmetadata: {{annotations: {{{text}}}}}\nspec: {{containers: [{{name: a}}]}}")
        };
        let context = |fields: &str| container(&format!("securityContext: {{{fields}}}"));
        for (text, control) in [
            (pod("hostNetwork: true"), "Host Namespaces"),
            (pod("hostPID: true"), "Host Namespaces"),
            (pod("hostIPC: yes"), "Host Namespaces"),
            (pod("volumes: [{name: v, hostPath: {path: /etc}}]"), "HostPath Volumes"),
            (pod("securityContext: {sysctls: [{name: kernel.msgmax, value: '1'}]}"), "Sysctls"),
            (pod("securityContext: {seccompProfile: {type: Unconfined}}"), "Seccomp"),
            (pod("securityContext: {appArmorProfile: {type: Unconfined}}"), "AppArmor"),
            (pod("securityContext: {seLinuxOptions: {user: u}}"), "SELinux"),
            (pod("securityContext: {windowsOptions: {hostProcess: true}}"), "HostProcess"),
            (
                pod("initContainers: [{name: i, securityContext: {privileged: true}}]"),
                "Privileged Containers",
            ),
            (
                pod("ephemeralContainers: [{name: e, securityContext: {privileged: true}}]"),
                "Privileged Containers",
            ),
            (context("privileged: true"), "Privileged Containers"),
            (context("capabilities: {add: [SYS_ADMIN]}"), "Capabilities"),
            (context("procMount: Unmasked"), "/proc Mount Type"),
            (context("seccompProfile: {type: Unconfined}"), "Seccomp"),
            (context("appArmorProfile: {type: Unconfined}"), "AppArmor"),
            (context("seLinuxOptions: {type: spc_t}"), "SELinux"),
            (context("seLinuxOptions: {role: r}"), "SELinux"),
            (container("ports: [{hostPort: 80}]"), "Host Ports"),
            (container("livenessProbe: {httpGet: {host: h}}"), "Host Probes / Lifecycle Hooks"),
            (container("lifecycle: {preStop: {tcpSocket: {host: h}}}"), "Host Probes / Lifecycle Hooks"),
            (annotated("container.apparmor.security.beta.kubernetes.io/a: unconfined"), "AppArmor"),
            (annotated("seccomp.security.alpha.kubernetes.io/pod: unconfined"), "Seccomp"),
        ] {
            assert_eq!(controls(&text, Level::Baseline), [control], "{text}");
        }
        let root = RESTRICTED.replace("allowPrivilege", "runAsUser: 0\n      allowPrivilege");
        assert_eq!(controls(&root, Level::Restricted), ["Running as Non-root user"]);
        let nfs = RESTRICTED.replace("emptyDir: {}", "nfs: {server: s}");
        assert_eq!(controls(&nfs, Level::Restricted), ["Volume Types"]);
        let mapped = root.replace("spec:", "spec:\n  hostUsers: false");
        assert_eq!(controls(&mapped, Level::Restricted), Vec::<&str>::new());
    }

    #[test]
    fn templates_lists_and_what_runs_nothing() {
        let spec = "{containers: [{name: a, securityContext: {privileged: true}}]}";
        for text in [
            format!("kind: Deployment\nmetadata: {{name: d}}\nspec: {{template: {{spec: {spec}}}}}"),
            format!("kind: CronJob\nspec: {{jobTemplate: {{spec: {{template: {{spec: {spec}}}}}}}}}"),
            format!("kind: PodTemplate\ntemplate: {{spec: {spec}}}"),
            format!("kind: Rollout\nspec: {{template: {{spec: {spec}}}}}"),
            format!("kind: List\nitems: [{{kind: Pod, spec: {spec}}}]"),
            format!("kind: Service\nspec: {{}}\n---\nkind: Pod\nspec: {spec}"),
        ] {
            assert_eq!(controls(&text, Level::Baseline), ["Privileged Containers"], "{text}");
        }
        let named = parse("kind: Pod\nmetadata: {name: web}\nspec: {containers: [{name: a}]}").unwrap();
        assert_eq!(named[0].name, "pod/web a");
    }

    #[test]
    fn what_cannot_be_judged_is_an_error() {
        for text in [
            "",
            "kind: Service",
            "spec: {}",
            "kind: Pod",
            "kind: Pod\nspec: {}",
            "kind: Pod\nspec: {containers: {}}",
            "kind: Pod\nspec: {hostNetwork: maybe, containers: [{name: a}]}",
            "kind: Pod\nspec: {containers: [{name: a, securityContext: {privileged: 'true'}}]}",
            "kind: Pod\nspec: {containers: [{name: a, securityContext: {capabilities: {add: SYS_ADMIN}}}]}",
            "kind: Pod\nspec: {containers: [{name: a, securityContext: {runAsUser: root}}]}",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
