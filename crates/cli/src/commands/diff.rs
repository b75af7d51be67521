//! `proa diff`: what differs between an instance's files and its image.

use proa_protocol::message::{Change, ChangeKind, Request, Response};

use crate::context::Context;
use crate::error::{Failure, Outcome};
use crate::format;

/// List what differs between an instance's files and its image: A added, C changed, D deleted
#[derive(Debug, clap::Args)]
pub struct Args {
    /// table or json
    #[arg(long, default_value = "table")]
    format: String,
    /// Name or id
    instance: String,
}

/// Runs the command.
pub fn run(context: &Context, args: &Args) -> Outcome {
    let engine = context.engine()?;
    let instance = engine.find(&args.instance)?;
    let changes = match engine.open_files(&instance)?.call(Request::Changes)? {
        Response::Changes { changes } => changes,
        other => return Err(Failure::new(format!("unexpected answer {other:?}"))),
    };
    let text: String = match args.format.as_str() {
        "json" => changes
            .iter()
            .map(|change| {
                serde_json::json!({"Kind": change.kind as i32, "Path": change.path}).to_string() + "\n"
            })
            .collect(),
        "table" => changes.iter().map(line).collect(),
        other => return Err(Failure::usage(format!("no such format: {other}")).with_hint("table or json")),
    };
    format::print(&text)?;
    Ok(0)
}

fn line(change: &Change) -> String {
    let letter = match change.kind {
        ChangeKind::Modified => 'C',
        ChangeKind::Added => 'A',
        ChangeKind::Deleted => 'D',
    };
    // A name with a newline or an escape sequence stays one line, and stays harmless.
    let path: String = change.path.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    format!("{letter} {path}\n")
}
