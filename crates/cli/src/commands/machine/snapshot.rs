//! `proa machine snapshot`: copies of a machine's disks.

use proa_engine::{Engine, Instance};

use crate::context::Context;
use crate::error::Outcome;

/// A snapshot of a machine.
#[derive(Debug, clap::Args)]
struct Which {
    /// Name or id of the machine
    machine: String,
    /// Name of the snapshot
    snapshot: String,
}

/// Does something with it, and prints its name.
fn with(
    context: &Context,
    which: &Which,
    act: impl FnOnce(&Engine, &Instance, &str) -> proa_engine::error::Result<()>,
) -> Outcome {
    let engine = context.engine()?;
    act(engine, &engine.find(&which.machine)?, &which.snapshot)?;
    println!("{}", which.snapshot);
    Ok(0)
}

/// `proa machine snapshot create`
pub mod create {
    use super::{Context, Engine, Outcome, Which, with};

    /// Keep what is on a machine's disks now
    #[derive(Debug, clap::Args)]
    pub struct Args {
        #[command(flatten)]
        which: Which,
    }

    /// Runs the command.
    pub fn run(context: &Context, args: &Args) -> Outcome {
        with(context, &args.which, Engine::make_snapshot)
    }
}

/// `proa machine snapshot ls`
pub mod ls {
    use serde_json::{Value, json};

    use crate::context::Context;
    use crate::error::Outcome;
    use crate::format;

    /// List a machine's snapshots
    #[derive(Debug, clap::Args)]
    pub struct Args {
        /// table, json, or a Go template
        #[arg(long)]
        format: Option<String>,
        /// Name or id of the machine
        machine: String,
    }

    const COLUMNS: [(&str, &str); 3] = [("SNAPSHOT", "Name"), ("CREATED", "RunningFor"), ("ON DISK", "Size")];

    /// Runs the command.
    pub fn run(context: &Context, args: &Args) -> Outcome {
        let engine = context.engine()?;
        let snapshots = engine.snapshots(&engine.find(&args.machine)?)?;
        let row = |snapshot: &proa_engine::machine::Snapshot| -> Value {
            let made = snapshot.made.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
            let made_ns = i64::try_from(made.as_nanos()).unwrap_or(i64::MAX);
            json!({
                "Name": snapshot.name,
                "RunningFor": format::since_ns(made_ns),
                "CreatedAt": proa_engine::parse::rfc3339_nano(made_ns),
                "Size": format::size(snapshot.bytes),
            })
        };
        let rows: Vec<Value> = snapshots.iter().map(row).collect();
        format::rows(args.format.as_deref(), &COLUMNS, &rows)?;
        Ok(0)
    }
}

/// `proa machine snapshot restore`
pub mod restore {
    use super::{Context, Engine, Outcome, Which, with};

    /// Make a machine's disks what they were
    #[derive(Debug, clap::Args)]
    pub struct Args {
        #[command(flatten)]
        which: Which,
    }

    /// Runs the command.
    pub fn run(context: &Context, args: &Args) -> Outcome {
        with(context, &args.which, Engine::restore_snapshot)
    }
}

/// `proa machine snapshot rm`
pub mod rm {
    use super::{Context, Engine, Outcome};
    use crate::commands::snapshot::remove_each;

    /// Remove snapshots
    #[derive(Debug, clap::Args)]
    pub struct Args {
        /// Name or id of the machine
        machine: String,
        /// Names of the snapshots
        #[arg(required = true)]
        snapshots: Vec<String>,
    }

    /// Runs the command.
    pub fn run(context: &Context, args: &Args) -> Outcome {
        remove_each(context, &args.machine, &args.snapshots, Engine::remove_snapshot)
    }
}
