//! `proa snapshot`: virtual machines as they run, kept, brought back and multiplied.

use proa_engine::{Engine, Instance};

use crate::context::Context;
use crate::error::{Outcome, each};

/// Removes snapshots of an instance, and prints their names.
pub fn remove_each(
    context: &Context,
    instance: &str,
    snapshots: &[String],
    remove: fn(&Engine, &Instance, &str) -> proa_engine::error::Result<()>,
) -> Outcome {
    let engine = context.engine()?;
    let instance = engine.find(instance)?;
    each(snapshots, |name| {
        remove(engine, &instance, name)?;
        println!("{name}");
        Ok(())
    })
}

/// `proa snapshot create`
pub mod create {
    use crate::context::Context;
    use crate::error::Outcome;

    /// Keep a virtual machine as it runs: memory, devices and disk
    #[derive(Debug, clap::Args)]
    pub struct Args {
        /// Name or id of the instance
        instance: String,
        /// Name of the snapshot; snap0, snap1 and so on where none is given
        snapshot: Option<String>,
    }

    /// Runs the command.
    pub fn run(context: &Context, args: &Args) -> Outcome {
        let engine = context.engine()?;
        println!("{}", engine.make_vm_snapshot(&engine.find(&args.instance)?, args.snapshot.as_deref())?);
        Ok(0)
    }
}

/// `proa snapshot ls`
pub mod ls {
    use proa_engine::snapshots::VmSnapshot;
    use serde_json::{Value, json};

    use crate::context::Context;
    use crate::error::Outcome;
    use crate::format;

    /// List snapshots
    #[derive(Debug, clap::Args)]
    pub struct Args {
        /// table, json, or a Go template
        #[arg(long)]
        format: Option<String>,
        /// Names alone; those of all instances after the instance's
        #[arg(short, long)]
        quiet: bool,
        /// Name or id of the instance; without it those of all
        instance: Option<String>,
    }

    const COLUMNS: [(&str, &str); 6] = [
        ("INSTANCE", "Instance"),
        ("SNAPSHOT", "Name"),
        ("CREATED", "RunningFor"),
        ("MEMORY", "Memory"),
        ("DISK", "Disk"),
        ("ON DISK", "Size"),
    ];
    /// Bytes of a page.
    const PAGE: u64 = 4096;

    /// Runs the command.
    pub fn run(context: &Context, args: &Args) -> Outcome {
        let engine = context.engine()?;
        let snapshots = match &args.instance {
            None => engine.all_vm_snapshots()?,
            Some(name) => {
                let instance = engine.find(name)?;
                let own = engine.vm_snapshots(&instance)?.into_iter();
                own.map(|snapshot| (instance.record.name.clone(), snapshot)).collect()
            }
        };
        if args.quiet {
            for (instance, VmSnapshot { name, .. }) in &snapshots {
                if args.instance.is_some() { println!("{name}") } else { println!("{instance} {name}") }
            }
            return Ok(0);
        }
        let row = |(instance, snapshot): &(String, VmSnapshot)| -> Value {
            let info = &snapshot.info;
            json!({
                "Instance": instance,
                "Name": snapshot.name,
                "RunningFor": format::since_ns(info.made_ns),
                "CreatedAt": proa_engine::parse::rfc3339_nano(info.made_ns),
                "Memory": format::size(info.memory_pages * PAGE),
                "Disk": format::size(info.disk_pages * PAGE),
                "Size": format::size(snapshot.bytes),
            })
        };
        let rows: Vec<Value> = snapshots.iter().map(row).collect();
        format::rows(args.format.as_deref(), &COLUMNS, &rows)?;
        Ok(0)
    }
}

/// `proa snapshot restore`
pub mod restore {
    use crate::context::Context;
    use crate::error::Outcome;

    /// Make an instance what it was, running; what it has become since is lost
    #[derive(Debug, clap::Args)]
    pub struct Args {
        /// Name or id of the instance
        instance: String,
        /// Name of the snapshot
        snapshot: String,
    }

    /// Runs the command.
    pub fn run(context: &Context, args: &Args) -> Outcome {
        let engine = context.engine()?;
        let instance = engine.find(&args.instance)?;
        engine.restore_vm_snapshot(&instance, &args.snapshot)?;
        println!("{}", args.instance);
        Ok(0)
    }
}

/// `proa snapshot fork`
pub mod fork {
    use proa_engine::snapshots::ForkRequest;

    use crate::context::Context;
    use crate::error::{Failure, Outcome};

    /// Most at once: more than the addresses of a network, and than most hosts have memory for.
    const MOST: u32 = 1000;

    /// Make instances that go on from where one is, or was; prints their names
    #[derive(Debug, clap::Args)]
    pub struct Args {
        /// How many
        #[arg(short = 'n', long, default_value_t = 1, value_name = "N")]
        count: u32,
        /// Their name; where there are several, before -1, -2 and so on
        #[arg(long)]
        name: Option<String>,
        /// Name or id of the instance
        instance: String,
        /// Name of the snapshot; without it they go on from where the instance is now
        snapshot: Option<String>,
    }

    /// Runs the command.
    pub fn run(context: &Context, args: &Args) -> Outcome {
        if !(1..=MOST).contains(&args.count) {
            return Err(Failure::usage(format!("--count {}: 1 to {MOST}", args.count)));
        }
        let engine = context.engine()?;
        let request = ForkRequest {
            snapshot: args.snapshot.clone(),
            count: args.count,
            name: args.name.clone(),
            settings: context.security_settings()?,
            network: context.network_settings()?,
            log: context.log_settings()?,
        };
        engine.fork(&engine.find(&args.instance)?, &request, &mut |record| println!("{}", record.name))?;
        Ok(0)
    }
}

/// `proa snapshot rm`
pub mod rm {
    use super::{Context, Engine, Outcome, remove_each};

    /// Remove snapshots
    #[derive(Debug, clap::Args)]
    pub struct Args {
        /// Name or id of the instance
        instance: String,
        /// Names of the snapshots
        #[arg(required = true)]
        snapshots: Vec<String>,
    }

    /// Runs the command.
    pub fn run(context: &Context, args: &Args) -> Outcome {
        remove_each(context, &args.instance, &args.snapshots, Engine::remove_vm_snapshot)
    }
}
