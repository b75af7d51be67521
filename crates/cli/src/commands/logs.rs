//! `proa logs`: what an instance has written.

use std::io::Write;

use jiff::tz::TimeZone;
use proa_engine::logs::{Entry, LogOptions, Stream};
use proa_engine::parse::{moment_ns, now_ns};

use crate::context::Context;
use crate::error::{Failure, Outcome};

/// Print what an instance has written
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Go on until it ends
    #[arg(short, long)]
    follow: bool,
    /// Not before: a time, or a duration before now as 42m
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Not after
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// Only the last lines; all for all
    #[arg(short = 'n', long, value_name = "NUMBER", default_value = "all", allow_hyphen_values = true)]
    tail: String,
    /// With the time of each line
    #[arg(short, long)]
    timestamps: bool,
    /// With extra attributes; there are none
    #[arg(long, hide = true)]
    details: bool,
    /// Name or id
    instance: String,
}

/// Runs the command.
pub fn run(context: &Context, args: &Args) -> Outcome {
    let now = now_ns();
    let moment = |text: &String| moment_ns(text, now, &TimeZone::system());
    let options = LogOptions {
        follow: args.follow,
        since_ns: args.since.as_ref().map(moment).transpose()?,
        until_ns: args.until.as_ref().map(moment).transpose()?,
        // As in Docker, what is no number means all.
        tail: args.tail.parse().ok(),
    };
    let engine = context.engine()?;
    let instance = engine.find(&args.instance)?;
    let (mut out, mut err) = (std::io::stdout().lock(), std::io::stderr().lock());
    let mut failure = None;
    engine.logs(&instance, &options, |entry| {
        let text = line(&entry, args.timestamps);
        let written = match entry.stream {
            Stream::Stdout => out.write_all(text.as_bytes()),
            Stream::Stderr => err.write_all(text.as_bytes()),
        };
        failure = written.err();
        failure.is_none()
    })?;
    match failure.or(out.flush().err()) {
        Some(error) => Err(Failure::terminal(error)),
        None => Ok(0),
    }
}

/// Stamps have nine places, so that they align.
fn line(entry: &Entry, stamped: bool) -> String {
    if !stamped {
        return entry.text.clone();
    }
    let stamp = jiff::Timestamp::from_nanosecond(entry.at_ns.into()).unwrap_or_default();
    format!("{stamp:.9} {}", entry.text)
}
