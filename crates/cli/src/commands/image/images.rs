//! `proa images`: the store's images.

use proa_image::Image;
use serde_json::{Value, json};

use crate::context::Context;
use crate::error::Failure;
use crate::format;

/// List images
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Show intermediate images too; Proa has none, so this changes nothing
    #[arg(short, long, hide = true)]
    pub all: bool,
    /// Print ids alone
    #[arg(short, long)]
    pub quiet: bool,
    /// Print whole ids
    #[arg(long)]
    pub no_trunc: bool,
    /// Show digests
    #[arg(long)]
    pub digests: bool,
    /// table, json, or a Go template
    #[arg(long)]
    pub format: Option<String>,
    /// Only this repository, or repository and tag
    pub name: Option<String>,
}

const COLUMNS: [(&str, &str); 5] = [
    ("REPOSITORY", "Repository"),
    ("TAG", "Tag"),
    ("IMAGE ID", "ID"),
    ("CREATED", "CreatedSince"),
    ("SIZE", "Size"),
];

/// Runs the command.
pub fn run(context: &Context, args: &Args) -> Result<i32, Failure> {
    let images = context.engine()?.store()?.list()?;
    if args.quiet {
        let mut ids: Vec<String> = Vec::new();
        for image in images.iter().filter(|image| rows(image, args).next().is_some()) {
            ids.push(id(image, args.no_trunc));
        }
        ids.iter().for_each(|id| println!("{id}"));
        return Ok(0);
    }
    let rows: Vec<Value> = images.iter().flat_map(|image| rows(image, args)).collect();
    let mut columns = COLUMNS.to_vec();
    if args.digests {
        columns.insert(2, ("DIGEST", "Digest"));
    }
    format::rows(args.format.as_deref(), &columns, &rows)?;
    Ok(0)
}

/// A row for each of the image's names that was asked for; one row for an image without names.
fn rows<'a>(image: &'a Image, args: &'a Args) -> impl Iterator<Item = Value> + 'a {
    let unnamed = (image.names.is_empty() && args.name.is_none()).then_some(("<none>", "<none>"));
    let named = image
        .names
        .iter()
        .map(|name| super::familiar(name))
        .map(|name| name.rsplit_once(':').unwrap_or((name, "latest")));
    let wanted = move |(repository, tag): &(&str, &str)| match args.name.as_deref() {
        Some(name) => name == *repository || name == format!("{repository}:{tag}"),
        None => true,
    };
    named.chain(unnamed).filter(wanted).map(move |(repository, tag)| {
        json!({
            "Repository": repository,
            "Tag": tag,
            "Digest": image.manifest.to_string(),
            "ID": id(image, args.no_trunc),
            "CreatedAt": image.config.created,
            "CreatedSince": format::since(&image.config.created),
            "Size": format::size(image.size),
        })
    })
}

fn id(image: &Image, whole: bool) -> String {
    if whole { image.id.to_string() } else { image.id.hex().get(..12).unwrap_or_default().to_owned() }
}
