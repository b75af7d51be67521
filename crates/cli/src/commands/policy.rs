//! `proa policy`: the Pod Security Standards without a cluster.

/// `proa policy check`: does an instance, a run line or a file keep a policy? The exit code is 0 if it does and 1 if
/// not.
pub mod check {
    use std::path::{Path, PathBuf};

    use clap::{Command, FromArgMatches};
    use proa_engine::policy::{self, FileError, Level, Subject, Violation};
    use proa_engine::settings::SecuritySettings;
    use serde_json::json;

    use crate::context::Context;
    use crate::error::{Failure, Outcome, one_line};
    use crate::flags::Wanted;
    use crate::{cli, commands, format};

    /// How something breaks the policy, and its name.
    type Checked = (Vec<Violation>, String);

    /// Largest file that is read.
    const MAX_FILE: u64 = 4 << 20;

    /// Check an instance, a run line or a file against a policy
    #[derive(Debug, clap::Args)]
    #[command(override_usage = "proa policy check [OPTIONS] INSTANCE...\n       \
                                proa policy check [OPTIONS] --compose FILE\n       \
                                proa policy check [OPTIONS] --kube FILE\n       \
                                proa policy check [OPTIONS] -- run [RUN OPTIONS] IMAGE [ARG...]")]
    pub struct Args {
        /// privileged, baseline or restricted; else the host's policy, else baseline
        #[arg(long, value_name = "LEVEL")]
        policy: Option<String>,
        /// Check the services of a Compose file; - for standard input
        #[arg(long, value_name = "FILE", conflicts_with_all = ["kube", "instances", "line"])]
        compose: Option<PathBuf>,
        /// Check the pods of a Kubernetes file; - for standard input
        #[arg(long, value_name = "FILE", conflicts_with_all = ["instances", "line"])]
        kube: Option<PathBuf>,
        /// text or json
        #[arg(short, long, value_name = "FORMAT", default_value = "text")]
        format: String,
        /// Names or ids
        #[arg(value_name = "INSTANCE", conflicts_with = "line")]
        instances: Vec<String>,
        /// `run` or `create`, with its options
        #[arg(last = true, value_name = "run ARG")]
        line: Vec<String>,
    }

    /// Runs the command.
    pub fn run(context: &Context, args: &Args) -> Outcome {
        if !["text", "json"].contains(&args.format.as_str()) {
            return Err(
                Failure::usage(format!("invalid --format {:?}", args.format)).with_hint("text or json")
            );
        }
        let settings = context.security_settings()?;
        let asked = args.policy.as_deref().map(Level::parse).transpose().map_err(crate::flags::usage)?;
        let level = asked.or(settings.policy).unwrap_or(Level::Baseline);
        let judge = |subject: Subject| (policy::check(&subject, level), subject.name);
        let checked: Vec<Checked> = subjects(context, args, &settings)?.into_iter().map(judge).collect();
        let text = match args.format.as_str() {
            "json" => json_text(level, &checked),
            _ => plain_text(level, &checked),
        };
        format::print(&text)?;
        Ok(i32::from(checked.iter().any(|(violations, _)| !violations.is_empty())))
    }

    fn subjects(
        context: &Context,
        args: &Args,
        settings: &SecuritySettings,
    ) -> Result<Vec<Subject>, Failure> {
        let named = |path: &Path, parsed: Result<Vec<Subject>, FileError>| {
            parsed.map_err(|error| Failure::new(format!("{}: {error}", path.display())))
        };
        if let Some(path) = &args.compose {
            return named(path, policy::parse_compose(&read(path)?, settings));
        }
        if let Some(path) = &args.kube {
            return named(path, policy::parse_kube(&read(path)?));
        }
        if !args.line.is_empty() {
            return Ok(vec![of_line(context, &args.line, settings)?]);
        }
        if args.instances.is_empty() {
            return Err(Failure::usage("nothing to check")
                .with_hint("name an instance, or give --compose FILE, --kube FILE, or -- run ARGS"));
        }
        args.instances.iter().map(|name| of_instance(context, name, settings)).collect()
    }

    fn of_instance(context: &Context, name: &str, settings: &SecuritySettings) -> Result<Subject, Failure> {
        let record = context.engine()?.find(name)?.record;
        // What the host decided when it was made is written out in its options; what it says now counts no more.
        let made = SecuritySettings { no_new_privileges: false, ..*settings };
        let subject = Subject::of_instance(&record.config, &record.host_config, &made)?;
        Ok(Subject { name: format!("instance {}", record.name), ..subject })
    }

    fn of_line(context: &Context, line: &[String], settings: &SecuritySettings) -> Result<Subject, Failure> {
        let (command, arguments) = line.split_first().ok_or_else(|| Failure::usage("no line to check"))?;
        let mut wanted = match command.as_str() {
            "run" => parse::<commands::run::Args>(arguments)?.wanted()?,
            "create" => parse::<commands::create::Args>(arguments)?.wanted()?,
            other => {
                return Err(Failure::usage(format!("{other:?} makes no instance"))
                    .with_hint("proa policy check -- run IMAGE, or -- create IMAGE"));
            }
        };
        let Wanted { config, host_config, image, level } = &mut wanted;
        proa_engine::spec::complete(host_config, *level).map_err(crate::flags::usage)?;
        // An image that is not here is not pulled for this.
        if let Ok(image) = context.engine()?.store()?.resolve(image) {
            proa_engine::spec::merge(config, &image.config.config);
        }
        let subject = Subject::of_instance(config, host_config, settings).map_err(crate::flags::usage)?;
        Ok(Subject { name: "run line".into(), ..subject })
    }

    fn parse<A: clap::Args + FromArgMatches>(arguments: &[String]) -> Result<A, Failure> {
        let parser = A::augment_args(Command::new("run").no_binary_name(true).disable_help_flag(true));
        let arguments = arguments.iter().map(Into::into).collect();
        let parsed =
            cli::parse_matches(parser, arguments, true).and_then(|found| A::from_arg_matches(&found));
        parsed.map_err(|error| {
            let text = error.render().to_string();
            let first = text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
            Failure::usage(format!("the line to check: {first}")).with_hint("see `proa run --help`")
        })
    }

    fn read(path: &Path) -> Result<String, Failure> {
        use std::io::Read;
        let failed = |error| Failure::io("read", path, error);
        let mut text = String::new();
        let source: Box<dyn Read> = if path == Path::new("-") {
            Box::new(std::io::stdin())
        } else {
            Box::new(std::fs::File::open(path).map_err(failed)?)
        };
        source.take(MAX_FILE + 1).read_to_string(&mut text).map_err(failed)?;
        Ok(text)
    }

    fn plain_text(level: Level, checked: &[Checked]) -> String {
        let level = level.as_str();
        let mut text = String::new();
        for (violations, name) in checked {
            let name = one_line(name);
            match violations.len() {
                0 => text.push_str(&format!("{name}: keeps {level}\n")),
                count => text.push_str(&format!("{name}: breaks {level} ({count})\n")),
            }
            for found in violations {
                let (control, of) = (found.control, found.level.as_str());
                let (problem, mend) = (one_line(&found.problem), one_line(&found.mend));
                text.push_str(&format!("  {control} ({of}): {problem}\n      mend: {mend}\n"));
            }
        }
        text
    }

    fn json_text(level: Level, checked: &[Checked]) -> String {
        let names: Vec<&String> = checked.iter().map(|(_, name)| name).collect();
        let violations: Vec<&Violation> = checked.iter().flat_map(|(violations, _)| violations).collect();
        let whole = json!({
            "policy": level,
            "allowed": violations.is_empty(),
            "checked": names,
            "violations": violations,
        });
        serde_json::to_string_pretty(&whole).unwrap_or_default() + "\n"
    }
}
