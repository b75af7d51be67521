//! `proa inspect`: all about instances or images.

use proa_engine::Kind;
use proa_engine::inspect::Document;
use serde::Serialize;
use serde_json::Value;

use crate::context::Context;
use crate::error::{Failure, Outcome};
use crate::format;
use crate::template::Template;

/// Print all about instances or images
#[derive(Debug, clap::Args)]
pub struct Args {
    /// json, or a Go template
    #[arg(short, long)]
    format: Option<String>,
    /// With sizes on disk, of instances
    #[arg(short, long)]
    size: bool,
    /// container (an instance at either level), image or volume
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<String>,
    /// Names or ids
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

/// `proa container inspect`
pub mod container {
    pub use super::Args;

    /// Runs the command.
    pub fn run(context: &super::Context, args: &Args) -> super::Outcome {
        super::inspect(context, args, "container")
    }
}

/// `proa image inspect`
pub mod image {
    pub use super::Args;

    /// Runs the command.
    pub fn run(context: &super::Context, args: &Args) -> super::Outcome {
        super::inspect(context, args, "image")
    }
}

/// Runs the command.
pub fn run(context: &Context, args: &Args) -> Outcome {
    let kind = args.kind.as_deref().unwrap_or("");
    if !["", "container", "image", "volume"].contains(&kind) {
        return Err(Failure::usage(format!("no such type: {kind}")).with_hint("container, image or volume"));
    }
    inspect(context, args, kind)
}

fn inspect(context: &Context, args: &Args, kind: &str) -> Outcome {
    let mut code = 0;
    let mut documents = Vec::new();
    for name in &args.names {
        match find(context, name, kind, args.size) {
            Ok(document) => documents.push(document),
            Err(failure) => {
                code = 1;
                failure.print();
            }
        }
    }
    print(args.format.as_deref(), &documents)?;
    Ok(code)
}

/// Prints documents as `--format` asks: indented JSON, `json` in one line, or a Go template for each.
///
/// # Errors
/// The template makes no sense.
pub fn print<T: Serialize>(format: Option<&str>, documents: &[T]) -> Result<(), Failure> {
    let text = match format {
        None | Some("") => pretty(documents) + "\n",
        Some("json") => serde_json::to_string(documents).unwrap_or_default() + "\n",
        Some(template) => {
            let template = Template::parse(template)?;
            let mut text = String::new();
            for document in documents {
                text.push_str(&template.render(&serde_json::json!(document))?);
                text.push('\n');
            }
            text
        }
    };
    format::print(&text)
}

/// What can be looked at.
#[derive(Serialize)]
#[serde(untagged)]
enum Found {
    Instance(Box<Document>),
    Image(Value),
    Volume(Value),
}

/// Indented by four, as Docker does.
fn pretty<T: Serialize>(documents: &[T]) -> String {
    let mut bytes = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, formatter);
    // Plain data, written to memory, does not fail.
    let _ = documents.serialize(&mut serializer);
    String::from_utf8_lossy(&bytes).into_owned()
}

fn find(context: &Context, name: &str, kind: &str, size: bool) -> Result<Found, Failure> {
    let engine = context.engine()?;
    if kind == "volume" {
        return Ok(Found::Volume(super::volume::document(engine, &engine.volume(name)?)));
    }
    if kind != "image" {
        match engine.find(name) {
            Ok(instance) => return Ok(Found::Instance(Box::new(engine.inspect(&instance, size)))),
            Err(error) if kind == "container" || error.kind() != Kind::NotFound => return Err(error.into()),
            Err(_) => {}
        }
    }
    match engine.store()?.inspect(name).map_err(Failure::from) {
        Err(failure) if kind.is_empty() && failure.kind() == Kind::NotFound => match engine.volume(name) {
            Ok(volume) => Ok(Found::Volume(super::volume::document(engine, &volume))),
            Err(_) => Err(Failure::new(format!("no such instance, image or volume: {name}"))
                .with_hint("`proa ps -a`, `proa images` and `proa volume ls` list them")),
        },
        other => other.map(Found::Image),
    }
}
