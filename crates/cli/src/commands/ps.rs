//! `proa ps`: instances.

use proa_engine::db::Record;
use proa_engine::list::Filters;
use proa_engine::names::short;
use proa_engine::network;
use proa_engine::{Engine, Instance};
use proa_protocol::health::HealthStatus;
use proa_protocol::instance::Status;
use proa_protocol::volume::{MountPoint, PointKind};
use serde_json::{Map, Value};

use crate::context::Context;
use crate::error::Outcome;
use crate::format::{self, duration, since_ns, size};

/// List instances
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Those that do not run as well
    #[arg(short, long)]
    all: bool,
    /// Only those for which this holds: id, name, label, status, ancestor, exited, before, since, isolation, volume, health
    #[arg(short, long, value_name = "KEY=VALUE")]
    filter: Vec<String>,
    /// table, json, `table TEMPLATE`, or a Go template
    #[arg(long)]
    format: Option<String>,
    /// The last ones made, in whatever state
    #[arg(short = 'n', long, value_name = "NUMBER", allow_negative_numbers = true)]
    last: Option<i64>,
    /// The last one made
    #[arg(short, long)]
    latest: bool,
    /// Print whole ids and commands
    #[arg(long)]
    no_trunc: bool,
    /// Print ids alone
    #[arg(short, long)]
    quiet: bool,
    /// With sizes on disk
    #[arg(short, long)]
    size: bool,
}

const COLUMNS: [(&str, &str); 7] = [
    ("CONTAINER ID", "ID"),
    ("IMAGE", "Image"),
    ("COMMAND", "Command"),
    ("CREATED", "RunningFor"),
    ("STATUS", "Status"),
    ("PORTS", "Ports"),
    ("NAMES", "Names"),
];
/// Characters of a command that are shown.
const SHOWN: usize = 20;

/// Runs the command.
pub fn run(context: &Context, args: &Args) -> Outcome {
    let engine = context.engine()?;
    let filters = Filters::parse(&args.filter)?;
    let last = if args.latest { Some(1) } else { args.last.and_then(|count| usize::try_from(count).ok()) };
    let mut instances = engine.list(&filters)?;
    if !args.all && last.is_none() && !filters.names_state() {
        instances.retain(Instance::is_live);
    }
    instances.truncate(last.unwrap_or(usize::MAX));
    if args.quiet && args.format.is_none() {
        let id = |instance: &Instance| {
            if args.no_trunc { instance.record.id.clone() } else { short(&instance.record.id).to_owned() }
        };
        let ids: String = instances.iter().map(|instance| id(instance) + "\n").collect();
        format::print(&ids)?;
        return Ok(0);
    }
    let mut columns = COLUMNS.to_vec();
    if args.size {
        columns.push(("SIZE", "Size"));
    }
    let shows = |field: &str| format::shows(args.format.as_deref(), &columns, field);
    // Files are counted only where that is asked for by name, as in Docker.
    let with_size = args.size || args.format.as_deref().is_some_and(|format| format.contains(".Size"));
    let size_of = |instance: &Instance| with_size.then(|| sizes(engine, instance));
    let status = |instance: &Instance| status(engine, instance);
    let rows: Vec<Value> = instances
        .iter()
        .map(|instance| row(engine, instance, args.no_trunc, &shows, &status, &size_of))
        .collect();
    format::rows(args.format.as_deref(), &columns, &rows)?;
    Ok(0)
}

/// The fields of one line that are shown.
fn row(
    engine: &Engine,
    instance: &Instance,
    whole: bool,
    shows: &dyn Fn(&str) -> bool,
    status: &dyn Fn(&Instance) -> String,
    size_of: &dyn Fn(&Instance) -> Option<String>,
) -> Value {
    let record = &instance.record;
    let mut row = Map::new();
    let mut add = |field: &str, value: &dyn Fn() -> String| {
        if shows(field) {
            row.insert(field.into(), value().into());
        }
    };
    add("ID", &|| if whole { record.id.clone() } else { short(&record.id).to_owned() });
    add("Image", &|| record.image.clone());
    add("Command", &|| format!("\"{}\"", command(instance, whole)));
    add("CreatedAt", &|| created_at(record.created_ns));
    add("RunningFor", &|| since_ns(record.created_ns));
    add("State", &|| proa_engine::inspect::status_word(instance.state.status).to_owned());
    add("Status", &|| status(instance));
    add("Ports", &|| network::ports_text(engine, instance));
    add("Names", &|| record.name.clone());
    add("Labels", &|| labels(record));
    let points = || mount_points(engine, record);
    add("LocalVolumes", &|| points().iter().filter(|point| point.volume.is_some()).count().to_string());
    add("Mounts", &|| mounts(&points(), whole));
    add("Networks", &|| record.host_config.network_names().join(","));
    add("Isolation", &|| record.level.as_str().into());
    add("Size", &|| size_of(instance).unwrap_or_else(|| "0B".into()));
    row.insert("Platform".into(), Value::Null);
    Value::Object(row)
}

fn labels(record: &Record) -> String {
    let labels = record.config.labels.iter().map(|(key, value)| format!("{key}={value}"));
    labels.collect::<Vec<_>>().join(",")
}

/// Volumes and paths of the host that an instance has, as far as a listing shows them.
fn mount_points(engine: &Engine, record: &Record) -> Vec<MountPoint> {
    let mut points = engine.read_config(&record.id).map(|config| config.mount_points).unwrap_or_default();
    points.retain(|point| point.kind != PointKind::Tmpfs);
    points
}

fn mounts(points: &[MountPoint], whole: bool) -> String {
    const SHOWN: usize = 15;
    let name = |point: &MountPoint| {
        let name = if point.volume.is_some() { &point.name } else { &point.source };
        if whole || name.chars().count() <= SHOWN {
            return name.clone();
        }
        name.chars().take(SHOWN - 1).chain(['…']).collect()
    };
    points.iter().map(name).collect::<Vec<_>>().join(",")
}

fn sizes(engine: &Engine, instance: &Instance) -> String {
    let (own, all) = engine.sizes(instance);
    format!("{} (virtual {})", size(own), size(all))
}

fn command(instance: &Instance, whole: bool) -> String {
    let config = &instance.record.config;
    let words: Vec<&str> =
        [&config.entrypoint, &config.cmd].into_iter().flatten().flatten().map(String::as_str).collect();
    let text = words.join(" ");
    if whole || text.chars().count() <= SHOWN {
        return text;
    }
    text.chars().take(SHOWN - 1).chain(['…']).collect()
}

fn created_at(ns: i64) -> String {
    let at = jiff::Timestamp::from_nanosecond(ns.into()).unwrap_or_default();
    at.to_zoned(jiff::tz::TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S %z %Z").to_string()
}

/// As ` (healthy)`; nothing where nothing is checked.
fn health(engine: &Engine, instance: &Instance) -> String {
    match engine.health(instance).map(|health| health.status) {
        None => String::new(),
        Some(HealthStatus::Starting) => " (health: starting)".into(),
        Some(status) => format!(" ({})", status.as_str()),
    }
}

/// As `Up 3 minutes (Paused)` or `Exited (1) 2 hours ago`.
fn status(engine: &Engine, instance: &Instance) -> String {
    let state = &instance.state;
    let up = || duration((proa_engine::parse::now_ns() - state.started_ns) / 1_000_000_000);
    match state.status {
        Status::Created => "Created".into(),
        Status::Running => format!("Up {}{}", up(), health(engine, instance)),
        Status::Paused => format!("Up {} (Paused)", up()),
        Status::Restarting => {
            format!("Restarting ({}) {}", state.exit_code, since_ns(state.finished_ns))
        }
        Status::Exited => format!("Exited ({}) {}", state.exit_code, since_ns(state.finished_ns)),
    }
}
