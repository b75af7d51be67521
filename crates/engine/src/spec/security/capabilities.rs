//! Capabilities by Docker's rules.

use proa_oci::defaults;
use proa_protocol::instance::IsolationLevel;

use crate::error::{Error, Result};

/// Docker's rule: `ALL` in one list makes the other count from everything or from nothing.
pub(super) fn granted(
    add: &[String],
    drop: &[String],
    everything: impl FnOnce() -> Vec<String>,
) -> Result<Vec<String>> {
    let (add, drop) = (normalize(add)?, normalize(drop)?);
    let has_all = |list: &[String]| list.iter().any(|name| name == "ALL");
    let base: Vec<String> = match (has_all(&add), has_all(&drop)) {
        (true, _) => everything(),
        (false, true) => Vec::new(),
        (false, false) => defaults::default_capabilities(),
    };
    let mut names: Vec<String> = base.into_iter().filter(|name| !drop.contains(name)).collect();
    for name in add.into_iter().filter(|name| name != "ALL") {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    Ok(names)
}

/// Every capability there is at this level. A host may lack some itself, and `ALL` does not ask for those; a guest
/// has all.
pub(in crate::spec) fn all(level: IsolationLevel) -> Vec<String> {
    if level == IsolationLevel::Vm {
        return defaults::ALL_CAPABILITIES.iter().map(ToString::to_string).collect();
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapBnd:"));
    let held = line.and_then(|value| u64::from_str_radix(value.trim(), 16).ok()).unwrap_or(u64::MAX);
    let names = defaults::ALL_CAPABILITIES.iter().enumerate();
    names.filter(|(number, _)| held >> number & 1 == 1).map(|(_, name)| (*name).to_owned()).collect()
}

/// Full names in capitals, `ALL` being one of them.
pub(in crate::spec) fn normalize(names: &[String]) -> Result<Vec<String>> {
    names.iter().flat_map(|list| list.split(',')).map(normalize_one).collect()
}

fn normalize_one(name: &str) -> Result<String> {
    let upper = name.trim().to_ascii_uppercase();
    if upper == "ALL" || upper == "CAP_ALL" {
        return Ok("ALL".into());
    }
    let full = if upper.starts_with("CAP_") { upper } else { format!("CAP_{upper}") };
    if defaults::ALL_CAPABILITIES.contains(&full.as_str()) {
        return Ok(full);
    }
    Err(Error::Invalid { message: format!("no such capability: {name}"), hint: "see capabilities(7)".into() })
}
