//! `proa template`: what virtual machines start from instead of booting. They are made by themselves.

/// `proa template ls`: all of them.
pub mod ls {
    use std::time::UNIX_EPOCH;

    use serde_json::json;

    use crate::context::Context;
    use crate::error::Outcome;
    use crate::format::{self, binary_size, since_ns, size};

    /// List what virtual machines start from instead of booting
    #[derive(Debug, clap::Args)]
    pub struct Args {
        /// table, json, or a Go template
        #[arg(long)]
        format: Option<String>,
        /// Ids alone
        #[arg(short, long)]
        quiet: bool,
    }

    const COLUMNS: [(&str, &str); 7] = [
        ("TEMPLATE", "ID"),
        ("KERNEL", "Kernel"),
        ("MEMORY", "Memory"),
        ("CPUS", "CPUs"),
        ("LAYERS", "Layers"),
        ("LAST USED", "LastUsed"),
        ("SIZE", "Size"),
    ];

    /// Runs the command.
    pub fn run(context: &Context, args: &Args) -> Outcome {
        let templates = context.engine()?.templates()?;
        if args.quiet {
            templates.iter().for_each(|template| println!("{}", template.id));
            return Ok(0);
        }
        let rows = templates.iter().map(|template| {
            let used = template.used.duration_since(UNIX_EPOCH).unwrap_or_default();
            json!({
                "ID": template.id,
                "Kernel": template.info.kernel,
                "Memory": binary_size(template.info.memory),
                "CPUs": template.info.cpus.to_string(),
                "Layers": template.info.places.to_string(),
                "NewDisk": template.info.disk_identity.is_some().to_string(),
                "LastUsed": since_ns(i64::try_from(used.as_nanos()).unwrap_or_default()),
                "Size": size(template.bytes),
            })
        });
        format::rows(args.format.as_deref(), &COLUMNS, &rows.collect::<Vec<_>>())?;
        Ok(0)
    }
}

/// `proa template rm`: some of them, or all.
pub mod rm {
    use crate::context::Context;
    use crate::error::{Outcome, each};

    /// Remove templates; what is needed again is made again
    #[derive(Debug, clap::Args)]
    pub struct Args {
        /// All of them
        #[arg(short, long, conflicts_with = "templates")]
        all: bool,
        /// Ids, or their beginnings
        #[arg(value_name = "TEMPLATE", required_unless_present = "all")]
        templates: Vec<String>,
    }

    /// Runs the command.
    pub fn run(context: &Context, args: &Args) -> Outcome {
        let engine = context.engine()?;
        let ids = if args.all {
            engine.templates()?.into_iter().map(|template| template.id).collect()
        } else {
            args.templates.clone()
        };
        each(&ids, |id| {
            println!("{}", engine.remove_template(id)?.id);
            Ok(())
        })
    }
}
