//! What all commands share: global options, the environment, and the engine, opened when first needed.

use std::cell::OnceCell;
use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use proa_engine::logging::LogSettings;
use proa_engine::monitor::{self, Programs, Waiting};
use proa_engine::prune::ImageSettings;
use proa_engine::rootless::{self, Entered, Mapping};
use proa_engine::settings::{NetworkSettings, SecuritySettings, VmSettings};
use proa_engine::{Bases, Engine, Paths};
use proa_image::registry::ProxyConfig;
use proa_image::{RegistryConfig, RegistryOptions};
use proa_protocol::instance::IsolationLevel;

use crate::error::Failure;

const DEFAULT_CONFIG: &str = "/etc/proa/config.toml";
/// Where the files are that root's units are made of.
const UNIT_FILES: &str = "/etc/proa/units";
/// Where our other programs are when they are not beside this one.
const LIBEXEC: &str = "/usr/libexec/proa";

/// Options that stand before the command.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Globals {
    /// Keep all state in DIR (or PROA_ROOT) instead of /var/lib/proa, or as an ordinary user ~/.local/share/proa
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,
    /// Read FILE (or PROA_CONFIG) instead of ~/.config/proa/config.toml (not as root) or /etc/proa/config.toml
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where sockets and locks of the root are: for programs of ours that we start
    #[arg(long, value_name = "DIR", hide = true)]
    pub run: Option<PathBuf>,
    /// Say on standard error what is done
    #[arg(short = 'D', long)]
    pub debug: bool,
}

/// What all commands share.
#[derive(Debug)]
pub struct Context {
    globals: Globals,
    /// Who called, where that is not root; this process becomes root in a user namespace with the engine.
    user: Option<Mapping>,
    /// Where that user's sockets are, and what this process has become.
    entered: OnceCell<(PathBuf, Entered)>,
    engine: OnceCell<Engine>,
}

fn variable(name: &str) -> Option<OsString> {
    env::var_os(name).filter(|value| !value.is_empty())
}

/// A variable of the XDG specification, which ignores relative paths.
fn directory(name: &str) -> Option<PathBuf> {
    variable(name).map(PathBuf::from).filter(|path| path.is_absolute())
}

fn home() -> Option<PathBuf> {
    variable("HOME").map(PathBuf::from)
}

/// Where an ordinary user's systemd units are.
///
/// # Errors
/// There is no home directory.
pub fn user_units() -> Result<PathBuf, Failure> {
    let base = directory("XDG_CONFIG_HOME").or_else(|| Some(home()?.join(".config")));
    let base = base.ok_or_else(|| Failure::new("HOME is not set").with_hint("set it"))?;
    Ok(base.join("systemd/user"))
}

/// A line for the user that is neither data nor an error. Guests and archives have their words in it.
pub fn notice(line: &str) {
    eprintln!("proa: {}", crate::error::one_line(line));
}

impl Context {
    /// With these options.
    pub fn new(globals: Globals) -> Self {
        use rustix::process::{getegid, geteuid};
        let user = Mapping { uid: geteuid().as_raw(), gid: getegid().as_raw() };
        Self {
            globals,
            user: (user.uid != 0).then_some(user),
            entered: OnceCell::new(),
            engine: OnceCell::new(),
        }
    }

    /// Whether an ordinary user has called.
    pub fn is_user(&self) -> bool {
        self.user.is_some()
    }

    /// Where the files are that `system generate` makes units of.
    ///
    /// # Errors
    /// There is no home directory.
    pub fn unit_files(&self) -> Result<PathBuf, Failure> {
        if self.user.is_none() {
            return Ok(PathBuf::from(UNIT_FILES));
        }
        let base = directory("XDG_CONFIG_HOME").or_else(|| Some(home()?.join(".config")));
        let base =
            base.ok_or_else(|| Failure::new("HOME is not set").with_hint("set it, or give --from DIR"))?;
        Ok(base.join("proa/units"))
    }

    /// The state directory, where one was named.
    pub fn named_root(&self) -> Option<PathBuf> {
        self.globals.root.clone().or_else(|| variable("PROA_ROOT").map(PathBuf::from))
    }

    /// The configuration file.
    pub fn config_file(&self) -> PathBuf {
        let named = self.globals.config.clone().or_else(|| variable("PROA_CONFIG").map(PathBuf::from));
        let own = || {
            let base = directory("XDG_CONFIG_HOME").or_else(|| Some(home()?.join(".config")))?;
            Some(base.join("proa/config.toml")).filter(|path| self.user.is_some() && path.exists())
        };
        named.or_else(own).unwrap_or_else(|| PathBuf::from(DEFAULT_CONFIG))
    }

    /// The global options again, for programs of ours that we start: they find what we have found.
    ///
    /// # Errors
    /// The state directory cannot be used.
    pub fn global_arguments(&self) -> Result<Vec<String>, Failure> {
        let paths = &self.engine()?.paths;
        let directories = [("--root", &paths.root), ("--run", &paths.run)];
        let text = |(option, path): (&str, &PathBuf)| [option.to_owned(), path.display().to_string()];
        let mut arguments: Vec<String> = directories.into_iter().flat_map(text).collect();
        if let Some(config) = &self.globals.config {
            arguments.extend(["--config".to_owned(), config.display().to_string()]);
        }
        Ok(arguments)
    }

    /// Whether it is said what is done.
    pub fn is_debug(&self) -> bool {
        self.globals.debug
    }

    /// Says what is done, where `--debug` asks for that.
    pub fn debug(&self, line: impl FnOnce() -> String) {
        if self.globals.debug {
            eprintln!("proa: debug: {}", line());
        }
    }

    /// Makes who is not root that, in a user namespace. The process must have one thread.
    ///
    /// # Errors
    /// There can be no user namespace, or there is no safe place for sockets.
    pub fn enter(&self) -> Result<(), Failure> {
        let Some(user) = self.user else { return Ok(()) };
        let directory = rootless::runtime_directory(directory("XDG_RUNTIME_DIR"), user.uid)?;
        let entered = rootless::enter(&directory, user)?;
        self.entered.get_or_init(|| (directory, entered));
        Ok(())
    }

    /// The engine.
    ///
    /// # Errors
    /// The state directory cannot be used.
    pub fn engine(&self) -> Result<&Engine, Failure> {
        if let Some(engine) = self.engine.get() {
            return Ok(engine);
        }
        self.open(self.paths()?, programs()?)
    }

    /// The engine, and a monitor that gets ready while the engine is opened and an instance made.
    ///
    /// # Errors
    /// The state directory cannot be used, or the monitor's program cannot be run.
    pub fn engine_and_monitor(&self, level: IsolationLevel) -> Result<(&Engine, Waiting), Failure> {
        let (paths, programs) = (self.paths()?, programs()?);
        let monitor = monitor::spawn_waiting(&programs, &paths, level)?;
        Ok((self.open(paths, programs)?, monitor))
    }

    fn open(&self, paths: Paths, programs: Programs) -> Result<&Engine, Failure> {
        let engine = Engine::open(paths, programs, notice)?;
        if let Some((_, Entered::Single(why))) = self.entered.get()
            && engine.db.first_time("single-id")?
        {
            notice(&format!("{why}: files of other users and groups than yours cannot be had (said once)"));
        }
        self.debug(|| format!("root {}, run {}", engine.paths.root.display(), engine.paths.run.display()));
        Ok(self.engine.get_or_init(|| engine))
    }

    /// What holds for every instance of this host. A file of an ordinary user's own cannot take back what the host's
    /// asks for.
    ///
    /// # Errors
    /// A configuration file makes no sense.
    pub fn security_settings(&self) -> Result<SecuritySettings, Failure> {
        let settings = SecuritySettings::load(&self.existing_config()?)?;
        if self.user.is_none() {
            return Ok(settings);
        }
        Ok(settings.and(SecuritySettings::load(Path::new(DEFAULT_CONFIG))?))
    }

    /// What holds for networks where nobody says otherwise.
    ///
    /// # Errors
    /// The configuration file makes no sense.
    pub fn network_settings(&self) -> Result<NetworkSettings, Failure> {
        Ok(NetworkSettings::load(&self.existing_config()?)?)
    }

    /// What holds for virtual machines.
    ///
    /// # Errors
    /// The configuration file makes no sense.
    pub fn vm_settings(&self) -> Result<VmSettings, Failure> {
        Ok(VmSettings::load(&self.existing_config()?)?)
    }

    /// What becomes of instances' output where nobody says so.
    ///
    /// # Errors
    /// The configuration file makes no sense.
    pub fn log_settings(&self) -> Result<LogSettings, Failure> {
        Ok(LogSettings::load(&self.existing_config()?)?)
    }

    /// Bytes that images may take after a pull, if that is limited.
    ///
    /// # Errors
    /// The configuration file makes no sense.
    pub fn image_budget(&self) -> Result<Option<u64>, Failure> {
        Ok(ImageSettings::budget(&self.existing_config()?)?)
    }

    /// The configuration file, which must be there if it was named.
    fn existing_config(&self) -> Result<PathBuf, Failure> {
        let path = self.config_file();
        if self.globals.config.is_some() && !path.exists() {
            return Err(Failure::new(format!("there is no configuration file {}", path.display())));
        }
        Ok(path)
    }

    fn paths(&self) -> Result<Paths, Failure> {
        let named = self.named_root();
        if let (Some(root), Some(run)) = (&named, &self.globals.run) {
            return Ok(Paths::given(root, run)?);
        }
        let bases = match self.entered.get() {
            None => Bases::system(),
            Some((runtime, _)) => {
                let data = directory("XDG_DATA_HOME").or_else(|| Some(home()?.join(".local/share")));
                if data.is_none() && named.is_none() {
                    return Err(Failure::new("HOME is not set").with_hint("set it, or give --root DIR"));
                }
                Bases::of_user(&data.unwrap_or_default(), runtime)
            }
        };
        Ok(Paths::new(named.as_deref().unwrap_or(&bases.root), &bases)?)
    }

    /// Ends what keeps an ordinary user's namespace.
    ///
    /// # Errors
    /// It cannot be found.
    pub fn leave(&self) -> Result<(), Failure> {
        self.entered.get().map_or(Ok(()), |(directory, _)| Ok(rootless::end(directory)?))
    }

    /// How to reach registries.
    ///
    /// # Errors
    /// The configuration file makes no sense.
    pub fn registry_options(&self) -> Result<RegistryOptions, Failure> {
        let path = self.existing_config()?;
        let docker =
            variable("DOCKER_CONFIG").map(PathBuf::from).or_else(|| home().map(|home| home.join(".docker")));
        Ok(RegistryOptions {
            config: RegistryConfig::load(&path)?,
            credentials: docker.map(|directory| directory.join("config.json")),
            proxy: ProxyConfig {
                http: proxy("http_proxy", "HTTP_PROXY"),
                https: proxy("https_proxy", "HTTPS_PROXY"),
                no_proxy: proxy("no_proxy", "NO_PROXY").unwrap_or_default(),
            },
            ..RegistryOptions::default()
        })
    }
}

fn proxy(lower: &str, upper: &str) -> Option<String> {
    variable(lower).or_else(|| variable(upper)).and_then(|value| value.into_string().ok())
}

/// Our other programs: beside this one, in `../libexec/proa`, or in `/usr/libexec/proa`.
///
/// # Errors
/// They are in none of these places.
pub fn programs() -> Result<Programs, Failure> {
    let own =
        env::current_exe().map_err(|error| Failure::new(format!("cannot find this program: {error}")))?;
    let beside = own.parent().unwrap_or(Path::new("/"));
    let places = [beside.to_owned(), beside.join("../libexec/proa"), PathBuf::from(LIBEXEC)];
    match places.into_iter().find(|place| place.join("proa-monitor").exists()) {
        Some(place) => {
            let program = |name| place.join(name);
            let (monitor, agent) = (program("proa-monitor"), program("proa-agent"));
            Ok(Programs { monitor, agent, resolver: program("proa-resolver"), own })
        }
        None => Err(Failure::new(format!("proa-monitor is not in {} nor in {LIBEXEC}", beside.display()))
            .with_hint("keep proa, proa-monitor, proa-resolver and proa-agent in one directory")),
    }
}
