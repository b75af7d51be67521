//! `state` and `list`: what the specification calls the state of a container.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;

use crate::args::{Opt, Parsed, flag, value};
use crate::error::{Failure, Result};
use crate::global::Global;
use crate::out;
use crate::store::{Entry, Saved, Status};

/// Options of `list`.
pub const LIST: &[Opt] = &[value("format").or('f'), flag("quiet").or('q')];

/// The state, with what runc adds to it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct State {
    oci_version: String,
    id: String,
    pid: u32,
    status: Status,
    bundle: PathBuf,
    rootfs: PathBuf,
    created: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
    owner: String,
}

impl State {
    fn of(entry: &Entry) -> Result<Self> {
        let saved = entry.saved()?;
        let status = entry.status(saved.as_ref(), None)?;
        let Saved { oci_version, pid, bundle, rootfs, created, owner, annotations, .. } = saved
            .unwrap_or_else(|| Saved {
                oci_version: proa_oci::runtime::SPEC_VERSION.to_owned(),
                ..Saved::default()
            });
        let pid = if status == Status::Stopped { 0 } else { pid };
        let owner = user_name(owner);
        let id = entry.id.clone();
        Ok(Self { oci_version, id, pid, status, bundle, rootfs, created, annotations, owner })
    }
}

/// `state`.
///
/// # Errors
/// There is no such container.
pub fn run(global: &Global, parsed: &Parsed) -> Result<u8> {
    let state = State::of(&global.store.open(parsed.id()?)?)?;
    out::json(&state)
}

/// `list`.
///
/// # Errors
/// The state directory cannot be read.
pub fn list(global: &Global, parsed: &Parsed) -> Result<u8> {
    let ids = global.store.ids()?;
    if parsed.is("quiet") {
        return out::text(&ids.iter().map(|id| format!("{id}\n")).collect::<String>());
    }
    // One that is deleted meanwhile is not there.
    let states = ids.iter().filter_map(|id| State::of(&global.store.open(id).ok()?).ok());
    match parsed.get("format").unwrap_or("table") {
        "json" => out::json(&states.collect::<Vec<_>>()),
        "table" => out::text(&table(&states.collect::<Vec<_>>())),
        other => Err(Failure::usage(format!("--format {other}: use table or json"))),
    }
}

fn table(states: &[State]) -> String {
    let head = ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(ToOwned::to_owned);
    let mut rows = vec![head];
    rows.extend(states.iter().map(|state| {
        [
            state.id.clone(),
            state.pid.to_string(),
            state.status.name().to_owned(),
            state.bundle.display().to_string(),
            state.created.clone(),
            state.owner.clone(),
        ]
    }));
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..6).map(width).collect();
    rows.iter().fold(String::new(), |text, row| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        let line = cells.collect::<Vec<_>>().join("   ");
        text + line.trim_end() + "\n"
    })
}

/// By the host's own file alone: a static program has no name services.
fn user_name(uid: u32) -> String {
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let of = |line: &str| {
        let mut fields = line.split(':');
        let name = fields.next()?.to_owned();
        (fields.nth(1)?.parse() == Ok(uid)).then_some(name)
    };
    passwd.lines().find_map(of).unwrap_or_else(|| format!("#{uid}"))
}
