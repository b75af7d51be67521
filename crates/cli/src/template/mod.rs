//! The part of Go's templates that people use with `--format`.
//!
//! ```text
//!   text ── parse ──▶ nodes ── eval(document) ──▶ text
//! ```
//!
//! Actions: field paths, pipelines, variables, `if`/`else if`/`else`, `range`, `with`, comments, trimming by
//! `{{-` and `-}}`. Functions: Go's comparisons and `and or not len index slice print printf println`, and Docker's
//! `json prettyjson join split lower upper title truncate pad`. A field that does not exist is an error, but in
//! maps whose keys are anybody's (labels, say) it is `<no value>`, as in Go.

mod eval;
mod functions;
mod parse;

use serde_json::Value;

/// Why a template cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("template: {0}")]
pub struct TemplateError(String);

/// A parsed template.
#[derive(Debug, Clone, PartialEq)]
pub struct Template {
    nodes: Vec<parse::Node>,
}

impl Template {
    /// Parses a template. In its text, `\t` and `\n` stand for a tab and a newline, as shells pass them.
    ///
    /// # Errors
    /// The grammar is broken, or something is used that there is not.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        let nodes = parse::parse(&unescape(text)).map_err(TemplateError)?;
        Ok(Self { nodes })
    }

    /// The template's text for a document.
    ///
    /// # Errors
    /// The document lacks a field, or a function is given what it cannot take.
    pub fn render(&self, document: &Value) -> Result<String, TemplateError> {
        eval::render(&self.nodes, document).map_err(TemplateError)
    }
}

/// Outside of actions only: inside, strings have escapes of their own.
fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("{{") {
        out.push_str(&rest[..at].replace("\\t", "\t").replace("\\n", "\n"));
        let end = rest[at..].find("}}").map_or(rest.len(), |end| at + end + 2);
        out.push_str(&rest[at..end]);
        rest = &rest[end..];
    }
    out.push_str(&rest.replace("\\t", "\t").replace("\\n", "\n"));
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn document() -> Value {
        json!({
            "Name": "/web",
            "State": { "Status": "running", "Pid": 42, "OOMKilled": false },
            "Labels": "a=b,tier=one,two", "Config": { "Env": ["A=1", "B=2"], "Labels": { "tier": "one", "a.b": "dotted" }, "Cmd": null },
            "Mounts": [{ "Source": "/a", "RW": true }, { "Source": "/b", "RW": false }],
            "Ports": {},
            "Size": 1.5,
        })
    }

    fn render(template: &str) -> Result<String, TemplateError> {
        Template::parse(template)?.render(&document())
    }

    #[test]
    fn what_people_write() {
        for (template, expected) in [
            ("plain", "plain"),
            ("{{.State.Status}}", "running"),
            ("{{ .State.Pid }} {{.State.OOMKilled}}", "42 false"),
            ("{{.Name}}\\t{{.Size}}\\n", "/web\t1.5\n"),
            ("{{json .State}}", r#"{"OOMKilled":false,"Pid":42,"Status":"running"}"#),
            ("{{json .Name}}", r#""/web""#),
            ("{{.Config.Env}}", "[A=1 B=2]"),
            ("{{.Config.Labels}}", "map[a.b:dotted tier:one]"),
            ("{{index .Config.Labels \"a.b\"}}", "dotted"),
            ("{{index .Config.Labels \"none\"}}", ""),
            ("{{.Config.Labels.none}}", "<no value>"),
            ("{{.Label \"tier\"}}{{.Label \"none\"}}", "one,two"),
            ("{{.Config.Cmd}}", "<no value>"),
            ("{{index .Config.Env 1}}", "B=2"),
            ("{{(index .Mounts 0).Source}}", "/a"),
            ("{{range .Config.Env}}{{.}};{{end}}", "A=1;B=2;"),
            ("{{range $i, $e := .Config.Env}}{{$i}}={{$e}} {{end}}", "0=A=1 1=B=2 "),
            ("{{range $k, $v := .Config.Labels}}{{$k}}:{{$v}},{{end}}", "a.b:dotted,tier:one,"),
            ("{{range .Ports}}x{{else}}none{{end}}", "none"),
            ("{{range .Mounts}}{{if .RW}}{{.Source}}{{end}}{{end}}", "/a"),
            ("{{if eq .State.Status \"running\"}}up{{else}}down{{end}}", "up"),
            ("{{if .State.OOMKilled}}a{{else if gt .State.Pid 40}}b{{else}}c{{end}}", "b"),
            ("{{with .State}}{{.Pid}}{{end}}", "42"),
            ("{{with $s := .State}}{{$s.Pid}} {{$.Name}}{{end}}", "42 /web"),
            ("{{$x := .Name}}{{$x}}", "/web"),
            ("{{join .Config.Env \",\"}}", "A=1,B=2"),
            ("{{.Name | upper | printf \"%s!\"}}", "/WEB!"),
            ("{{slice .Name 1}}", "web"),
            ("{{len .Config.Env}} {{len .Name}}", "2 4"),
            (
                "{{printf \"%-6s|%5d|%q|%v\" .Name .State.Pid .Name .Config.Env}}",
                "/web  |   42|\"/web\"|[A=1 B=2]",
            ),
            ("{{println .Name}}", "/web\n"),
            ("{{print .Name 1 2}}", "/web1 2"),
            ("a {{- .Name -}} b", "a/webb"),
            ("{{/* a comment */}}x", "x"),
            (
                "{{and .Name .State.OOMKilled}} {{or .State.OOMKilled .Name}} {{not .Name}}",
                "false /web false",
            ),
            ("{{range split \"a:b\" \":\"}}<{{.}}>{{end}}", "<a><b>"),
            ("{{truncate .Name 2}} {{title \"one two\"}} {{lower \"ABC\"}}", "/w One Two abc"),
            ("{{`raw {{`}}", "raw {{"),
            ("{{\"tab\\tx\"}}", "tab\tx"),
            ("{{true}} {{-1}} {{1.5}}", "true -1 1.5"),
            ("{{. | json | len}}", &json_length()),
        ] {
            assert_eq!(render(template).as_deref(), Ok(expected), "{template}");
        }
    }

    fn json_length() -> String {
        document().to_string().len().to_string()
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (template, word) in [
            ("{{.Stat}}", "Stat"),
            ("{{.State.Status.Deeper}}", "Deeper"),
            ("{{.Name", "unclosed"),
            ("{{if .Name}}x", "end"),
            ("{{end}}", "end"),
            ("{{else}}", "else"),
            ("{{nosuch .Name}}", "nosuch"),
            ("{{$x}}", "$x"),
            ("{{index .Config.Env 7}}", "7"),
            ("{{\"open}}", "string"),
            ("{{.Name .Name}}", "argument"),
            ("{{printf}}", "printf"),
            ("{{.Name |}}", "missing"),
            ("{{(.Name}}", "("),
            ("{{range}}{{end}}", "missing"),
            ("{{join .Name}}", "join"),
        ] {
            let error = render(template).unwrap_err().to_string();
            assert!(error.contains(word), "{template}: {error}");
        }
    }

    #[test]
    fn depth_is_bounded() {
        let deep = format!("{}{}", "{{if .Name}}".repeat(5000), "{{end}}".repeat(5000));
        assert!(render(&deep).is_err());
        assert!(render(&format!("{{{{{}.Name{}}}}}", "(".repeat(5000), ")".repeat(5000))).is_err());
    }
}
