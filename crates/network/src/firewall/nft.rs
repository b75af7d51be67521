//! The rules' text, and nft, which reads it. Not on the way of a start: only a table that is missing needs it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Command, Stdio};

use super::element::Element;
use super::{Error, Family, value};

const RULES: &str = include_str!("rules.nft");
/// Where distributions have it.
const PROGRAMS: [&str; 3] = ["/usr/sbin/nft", "/sbin/nft", "/usr/bin/nft"];

/// Name of a chain that tells these rules from those of another version of Proa.
pub(super) fn version() -> String {
    format!("v{:016x}", const { fingerprint(RULES.as_bytes()) })
}

/// FNV-1a.
const fn fingerprint(text: &[u8]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut at = 0;
    while at < text.len() {
        hash = (hash ^ text[at] as u64).wrapping_mul(0x0100_0000_01b3);
        at += 1;
    }
    hash
}

/// Replaces both tables by fresh ones that have these elements, all at once.
///
/// Of two elements with the same key the first counts.
pub(super) fn install(name: &str, elements: Vec<Element>) -> Result<(), Error> {
    let mut script = RULES.replace("@NAME@", name).replace("@VERSION@", &version());
    let mut sets: BTreeMap<(Family, &str), BTreeMap<String, String>> = BTreeMap::new();
    for Element { family, set, key, data } in elements {
        let found = if data.is_empty() { String::new() } else { format!(" : {}", value::text(&data)) };
        sets.entry((family, set)).or_default().entry(value::text(&key)).or_insert(found);
    }
    for ((family, set), elements) in sets {
        let elements: Vec<String> = elements.into_iter().map(|(key, data)| key + &data).collect();
        let _ = writeln!(script, "add element {family} {name} {set} {{ {} }}", elements.join(", "));
    }
    run(&script)
}

/// Has nft do what a script says.
pub(crate) fn run(script: &str) -> Result<(), Error> {
    let program =
        PROGRAMS.into_iter().find(|path| std::path::Path::new(path).exists()).ok_or(Error::NoNft)?;
    let failed = |error: std::io::Error| Error::Nft { program, text: error.to_string() };
    let mut child = Command::new(program)
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    // One that ends before it has read everything says why on standard error.
    let written = child.stdin.take().map_or(Ok(()), |mut input| input.write_all(script.as_bytes()));
    let output = child.wait_with_output().map_err(failed)?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        let first = text.lines().find(|line| !line.trim().is_empty()).unwrap_or("it ended without a word");
        return Err(Error::Nft { program, text: first.to_owned() });
    }
    written.map_err(failed)
}
