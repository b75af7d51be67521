//! `proa create`: an instance, made but not run.

use super::run;
use crate::context::Context;
use crate::error::{Failure, Outcome};
use crate::flags::{ContainerFlags, Wanted};

/// Make an instance without running it
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Attach to stdin, stdout or stderr when it is started
    #[arg(short, long, value_name = "STREAM")]
    attach: Vec<String>,
    #[command(flatten)]
    container: ContainerFlags,
}

impl Args {
    /// What its options ask for.
    pub fn wanted(&self) -> Result<Wanted, Failure> {
        self.container.read(&self.attach, false)
    }
}

/// Runs the command.
pub fn run(context: &Context, args: &Args) -> Outcome {
    let created = args.wanted().and_then(|wanted| run::create(context, &args.container, wanted));
    println!("{}", created?.record.id);
    Ok(0)
}
