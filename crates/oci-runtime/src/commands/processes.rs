//! `ps`: the processes of a container.

use std::process::Command;

use crate::args::{Opt, Parsed, value};
use crate::error::{Failure, Result};
use crate::global::Global;
use crate::out;

/// Its options.
pub const OPTIONS: &[Opt] = &[value("format").or('f')];

/// Runs it.
///
/// # Errors
/// The container does not run, or the host has no `ps`.
pub fn run(global: &Global, parsed: &Parsed) -> Result<u8> {
    let entry = global.store.open(parsed.id()?)?;
    let (container, _) = entry.container(entry.saved()?.as_ref())?;
    let container =
        container.ok_or_else(|| Failure::new(format!("container '{}' is not running", entry.id)))?;
    let pids = container.all_processes();
    match parsed.get("format").unwrap_or("table") {
        "json" => out::line(&pids),
        "table" => out::text(&filter(&host_ps(&parsed.words[1..])?, &pids)?),
        other => Err(Failure::usage(format!("--format {other}: use table or json"))),
    }
}

/// The host's own `ps` knows its options; of what it prints, the container's lines are taken.
fn host_ps(options: &[String]) -> Result<String> {
    let all = ["-ef".to_owned()];
    let options = if options.is_empty() { &all[..] } else { options };
    let output = Command::new("ps").args(options).output().map_err(|error| Failure::at("ps", error))?;
    if !output.status.success() {
        return Err(Failure::new(format!("ps: {}", String::from_utf8_lossy(&output.stderr).trim())));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn filter(text: &str, pids: &[u32]) -> Result<String> {
    let head = text.lines().next().unwrap_or_default();
    let column = head.split_whitespace().position(|name| name == "PID");
    let column = column.ok_or_else(|| Failure::usage("the options for ps must show the column PID"))?;
    let is_ours = |line: &&str| {
        line.split_whitespace()
            .nth(column)
            .and_then(|pid| pid.parse().ok())
            .is_some_and(|pid| pids.contains(&pid))
    };
    let lines = std::iter::once(head).chain(text.lines().skip(1).filter(is_ours));
    Ok(lines.map(|line| format!("{line}\n")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_containers_lines_are_shown() {
        let text = "UID PID CMD\nroot 1 init\nroot 12 sleep 1\n";
        assert_eq!(filter(text, &[12, 99]).unwrap(), "UID PID CMD\nroot 12 sleep 1\n");
        assert!(filter("UID CMD\n", &[]).is_err());
    }
}
