//! Listings: tables, JSON, templates; and numbers as people read them.

use std::io::Write;

use proa_engine::parse::now_ns;
use serde_json::{Map, Value};

use crate::error::Failure;
use crate::template::Template;

/// Prints rows as `--format` asks: `table` (the default), `json` (an object a line), `table TEMPLATE` or a
/// template a line. Columns are the header and the row's field.
///
/// # Errors
/// The template makes no sense.
pub fn rows(format: Option<&str>, columns: &[(&str, &str)], rows: &[Value]) -> Result<(), Failure> {
    print(&render(format, columns, rows)?)
}

/// Whether a listing in this format shows a field, so that what costs time is found out only where it is shown.
pub fn shows(format: Option<&str>, columns: &[(&str, &str)], field: &str) -> bool {
    match format.map(str::trim) {
        None | Some("" | "table") => columns.iter().any(|(_, column)| *column == field),
        Some("json") => true,
        // A template that prints whole rows names no field.
        Some(template) => template.contains(field) || template.contains("json") || template.contains("{{.}}"),
    }
}

/// Writes to standard output in one go.
///
/// # Errors
/// Nobody takes it.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(Failure::terminal)
}

/// The same, as text.
///
/// # Errors
/// The template makes no sense.
pub fn render(format: Option<&str>, columns: &[(&str, &str)], rows: &[Value]) -> Result<String, Failure> {
    let mut out = String::new();
    match format.map(str::trim) {
        None | Some("" | "table") => {
            let mut lines = vec![columns.iter().map(|(header, _)| (*header).to_owned()).collect::<Vec<_>>()];
            for row in rows {
                lines.push(columns.iter().map(|(_, field)| cell(row, field)).collect());
            }
            return Ok(table(&lines));
        }
        Some("json") => rows.iter().for_each(|row| out.push_str(&format!("{row}\n"))),
        Some(format) => {
            if let Some(template) = format.strip_prefix("table ") {
                return render_table(template, columns, rows);
            }
            let template = Template::parse(format)?;
            for row in rows {
                out.push_str(&template.render(row)?);
                out.push('\n');
            }
        }
    }
    Ok(out)
}

fn render_table(template: &str, columns: &[(&str, &str)], rows: &[Value]) -> Result<String, Failure> {
    let template = Template::parse(template)?;
    let mut headers = Map::new();
    // Fields that are no column by default have their name as header.
    for field in rows.first().and_then(Value::as_object).into_iter().flatten().map(|(field, _)| field) {
        headers.insert(field.clone(), field.to_uppercase().into());
    }
    headers.extend(columns.iter().map(|(header, field)| ((*field).to_owned(), (*header).into())));
    let split = |line: String| line.split('\t').map(str::to_owned).collect::<Vec<_>>();
    let mut lines = vec![split(template.render(&Value::Object(headers))?)];
    for row in rows {
        lines.push(split(template.render(row)?));
    }
    Ok(table(&lines))
}

fn cell(row: &Value, field: &str) -> String {
    match &row[field] {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

/// Aligned columns, three spaces apart and at least ten wide, as Docker prints them.
pub fn table(lines: &[Vec<String>]) -> String {
    aligned(lines, 10)
}

/// The same with columns that are at least so wide.
pub fn aligned(lines: &[Vec<String>], least: usize) -> String {
    const GAP: usize = 3;
    let columns = lines.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = lines.iter().filter_map(|line| line.get(column));
        cells.map(|cell| cell.chars().count() + GAP).max().unwrap_or(0).max(least)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for line in lines {
        let last = line.len().saturating_sub(1);
        for (column, cell) in line.iter().enumerate() {
            out.push_str(cell);
            if column < last {
                out.extend(std::iter::repeat_n(' ', widths[column] - cell.chars().count()));
            }
        }
        out.push('\n');
    }
    out
}

/// How long ago a moment (RFC 3339) was, as `2 weeks ago`.
pub fn since(moment: &str) -> String {
    match moment.parse::<jiff::Timestamp>() {
        Ok(at) => since_ns(i64::try_from(at.as_nanosecond()).unwrap_or(0)),
        Err(_) => "N/A".into(),
    }
}

/// How long ago a moment in nanoseconds since the epoch was.
pub fn since_ns(at_ns: i64) -> String {
    format!("{} ago", duration((now_ns() - at_ns) / 1_000_000_000))
}

/// Seconds in words, as Docker says them.
pub fn duration(seconds: i64) -> String {
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    let days = hours / 24;
    match seconds {
        ..1 => "Less than a second".into(),
        1 => "1 second".into(),
        2..60 => format!("{seconds} seconds"),
        60..120 => "About a minute".into(),
        120..3600 => format!("{minutes} minutes"),
        3600..7200 => "About an hour".into(),
        _ if hours < 48 => format!("{hours} hours"),
        _ if days < 14 => format!("{days} days"),
        _ if days < 60 => format!("{} weeks", days / 7),
        _ if days < 730 => format!("{} months", days / 30),
        _ => format!("{} years", days / 365),
    }
}

/// Bytes in decimal units with three digits, as `4.26MB`.
pub fn size(bytes: u64) -> String {
    scaled(bytes as f64, 1000.0, &["B", "kB", "MB", "GB", "TB", "PB"], 3)
}

/// Bytes in binary units with four digits, as `1.945GiB`.
pub fn binary_size(bytes: u64) -> String {
    scaled(bytes as f64, 1024.0, &["B", "KiB", "MiB", "GiB", "TiB", "PiB"], 4)
}

fn scaled(mut value: f64, base: f64, units: &[&str], digits: i32) -> String {
    let mut unit = 0;
    while value >= base && unit + 1 < units.len() {
        value /= base;
        unit += 1;
    }
    // Go's %.3g: that many significant digits, no zeros at the end.
    let whole = if value < 1.0 { 1 } else { value.log10().floor() as i32 + 1 };
    let places = usize::try_from(digits - whole).unwrap_or(0);
    let text = format!("{value:.places$}");
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text}{}", units[unit])
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn list(format: Option<&str>) -> String {
        let rows = [
            json!({"ID": "ab", "Name": "web", "Extra": 1}),
            json!({"ID": "cd", "Name": "a-long-name", "Extra": 2}),
        ];
        render(format, &[("THE ID", "ID"), ("NAMES", "Name")], &rows).unwrap()
    }

    #[test]
    fn formats() {
        assert_eq!(list(None), "THE ID    NAMES\nab        web\ncd        a-long-name\n");
        assert_eq!(list(Some("table")), list(None));
        assert_eq!(list(Some("{{.Name}}-{{.ID}}")), "web-ab\na-long-name-cd\n");
        assert_eq!(
            list(Some("table {{.Name}}\\t{{.Extra}}")),
            "NAMES         EXTRA\nweb           1\na-long-name   2\n"
        );
        assert_eq!(list(Some("json")).lines().next(), Some(r#"{"Extra":1,"ID":"ab","Name":"web"}"#));
        assert!(render(Some("{{.No}}"), &[], &[json!({"ID": 1})]).is_err());
    }

    #[test]
    fn words_for_durations() {
        for (seconds, words) in [
            (0, "Less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (60, "About a minute"),
            (150, "2 minutes"),
            (3600, "About an hour"),
            (47 * 3600, "47 hours"),
            (48 * 3600, "2 days"),
            (14 * 86400, "2 weeks"),
            (60 * 86400, "2 months"),
            (800 * 86400, "2 years"),
            (-5, "Less than a second"),
        ] {
            assert_eq!(duration(seconds), words);
        }
    }

    #[test]
    fn sizes() {
        for (bytes, text) in
            [(0, "0B"), (999, "999B"), (1000, "1kB"), (4_260_000, "4.26MB"), (123_456_789, "123MB")]
        {
            assert_eq!(size(bytes), text);
        }
        assert_eq!(binary_size(1 << 30), "1GiB");
        assert_eq!(binary_size(2_088_763_392), "1.945GiB");
    }
}
