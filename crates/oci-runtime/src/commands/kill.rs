//! `kill`: sends a signal to the first process, or to all.

use rustix::process::Signal;

use crate::args::{Opt, Parsed, flag};
use crate::error::{Failure, Result};
use crate::global::Global;
use crate::store::{Saved, Status};

/// Its options.
pub const OPTIONS: &[Opt] = &[flag("all").or('a')];

/// By their numbers, from 1.
const NAMES: &[&str] = &[
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE",
    "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ",
    "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];
const REAL_TIME: std::ops::RangeInclusive<i32> = 34..=64;

/// Runs it.
///
/// # Errors
/// The signal is not known, or the container does not run.
pub fn run(global: &Global, parsed: &Parsed) -> Result<u8> {
    let entry = global.store.open(parsed.id()?)?;
    let signal = number(parsed.words.get(1).map_or("TERM", String::as_str))?;
    let all = parsed.is("all");
    let saved = entry.saved()?;
    let status = entry.status(saved.as_ref(), None)?;
    let (container, spec) = entry.container(saved.as_ref())?;
    let Some(container) = container.filter(|_| status != Status::Stopped) else {
        // Others than the first may live on, where they share the host's process ids.
        if all {
            let signal = proa_runtime::signal_number(signal)?;
            let cgroup = Saved::cgroup_of(saved.as_ref());
            return Ok(proa_runtime::signal_leftovers(&entry.id, &spec, cgroup, signal).map(|()| 0)?);
        }
        return Err(Failure::new(format!("container '{}' is not running", entry.id)));
    };
    // Without a pid namespace the others do not end with the first.
    let all = all || signal == Signal::KILL.as_raw() && !container.owns_process_ids();
    container.signal(signal, all)?;
    Ok(0)
}

/// The number of a signal: `9`, `KILL`, `SIGKILL`, `RTMIN+1`.
fn number(text: &str) -> Result<i32> {
    let unknown = || Failure::usage(format!("signal '{text}' is not known"));
    if let Ok(number) = text.parse::<i32>() {
        return if (1..=64).contains(&number) { Ok(number) } else { Err(unknown()) };
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(position) = NAMES.iter().position(|known| *known == name) {
        return Ok(position as i32 + 1);
    }
    let offset = |rest: &str| if rest.is_empty() { Some(0) } else { rest.parse::<i32>().ok() };
    let real_time = match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX"), name) {
        (Some(rest), ..) => offset(rest).map(|offset| REAL_TIME.start() + offset),
        (_, Some(rest), _) => offset(rest).map(|offset| REAL_TIME.end() + offset),
        (.., "IOT") => Some(6),
        (.., "CLD") => Some(17),
        (.., "POLL") => Some(29),
        _ => None,
    };
    real_time.filter(|number| (1..=31).contains(number) || REAL_TIME.contains(number)).ok_or_else(unknown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_by_name_and_number() {
        for (text, wanted) in [
            ("9", 9),
            ("KILL", 9),
            ("SIGKILL", 9),
            ("sigterm", 15),
            ("RTMIN", 34),
            ("SIGRTMIN+3", 37),
            ("RTMAX-1", 63),
            ("SYS", 31),
            ("POLL", 29),
        ] {
            assert_eq!(number(text).unwrap(), wanted, "{text}");
        }
        for text in ["0", "65", "-9", "", "WHAT", "RTMIN+99", "RTMAX+1"] {
            assert!(number(text).is_err(), "{text}");
        }
    }
}
