//! `proa network rm`

use crate::context::Context;
use crate::error::{Failure, Outcome, each};

/// Remove networks
#[derive(Debug, clap::Args)]
pub struct Args {
    /// One that does not exist is no error
    #[arg(short, long)]
    force: bool,
    /// Names or ids
    #[arg(required = true, value_name = "NETWORK")]
    names: Vec<String>,
}

/// Runs the command.
pub fn run(context: &Context, args: &Args) -> Outcome {
    let engine = context.engine()?;
    each(&args.names, |name| {
        let found =
            engine.networks()?.into_iter().any(|record| record.name == name || record.id.starts_with(name));
        if !found && args.force {
            return Ok(());
        }
        if !found {
            return Err(Failure::from(proa_engine::Error::NoSuchNetwork(name.to_owned())));
        }
        engine.remove_network(&engine.network(name)?)?;
        println!("{name}");
        Ok(())
    })
}
