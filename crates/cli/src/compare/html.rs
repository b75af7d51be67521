//! The report as one page that needs nothing else: a table, and plots drawn as SVG.

use super::text::{bytes, rows};
use super::{Level, Report};

const STYLE: &str = "\
:root { color-scheme: light dark; --ink: #1c2733; --dim: #5c6b7a; --line: #d5dde5; --page: #fff; --a: #0b7a75; --b: #d1603d }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --dim: #9aa8b5; --line: #33404d; --page: #11171d } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page); max-width: 60rem; margin: 3rem auto; padding: 0 1rem }
h1 { font-size: 1.6rem; margin-bottom: 0 } h2 { font-size: 1.1rem; margin: 2.5rem 0 .5rem }
p { color: var(--dim); margin: .25rem 0 } code { font-family: ui-monospace, monospace }
table { border-collapse: collapse; width: 100%; margin-top: 1.5rem }
th, td { text-align: left; padding: .45rem .8rem .45rem 0; border-bottom: 1px solid var(--line); vertical-align: top }
td { font-variant-numeric: tabular-nums } th { font-weight: 600 } tbody th { font-weight: 400; color: var(--dim) }
svg { width: 100%; height: auto; display: block } svg text { fill: var(--ink); font: 14px system-ui, sans-serif }
svg .dim { fill: var(--dim) } .container { fill: var(--a) } .vm { fill: var(--b) } .light { opacity: .45 }";

/// The whole page.
pub fn page(report: &Report) -> String {
    let command = escape(&report.command.join(" "));
    let image = escape(&report.image);
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{image} at both isolation levels</title>\n<style>\n{STYLE}\n</style>\n\
         <h1>{image} at both isolation levels</h1>\n\
         <p>Command timed: <code>{command}</code>. Host kernel: <code>{}</code>. Measured by <code>proa compare</code>.</p>\n\
         {}\n<h2>Start, whole command</h2>\n<p>Median, and 99th percentile in the lighter tone. Logarithmic scale.</p>\n{}\n\
         <h2>Memory of an idle instance</h2>\n<p>Private, and the fair share of shared pages in the lighter tone. Logarithmic scale.</p>\n{}\n</html>\n",
        escape(&report.host_kernel),
        table(report),
        plot(&start_bars(report)),
        plot(&memory_bars(report)),
    )
}

fn table(report: &Report) -> String {
    let cells = |tag: &str, cells: Vec<String>| {
        cells.iter().map(|cell| format!("<{tag}>{}</{tag}>", escape(cell))).collect::<String>()
    };
    let head = cells("th", report.levels.iter().map(|level| level.level.to_owned()).collect());
    let body: String = rows(report)
        .into_iter()
        .map(|(label, row)| format!("<tr><th>{label}</th>{}</tr>\n", cells("td", row)))
        .collect();
    format!("<table>\n<thead><tr><th></th>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n</table>")
}

/// A bar: its class, what it is called, a value, a larger value behind it, and how both are written.
struct Bar {
    class: &'static str,
    value: f64,
    larger: f64,
    label: String,
}

fn start_bars(report: &Report) -> Vec<Bar> {
    let bar = |level: &Level| Bar {
        class: level.level,
        value: level.start.p50_ms,
        larger: level.start.p99_ms,
        label: format!("{:.1} ms, p99 {:.1} ms", level.start.p50_ms, level.start.p99_ms),
    };
    report.levels.iter().map(bar).collect()
}

fn memory_bars(report: &Report) -> Vec<Bar> {
    let bar = |level: &Level| {
        let memory = level.memory?;
        Some(Bar {
            class: level.level,
            value: memory.private as f64,
            larger: (memory.private + memory.shared) as f64,
            label: format!("{} private, {} shared", bytes(memory.private), bytes(memory.shared)),
        })
    };
    report.levels.iter().filter_map(bar).collect()
}

/// Horizontal bars on a logarithmic scale that begins a decade below the smallest value.
fn plot(bars: &[Bar]) -> String {
    const LEFT: f64 = 100.0;
    const WIDTH: f64 = 520.0;
    let smallest = bars.iter().map(|bar| bar.value).fold(f64::INFINITY, f64::min).max(1e-3);
    let largest = bars.iter().map(|bar| bar.larger).fold(smallest, f64::max);
    let decades = (largest / smallest).log10() + 1.0;
    let length = |value: f64| ((value.max(smallest) / smallest).log10() + 1.0) / decades * WIDTH;
    let height = bars.len() * 44 + 8;
    let mut out = format!("<svg viewBox=\"0 0 900 {height}\" role=\"img\">\n");
    for (index, bar) in bars.iter().enumerate() {
        let (y, text) = (index * 44 + 8, index * 44 + 29);
        let Bar { class, label, .. } = bar;
        let (short, long) = (length(bar.value), length(bar.larger));
        out.push_str(&format!("<text x=\"0\" y=\"{text}\">{class}</text>"));
        out.push_str(&format!("<rect class=\"{class} light\" x=\"{LEFT}\" y=\"{y}\" width=\"{long:.1}\" height=\"30\" rx=\"3\"/>"));
        out.push_str(&format!(
            "<rect class=\"{class}\" x=\"{LEFT}\" y=\"{y}\" width=\"{short:.1}\" height=\"30\" rx=\"3\"/>"
        ));
        out.push_str(&format!(
            "<text class=\"dim\" x=\"{:.1}\" y=\"{text}\">{label}</text>\n",
            LEFT + long + 10.0
        ));
    }
    out.push_str("</svg>");
    out
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_escapes_and_holds_both_plots() {
        let page = page(&super::super::text::tests::report());
        assert!(page.contains("busybox &lt;&amp;&gt;"));
        assert!(!page.contains("busybox <&>"));
        assert_eq!(page.matches("<svg").count(), 2);
        assert!(!page.contains("NaN") && !page.contains("inf"));
        assert!(!page.contains("http://") && !page.contains("https://"), "the page loads nothing");
    }
}
