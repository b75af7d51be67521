//! `proa volume`: directories that outlive instances and are shared by them, at both isolation levels.

use std::collections::BTreeMap;

use proa_engine::Engine;
use proa_engine::db::VolumeRecord;
use proa_engine::parse::rfc3339_nano;
use proa_protocol::volume::DRIVER;
use serde_json::{Map, Value, json};

use crate::context::Context;
use crate::error::{Failure, Outcome, each};
use crate::format;

/// Reads `KEY=VALUE` and `KEY` texts.
fn pairs(texts: &[String]) -> BTreeMap<String, String> {
    let pair = |text: &String| {
        let (key, value) = text.split_once('=').unwrap_or((text, ""));
        (key.to_owned(), value.to_owned())
    };
    texts.iter().map(pair).collect()
}

fn check_driver(driver: &str) -> Result<(), Failure> {
    if driver == DRIVER {
        return Ok(());
    }
    Err(Failure::new(format!("there is no volume driver {driver:?}"))
        .with_hint(format!("{DRIVER} is the one there is")))
}

/// Docker's document of a volume.
pub fn document(engine: &Engine, volume: &VolumeRecord) -> Value {
    let map = |map: &BTreeMap<String, String>| if map.is_empty() { Value::Null } else { json!(map) };
    json!({
        "CreatedAt": rfc3339_nano(volume.created_ns - volume.created_ns % 1_000_000_000),
        "Driver": DRIVER,
        "Labels": map(&volume.labels),
        "Mountpoint": engine.mountpoint(&volume.name),
        "Name": volume.name,
        "Options": map(&volume.options),
        "Scope": "local",
    })
}

/// `proa volume create`: a volume, before an instance needs it.
pub mod create {
    use super::*;

    /// Make a volume
    #[derive(Debug, clap::Args)]
    pub struct Args {
        /// Volume driver: local
        #[arg(short, long, default_value = "local")]
        driver: String,
        /// Label
        #[arg(long, value_name = "KEY=VALUE")]
        label: Vec<String>,
        /// Name, in place of the argument
        #[arg(long, hide = true, conflicts_with = "volume")]
        name: Option<String>,
        /// Driver option: size=BYTES, or type=TYPE, device=DEVICE and o=OPTIONS
        #[arg(short, long, value_name = "KEY=VALUE")]
        opt: Vec<String>,
        /// Name; one is made up where there is none
        #[arg(value_name = "VOLUME")]
        volume: Option<String>,
    }

    /// Runs the command.
    pub fn run(context: &Context, args: &Args) -> Outcome {
        check_driver(&args.driver)?;
        let name = args.volume.as_deref().or(args.name.as_deref());
        let record = proa_engine::volumes::request(name, pairs(&args.label), pairs(&args.opt))?;
        println!("{}", context.engine()?.create_volume(&record)?.name);
        Ok(0)
    }
}

/// `proa volume ls`: volumes.
pub mod ls {
    use super::*;
    use proa_engine::volumes::VolumeFilters;

    /// List volumes
    #[derive(Debug, clap::Args)]
    pub struct Args {
        /// Only those for which this holds: dangling, driver, label, name
        #[arg(short, long, value_name = "KEY=VALUE")]
        filter: Vec<String>,
        /// table, json, `table TEMPLATE`, or a Go template
        #[arg(long)]
        format: Option<String>,
        /// Names alone
        #[arg(short, long)]
        quiet: bool,
    }

    const COLUMNS: [(&str, &str); 2] = [("DRIVER", "Driver"), ("VOLUME NAME", "Name")];

    /// Runs the command.
    pub fn run(context: &Context, args: &Args) -> Outcome {
        let engine = context.engine()?;
        let volumes = engine.volumes(&VolumeFilters::of_list(&args.filter)?)?;
        if args.quiet && args.format.is_none() {
            let names: String = volumes.iter().map(|volume| volume.name.clone() + "\n").collect();
            format::print(&names)?;
            return Ok(0);
        }
        let rows: Vec<Value> = volumes.iter().map(|volume| row(engine, volume)).collect();
        format::rows(args.format.as_deref(), &COLUMNS, &rows)?;
        Ok(0)
    }

    /// What Docker's listing has, some of it without a meaning outside swarms.
    fn row(engine: &Engine, volume: &VolumeRecord) -> Value {
        let labels: Vec<String> = volume.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let mut row = Map::new();
        for field in ["Availability", "Group", "Links", "Size", "Status"] {
            row.insert(field.into(), "N/A".into());
        }
        row.insert("Driver".into(), DRIVER.into());
        row.insert("Labels".into(), labels.join(",").into());
        row.insert("Mountpoint".into(), json!(engine.mountpoint(&volume.name)));
        row.insert("Name".into(), volume.name.clone().into());
        row.insert("Scope".into(), "local".into());
        Value::Object(row)
    }
}

/// `proa volume inspect`: all about volumes.
pub mod inspect {
    use super::*;

    /// Print all about volumes
    #[derive(Debug, clap::Args)]
    pub struct Args {
        /// json, or a Go template
        #[arg(short, long)]
        format: Option<String>,
        /// Names
        #[arg(required = true, value_name = "VOLUME")]
        volumes: Vec<String>,
    }

    /// Runs the command.
    pub fn run(context: &Context, args: &Args) -> Outcome {
        let engine = context.engine()?;
        let mut documents = Vec::new();
        let code = each(&args.volumes, |name| {
            documents.push(document(engine, &engine.volume(name)?));
            Ok(())
        })?;
        crate::commands::inspect::print(args.format.as_deref(), &documents)?;
        Ok(code)
    }
}

/// `proa volume rm`: some of them.
pub mod rm {
    use super::*;
    use proa_engine::Kind;

    /// Remove volumes that no instance has
    #[derive(Debug, clap::Args)]
    pub struct Args {
        /// None that does not exist is missed
        #[arg(short, long)]
        force: bool,
        /// Names
        #[arg(required = true, value_name = "VOLUME")]
        volumes: Vec<String>,
    }

    /// Runs the command.
    pub fn run(context: &Context, args: &Args) -> Outcome {
        let engine = context.engine()?;
        each(&args.volumes, |name| {
            match engine.remove_volume(name) {
                Err(error) if args.force && error.kind() == Kind::NotFound => {}
                other => other?,
            }
            println!("{name}");
            Ok(())
        })
    }
}

/// `proa volume prune`: those that no instance has.
pub mod prune {
    use super::*;
    use proa_engine::volumes::VolumeFilters;

    use crate::commands::confirm::confirm;

    /// Remove volumes that nobody named and no instance has
    #[derive(Debug, clap::Args)]
    pub struct Args {
        /// Those that have a name as well
        #[arg(short, long)]
        all: bool,
        /// Only those for which this holds: label, label!, all
        #[arg(long, value_name = "KEY=VALUE")]
        filter: Vec<String>,
        /// Do not ask
        #[arg(short, long)]
        force: bool,
    }

    /// Runs the command.
    pub fn run(context: &Context, args: &Args) -> Outcome {
        let what = if args.all { "all volumes" } else { "all anonymous volumes" };
        if !confirm(args.force, &[&format!("{what} that no instance has")])? {
            return Ok(0);
        }
        let pruned = context.engine()?.prune_volumes(args.all, &VolumeFilters::of_prune(&args.filter)?)?;
        if !pruned.volumes.is_empty() {
            println!("Deleted Volumes:");
            pruned.volumes.iter().for_each(|name| println!("{name}"));
            println!();
        }
        println!("Total reclaimed space: {}", format::size(pruned.bytes));
        Ok(0)
    }
}

/// `proa volume export`: a volume as a tar.
pub mod export {
    use super::*;
    use std::fs::File;
    use std::io::{BufWriter, IsTerminal, Write};
    use std::path::PathBuf;

    /// Write a volume's files to a tar
    #[derive(Debug, clap::Args)]
    pub struct Args {
        /// Write to FILE instead of standard output
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
        /// Name
        #[arg(value_name = "VOLUME")]
        volume: String,
    }

    /// Runs the command.
    pub fn run(context: &Context, args: &Args) -> Outcome {
        let engine = context.engine()?;
        let Some(path) = args.output.as_ref().filter(|path| path.as_os_str() != "-") else {
            let out = std::io::stdout().lock();
            if out.is_terminal() {
                return Err(
                    Failure::usage("a tar is not for a terminal").with_hint("give -o FILE, or redirect it")
                );
            }
            let mut out = BufWriter::with_capacity(1 << 20, out);
            engine.export_volume(&args.volume, &mut out)?;
            out.flush().map_err(Failure::terminal)?;
            return Ok(0);
        };
        // A volume that is not there leaves no empty file.
        engine.volume(&args.volume)?;
        let failed = |error| Failure::io("write", path, error);
        let mut out = BufWriter::with_capacity(1 << 20, File::create(path).map_err(failed)?);
        engine.export_volume(&args.volume, &mut out)?;
        out.flush().map_err(failed)?;
        Ok(0)
    }
}

/// `proa volume import`: a volume from a tar.
pub mod import {
    use super::*;
    use std::fs::File;
    use std::path::PathBuf;

    /// Fill an empty volume from a tar, plain, gzip or zstd; one that is not there is made
    #[derive(Debug, clap::Args)]
    pub struct Args {
        /// Name
        #[arg(value_name = "VOLUME")]
        volume: String,
        /// Read FILE instead of standard input
        #[arg(value_name = "FILE")]
        file: Option<PathBuf>,
    }

    /// Runs the command.
    pub fn run(context: &Context, args: &Args) -> Outcome {
        let engine = context.engine()?;
        let devices = match args.file.as_ref().filter(|path| path.as_os_str() != "-") {
            Some(path) => {
                let file = File::open(path).map_err(|error| Failure::io("read", path, error))?;
                engine.import_volume(&args.volume, file)?
            }
            None => engine.import_volume(&args.volume, std::io::stdin().lock())?,
        };
        if devices > 0 {
            crate::context::notice(&format!("left out {devices} devices"));
        }
        Ok(0)
    }
}

/// `proa volume snapshot`: a copy of a volume.
pub mod snapshot {
    use super::*;

    /// Make a volume that is a copy of another, which no instance uses at that moment
    #[derive(Debug, clap::Args)]
    pub struct Args {
        /// Name
        #[arg(value_name = "VOLUME")]
        volume: String,
        /// Name of the copy
        #[arg(value_name = "NEW")]
        new: String,
    }

    /// Runs the command.
    pub fn run(context: &Context, args: &Args) -> Outcome {
        println!("{}", context.engine()?.snapshot_volume(&args.volume, &args.new)?.name);
        Ok(0)
    }
}
