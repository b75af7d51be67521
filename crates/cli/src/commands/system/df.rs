//! `proa system df`: what takes how much of the disk.

use serde_json::{Value, json};

use crate::context::Context;
use crate::error::Outcome;
use crate::format::{self, size};

/// Show what takes how much of the disk
#[derive(Debug, clap::Args)]
pub struct Args {
    /// table, json, or a Go template
    #[arg(long)]
    format: Option<String>,
}

const COLUMNS: [(&str, &str); 5] = [
    ("TYPE", "Type"),
    ("TOTAL", "TotalCount"),
    ("ACTIVE", "Active"),
    ("SIZE", "Size"),
    ("RECLAIMABLE", "Reclaimable"),
];

/// Runs the command.
pub fn run(context: &Context, args: &Args) -> Outcome {
    let usage = context.engine()?.disk_usage()?;
    let row = |kind: &str, total: usize, active: usize, bytes: u64, reclaimable: u64| -> Value {
        let share = (reclaimable * 100).checked_div(bytes).unwrap_or(0);
        json!({
            "Type": kind,
            "TotalCount": total.to_string(),
            "Active": active.to_string(),
            "Size": size(bytes),
            "Reclaimable": format!("{} ({share}%)", size(reclaimable)),
        })
    };
    let rows = [
        row("Images", usage.images, usage.images_active, usage.images_bytes, usage.images_reclaimable),
        row(
            "Instances",
            usage.instances,
            usage.instances_active,
            usage.instances_bytes,
            usage.instances_reclaimable,
        ),
        row(
            "Local Volumes",
            usage.volumes,
            usage.volumes_active,
            usage.volumes_bytes,
            usage.volumes_reclaimable,
        ),
        row("Templates", usage.templates, usage.templates, usage.templates_bytes, usage.templates_bytes),
    ];
    format::rows(args.format.as_deref(), &COLUMNS, &rows)?;
    Ok(0)
}
