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
    /// With the labels and variables that the log was to have
    #[arg(long)]
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
        let text = line(&entry, args);
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
fn line(entry: &Entry, args: &Args) -> String {
    let mut line = String::new();
    if args.timestamps {
        let stamp = jiff::Timestamp::from_nanosecond(entry.at_ns.into()).unwrap_or_default();
        line = format!("{stamp:.9} ");
    }
    if args.details {
        let pairs: Vec<String> = entry
            .attributes
            .iter()
            .map(|(key, value)| format!("{}={}", escaped(key), escaped(value)))
            .collect();
        line.push_str(&pairs.join(","));
        line.push(' ');
    }
    line + &entry.text
}

/// As in a URL's query, so that Docker's separators are ours alone.
fn escaped(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(byte.into()),
            b' ' => out.push('+'),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #[test]
    fn attributes_are_escaped_as_docker_does() {
        assert_eq!(super::escaped("a b/c=é,~"), "a+b%2Fc%3D%C3%A9%2C~");
    }
}
