//! `proa rmi`: names of images, and images.

use proa_engine::Engine;
use proa_image::store::Removed;

use crate::context::Context;
use crate::error::Failure;

/// Remove images, or names of them
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Remove an image's every name, and the names of one in use
    #[arg(short, long)]
    pub force: bool,
    /// Names or ids
    #[arg(required = true, value_name = "IMAGE")]
    pub images: Vec<String>,
}

/// Runs the command.
pub fn run(context: &Context, args: &Args) -> Result<i32, Failure> {
    let engine = context.engine()?;
    crate::error::each(&args.images, |image| {
        let removed = engine.store()?.remove(image, args.force, engine)?;
        tell(engine, &removed);
        removed.iter().for_each(print);
        Ok(())
    })
}

/// Tells of removals.
pub fn tell(engine: &Engine, removed: &[Removed]) {
    for one in removed {
        match one {
            Removed::Untagged(name) => engine.tell_image("untag", name, name),
            Removed::Deleted(id) => engine.tell_image("delete", id.as_str(), id.as_str()),
            Removed::Layer(_) => {}
        }
    }
}

/// One removal, as Docker prints it. Layers are listed as deleted too.
pub fn print(removed: &Removed) {
    match removed {
        Removed::Untagged(name) => println!("Untagged: {name}"),
        Removed::Deleted(id) => println!("Deleted: {id}"),
        Removed::Layer(digest) => println!("Deleted: {digest}"),
    }
}
