//! `proa wait`

use proa_engine::condition::Condition;

use crate::context::Context;
use crate::error::{Outcome, each};

/// Wait until instances end, or a condition holds, and print their exit codes
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Wait for this instead: created, running, paused, stopped, healthy or unhealthy (-1 is printed for one that runs)
    #[arg(long, value_name = "CONDITION")]
    condition: Vec<String>,
    /// Names or ids
    #[arg(required = true, value_name = "INSTANCE")]
    instances: Vec<String>,
}

/// Runs the command.
pub fn run(context: &Context, args: &Args) -> Outcome {
    let engine = context.engine()?;
    let conditions: Vec<Condition> =
        args.condition.iter().map(|text| Condition::parse(text)).collect::<Result<_, _>>()?;
    each(&args.instances, |name| {
        let instance = engine.find(name)?;
        let code = if conditions.is_empty() {
            engine.wait(&instance)?
        } else {
            engine.wait_condition(&instance, &conditions)?
        };
        println!("{code}");
        Ok(())
    })
}
