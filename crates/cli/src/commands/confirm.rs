//! Asking before something is removed for good.

use std::io::{BufRead, IsTerminal, Write};

use crate::error::Failure;

/// Whether to go on: with `force`, or if whoever sits at the terminal says so. Without a terminal there is nobody to
/// ask, which is an error.
///
/// # Errors
/// Nobody can be asked.
pub fn confirm(force: bool, what: &[&str]) -> Result<bool, Failure> {
    if force {
        return Ok(true);
    }
    let input = std::io::stdin();
    if !input.is_terminal() {
        let what = what.join(", ");
        return Err(Failure::usage(format!("this removes {what}: say --force where nobody can be asked")));
    }
    let list: String = what.iter().map(|line| format!("  - {line}\n")).collect();
    eprint!("WARNING! This will remove:\n{list}\nAre you sure you want to continue? [y/N] ");
    let mut answer = String::new();
    std::io::stderr()
        .flush()
        .and_then(|()| input.lock().read_line(&mut answer))
        .map_err(Failure::terminal)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
