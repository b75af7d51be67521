//! `proa system boot`: what restart policies want to run after the host has booted.

use proa_engine::boot::Booted;

use crate::context::Context;
use crate::error::{Failure, Outcome};

/// Start the instances whose restart policies want them to run
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs the command. Every instance is tried; the code is 1 when one of them does not start.
pub fn run(context: &Context, _args: &Args) -> Outcome {
    let mut failed = 0;
    context.engine()?.boot(|Booted { name, failure }| match failure {
        None => println!("{name}"),
        Some(error) => {
            failed += 1;
            Failure::from(error).print();
        }
    })?;
    Ok(i32::from(failed > 0))
}
