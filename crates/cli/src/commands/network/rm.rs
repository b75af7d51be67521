//! `proa network rm`

use proa_engine::network::is_predefined;

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
        let all = engine.all_networks()?;
        let named = all.iter().find(|record| record.name == name);
        let Some(found) = named.or_else(|| all.iter().find(|record| record.id.starts_with(name))) else {
            if args.force {
                return Ok(());
            }
            return Err(Failure::from(proa_engine::Error::NoSuchNetwork(name.to_owned())));
        };
        // One that is always there may have no row yet.
        let record = if is_predefined(&found.name) { found.clone() } else { engine.network(name)? };
        engine.remove_network(&record)?;
        println!("{name}");
        Ok(())
    })
}
