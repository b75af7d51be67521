//! `proa events`: what happens, as it does.

use std::fmt::Write as _;

use jiff::tz::TimeZone;
use proa_engine::events::{EventFilters, EventOptions};
use proa_engine::parse::{moment_ns, now_ns};
use proa_protocol::events::Event;
use serde_json::{Value, json};

use crate::context::Context;
use crate::error::{Failure, Outcome};
use crate::format;
use crate::template::Template;

/// Print what happens to instances and images, as it does
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only some, as type=image, event=die, container=NAME, image=NAME, label=KEY[=VALUE], network=NAME, volume=NAME
    #[arg(short, long, value_name = "KEY=VALUE")]
    filter: Vec<String>,
    /// json, or a Go template
    #[arg(long)]
    format: Option<String>,
    /// What has happened since then as well
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Only until then
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
}

/// Runs the command.
pub fn run(context: &Context, args: &Args) -> Outcome {
    let now = now_ns();
    let moment = |text: &String| moment_ns(text, now, &TimeZone::system());
    let options = EventOptions {
        since_ns: args.since.as_ref().map(moment).transpose()?,
        until_ns: args.until.as_ref().map(moment).transpose()?,
        filters: EventFilters::parse(&args.filter)?,
    };
    let template = match args.format.as_deref().map(str::trim) {
        None | Some("" | "json" | "{{json .}}" | "{{ json . }}") => None,
        Some(text) => Some(Template::parse(text)?),
    };
    let as_json = template.is_none() && args.format.as_ref().is_some_and(|text| !text.trim().is_empty());
    let mut failure = None;
    context.engine()?.events(&options, |event| {
        let line = match &template {
            Some(template) => template.render(&fields(event)).map_err(Failure::from),
            // Not by way of a value, which would sort the fields.
            None if as_json => Ok(serde_json::to_string(event).unwrap_or_default()),
            None => Ok(line(event, &TimeZone::system())),
        };
        failure = line.and_then(|line| format::print(&format!("{line}\n"))).err();
        failure.is_none()
    })?;
    failure.map_or(Ok(0), Err)
}

/// What templates see: Go's names of the fields.
fn fields(event: &Event) -> Value {
    json!({
        "Status": event.status,
        "ID": event.id,
        "From": event.from,
        "Type": event.kind,
        "Action": event.action,
        "Actor": event.actor,
        "Scope": event.scope,
        "Time": event.time,
        "TimeNano": event.time_nano,
    })
}

/// As Docker prints it: the time with nine places and the zone, what, to whom, and its attributes.
fn line(event: &Event, zone: &TimeZone) -> String {
    let at = jiff::Timestamp::from_nanosecond(event.time_nano.into()).unwrap_or_default();
    let offset = zone.to_offset(at);
    let stamp = if offset.is_zero() {
        format!("{at:.9}")
    } else {
        at.to_zoned(zone.clone()).strftime("%Y-%m-%dT%H:%M:%S%.9f%:z").to_string()
    };
    let mut line = format!("{stamp} {} {} {}", event.kind, clean(&event.action), clean(&event.actor.id));
    let attributes: Vec<String> = event
        .actor
        .attributes
        .iter()
        .map(|(key, value)| format!("{}={}", clean(key), clean(value)))
        .collect();
    if !attributes.is_empty() {
        let _ = write!(line, " ({})", attributes.join(", "));
    }
    line
}

/// Labels and arguments come from images and from inside: they shall not command the terminal.
fn clean(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { c.escape_default().to_string() } else { c.to_string() })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn lines_are_dockers_and_command_no_terminal() {
        let attributes = BTreeMap::from([("name".to_owned(), "a\x1b[2J\nb".to_owned())]);
        let mut event = Event::instance("die", "ab", attributes).with("exitCode", "3");
        event.time_nano = 1_700_000_000_000_000_007;
        assert_eq!(
            line(&event, &TimeZone::UTC),
            "2023-11-14T22:13:20.000000007Z container die ab (exitCode=3, name=a\\u{1b}[2J\\nb)"
        );
        let zone = TimeZone::fixed(jiff::tz::offset(2));
        assert!(line(&event, &zone).starts_with("2023-11-15T00:13:20.000000007+02:00 container"));
    }
}
