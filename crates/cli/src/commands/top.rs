//! `proa top`: an instance's processes.

use proa_protocol::message::ProcessInfo;

use crate::context::Context;
use crate::error::Outcome;
use crate::format;

/// List an instance's processes
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name or id
    instance: String,
    /// Options of ps; the columns are always the same
    #[arg(hide = true, num_args = 0.., allow_hyphen_values = true)]
    options: Vec<String>,
}

/// Runs the command.
pub fn run(context: &Context, args: &Args) -> Outcome {
    let engine = context.engine()?;
    let processes = engine.processes(&engine.find(&args.instance)?)?;
    let header = ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"].map(str::to_owned).to_vec();
    let now = proa_engine::parse::now_ns() / 1_000_000_000;
    let lines: Vec<Vec<String>> =
        std::iter::once(header).chain(processes.iter().map(|process| line(process, now))).collect();
    format::print(&format::table(&lines))?;
    Ok(0)
}

fn line(process: &ProcessInfo, now_s: i64) -> Vec<String> {
    let age_ms = (now_s - process.start_s).max(1).unsigned_abs() * 1000;
    let seconds = process.cpu_ms / 1000;
    let started = jiff::Timestamp::from_second(process.start_s).unwrap_or_default();
    let started = started.to_zoned(jiff::tz::TimeZone::system());
    // Whoever wrote the command line does not write to our terminal.
    let command: String = process.command.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    vec![
        process.uid.to_string(),
        process.pid.to_string(),
        process.ppid.to_string(),
        (process.cpu_ms * 100 / age_ms).min(99).to_string(),
        if age_ms < 86_400_000 { started.strftime("%H:%M") } else { started.strftime("%b%d") }.to_string(),
        process.tty.clone(),
        format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60),
        command,
    ]
}
