//! `proa version`

use serde_json::json;

use crate::context::Context;
use crate::error::Outcome;
use crate::format;
use crate::template::Template;

/// Print the version
#[derive(Debug, clap::Args)]
pub struct Args {
    /// json, or a Go template
    #[arg(short, long)]
    format: Option<String>,
}

/// Runs the command.
pub fn run(_: &Context, args: &Args) -> Outcome {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let version = json!({
        "Version": env!("CARGO_PKG_VERSION"),
        "Os": std::env::consts::OS,
        "Arch": proa_oci::image::Platform::host().architecture,
        "KernelVersion": release,
    });
    let text = match args.format.as_deref() {
        Some("json") => format!("{version}\n"),
        Some(template) => {
            // `{{.Client.Version}}` and `{{.Server.Version}}` are what scripts written for Docker ask for.
            let mut document = version.clone();
            document["Client"] = version.clone();
            document["Server"] = version;
            Template::parse(template)?.render(&document)? + "\n"
        }
        None => format!(
            "Proa {}\n  OS/Arch: {}/{}\n  Kernel:  {release}\n",
            env!("CARGO_PKG_VERSION"),
            std::env::consts::OS,
            proa_oci::image::Platform::host().architecture
        ),
    };
    format::print(&text)?;
    Ok(0)
}
