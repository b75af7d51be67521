//! `proa machine ls`

use proa_engine::inspect::status_word;
use proa_engine::names::short;
use proa_engine::{Engine, Instance};
use proa_protocol::machine::Firmware;
use serde_json::{Value, json};

use crate::context::Context;
use crate::error::Outcome;
use crate::format::{self, binary_size, size};

/// List machines, those that do not run as well
#[derive(Debug, clap::Args)]
pub struct Args {
    /// table, json, or a Go template
    #[arg(long)]
    format: Option<String>,
    /// Print whole ids
    #[arg(long)]
    no_trunc: bool,
    /// Print ids alone
    #[arg(short, long)]
    quiet: bool,
}

const COLUMNS: [(&str, &str); 7] = [
    ("MACHINE ID", "ID"),
    ("NAME", "Name"),
    ("STATUS", "Status"),
    ("FIRMWARE", "Firmware"),
    ("CPUS", "CPUs"),
    ("MEMORY", "Memory"),
    ("ON DISK", "Size"),
];

/// Runs the command.
pub fn run(context: &Context, args: &Args) -> Outcome {
    let engine = context.engine()?;
    let mut machines = engine.instances()?;
    machines.retain(|instance| instance.record.host_config.machine.is_some());
    let id = |instance: &Instance| {
        if args.no_trunc { instance.record.id.clone() } else { short(&instance.record.id).to_owned() }
    };
    if args.quiet && args.format.is_none() {
        format::print(&machines.iter().map(|instance| id(instance) + "\n").collect::<String>())?;
        return Ok(0);
    }
    let rows: Vec<Value> = machines.iter().map(|instance| row(engine, instance, &id(instance))).collect();
    format::rows(args.format.as_deref(), &COLUMNS, &rows)?;
    Ok(0)
}

fn row(engine: &Engine, instance: &Instance, id: &str) -> Value {
    let host = &instance.record.host_config;
    let machine = host.machine.clone().unwrap_or_default();
    let firmware = match machine.firmware {
        Firmware::Bios => "bios",
        Firmware::Uefi => "uefi",
        Firmware::SecureBoot => "uefi, secure boot",
    };
    json!({
        "ID": id,
        "Name": instance.record.name,
        "Status": status_word(instance.state.status),
        "Firmware": firmware,
        "CPUs": (host.nano_cpus / 1_000_000_000).to_string(),
        "Memory": binary_size(host.memory.unsigned_abs()),
        "Size": size(engine.sizes(instance).0),
        "Disk": instance.record.image,
    })
}
