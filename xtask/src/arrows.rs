//! Which crate may use which: the table of ARCHITECTURE.md, checked against cargo's own view.

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::cargo;

/// Each crate and the crates of ours it may name.
const MAY_USE: &[(&str, &[&str])] = &[
    ("proa-oci", &[]),
    ("proa-sys", &[]),
    ("proa-protocol", &["proa-oci"]),
    ("proa-network", &["proa-sys", "proa-protocol"]),
    ("proa-runtime", &["proa-oci", "proa-sys", "proa-protocol"]),
    ("proa-supervisor", &["proa-oci", "proa-sys", "proa-protocol", "proa-runtime"]),
    ("proa-vm", &["proa-oci", "proa-sys", "proa-protocol"]),
    (
        "proa-monitor",
        &[
            "proa-oci",
            "proa-sys",
            "proa-protocol",
            "proa-network",
            "proa-runtime",
            "proa-supervisor",
            "proa-vm",
        ],
    ),
    (
        "proa-agent",
        &["proa-oci", "proa-sys", "proa-protocol", "proa-network", "proa-runtime", "proa-supervisor"],
    ),
    ("proa-oci-runtime", &["proa-oci", "proa-sys", "proa-protocol", "proa-runtime"]),
    ("proa-resolver", &["proa-oci", "proa-sys", "proa-protocol", "proa-network"]),
    ("proa-image", &["proa-oci", "proa-sys"]),
    ("proa-engine", &["proa-image", "proa-network", "proa-oci", "proa-protocol", "proa-sys"]),
    ("proa-cli", &["proa-engine", "proa-image", "proa-oci", "proa-protocol", "proa-sys"]),
    ("proa-bench", &[]),
    ("xtask", &["proa-vm"]),
];

/// Crates that hold what faces a guest or a container: no async runtime, HTTP, TLS or database below them.
const NARROW: &[&str] = &[
    "proa-network",
    "proa-runtime",
    "proa-supervisor",
    "proa-vm",
    "proa-monitor",
    "proa-agent",
    "proa-oci-runtime",
    "proa-resolver",
];

/// What may not stand in a narrow crate's dependencies.
const BANNED: &[&str] = &["tokio", "hyper", "ureq", "rustls", "rusqlite", "reqwest", "async-std", "futures"];

/// Problems found, a line each.
pub fn check() -> Result<Vec<String>> {
    let output = cargo::command(&["metadata", "--format-version", "1", "--no-deps", "--locked"])
        .output()
        .context("cannot run cargo metadata")?;
    if !output.status.success() {
        bail!("cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    let metadata: Value = serde_json::from_slice(&output.stdout)?;
    let packages = metadata["packages"].as_array().context("cargo metadata names no packages")?;
    Ok(packages.iter().flat_map(check_package).collect())
}

fn check_package(package: &Value) -> Vec<String> {
    let name = package["name"].as_str().unwrap_or_default();
    let Some((_, allowed)) = MAY_USE.iter().find(|(known, _)| *known == name) else {
        return vec![format!("{name}: not in the table of crates (xtask/src/arrows.rs, ARCHITECTURE.md)")];
    };
    let normal = package["dependencies"].as_array().into_iter().flatten().filter(|d| d["kind"].is_null());
    let mut problems = Vec::new();
    for used in normal.filter_map(|dependency| dependency["name"].as_str()) {
        if used.starts_with("proa-") && !allowed.contains(&used) {
            problems.push(format!("{name} uses {used}: the arrow points up (ARCHITECTURE.md, Crates)"));
        }
        if NARROW.contains(&name) && BANNED.contains(&used) {
            problems.push(format!("{name} uses {used}: it must hold no async, HTTP, TLS or database"));
        }
    }
    problems
}
