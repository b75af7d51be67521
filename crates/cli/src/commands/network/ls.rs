//! `proa network ls`

use proa_engine::names::short;
use proa_engine::network::{NetworkFilters, NetworkRecord};
use serde_json::{Value, json};

use crate::context::Context;
use crate::error::Outcome;
use crate::format;

/// List networks
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only those for which this holds: id, name, label, driver, scope, type (builtin or custom)
    #[arg(short, long, value_name = "KEY=VALUE")]
    filter: Vec<String>,
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

const COLUMNS: [(&str, &str); 4] =
    [("NETWORK ID", "ID"), ("NAME", "Name"), ("DRIVER", "Driver"), ("SCOPE", "Scope")];

/// Runs the command.
pub fn run(context: &Context, args: &Args) -> Outcome {
    let filters = NetworkFilters::parse(&args.filter)?;
    let mut networks = context.engine()?.all_networks()?;
    networks.retain(|network| filters.matches(network));
    let id = |record: &NetworkRecord| {
        if args.no_trunc { record.id.clone() } else { short(&record.id).to_owned() }
    };
    if args.quiet && args.format.is_none() {
        format::print(&networks.iter().map(|record| id(record) + "\n").collect::<String>())?;
        return Ok(0);
    }
    let row = |record: &NetworkRecord| -> Value {
        let labels = record.labels.iter().map(|(key, value)| format!("{key}={value}"));
        json!({
            "ID": id(record),
            "Name": record.name,
            "Driver": record.driver_word(),
            "Scope": "local",
            "IPv4": "true",
            "IPv6": record.ipv6.to_string(),
            "Internal": record.internal.to_string(),
            "Labels": labels.collect::<Vec<_>>().join(","),
            "CreatedAt": proa_engine::parse::rfc3339_nano(record.created_ns),
        })
    };
    format::rows(args.format.as_deref(), &COLUMNS, &networks.iter().map(row).collect::<Vec<_>>())?;
    Ok(0)
}
