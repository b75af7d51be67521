//! `proa system top`: what instances use, the busiest first, drawn in place.
//!
//! Keys: `q` ends it, `c` sorts by CPU, `m` by memory.

use std::io::IsTerminal;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::Value;

use super::super::stats::{self, Overview, Watched};
use crate::context::Context;
use crate::error::{Failure, Outcome};
use crate::format;
use crate::terminal::{self, Raw};

/// Show what all instances use, the busiest first
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print once
    #[arg(long)]
    no_stream: bool,
    /// By cpu or memory
    #[arg(long, value_name = "WHAT", default_value = "cpu")]
    sort: String,
    /// Time between two looks
    #[arg(short, long, value_name = "SECONDS", default_value = "1")]
    delay: f64,
}

const COLUMNS: [(&str, &str); 3] = [("NAME", "Name"), ("ID", "ID"), ("LEVEL", "Isolation")];
const SHORTEST: f64 = 0.1;
const LONGEST: f64 = 3600.0;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Cpu,
    Memory,
}

/// Runs the command.
pub fn run(context: &Context, args: &Args) -> Outcome {
    let mut order = match args.sort.as_str() {
        "cpu" => Order::Cpu,
        "memory" | "mem" => Order::Memory,
        other => {
            return Err(Failure::usage(format!("invalid --sort {other:?}")).with_hint("cpu or memory"));
        }
    };
    if !(SHORTEST..=LONGEST).contains(&args.delay) {
        return Err(
            Failure::usage(format!("invalid --delay {}", args.delay)).with_hint("0.1 to 3600 seconds")
        );
    }
    let mut overview = Overview::new(context.engine()?)?;
    super::super::pause(stats::FIRST_PAUSE);
    if args.no_stream || !std::io::stdout().is_terminal() {
        overview.look()?;
        format::print(&table(overview.watched(), order, usize::MAX)?)?;
        return Ok(0);
    }
    let raw = Raw::enter()?;
    let wait = Duration::from_secs_f64(args.delay);
    loop {
        overview.look()?;
        draw(overview.watched(), order)?;
        match key(wait, raw.is_some())? {
            Some(b'q' | 3 | 4) => break,
            Some(b'c') => order = Order::Cpu,
            Some(b'm') => order = Order::Memory,
            _ => {}
        }
    }
    drop(raw);
    println!();
    Ok(0)
}

fn draw(watched: &[Watched], order: Order) -> Result<(), Failure> {
    let (rows, columns) = terminal::size().map_or((24, 80), |size| (size.height.into(), size.width.into()));
    let by = if order == Order::Cpu { "CPU" } else { "memory" };
    let head = format!("{} instances, by {by}. Keys: q ends, c by CPU, m by memory\n", watched.len());
    let text = head + &table(watched, order, rows)?;
    // A line that is too long would take two, and the whole more than there is.
    let lines = text.lines().take(rows.max(2) - 1).map(|line| line.chars().take(columns).collect::<String>());
    let text: String = lines.map(|line| line + "\n").collect();
    // In raw mode the terminal does not go back to the first column by itself.
    format::print(&stats::redrawn(&text).replace('\n', "\r\n"))
}

fn table(watched: &[Watched], order: Order, most: usize) -> Result<String, Failure> {
    let mut sorted: Vec<&Watched> = watched.iter().collect();
    let weight = |one: &Watched| match order {
        Order::Cpu => stats::cpu(one).unwrap_or(0.0),
        Order::Memory => stats::memory(one).unwrap_or(0) as f64,
    };
    sorted.sort_by(|a, b| weight(b).total_cmp(&weight(a)).then_with(|| a.name().cmp(b.name())));
    let rows: Vec<Value> = sorted.iter().take(most).map(|one| stats::row(one, false)).collect();
    format::render(None, &[&COLUMNS[..], &stats::FIGURES].concat(), &rows)
}

/// A key that is pressed before the time is over. Without a terminal to read, there are none.
fn key(wait: Duration, has_keys: bool) -> Result<Option<u8>, Failure> {
    if !has_keys {
        super::super::pause(wait);
        return Ok(None);
    }
    let timeout = Timespec { tv_sec: wait.as_secs() as i64, tv_nsec: wait.subsec_nanos().into() };
    let stdin = rustix::stdio::stdin();
    match poll(&mut [PollFd::from_borrowed_fd(stdin, PollFlags::IN)], Some(&timeout)) {
        Ok(0) | Err(rustix::io::Errno::INTR) => return Ok(None),
        Ok(_) => {}
        Err(errno) => return Err(Failure::terminal(errno.into())),
    }
    let mut bytes = [0];
    match rustix::io::read(stdin, &mut bytes) {
        // The terminal is gone.
        Ok(0) => Ok(Some(b'q')),
        Ok(_) => Ok(Some(bytes[0])),
        Err(errno) => Err(Failure::terminal(errno.into())),
    }
}
