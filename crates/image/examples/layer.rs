//! Converts an uncompressed tar to a layer and says what it took: `layer TAR DEST [dir]`.
#![allow(clippy::print_stdout, reason = "an example speaks to who runs it")]

use std::fs::File;
use std::path::Path;
use std::time::Instant;

use proa_image::layer::{self, LayerForm, Limits};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [tar, dest, rest @ ..] = &args[..] else { return Err("usage: layer TAR DEST [dir]".into()) };
    let form = if rest.is_empty() { LayerForm::Erofs } else { LayerForm::Directory };
    let start = Instant::now();
    let info = layer::convert(File::open(tar)?, Path::new(dest), form, &Limits::default())?;
    let cpu = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    println!("{info:?}");
    println!("wall {:?}, cpu {}.{:03} s", start.elapsed(), cpu.tv_sec, cpu.tv_nsec / 1_000_000);
    if form == LayerForm::Erofs {
        println!("{:?}", layer::erofs::check(Path::new(dest))?);
    }
    Ok(())
}
