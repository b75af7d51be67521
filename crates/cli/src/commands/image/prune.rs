//! `proa image prune`: images nobody names or uses.

use std::io::{BufRead, IsTerminal, Write};

use crate::context::Context;
use crate::error::Failure;
use crate::format::size;

/// Remove images that have no name
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Remove every image that no instance uses
    #[arg(short, long)]
    pub all: bool,
    /// Do not ask
    #[arg(short, long)]
    pub force: bool,
}

/// Runs the command.
pub fn run(context: &Context, args: &Args) -> Result<i32, Failure> {
    let which = if args.all { "all images that no instance uses" } else { "all images that have no name" };
    if !args.force && !confirm(which)? {
        return Ok(1);
    }
    let engine = context.engine()?;
    let pruned = engine.store()?.prune(args.all, engine)?;
    super::rmi::tell(engine, &pruned.removed);
    pruned.removed.iter().for_each(super::rmi::print);
    println!("Total reclaimed space: {}", size(pruned.bytes));
    Ok(0)
}

/// Asks on a terminal; without one there is nobody to ask, and the answer is no.
fn confirm(which: &str) -> Result<bool, Failure> {
    let input = std::io::stdin();
    if !input.is_terminal() {
        return Err(Failure::usage(format!("this removes {which}: say --force where nobody can be asked")));
    }
    eprint!("This removes {which}. Go on? [y/N] ");
    let mut answer = String::new();
    std::io::stderr()
        .flush()
        .and_then(|()| input.lock().read_line(&mut answer))
        .map_err(Failure::terminal)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
