//! OpenTelemetry's protocol over HTTP, in protobuf's JSON mapping: 64-bit numbers are texts, names are as in
//! `opentelemetry.proto.metrics.v1`.

use std::time::Duration;

use proa_engine::metrics::Sample;
use serde_json::{Value, json};

use super::{Family, Kind, Number, families, labels};
use crate::error::Failure;

/// How long a collector may take.
const LIMIT: Duration = Duration::from_secs(10);
/// Where a collector takes metrics, if its address says no more than where it is.
const PATH: &str = "/v1/metrics";
/// `AGGREGATION_TEMPORALITY_CUMULATIVE`
const CUMULATIVE: u32 = 2;

/// The body of a request.
pub fn body(samples: &[Sample], now_ns: i64) -> Value {
    let metrics: Vec<Value> =
        families(samples).iter().map(|family| metric(family, samples, now_ns)).collect();
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    json!({
        "resourceMetrics": [{
            "resource": { "attributes": [attribute("service.name", "proa"), attribute("host.name", &host)] },
            "scopeMetrics": [{
                "scope": { "name": "proa", "version": env!("CARGO_PKG_VERSION") },
                "metrics": metrics,
            }],
        }],
    })
}

fn metric(family: &Family, samples: &[Sample], now_ns: i64) -> Value {
    let points: Vec<Value> = family
        .points
        .iter()
        .map(|point| {
            let sample = &samples[point.sample];
            let all = labels(sample).into_iter().chain(point.labels.iter().copied());
            let attributes: Vec<Value> = all.map(|(key, value)| attribute(key, value)).collect();
            let mut json = json!({ "attributes": attributes, "timeUnixNano": now_ns.to_string() });
            match point.number {
                Number::Whole(number) => json["asInt"] = number.to_string().into(),
                Number::Seconds(number) => json["asDouble"] = number.into(),
            }
            if family.kind == Kind::Counter {
                json["startTimeUnixNano"] = sample.started_ns.to_string().into();
            }
            json
        })
        .collect();
    let mut metric = json!({ "name": family.name, "description": family.help, "unit": family.unit });
    match family.kind {
        Kind::Gauge => metric["gauge"] = json!({ "dataPoints": points }),
        Kind::Counter => {
            metric["sum"] =
                json!({ "dataPoints": points, "aggregationTemporality": CUMULATIVE, "isMonotonic": true });
        }
    }
    metric
}

fn attribute(key: &str, value: &str) -> Value {
    json!({ "key": key, "value": { "stringValue": value } })
}

/// The whole address of a collector.
///
/// # Errors
/// It is none.
pub fn endpoint(text: &str) -> Result<String, Failure> {
    let wrong = || {
        Failure::usage(format!("invalid --otlp {text:?}"))
            .with_hint("http://HOST:4318, or https://; a path is kept")
    };
    let (scheme, rest) = text.split_once("://").ok_or_else(wrong)?;
    if !matches!(scheme, "http" | "https") || rest.is_empty() || rest.starts_with('/') {
        return Err(wrong());
    }
    let has_path = rest.trim_end_matches('/').contains('/');
    Ok(if has_path { text.to_owned() } else { format!("{}{PATH}", text.trim_end_matches('/')) })
}

/// Sends a body to a collector.
///
/// # Errors
/// It cannot be reached, or does not take it.
pub fn send(endpoint: &str, body: &Value) -> Result<(), Failure> {
    let agent = ureq::Agent::config_builder().timeout_global(Some(LIMIT)).build().new_agent();
    let request = agent.post(endpoint).header("content-type", "application/json");
    let sent = request.send(body.to_string());
    sent.map(drop).map_err(|error| Failure::new(format!("cannot send metrics to {endpoint}: {error}")))
}

#[cfg(test)]
mod tests {
    use super::super::tests::samples;
    use super::*;

    #[test]
    fn the_mapping_is_protobufs() {
        let body = body(&samples(), 42);
        let scope = &body["resourceMetrics"][0]["scopeMetrics"][0];
        let metrics = scope["metrics"].as_array().unwrap();
        let find = |name: &str| metrics.iter().find(|metric| metric["name"] == name).unwrap();
        let cpu = &find("proa_cpu_usage_seconds")["sum"];
        assert_eq!((&cpu["aggregationTemporality"], &cpu["isMonotonic"]), (&json!(2), &json!(true)));
        let point = &cpu["dataPoints"][0];
        assert_eq!(point["asDouble"], 1.5);
        assert_eq!(
            (&point["timeUnixNano"], &point["startTimeUnixNano"]),
            (&json!("42"), &json!("1700000000500000000"))
        );
        let memory = &find("proa_memory_usage_bytes")["gauge"]["dataPoints"][0];
        assert_eq!(memory["asInt"], "1000");
        assert_eq!(memory["attributes"][1], json!({"key": "name", "value": {"stringValue": "web"}}));
    }

    #[test]
    fn addresses() {
        assert_eq!(endpoint("http://a:4318").unwrap(), "http://a:4318/v1/metrics");
        assert_eq!(endpoint("https://a/").unwrap(), "https://a/v1/metrics");
        assert_eq!(endpoint("http://a/otlp/x").unwrap(), "http://a/otlp/x");
        for text in ["a:4318", "ftp://a", "http://", "http:///x"] {
            assert!(endpoint(text).is_err(), "{text}");
        }
    }
}
