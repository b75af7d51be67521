//! `proa compare`: what each isolation level costs and gives, measured here.

use std::path::PathBuf;
use std::time::Duration;

use super::image::pull;
use crate::compare::{Options, Runner, measure, page, table};
use crate::context::{self, Context};
use crate::error::{Failure, Outcome};
use crate::format;

/// How long is waited for a template. Without one a machine boots, and that is measured.
const TEMPLATE_LIMIT: Duration = Duration::from_secs(120);

/// Measure what each isolation level costs and gives, here
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Timed runs a level; 20 containers and 5 virtual machines where it is not given
    #[arg(short = 'n', long, value_name = "NUMBER")]
    runs: Option<usize>,
    /// table or json
    #[arg(long, default_value = "table")]
    format: String,
    /// Write a page with plots to FILE
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Image, and the command whose start is timed
    #[arg(required = true, value_name = "IMAGE [COMMAND] [ARG...]", trailing_var_arg = true)]
    image: Vec<String>,
}

/// Runs the command.
pub fn run(context: &Context, args: &Args) -> Outcome {
    if !["table", "json"].contains(&args.format.as_str()) {
        return Err(Failure::usage(format!("no such format: {}", args.format)).with_hint("table or json"));
    }
    let (image, command) = args.image.split_first().ok_or_else(|| Failure::usage("an image is needed"))?;
    let command = command.strip_prefix(&["--".to_owned()]).unwrap_or(command);
    let command = if command.is_empty() { vec!["true".to_owned()] } else { command.to_vec() };
    if context.engine()?.store()?.resolve(image).is_err() {
        pull::fetch(context, &proa_oci::reference::Reference::parse(image)?, None, false)?;
    }
    let program = std::env::current_exe()
        .map_err(|error| Failure::new(format!("cannot find this program: {error}")))?;
    let runner = Runner { program, globals: context.global_arguments()? };
    let options = Options { image: image.clone(), command, runs: args.runs };
    let engine = context.engine()?;
    let settle = || _ = engine.await_template_makers(TEMPLATE_LIMIT);
    let report = measure(&runner, &options, &|line| context::notice(line), &settle)?;
    if let Some(path) = &args.html {
        std::fs::write(path, page(&report)).map_err(|error| Failure::io("write", path, error))?;
    }
    let text = match args.format.as_str() {
        "json" => serde_json::to_string_pretty(&report).unwrap_or_default() + "\n",
        _ => table(&report),
    };
    format::print(&text)?;
    Ok(0)
}
