//! `proa history`: how an image was made.

use serde_json::{Value, json};

use crate::context::Context;
use crate::error::Failure;
use crate::format;

/// Show how an image was made
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print whole commands
    #[arg(long)]
    pub no_trunc: bool,
    /// table, json, or a Go template
    #[arg(long)]
    pub format: Option<String>,
    /// Name or id
    pub image: String,
}

const COLUMNS: [(&str, &str); 4] =
    [("CREATED", "CreatedSince"), ("CREATED BY", "CreatedBy"), ("SIZE", "Size"), ("COMMENT", "Comment")];
/// Characters of a command that are shown.
const SHOWN: usize = 45;

/// Runs the command.
pub fn run(context: &Context, args: &Args) -> Result<i32, Failure> {
    let history = context.engine()?.store()?.history(&args.image)?;
    let rows: Vec<Value> = history
        .iter()
        .map(|row| {
            let made_by = row.entry.created_by.clone();
            json!({
                "CreatedSince": format::since(&row.entry.created),
                "CreatedBy": if args.no_trunc { made_by } else { made_by.chars().take(SHOWN).collect() },
                "Size": format::size(row.size),
                "Comment": row.entry.comment,
            })
        })
        .collect();
    format::rows(args.format.as_deref(), &COLUMNS, &rows)?;
    Ok(0)
}
