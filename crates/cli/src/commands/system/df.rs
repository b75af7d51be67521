//! `proa system df`: what takes how much of the disk.

use proa_engine::Instance;
use proa_engine::system::{DiskUsage, ImageUsage, InstanceUsage};
use serde_json::{Value, json};

use crate::context::Context;
use crate::error::{Failure, Outcome};
use crate::format::{self, size};
use crate::template::Template;

/// Show what takes how much of the disk
#[derive(Debug, clap::Args)]
pub struct Args {
    /// table, json, or a Go template
    #[arg(long)]
    format: Option<String>,
    /// Each image and each instance
    #[arg(short, long)]
    verbose: bool,
}

const COLUMNS: [(&str, &str); 5] = [
    ("TYPE", "Type"),
    ("TOTAL", "TotalCount"),
    ("ACTIVE", "Active"),
    ("SIZE", "Size"),
    ("RECLAIMABLE", "Reclaimable"),
];
const IMAGES: [(&str, &str); 8] = [
    ("REPOSITORY", "Repository"),
    ("TAG", "Tag"),
    ("IMAGE ID", "ID"),
    ("CREATED", "CreatedSince"),
    ("SIZE", "Size"),
    ("SHARED SIZE", "SharedSize"),
    ("UNIQUE SIZE", "UniqueSize"),
    ("INSTANCES", "Containers"),
];
const INSTANCES: [(&str, &str); 7] = [
    ("INSTANCE ID", "ID"),
    ("IMAGE", "Image"),
    ("LEVEL", "Isolation"),
    ("SIZE", "Size"),
    ("CREATED", "RunningFor"),
    ("STATUS", "State"),
    ("NAMES", "Names"),
];

/// Runs the command.
pub fn run(context: &Context, args: &Args) -> Outcome {
    let engine = context.engine()?;
    if !args.verbose {
        format::rows(args.format.as_deref(), &COLUMNS, &summary(&engine.disk_usage()?))?;
        return Ok(0);
    }
    let (images, instances) = engine.disk_usage_of_each()?;
    let images: Vec<Value> = images.iter().map(image).collect();
    let instances: Vec<Value> = instances.iter().map(instance).collect();
    format::print(&verbose(args.format.as_deref(), &images, &instances)?)?;
    Ok(0)
}

fn summary(usage: &DiskUsage) -> [Value; 4] {
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
    [
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
        row("Templates", usage.templates, 0, usage.templates_bytes, usage.templates_bytes),
    ]
}

fn verbose(format: Option<&str>, images: &[Value], instances: &[Value]) -> Result<String, Failure> {
    match format.map(str::trim) {
        None | Some("" | "table") => Ok(format!(
            "Images space usage:\n\n{}\nInstances space usage:\n\n{}",
            format::render(None, &IMAGES, images)?,
            format::render(None, &INSTANCES, instances)?
        )),
        Some(format) => {
            let document = json!({ "Images": images, "Containers": instances });
            Ok(match format {
                "json" => format!("{document}\n"),
                template => Template::parse(template)?.render(&document)? + "\n",
            })
        }
    }
}

fn image(usage: &ImageUsage) -> Value {
    let image = &usage.image;
    let name = image.names.first().map(|name| super::super::image::familiar(name));
    let (repository, tag) = name.and_then(|name| name.rsplit_once(':')).unwrap_or(("<none>", "<none>"));
    json!({
        "Repository": repository,
        "Tag": tag,
        "ID": image.id.hex().get(..12).unwrap_or_default(),
        "CreatedSince": format::since(&image.config.created),
        "Size": size(usage.shared + usage.unique),
        "SharedSize": size(usage.shared),
        "UniqueSize": size(usage.unique),
        "Containers": usage.instances.to_string(),
    })
}

fn instance(usage: &InstanceUsage) -> Value {
    let Instance { record, state } = &usage.instance;
    json!({
        "ID": proa_engine::names::short(&record.id),
        "Image": record.image,
        "Isolation": record.level.as_str(),
        "Size": size(usage.bytes),
        "RunningFor": format::since_ns(record.created_ns),
        "State": proa_engine::inspect::status_word(state.status),
        "Names": record.name,
    })
}
