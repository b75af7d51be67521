//! `proa top`: an instance's processes.

use crate::context::Context;
use crate::error::Outcome;
use crate::format;
use crate::top::Columns;

/// List an instance's processes
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name or id
    instance: String,
    /// Options of ps that choose columns, as -ef (the default), aux, -o pid,comm
    #[arg(value_name = "PS-OPTION", num_args = 0.., trailing_var_arg = true, allow_hyphen_values = true)]
    options: Vec<String>,
}

/// As wide as a column is at least in what Docker prints.
const LEAST: usize = 20;

/// Runs the command.
pub fn run(context: &Context, args: &Args) -> Outcome {
    let columns = Columns::parse(&args.options)?;
    let engine = context.engine()?;
    let processes = engine.processes(&engine.find(&args.instance)?)?;
    let now = proa_engine::parse::now_ns() / 1_000_000_000;
    format::print(&format::aligned(&columns.lines(&processes, now), LEAST))?;
    Ok(0)
}
