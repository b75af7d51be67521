//! `proa cp`: files into and out of an instance.

use std::path::Path;

use proa_engine::copy::CopyOptions;

use crate::context::{self, Context};
use crate::error::{Failure, Outcome};

/// Copy files into and out of an instance; - is a tar on standard input or output
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Keep owners
    #[arg(short, long)]
    archive: bool,
    /// Copy what a symbolic link leads to
    #[arg(short = 'L', long)]
    follow_link: bool,
    /// Say nothing
    #[arg(short, long)]
    quiet: bool,
    /// INSTANCE:PATH, PATH or -
    #[arg(value_name = "SOURCE")]
    from: String,
    /// PATH, INSTANCE:PATH or -
    #[arg(value_name = "DESTINATION")]
    to: String,
}

/// Runs the command.
pub fn run(context: &Context, args: &Args) -> Outcome {
    let engine = context.engine()?;
    let options = CopyOptions { archive: args.archive, follow_link: args.follow_link };
    match (split(&args.from), split(&args.to)) {
        (Some((name, path)), None) => {
            let instance = engine.find(name)?;
            if args.to == "-" {
                engine.copy_out_tar(&instance, path, options, &mut std::io::stdout().lock())?;
                return Ok(0);
            }
            let left_out = engine.copy_out(&instance, path, &args.to, options)?;
            if !args.quiet {
                left_out.iter().for_each(|line| context::notice(line));
            }
            Ok(0)
        }
        (None, Some((name, path))) => {
            let instance = engine.find(name)?;
            if args.from == "-" {
                engine.copy_in_tar(&instance, path, &mut std::io::stdin().lock())?;
            } else {
                engine.copy_in(&instance, &args.from, path, options)?;
            }
            Ok(0)
        }
        (Some(_), Some(_)) => {
            Err(Failure::new("cannot copy from one instance to another").with_hint("copy by way of the host"))
        }
        (None, None) => Err(Failure::new("one of the two must be in an instance").with_hint("INSTANCE:PATH")),
    }
}

/// `INSTANCE:PATH`; a path of the host with a colon in it begins with a slash or a dot.
fn split(text: &str) -> Option<(&str, &str)> {
    if text.starts_with(['/', '.']) || (text.contains(':') && Path::new(text).exists()) {
        return None;
    }
    text.split_once(':').filter(|(name, path)| !name.is_empty() && !path.is_empty())
}
