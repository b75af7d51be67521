//! `proa logout`: forgets a registry's credentials.

use crate::context::Context;
use crate::error::Failure;

/// Log out of a registry
#[derive(Debug, clap::Args)]
pub struct Args {
    /// HOST[:PORT]
    #[arg(default_value = "docker.io")]
    pub registry: String,
}

/// Runs the command.
pub fn run(context: &Context, args: &Args) -> Result<i32, Failure> {
    let known = proa_image::registry::logout(&context.registry_options()?, &args.registry)?;
    match known {
        true => println!("Removed the credentials for {}", args.registry),
        false => println!("Not logged in to {}", args.registry),
    }
    Ok(0)
}
