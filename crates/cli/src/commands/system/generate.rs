//! `proa system generate`: what systemd's generator of ours runs, and people who want to see what comes of their files.

use std::path::{Path, PathBuf};

use crate::context::{self, Context};
use crate::error::{Failure, Outcome};
use crate::units;

/// Make systemd units of files that name instances, volumes and networks
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Read the files of DIR instead of /etc/proa/units, or as an ordinary user ~/.config/proa/units
    #[arg(long, value_name = "DIR")]
    from: Option<PathBuf>,
    /// Where the units go; of three, as systemd gives its generators, the first
    #[arg(required = true, num_args = 1..=3, value_name = "DIRECTORY")]
    directories: Vec<PathBuf>,
}

/// Runs the command. Files without a problem become units; the code is 1 where there are others. The state directory is
/// not opened: at the time of generators it may not be mounted.
pub fn run(context: &Context, args: &Args) -> Outcome {
    let from = args.from.clone().map_or_else(|| context.unit_files(), Ok)?;
    let to = args.directories.first().map_or(Path::new("."), PathBuf::as_path);
    let own = context::programs()?.own;
    let problems = units::generate(&own, context.named_root().as_deref(), &from, to).map_err(|error| {
        Failure::new(format!("cannot make units of {} in {}: {error}", from.display(), to.display()))
    })?;
    for problem in &problems {
        Failure::new(problem.to_string()).print();
    }
    Ok(i32::from(!problems.is_empty()))
}
