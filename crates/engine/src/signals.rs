//! Signal names of Linux (the numbers of x86-64 and AArch64, which are the same).

use crate::error::{Error, Result};

const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE",
    "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ",
    "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];
const SIGRTMIN: i32 = 34;
const SIGRTMAX: i32 = 64;

/// SIGHUP.
pub const HUP: i32 = 1;
/// SIGINT.
pub const INT: i32 = 2;
/// SIGQUIT.
pub const QUIT: i32 = 3;
/// SIGKILL.
pub const KILL: i32 = 9;
/// SIGUSR1.
pub const USR1: i32 = 10;
/// SIGUSR2.
pub const USR2: i32 = 12;
/// SIGALRM.
pub const ALRM: i32 = 14;
/// SIGTERM.
pub const TERM: i32 = 15;
/// SIGCONT.
pub const CONT: i32 = 18;
/// SIGWINCH.
pub const WINCH: i32 = 28;

/// A signal's number from `TERM`, `SIGTERM`, `sigterm`, `15`, `RTMIN+3`.
///
/// # Errors
/// There is no such signal.
pub fn number(text: &str) -> Result<i32> {
    let wrong = || Error::Invalid {
        message: format!("no such signal: {text}"),
        hint: "a name as TERM or SIGTERM, or a number from 1 to 64".into(),
    };
    if let Ok(number) = text.parse::<i32>() {
        return if (1..=SIGRTMAX).contains(&number) { Ok(number) } else { Err(wrong()) };
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let name = match name {
        "CLD" => "CHLD",
        "POLL" => "IO",
        "IOT" => "ABRT",
        other => other,
    };
    if let Some(at) = NAMES.iter().position(|known| *known == name) {
        return Ok(at as i32 + 1);
    }
    let offset = |rest: &str| if rest.is_empty() { Some(0) } else { rest[1..].parse::<i32>().ok() };
    let real_time = if let Some(rest) = name.strip_prefix("RTMIN") {
        (rest.is_empty() || rest.starts_with('+')).then(|| offset(rest)).flatten().map(|n| SIGRTMIN + n)
    } else if let Some(rest) = name.strip_prefix("RTMAX") {
        (rest.is_empty() || rest.starts_with('-')).then(|| offset(rest)).flatten().map(|n| SIGRTMAX - n)
    } else {
        None
    };
    real_time.filter(|number| (SIGRTMIN..=SIGRTMAX).contains(number)).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        for (text, expected) in [
            ("TERM", TERM),
            ("SIGTERM", 15),
            ("sigkill", KILL),
            ("9", 9),
            ("WINCH", WINCH),
            ("SYS", 31),
            ("RTMIN", 34),
            ("SIGRTMIN+3", 37),
            ("RTMAX-1", 63),
            ("64", 64),
            ("USR1", USR1),
            ("USR2", USR2),
            ("CONT", CONT),
            ("ALRM", ALRM),
        ] {
            assert_eq!(number(text).unwrap(), expected, "{text}");
        }
        for text in ["", "0", "65", "NOSUCH", "RTMIN-1", "RTMIN+31", "SIG", "-9", "RTMINé"] {
            assert!(number(text).is_err(), "{text}");
        }
    }
}
