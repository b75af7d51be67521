//! `proa system check`: what a crash left.

use proa_engine::system::CheckOptions;

use crate::context::Context;
use crate::error::{Failure, Outcome};
use crate::format;

/// Find, and repair, what a crash left
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Repair what is found
    #[arg(long)]
    repair: bool,
    /// Read all images and compare them with their digests
    #[arg(long)]
    read: bool,
    /// table or json
    #[arg(long, default_value = "table")]
    format: String,
}

/// Runs the command. The code is 1 when something is wrong and stays so.
pub fn run(context: &Context, args: &Args) -> Outcome {
    let problems = context.engine()?.check(CheckOptions { repair: args.repair, read: args.read })?;
    let text: String = match args.format.as_str() {
        "json" => problems.iter().map(|problem| serde_json::json!(problem).to_string() + "\n").collect(),
        "table" => {
            let line = |problem: &proa_engine::system::Problem| {
                format!("{}{}\n", if problem.repaired { "repaired: " } else { "" }, problem.what)
            };
            problems.iter().map(line).collect()
        }
        other => return Err(Failure::usage(format!("no such format: {other}")).with_hint("table or json")),
    };
    format::print(&text)?;
    let left = problems.iter().filter(|problem| !problem.repaired).count();
    match (left, args.repair) {
        (0, _) => Ok(0),
        (_, false) => Err(Failure::new(format!("{left} problems"))
            .with_hint("`proa system check --repair` repairs what can be")),
        (_, true) => Err(Failure::new(format!("{left} problems cannot be repaired"))
            .with_hint("pull or load the image again, or remove it")),
    }
}
