//! The table of COMPATIBILITY.md that says what works at which isolation level, made of what the tests that ran have
//! found.
//!
//! A test that runs at both levels and passes leaves a file `target/parity/AREA.BEHAVIOUR.LEVEL`
//! (`crates/cli/tests/it/parity`), which is empty, or holds the reason why that level has not got the behaviour.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use crate::cargo;

const BEGIN: &str = "<!-- made by `cargo xtask parity`: begin -->\n";
const END: &str = "<!-- end -->";
const HEAD: &str = "| behaviour | container | vm | why not |\n| --- | --- | --- | --- |\n";

/// What the tests have found of a behaviour: of each level nothing, or why that has not got it.
#[derive(Default)]
struct Findings {
    container: Option<String>,
    vm: Option<String>,
}

/// Removes what earlier runs have found.
pub fn forget() -> Result<()> {
    match fs::remove_dir_all(records()) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error).context("target/parity"),
        _ => Ok(()),
    }
}

/// Puts the table into the document; or fails where it is not there as it would be made.
pub fn run(check: bool) -> Result<()> {
    let path = cargo::root().join("COMPATIBILITY.md");
    let text = fs::read_to_string(&path)?;
    let outside = |text: &str| -> Option<(String, String)> {
        let (before, rest) = text.split_once(BEGIN)?;
        let (_, after) = rest.split_once(END)?;
        Some((before.to_owned(), after.to_owned()))
    };
    let (before, after) = outside(&text).context("COMPATIBILITY.md has no place for the table of parity")?;
    let made = format!("{before}{BEGIN}{}{END}{after}", table(&read()?));
    if made == text {
        return Ok(());
    }
    if check {
        let differs = made.lines().find(|line| !text.contains(line)).unwrap_or("a behaviour is gone");
        bail!("COMPATIBILITY.md does not say what the tests have found ({differs}): cargo xtask parity");
    }
    fs::write(&path, made).context("COMPATIBILITY.md")
}

fn records() -> PathBuf {
    cargo::root().join("target/parity")
}

fn read() -> Result<BTreeMap<String, Findings>> {
    let mut found: BTreeMap<String, Findings> = BTreeMap::new();
    let entries = fs::read_dir(records());
    for entry in entries.context("no test has left a record: cargo nextest run -p proa-cli parity::")? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().replace('_', " ");
        let (behaviour, level) = name.rsplit_once('.').with_context(|| format!("target/parity/{name}"))?;
        let findings = found.entry(behaviour.replace('.', ": ")).or_default();
        let place = if level == "vm" { &mut findings.vm } else { &mut findings.container };
        *place = Some(fs::read_to_string(entry.path())?);
    }
    Ok(found)
}

fn table(found: &BTreeMap<String, Findings>) -> String {
    let rows = found.iter().map(|(behaviour, Findings { container, vm })| {
        let why = [container, vm].into_iter().flatten().find(|why| !why.is_empty());
        let why = why.map_or("", String::as_str).replace('|', "\\|");
        format!("| {behaviour} | {} | {} | {why} |\n", cell(container.as_deref()), cell(vm.as_deref()))
    });
    HEAD.to_owned() + &rows.collect::<String>()
}

fn cell(found: Option<&str>) -> &'static str {
    match found {
        Some("") => "works",
        Some(_) => "refused",
        None => "not tested",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_says_what_was_found() {
        let works = || Some(String::new());
        let found = BTreeMap::from([
            ("a: one".to_owned(), Findings { container: works(), vm: works() }),
            ("a: two".to_owned(), Findings { container: works(), vm: Some("x|y".to_owned()) }),
            ("b: three".to_owned(), Findings { container: None, vm: works() }),
        ]);
        let rows = "| a: one | works | works |  |\n| a: two | works | refused | x\\|y |\n| b: three | not tested | works |  |\n";
        assert_eq!(table(&found), HEAD.to_owned() + rows);
    }
}
