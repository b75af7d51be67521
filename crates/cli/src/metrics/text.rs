//! Prometheus' text format 0.0.4, and OpenMetrics 1.0, which differ in little: the name of a counter's family, and
//! an end.

use std::fmt::Write;

use proa_engine::metrics::Sample;

use super::{Family, Kind, Number, families, labels};

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// What every scraper reads.
    Prometheus,
    /// The standard made of it.
    OpenMetrics,
}

impl Format {
    /// Its media type.
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// All of it, as text.
pub fn exposition(samples: &[Sample], format: Format) -> String {
    let mut out = String::new();
    for family in families(samples) {
        // Writing to a text cannot fail.
        let _ = write_family(&family, samples, format, &mut out);
    }
    if format == Format::OpenMetrics {
        out.push_str("# EOF\n");
    }
    out
}

fn write_family(family: &Family, samples: &[Sample], format: Format, out: &mut String) -> std::fmt::Result {
    let (end, word) = match family.kind {
        Kind::Gauge => ("", "gauge"),
        Kind::Counter => ("_total", "counter"),
    };
    let name = family.name;
    let described = if format == Format::Prometheus { end } else { "" };
    writeln!(out, "# HELP {name}{described} {}", family.help)?;
    writeln!(out, "# TYPE {name}{described} {word}")?;
    for point in &family.points {
        write!(out, "{name}{end}{{")?;
        let own = labels(&samples[point.sample]).into_iter();
        for (place, (key, value)) in own.chain(point.labels.iter().copied()).enumerate() {
            let comma = if place > 0 { "," } else { "" };
            write!(out, "{comma}{key}=\"{}\"", escaped(value))?;
        }
        match point.number {
            Number::Whole(number) => writeln!(out, "}} {number}")?,
            Number::Seconds(number) => writeln!(out, "}} {number}")?,
        }
    }
    Ok(())
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::super::tests::samples;
    use super::*;

    #[test]
    fn lines_are_written() {
        let text = exposition(&samples(), Format::Prometheus);
        let labels = format!(r#"id="{}",name="web",image="a\"b\\c\nd",isolation="vm""#, "ab".repeat(32));
        for line in [
            "# TYPE proa_cpu_usage_seconds_total counter".to_owned(),
            format!("proa_cpu_usage_seconds_total{{{labels}}} 1.5"),
            format!("proa_memory_usage_bytes{{{labels}}} 1000"),
            format!("proa_instance_start_time_seconds{{{labels}}} 1700000000.5"),
            format!("proa_pressure_waiting_seconds_total{{{labels},resource=\"cpu\"}} 2"),
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        let open = exposition(&samples(), Format::OpenMetrics);
        assert!(open.contains("# TYPE proa_cpu_usage_seconds counter\n") && open.ends_with("\n# EOF\n"));
        assert!(open.contains("\nproa_cpu_usage_seconds_total{"));
    }

    /// Each line by the grammar of the format: a comment, or a name, labels and a number.
    #[test]
    fn the_grammar_holds() {
        let name = |text: &str| {
            !text.is_empty()
                && !text.starts_with(|c: char| c.is_ascii_digit())
                && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        };
        let mut families = Vec::new();
        for line in exposition(&samples(), Format::Prometheus).lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (family, kind) = rest.split_once(' ').unwrap();
                assert!(name(family) && ["gauge", "counter"].contains(&kind), "{line}");
                assert!(!families.contains(&family.to_owned()), "{line} comes twice");
                families.push(family.to_owned());
            } else if !line.starts_with("# HELP ") {
                let (metric, rest) = line.split_once('{').unwrap();
                assert_eq!(families.last().unwrap(), metric);
                let (labels, value) = rest.rsplit_once("} ").unwrap();
                assert!(value.parse::<f64>().is_ok_and(f64::is_finite), "{line}");
                let mut left = labels;
                while !left.is_empty() {
                    let (key, rest) = left.split_once("=\"").unwrap();
                    assert!(name(key), "{line}");
                    let mut escaped = false;
                    let end = rest.find(|c: char| {
                        let ends = c == '"' && !escaped;
                        escaped = c == '\\' && !escaped;
                        ends
                    });
                    left = &rest[end.unwrap() + 1..];
                    left = left.strip_prefix(',').unwrap_or(left);
                }
            }
        }
        assert!(families.len() > 8);
    }
}
