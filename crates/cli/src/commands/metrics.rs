//! `proa metrics`: what running instances use, for monitoring systems.

use std::time::Duration;

use proa_engine::parse::{duration_ns, now_ns};

use crate::context::{Context, notice};
use crate::error::{Failure, Outcome};
use crate::format;
use crate::metrics::otlp;
use crate::metrics::serve::{Address, serve};
use crate::metrics::text::{Format, exposition};

/// Print what running instances use, as Prometheus reads it
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    /// prometheus or openmetrics
    #[arg(long, default_value = "prometheus")]
    format: String,
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Answer scrapers over HTTP, at /metrics
    Serve {
        /// ADDRESS:PORT or unix:/PATH
        #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9100")]
        listen: String,
    },
    /// Send them to a collector, by OpenTelemetry's protocol over HTTP
    Push {
        /// Where the collector is, as http://127.0.0.1:4318
        #[arg(long, value_name = "URL")]
        otlp: String,
        /// Again and again after this time, as 15s; once without it
        #[arg(long, value_name = "TIME")]
        interval: Option<String>,
    },
}

/// Runs the command.
pub fn run(context: &Context, args: &Args) -> Outcome {
    match &args.action {
        None => {
            let format = match args.format.as_str() {
                "prometheus" => Format::Prometheus,
                "openmetrics" => Format::OpenMetrics,
                other => {
                    let wrong = Failure::usage(format!("invalid --format {other:?}"));
                    return Err(wrong.with_hint("prometheus or openmetrics"));
                }
            };
            format::print(&exposition(&context.engine()?.sample()?, format))?;
        }
        Some(Action::Serve { listen }) => {
            let address = Address::parse(listen)?;
            serve(context.engine()?, &address, |at| notice(&format!("metrics are at {at}")))?;
        }
        Some(Action::Push { otlp, interval }) => push(context, otlp, interval.as_deref())?,
    }
    Ok(0)
}

fn push(context: &Context, address: &str, interval: Option<&str>) -> Result<(), Failure> {
    let endpoint = otlp::endpoint(address)?;
    let interval = interval.map(every).transpose()?;
    let engine = context.engine()?;
    loop {
        let samples = engine.sample()?;
        let sent = otlp::send(&endpoint, &otlp::body(&samples, now_ns()));
        let Some(interval) = interval else { return sent };
        // A collector that is away for a while gets the next figures.
        if let Err(failure) = sent {
            failure.print();
        }
        super::pause(interval);
    }
}

fn every(text: &str) -> Result<Duration, Failure> {
    let ns = duration_ns(text).ok().and_then(|ns| u64::try_from(ns).ok()).map(Duration::from_nanos);
    ns.filter(|time| *time >= Duration::from_millis(100)).ok_or_else(|| {
        Failure::usage(format!("invalid --interval {text:?}"))
            .with_hint("a time of 100ms at least, as 15s or 1m")
    })
}
