//! `proa stats`: what instances use.

use std::io::IsTerminal;
use std::time::Duration;

use proa_engine::channel::Channel;
use proa_engine::names::short;
use proa_engine::{Engine, Instance};
use proa_protocol::message::Stats;
use serde_json::{Value, json};

use crate::context::Context;
use crate::error::{Failure, Outcome};
use crate::format::{self, binary_size, size};

/// Show what instances use
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Those that do not run as well
    #[arg(short, long)]
    all: bool,
    /// table, json, or a Go template
    #[arg(long)]
    format: Option<String>,
    /// Print once
    #[arg(long)]
    no_stream: bool,
    /// Print whole ids
    #[arg(long)]
    no_trunc: bool,
    /// Names or ids; all that run where there are none
    #[arg(value_name = "INSTANCE")]
    instances: Vec<String>,
}

const COLUMNS: [(&str, &str); 2] = [("CONTAINER ID", "ID"), ("NAME", "Name")];
/// What an instance uses.
pub const FIGURES: [(&str, &str); 6] = [
    ("CPU %", "CPUPerc"),
    ("MEM USAGE / LIMIT", "MemUsage"),
    ("MEM %", "MemPerc"),
    ("NET I/O", "NetIO"),
    ("BLOCK I/O", "BlockIO"),
    ("PIDS", "PIDs"),
];
/// Between two looks, of whose difference the CPU use is made.
pub const FIRST_PAUSE: Duration = Duration::from_millis(200);
const PAUSE: Duration = Duration::from_secs(1);

/// An instance that is looked at again and again.
pub struct Watched {
    instance: Instance,
    channel: Option<Channel>,
    before: Option<Stats>,
    now: Option<Stats>,
}

/// Runs the command.
pub fn run(context: &Context, args: &Args) -> Outcome {
    let engine = context.engine()?;
    let mut watched = watched(engine, args.all, &args.instances)?;
    look(engine, &mut watched);
    super::pause(FIRST_PAUSE);
    let columns = [&COLUMNS[..], &FIGURES].concat();
    let clears = !args.no_stream && std::io::stdout().is_terminal();
    loop {
        look(engine, &mut watched);
        let rows: Vec<Value> = watched.iter().map(|one| row(one, args.no_trunc)).collect();
        let text = format::render(args.format.as_deref(), &columns, &rows)?;
        format::print(&if clears { redrawn(&text) } else { text })?;
        let live = watched.iter().any(|one| one.channel.is_some());
        if args.no_stream || (!live && !args.instances.is_empty()) {
            return Ok(0);
        }
        super::pause(PAUSE);
        if args.instances.is_empty() {
            refresh(engine, args.all, &mut watched)?;
        }
    }
}

/// The text over what is on the screen, without a moment of nothing: each line clears its own rest, and the end
/// what is below.
pub fn redrawn(text: &str) -> String {
    format!("\x1b[H{}\x1b[J", text.replace('\n', "\x1b[K\n"))
}

/// All instances that run, as they come and go.
pub struct Overview<'engine> {
    engine: &'engine Engine,
    watched: Vec<Watched>,
}

impl<'engine> Overview<'engine> {
    /// Looks for the first time.
    ///
    /// # Errors
    /// The records cannot be read.
    pub fn new(engine: &'engine Engine) -> Result<Self, Failure> {
        let mut watched = watched(engine, false, &[])?;
        look(engine, &mut watched);
        Ok(Self { engine, watched })
    }

    /// Looks again.
    ///
    /// # Errors
    /// The records cannot be read.
    pub fn look(&mut self) -> Result<(), Failure> {
        refresh(self.engine, false, &mut self.watched)?;
        look(self.engine, &mut self.watched);
        Ok(())
    }

    /// What was seen last.
    pub fn watched(&self) -> &[Watched] {
        &self.watched
    }
}

impl Watched {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.instance.record.name
    }
}

fn watched(engine: &Engine, all: bool, names: &[String]) -> Result<Vec<Watched>, Failure> {
    let instances = if names.is_empty() {
        engine.instances()?.into_iter().filter(|instance| all || instance.is_live()).collect()
    } else {
        names.iter().map(|name| engine.find(name)).collect::<Result<Vec<_>, _>>()?
    };
    Ok(instances.into_iter().map(|instance| watch(engine, instance)).collect())
}

fn watch(engine: &Engine, instance: Instance) -> Watched {
    // One that has just ended is shown with nothing.
    let channel = engine.connect(&instance).ok();
    Watched { instance, channel, before: None, now: None }
}

/// Follows instances that come and go.
fn refresh(engine: &Engine, all: bool, watched: &mut Vec<Watched>) -> Result<(), Failure> {
    let instances = engine.instances()?;
    watched.retain(|one| {
        let found = instances.iter().find(|instance| instance.record.id == one.instance.record.id);
        found.is_some_and(|instance| all || instance.is_live())
    });
    for instance in instances.into_iter().filter(|instance| all || instance.is_live()) {
        let known = watched.iter_mut().find(|one| one.instance.record.id == instance.record.id);
        match known {
            Some(one) if one.channel.is_some() || !instance.is_live() => {}
            Some(one) => *one = watch(engine, instance),
            None => watched.push(watch(engine, instance)),
        }
    }
    Ok(())
}

fn look(engine: &Engine, watched: &mut [Watched]) {
    for one in watched {
        let stats = one.channel.as_mut().and_then(|channel| engine.stats(channel, &one.instance).ok());
        if stats.is_none() {
            one.channel = None;
        }
        one.before = std::mem::replace(&mut one.now, stats);
    }
}

/// What a listing shows of it.
pub fn row(one: &Watched, whole: bool) -> Value {
    let record = &one.instance.record;
    let id = if whole { record.id.as_str() } else { short(&record.id) };
    let none = Stats::default();
    let now = one.now.as_ref().unwrap_or(&none);
    let used = memory(one);
    // What is not limited has what there is.
    let total = one.now.as_ref().map(|now| now.memory_total);
    let limit = now.memory_limit.filter(|limit| *limit < 1 << 60).or(total);
    let bytes = |value: Option<u64>| value.map_or_else(|| "--".into(), binary_size);
    let io = |value: Option<u64>| value.map_or_else(|| "--".into(), size);
    let share = used
        .zip(limit)
        .filter(|(_, limit)| *limit > 0)
        .map(|(used, limit)| used as f64 / limit as f64 * 100.0);
    json!({
        "Container": id,
        "ID": id,
        "Name": record.name,
        "CPUPerc": percent(cpu(one)),
        "MemUsage": format!("{} / {}", bytes(used), bytes(limit)),
        "MemPerc": percent(share),
        "NetIO": match &one.now {
            // With the host's network there is none of its own.
            Some(now) => format!("{} / {}", size(now.net_rx_bytes.unwrap_or(0)), size(now.net_tx_bytes.unwrap_or(0))),
            None => "-- / --".into(),
        },
        "BlockIO": format!("{} / {}", io(now.io_read_bytes), io(now.io_write_bytes)),
        "PIDs": now.pids.map_or_else(|| "--".into(), |pids| pids.to_string()),
        "Isolation": record.level.as_str(),
    })
}

fn percent(value: Option<f64>) -> String {
    value.map_or_else(|| "--".into(), |value| format!("{value:.2}%"))
}

/// Memory in use, bytes. As Docker does: what can be had back at once does not count.
pub fn memory(one: &Watched) -> Option<u64> {
    let now = one.now.as_ref()?;
    now.memory_usage.map(|usage| usage.saturating_sub(now.memory_inactive_file.unwrap_or(0)))
}

/// CPU time used since the look before, in hundredths of one CPU.
pub fn cpu(one: &Watched) -> Option<f64> {
    let (before, now) = (one.before.as_ref()?, one.now.as_ref()?);
    let time = (now.at_ns - before.at_ns).max(1) as f64;
    Some(now.cpu_total_ns.saturating_sub(before.cpu_total_ns) as f64 / time * 100.0)
}

#[cfg(test)]
mod tests {
    #[test]
    fn lines_are_drawn_over_older_ones() {
        assert_eq!(super::redrawn("a\nb\n"), "\x1b[Ha\x1b[K\nb\x1b[K\n\x1b[J");
    }
}
