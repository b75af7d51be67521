//! `proa kernel`: what virtual machines boot.

/// `proa kernel ls`: those with names, and those that were found.
pub mod ls {
    use serde_json::json;

    use crate::context::Context;
    use crate::error::Outcome;
    use crate::format::{self, size};

    /// List kernels of virtual machines
    #[derive(Debug, clap::Args)]
    pub struct Args {
        /// table, json, or a Go template
        #[arg(long)]
        format: Option<String>,
        /// Names alone
        #[arg(short, long)]
        quiet: bool,
    }

    const COLUMNS: [(&str, &str); 5] = [
        ("NAME", "Name"),
        ("RELEASE", "Release"),
        ("DEFAULT", "Default"),
        ("SIZE", "Size"),
        ("SOURCE", "Source"),
    ];

    /// Runs the command.
    pub fn run(context: &Context, args: &Args) -> Outcome {
        let kernels = context.engine()?.kernels()?;
        if args.quiet {
            kernels.iter().filter_map(|kernel| kernel.name.as_ref()).for_each(|name| println!("{name}"));
            return Ok(0);
        }
        let rows = kernels.iter().map(|kernel| {
            json!({
                "Name": kernel.name.as_deref().unwrap_or("<none>"),
                "Release": kernel.release,
                "Default": if kernel.default { "yes" } else { "" },
                "Size": size(kernel.bytes),
                "Source": kernel.source,
            })
        });
        format::rows(args.format.as_deref(), &COLUMNS, &rows.collect::<Vec<_>>())?;
        Ok(0)
    }
}

/// `proa kernel add`: a file under a name.
pub mod add {
    use std::path::PathBuf;

    use crate::context::Context;
    use crate::error::Outcome;

    /// Keep a kernel, and what it needs of its modules, under a name for --kernel
    #[derive(Debug, clap::Args)]
    pub struct Args {
        /// Directory with a directory for each release, as /lib/modules
        #[arg(long, value_name = "DIR")]
        modules: Option<PathBuf>,
        /// Its name
        #[arg(value_name = "NAME")]
        name: String,
        /// A bzImage or vmlinux
        #[arg(value_name = "FILE")]
        file: PathBuf,
    }

    /// Runs the command.
    pub fn run(context: &Context, args: &Args) -> Outcome {
        context.engine()?.add_kernel(&args.name, &args.file, args.modules.as_deref())?;
        println!("{}", args.name);
        Ok(0)
    }
}

/// `proa kernel build`: a lean one.
pub mod build {
    use std::path::PathBuf;

    use proa_engine::kernels::KernelSource;

    use crate::context::{self, Context};
    use crate::error::Outcome;

    /// Build a lean kernel from the distribution's source: some minutes, and 2 GiB meanwhile
    #[derive(Debug, clap::Args)]
    pub struct Args {
        /// Its name
        #[arg(long, default_value = "lean")]
        name: String,
        /// Directory with a kernel's source, in place of the distribution's package
        #[arg(long, value_name = "DIR")]
        source: Option<PathBuf>,
        /// Options of the kernel in place of ours
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Compilers at once, in place of one a CPU
        #[arg(short, long, default_value_t = 0, hide_default_value = true)]
        jobs: usize,
    }

    /// Runs the command.
    pub fn run(context: &Context, args: &Args) -> Outcome {
        let Args { name, source, config, jobs } = args;
        let programs = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).collect();
        let from = KernelSource { directory: source.clone(), config: config.clone(), programs, jobs: *jobs };
        context.engine()?.build_kernel(name, &from, &mut context::notice)?;
        context::notice(&format!("for all virtual machines: proa kernel use {name}"));
        println!("{name}");
        Ok(0)
    }
}

/// `proa kernel use`: the default.
pub mod choose {
    use crate::context::Context;
    use crate::error::Outcome;

    /// Choose the kernel of virtual machines that name none: a name, or auto for the newest at hand
    #[derive(Debug, clap::Args)]
    pub struct Args {
        /// The kernel
        #[arg(value_name = "NAME")]
        name: String,
    }

    /// Runs the command.
    pub fn run(context: &Context, args: &Args) -> Outcome {
        context.engine()?.use_kernel(&args.name)?;
        println!("{}", args.name);
        Ok(0)
    }
}

/// `proa kernel rm`: some of them.
pub mod rm {
    use crate::context::Context;
    use crate::error::{Outcome, each};

    /// Remove kernels that nobody uses
    #[derive(Debug, clap::Args)]
    pub struct Args {
        /// Names
        #[arg(value_name = "NAME", required = true)]
        names: Vec<String>,
    }

    /// Runs the command.
    pub fn run(context: &Context, args: &Args) -> Outcome {
        let engine = context.engine()?;
        each(&args.names, |name| {
            engine.remove_kernel(name)?;
            println!("{name}");
            Ok(())
        })
    }
}

/// `proa kernel prune`: what nothing needs.
pub mod prune {
    use proa_engine::Engine;

    use super::super::confirm::confirm;
    use crate::context::Context;
    use crate::error::{Failure, Outcome};
    use crate::format::size;

    /// Remove kernels that nothing needs any more: of older versions of Proa, or of files that are gone or changed
    #[derive(Debug, clap::Args)]
    pub struct Args {
        /// Copies of files that no instance names as well
        #[arg(short, long)]
        all: bool,
        /// Do not ask
        #[arg(short, long)]
        force: bool,
    }

    /// What it removes.
    pub fn what(all: bool) -> &'static str {
        if all {
            "all kernels without a name that no instance needs"
        } else {
            "all kernels that nothing needs"
        }
    }

    /// Runs the command.
    pub fn run(context: &Context, args: &Args) -> Outcome {
        if !confirm(args.force, &[what(args.all)])? {
            return Ok(0);
        }
        println!("Total reclaimed space: {}", size(prune(context.engine()?, args.all)?));
        Ok(0)
    }

    /// Removes them, and says which.
    ///
    /// # Errors
    /// One cannot be removed.
    pub fn prune(engine: &Engine, all: bool) -> Result<u64, Failure> {
        let pruned = engine.prune_kernels(all)?;
        if !pruned.is_empty() {
            println!("Deleted Kernels:");
            pruned.iter().for_each(|pruned| println!("{}", pruned.name));
            println!();
        }
        Ok(pruned.iter().map(|pruned| pruned.bytes).sum())
    }
}
