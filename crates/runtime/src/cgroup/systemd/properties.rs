//! What systemd is told of a container's limits. They are written into the cgroup's files too, exactly; but systemd
//! would undo what it does not know of when it next looks at the unit.

use std::collections::BTreeMap;

use proa_oci::runtime::{Cpu, DeviceRule, Resources};

use super::wire::{Property, Value};
use crate::cgroup::convert::{given, swap_alone, weight_of_shares};
use crate::cgroup::devices::ALWAYS;
use crate::plan::mask;
use crate::{Error, Result};

/// No limit.
const INFINITY: u64 = u64::MAX;
/// The kernel's own period, microseconds.
const PERIOD: u64 = 100_000;
/// systemd counts in hundredths of a CPU.
const PERCENT: u64 = 10_000;
/// Annotations that are properties of the unit, as runc has them.
const ANNOTATION: &str = "org.systemd.property.";

/// The properties of limits.
pub(super) fn limits(resources: &Resources, v2: bool) -> Result<Vec<Property>> {
    let mut list = Vec::new();
    let mut add = |name: &str, value: Value| list.push((name.to_owned(), value));
    if let Some(memory) = &resources.memory {
        let limit = given(memory.limit);
        if let Some(limit) = limit {
            add(if v2 { "MemoryMax" } else { "MemoryLimit" }, number(limit));
        }
        if let Some(low) = given(memory.reservation).filter(|_| v2) {
            add("MemoryLow", number(low));
        }
        if let Some(swap) = given(memory.swap).filter(|_| v2) {
            add("MemorySwapMax", Value::Number(swap_alone(limit, swap)?.parse().unwrap_or(INFINITY)));
        }
    }
    if let Some(cpu) = &resources.cpu {
        limit_cpu(cpu, v2, &mut add)?;
    }
    if let Some(limit) = given(resources.pids.map(|pids| pids.limit)) {
        add("TasksMax", number(limit));
    }
    if let Some(weight) = resources.block_io.as_ref().and_then(|block| given(block.weight)).filter(|_| !v2) {
        add("BlockIOWeight", Value::Number(weight.into()));
    }
    for (file, value) in &resources.unified {
        let name = match file.as_str() {
            "memory.max" => "MemoryMax",
            "memory.high" => "MemoryHigh",
            "memory.low" => "MemoryLow",
            "memory.min" => "MemoryMin",
            "memory.swap.max" => "MemorySwapMax",
            "pids.max" => "TasksMax",
            "cpu.weight" => "CPUWeight",
            // systemd has nothing for the others, and so leaves them alone.
            _ => continue,
        };
        add(name, Value::Number(value.trim().parse().unwrap_or(INFINITY)));
    }
    Ok(list)
}

fn limit_cpu(cpu: &Cpu, v2: bool, add: &mut impl FnMut(&str, Value)) -> Result<()> {
    match given(cpu.shares) {
        Some(shares) if v2 => add("CPUWeight", Value::Number(weight_of_shares(shares))),
        Some(shares) => add("CPUShares", Value::Number(shares)),
        None => {}
    }
    let (quota, period) = (given(cpu.quota), given(cpu.period));
    if let Some(period) = period {
        add("CPUQuotaPeriodUSec", Value::Number(period));
    }
    if quota.is_some() || period.is_some() {
        let quota = quota.and_then(|quota| u64::try_from(quota).ok());
        let share = |quota: u64| quota.saturating_mul(1_000_000) / period.unwrap_or(PERIOD);
        let share = quota.map_or(INFINITY, |quota| share(quota).next_multiple_of(PERCENT));
        add("CPUQuotaPerSecUSec", Value::Number(share));
    }
    for (name, list) in [("AllowedCPUs", &cpu.cpus), ("AllowedMemoryNodes", &cpu.mems)] {
        let words = mask(name, list.as_deref().unwrap_or_default())?;
        let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.truncate(bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1));
        if !bytes.is_empty() {
            add(name, Value::Bytes(bytes));
        }
    }
    Ok(())
}

fn number(limit: i64) -> Value {
    Value::Number(u64::try_from(limit).unwrap_or(INFINITY))
}

/// Device rules. systemd only has lists of what is allowed: where a rule cannot be said so, it is told of less, and
/// what the cgroup's own files say holds until it looks at the unit again.
pub(super) fn devices(rules: &[DeviceRule]) -> Vec<Property> {
    let policy = |name: &str| ("DevicePolicy".to_owned(), Value::Text(name.to_owned()));
    let of_all = |rule: &&DeviceRule| {
        matches!(rule.kind.as_deref(), None | Some("a" | "")) && rule.major.is_none() && rule.minor.is_none()
    };
    let start = rules.iter().rposition(|rule| of_all(&rule));
    match start.map(|at| rules[at].allow) {
        None | Some(true) if rules.iter().skip(start.map_or(0, |at| at + 1)).all(|rule| rule.allow) => {
            return vec![policy("auto")];
        }
        _ => {}
    }
    let allowed = rules.iter().skip(start.map_or(0, |at| at + 1)).filter(|rule| rule.allow);
    let pairs =
        ALWAYS.iter().map(|(major, minor)| always(*major, *minor)).chain(allowed.filter_map(allow)).collect();
    vec![policy("strict"), ("DeviceAllow".to_owned(), Value::Pairs(pairs))]
}

fn always(major: i64, minor: Option<i64>) -> (String, String) {
    (path("char", major, minor), "rwm".to_owned())
}

fn path(kind: &str, major: i64, minor: Option<i64>) -> String {
    minor.map_or_else(|| format!("{kind}-{major}"), |minor| format!("/dev/{kind}/{major}:{minor}"))
}

fn allow(rule: &DeviceRule) -> Option<(String, String)> {
    let number = |value: Option<i64>| value.filter(|number| *number >= 0);
    let kind = match rule.kind.as_deref() {
        Some("b") => "block",
        Some("c" | "u") => "char",
        _ => return None,
    };
    let path = match (number(rule.major), number(rule.minor)) {
        (Some(major), minor) => path(kind, major, minor),
        (None, None) => format!("{kind}-*"),
        (None, Some(_)) => return None,
    };
    let access = rule.access.as_deref().filter(|access| !access.is_empty()).unwrap_or("rwm");
    Some((path, access.to_owned()))
}

/// Properties that annotations ask for: `org.systemd.property.TimeoutStopUSec: "uint64 5000000"`.
pub(super) fn annotated(annotations: &BTreeMap<String, String>) -> Result<Vec<Property>> {
    let named = annotations.iter().filter_map(|(key, text)| Some((key.strip_prefix(ANNOTATION)?, text)));
    named
        .map(|(name, text)| match value(text) {
            Some(value) if !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric()) => {
                Ok((name.to_owned(), value))
            }
            _ => Err(Error::invalid(format!(
                "annotation {ANNOTATION}{name}: '{text}' is not understood: use 'text', true, false, a number, or \
                 one after int32, uint32 or uint64"
            ))),
        })
        .collect()
}

fn value(text: &str) -> Option<Value> {
    let text = text.trim();
    let quoted = |quote| text.strip_prefix(quote)?.strip_suffix(quote);
    if let Some(inner) = quoted('\'').or_else(|| quoted('"')) {
        return (!inner.contains(['\'', '"', '\\'])).then(|| Value::Text(inner.to_owned()));
    }
    match text.split_once(' ') {
        None if text == "true" || text == "false" => Some(Value::Flag(text == "true")),
        None | Some(("int32", _)) => {
            Some(Value::Signed(text.trim_start_matches("int32").trim().parse().ok()?))
        }
        Some(("uint32", rest)) => Some(Value::Short(rest.trim().parse().ok()?)),
        Some(("uint64", rest)) => Some(Value::Number(rest.trim().parse().ok()?)),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proa_oci::runtime::{Memory, Pids};

    fn find(list: &[Property], name: &str) -> Option<Value> {
        list.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone())
    }

    #[test]
    fn limits_become_properties() {
        let resources = Resources {
            memory: Some(Memory {
                limit: Some(1000),
                swap: Some(1500),
                reservation: Some(9),
                ..Memory::default()
            }),
            cpu: Some(Cpu {
                shares: Some(1024),
                quota: Some(12_345),
                period: Some(50_000),
                cpus: Some("0-1,8".into()),
                ..Cpu::default()
            }),
            pids: Some(Pids { limit: -1 }),
            ..Resources::default()
        };
        let v2 = limits(&resources, true).unwrap();
        for (name, value) in [
            ("MemoryMax", Value::Number(1000)),
            ("MemoryLow", Value::Number(9)),
            ("MemorySwapMax", Value::Number(500)),
            ("CPUWeight", Value::Number(100)),
            ("CPUQuotaPeriodUSec", Value::Number(50_000)),
            ("CPUQuotaPerSecUSec", Value::Number(250_000)),
            ("AllowedCPUs", Value::Bytes(vec![3, 1])),
            ("TasksMax", Value::Number(INFINITY)),
        ] {
            assert_eq!(find(&v2, name), Some(value), "{name}");
        }
        let v1 = limits(&resources, false).unwrap();
        assert_eq!(find(&v1, "MemoryLimit"), Some(Value::Number(1000)));
        assert_eq!(find(&v1, "CPUShares"), Some(Value::Number(1024)));
        assert!(find(&v1, "MemorySwapMax").is_none() && find(&v1, "CPUWeight").is_none());
        let mut unified = Resources::default();
        unified.unified.insert("memory.high".into(), "max".into());
        unified.unified.insert("cpu.uclamp.max".into(), "5".into());
        let told = limits(&unified, true).unwrap();
        assert_eq!(told, [("MemoryHigh".to_owned(), Value::Number(INFINITY))]);
    }

    #[test]
    fn device_rules_become_a_list_of_what_is_allowed() {
        let rule = |allow, kind: &str, major, minor| DeviceRule {
            allow,
            kind: Some(kind.into()),
            major,
            minor,
            access: Some("rw".into()),
        };
        let told = devices(&[
            rule(true, "c", Some(9), None),
            rule(false, "a", None, None),
            rule(true, "c", Some(1), Some(3)),
            rule(true, "b", Some(8), None),
            rule(true, "c", None, None),
            rule(true, "c", None, Some(1)),
        ]);
        assert_eq!(told[0].1, Value::Text("strict".into()));
        let paths = ["/dev/char/1:3", "block-8", "char-*"].map(|path| (path.to_owned(), "rw".to_owned()));
        let Value::Pairs(pairs) = &told[1].1 else { panic!("{told:?}") };
        assert_eq!(pairs[ALWAYS.len()..], paths);
        assert_eq!(pairs[0], ("/dev/char/1:3".to_owned(), "rwm".to_owned()));
        let policy = |rules: &[DeviceRule]| devices(rules)[0].1.clone();
        assert_eq!(policy(&[rule(true, "a", None, None)]), Value::Text("auto".into()));
        // What cannot be said as a list of what is allowed is not allowed.
        let rules = [rule(true, "a", None, None), rule(false, "c", Some(1), None)];
        assert_eq!(policy(&rules), Value::Text("strict".into()));
    }

    #[test]
    fn annotations_become_properties() {
        let read = |text: &str| {
            let mut annotations = BTreeMap::new();
            annotations.insert(format!("{ANNOTATION}X"), text.to_owned());
            annotations.insert("other".to_owned(), "x".to_owned());
            annotated(&annotations).map(|list| list[0].1.clone())
        };
        assert_eq!(read("'inactive-or-failed'").unwrap(), Value::Text("inactive-or-failed".into()));
        assert_eq!(read("uint64 5000000").unwrap(), Value::Number(5_000_000));
        assert_eq!(read("true").unwrap(), Value::Flag(true));
        assert_eq!(read("-5").unwrap(), Value::Signed(-5));
        for wrong in ["", "x", "uint64", "uint64 -1", "['a']", "'a\\''"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
