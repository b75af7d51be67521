//! `proa rm`

use proa_engine::Kind;

use crate::context::Context;
use crate::error::{Failure, Outcome, each};

/// Remove instances
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Those that run as well, and none that does not exist is missed
    #[arg(short, long)]
    force: bool,
    /// With those of their volumes that nobody named
    #[arg(short, long)]
    volumes: bool,
    /// Names or ids
    #[arg(required = true, value_name = "INSTANCE")]
    instances: Vec<String>,
}

/// Runs the command.
pub fn run(context: &Context, args: &Args) -> Outcome {
    let engine = context.engine()?;
    each(&args.instances, |name| {
        let instance = engine.find(name).map_err(Failure::from);
        match instance {
            Ok(instance) => engine.remove(&instance, args.force, args.volumes)?,
            Err(failure) if args.force && failure.kind() == Kind::NotFound => {
                engine.see_off(name)?;
                failure.print();
                return Ok(());
            }
            Err(failure) => return Err(failure),
        }
        println!("{name}");
        Ok(())
    })
}
