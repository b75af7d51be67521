//! Scopes: cgroups that systemd makes and knows of, for hosts on which it owns the whole tree.
//!
//! ```text
//!   plan ──▶ fork ──▶ start: StartTransientUnit(first process) ─ ─ ▶ JobRemoved "done" ──▶ Cgroup (limits, devices)
//! ```
//!
//! systemd puts the first process into the scope while it waits for its root, so what it sees of its cgroups and what
//! holds at its start is the same as without systemd. The scope is delegated (`Delegate=yes`): what is in it is ours,
//! and from here on it is used like any other cgroup. It goes by itself when its last process has ended; but who
//! removes a cgroup may do so before systemd has heard of that, and has it stop the scope first.

mod bus;
mod properties;
mod wire;

use std::path::{Path, PathBuf};

use proa_oci::runtime::{Resources, Spec};
use proa_sys::userns;

use self::bus::{Bus, CallError};
use self::wire::{Message, Property, Target, Value, Writer};
use super::{Cgroup, MOUNT, Wanted, is_unified, slice_path, v1, v2};
use crate::container::CgroupPolicy;
use crate::{Error, Result};

const MANAGER: Target = Target {
    destination: "org.freedesktop.systemd1",
    path: "/org/freedesktop/systemd1",
    interface: "org.freedesktop.systemd1.Manager",
};
const PROPERTIES: Target = Target { interface: "org.freedesktop.DBus.Properties", ..MANAGER };
const JOB_REMOVED: &str = "type='signal',sender='org.freedesktop.systemd1',\
                           interface='org.freedesktop.systemd1.Manager',member='JobRemoved'";
const UNIT_EXISTS: &str = "org.freedesktop.systemd1.UnitExists";
const NO_SUCH_UNIT: &str = "org.freedesktop.systemd1.NoSuchUnit";
/// What a container is called that its spec gives no name.
const PREFIX: &str = "proa";

/// A scope's name, and the slice that it is in.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Unit {
    slice: String,
    name: String,
}

impl Unit {
    /// From `slice:prefix:name`, of which the first two may be empty.
    fn new(id: &str, asked: Option<&str>, default_slice: &str) -> Result<Self> {
        let asked = asked.filter(|path| !path.is_empty());
        let invalid = |what: &str| {
            let asked = asked.unwrap_or_default();
            Error::invalid(format!("cgroupsPath '{asked}': {what} (with --systemd-cgroup)"))
        };
        let own = format!(":{PREFIX}:{id}");
        let parts: Vec<&str> = asked.unwrap_or(&own).split(':').collect();
        let [slice, prefix, name] = parts[..] else { return Err(invalid("it must be slice:prefix:name")) };
        if name.is_empty() {
            return Err(invalid("it has no name"));
        }
        if name.ends_with(".slice") {
            return Err(invalid("a container is a scope, and not a slice"));
        }
        let slice = if slice.is_empty() { default_slice } else { slice };
        let joint = if prefix.is_empty() { "" } else { "-" };
        let unit = Self { slice: slice.to_owned(), name: format!("{prefix}{joint}{name}.scope") };
        // Whatever is wrong with them is found now.
        unit.path().map(|_| unit)
    }

    /// Where it is, below the cgroup of its manager.
    fn path(&self) -> Result<PathBuf> {
        let name = self.name.strip_suffix(".scope").unwrap_or(&self.name);
        slice_path(&self.slice, "", name)
    }
}

/// A scope that is to be made.
#[derive(Debug)]
pub(crate) struct Scope {
    unit: Unit,
    bus: Bus,
    properties: Vec<Property>,
    resources: Resources,
    /// The cgroup that it will be.
    pub cgroup: Cgroup,
}

impl Scope {
    /// Checks all that can be, and connects, before there is a process.
    pub(super) fn plan(wanted: &Wanted, address: &str, resources: &Resources) -> Result<Self> {
        let bus = connect(address)?;
        let mut resources = resources.clone();
        if !userns::is_initial() {
            // Device programs need root outside, and are not needed: a user namespace can make no nodes.
            resources.devices.clear();
        }
        let v2 = is_unified(Path::new(MOUNT));
        if !v2 && !resources.unified.is_empty() {
            return Err(Error::unsupported("'unified' limits need cgroup v2; this host has v1"));
        }
        let unit = unit(wanted.id, wanted.linux.cgroups_path.as_deref())?;
        let mut properties = basics(wanted.id, &unit, v2);
        properties.extend(properties::limits(&resources, v2)?);
        if userns::is_initial() {
            properties.extend(properties::devices(&resources.devices));
        }
        for property in properties::annotated(wanted.annotations)? {
            properties.retain(|(name, _)| *name != property.0);
            properties.push(property);
        }
        let cgroup = reopen(wanted, address, &resources)?;
        Ok(Self { unit, bus, properties, resources, cgroup })
    }

    /// Has systemd make it with this process in it, then sets what systemd does not know of.
    pub(super) fn start(mut self, pid: u32, warnings: &mut Vec<String>) -> Result<Cgroup> {
        self.properties.push(("PIDs".to_owned(), Value::Numbers(vec![pid])));
        self.start_unit().map_err(|error| error.context(format!("scope {}", self.unit.name)))?;
        match &self.cgroup {
            Cgroup::V1(cgroup) => cgroup.adopt(&self.resources, warnings)?,
            Cgroup::V2(cgroup) => cgroup.adopt(&self.resources, warnings)?,
            Cgroup::None | Cgroup::Scope(_) => {}
        }
        Ok(self.cgroup)
    }

    fn start_unit(&mut self) -> Result<()> {
        listen(&mut self.bus)?;
        let job = match self.transient() {
            Err(CallError::Refused(name, _)) if name == UNIT_EXISTS => {
                // One that failed keeps its name until it is forgotten; one that runs is somebody's.
                let mut body = Writer::default();
                body.text(&self.unit.name);
                let _ = self.bus.call(&MANAGER, "ResetFailedUnit", "s", body);
                self.transient()?
            }
            other => other?,
        };
        match wait_for(&mut self.bus, job)?.as_str() {
            "done" => Ok(()),
            other => Err(Error::internal(format!("systemd did not start it: {other}"))),
        }
    }

    fn transient(&mut self) -> Result<Message, CallError> {
        let mut body = Writer::default();
        body.text(&self.unit.name);
        body.text("replace");
        body.properties(&self.properties);
        // No other units.
        body.array(8, |_| {});
        self.bus.call(&MANAGER, "StartTransientUnit", "ssa(sv)a(sa(sv))", body)
    }
}

fn listen(bus: &mut Bus) -> Result<()> {
    bus.listen(JOB_REMOVED)?;
    // It tells of jobs only where somebody wants to hear.
    bus.call(&MANAGER, "Subscribe", "", Writer::default())?;
    Ok(())
}

/// Waits for the end of a job that was the answer to a call.
fn wait_for(bus: &mut Bus, answer: Message) -> Result<String> {
    let job = answer.texts.into_iter().next().unwrap_or_default();
    bus.wait(|message| result_of(message, &job))
}

/// Has systemd forget a scope whose processes have ended.
pub(super) fn stop(id: &str, asked: Option<&str>, address: &str) -> Result<()> {
    let unit = unit(id, asked)?;
    let mut bus = connect(address)?;
    listen(&mut bus)?;
    let mut body = Writer::default();
    body.text(&unit.name);
    body.text("replace");
    match bus.call(&MANAGER, "StopUnit", "ss", body) {
        Ok(job) => wait_for(&mut bus, job).map(drop),
        // It has noticed by itself.
        Err(CallError::Refused(name, _)) if name == NO_SUCH_UNIT => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The result of a job, from the signal that tells of its end: its path, its unit, its result.
fn result_of(message: &Message, job: &str) -> Option<String> {
    match &message.texts[..] {
        [path, _, result] if message.member == "JobRemoved" && path == job => Some(result.clone()),
        _ => None,
    }
}

/// What a scope is, whatever its limits are.
fn basics(id: &str, unit: &Unit, v2: bool) -> Vec<Property> {
    let text = |name: &str, value: &str| (name.to_owned(), Value::Text(value.to_owned()));
    let flag = |name: &str, value| (name.to_owned(), Value::Flag(value));
    vec![
        text("Description", &format!("container {id}")),
        text("Slice", &unit.slice),
        flag("Delegate", true),
        flag("DefaultDependencies", false),
        flag("CPUAccounting", true),
        flag("MemoryAccounting", true),
        flag(if v2 { "IOAccounting" } else { "BlockIOAccounting" }, true),
        flag("TasksAccounting", true),
        // One that ended for want of memory has failed, and would keep its name.
        text("CollectMode", "inactive-or-failed"),
    ]
}

fn connect(address: &str) -> Result<Bus> {
    Bus::connect(address).map_err(|error| {
        Error::unsupported(format!(
            "--systemd-cgroup: systemd cannot be reached: {error}: use the cgroupfs driver (podman \
             --cgroup-manager cgroupfs, docker --exec-opt native.cgroupdriver=cgroupfs, containerd SystemdCgroup = \
             false)"
        ))
    })
}

fn unit(id: &str, asked: Option<&str>) -> Result<Unit> {
    Unit::new(id, asked, if userns::is_initial() { "system.slice" } else { "user.slice" })
}

/// Where the cgroup of a container is, below the hierarchy's root.
pub(super) fn path(id: &str, asked: Option<&str>, address: &str) -> Result<PathBuf> {
    let path = unit(id, asked)?.path()?;
    if userns::is_initial() {
        return Ok(path);
    }
    // A user's manager has a cgroup of its own, and its slices below that.
    let mut body = Writer::default();
    body.text(MANAGER.interface);
    body.text("ControlGroup");
    let answer = connect(address)?.call(&PROPERTIES, "Get", "ss", body).map_err(Error::from)?;
    let own = answer.texts.into_iter().next().unwrap_or_default();
    Ok(Path::new(own.trim_start_matches('/')).join(path))
}

/// The cgroup of a scope that has been made, or will be.
pub(super) fn reopen(wanted: &Wanted, address: &str, resources: &Resources) -> Result<Cgroup> {
    let mount = Path::new(MOUNT);
    let path = path(wanted.id, wanted.linux.cgroups_path.as_deref(), address)?;
    if is_unified(mount) {
        return Ok(Cgroup::V2(v2::Cgroup::reopen(mount, &path)));
    }
    if !userns::is_initial() {
        return Err(Error::unsupported(
            "--systemd-cgroup of an ordinary user needs cgroup v2, and this host has v1: run as root",
        ));
    }
    v1::Cgroup::reopen_scope(mount, &path, resources).map(Cgroup::V1)
}

/// Tells systemd of other limits, those that are named.
///
/// # Errors
/// It cannot be reached, or does not take them.
pub fn update_scope(id: &str, spec: &Spec, policy: CgroupPolicy, resources: &Resources) -> Result<()> {
    let CgroupPolicy::Systemd(address) = policy else { return Ok(()) };
    let properties = properties::limits(resources, is_unified(Path::new(MOUNT)))?;
    let unit = unit(id, spec.linux.as_ref().and_then(|linux| linux.cgroups_path.as_deref()))?;
    let mut body = Writer::default();
    body.text(&unit.name);
    // Until the next boot, which the scope does not live to see.
    body.flag(true);
    body.properties(&properties);
    let set = connect(address)?.call(&MANAGER, "SetUnitProperties", "sba(sv)", body);
    set.map(drop).map_err(|error| Error::from(error).context(format!("scope {}", unit.name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_runcs() {
        let unit = |asked: Option<&str>| Unit::new("id", asked, "system.slice");
        let path = |asked: &str| unit(Some(asked)).unwrap().path().unwrap();
        assert_eq!(path("a-b.slice:crio:x"), Path::new("a.slice/a-b.slice/crio-x.scope"));
        assert_eq!(path("machine.slice:libpod:0f"), Path::new("machine.slice/libpod-0f.scope"));
        assert_eq!(unit(None).unwrap().name, "proa-id.scope");
        assert_eq!(unit(Some("::x")).unwrap().path().unwrap(), Path::new("system.slice/x.scope"));
        for wrong in
            ["/plain/path", "a:b", "a.slice:b:", "a/b.slice:c:d", "x:y:z", "::a.slice", "a.slice:b:../c"]
        {
            assert!(unit(Some(wrong)).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_end_of_the_right_job_counts() {
        let message = |texts: [&str; 3]| Message {
            member: "JobRemoved".into(),
            texts: texts.map(ToOwned::to_owned).to_vec(),
            ..Message::default()
        };
        assert_eq!(result_of(&message(["/job/2", "x.scope", "done"]), "/job/2").as_deref(), Some("done"));
        assert_eq!(result_of(&message(["/job/1", "x.scope", "done"]), "/job/2"), None);
    }
}
