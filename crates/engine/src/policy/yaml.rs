//! YAML to plain data, with limits: files to check come from anywhere.
//!
//! Nothing here recurses over the input. An alias counts as much as what it stands for, so a small file cannot grow
//! into a large value.

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle, Tag};
use serde_json::{Map, Number, Value};

use super::FileError;

/// Bytes of a file.
const MAX_TEXT: usize = 4 << 20;
/// Documents of a file.
const MAX_DOCUMENTS: usize = 1000;
/// Collections in each other.
const MAX_DEPTH: usize = 64;
/// Nodes, and bytes of text in them, with aliases written out.
const MAX_WEIGHT: usize = 16 << 20;

/// All documents of a text; empty ones are left out.
pub(super) fn documents(text: &str) -> Result<Vec<Value>, FileError> {
    if text.len() > MAX_TEXT {
        return Err(FileError(format!("the file is larger than {} MiB", MAX_TEXT >> 20)));
    }
    let mut builder = Builder::default();
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| FileError(error.to_string()))?;
        builder.take(event).map_err(|what| FileError(format!("line {}: {what}", span.start.line())))?;
    }
    Ok(builder.documents)
}

/// A collection that is still open.
struct Open {
    content: Content,
    anchor: usize,
    weight: usize,
}

enum Content {
    Sequence(Vec<Value>),
    Mapping { entries: Map<String, Value>, key: Option<String>, merged: Vec<Value> },
}

#[derive(Default)]
struct Builder {
    documents: Vec<Value>,
    open: Vec<Open>,
    anchors: HashMap<usize, (Value, usize)>,
    weight: usize,
}

impl Builder {
    fn take(&mut self, event: Event) -> Result<(), String> {
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                check_tag(tag.as_deref())?;
                let value = match (style, tag) {
                    (ScalarStyle::Plain, None) => plain(&text),
                    _ => Value::String(text.into_owned()),
                };
                let weight = 1 + value.as_str().map_or(0, str::len);
                self.weigh(weight)?;
                self.finished(value, anchor, weight)
            }
            Event::SequenceStart(anchor, tag) => {
                check_tag(tag.as_deref())?;
                self.begin(Content::Sequence(Vec::new()), anchor)
            }
            Event::MappingStart(anchor, tag) => {
                check_tag(tag.as_deref())?;
                self.begin(Content::Mapping { entries: Map::new(), key: None, merged: Vec::new() }, anchor)
            }
            Event::SequenceEnd | Event::MappingEnd => self.end(),
            Event::Alias(anchor) => {
                let (value, weight) = self.anchors.get(&anchor).ok_or("an alias of what is still open")?;
                let (value, weight) = (value.clone(), *weight);
                self.weigh(weight)?;
                self.finished(value, 0, weight)
            }
            Event::DocumentStart(_) => {
                self.anchors.clear();
                Ok(())
            }
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => Ok(()),
        }
    }

    fn weigh(&mut self, weight: usize) -> Result<(), String> {
        self.weight = self.weight.saturating_add(weight);
        if self.weight > MAX_WEIGHT { Err("the file holds too much".into()) } else { Ok(()) }
    }

    fn begin(&mut self, content: Content, anchor: usize) -> Result<(), String> {
        self.weigh(1)?;
        if self.open.len() == MAX_DEPTH {
            return Err(format!("more than {MAX_DEPTH} levels"));
        }
        self.open.push(Open { content, anchor, weight: 1 });
        Ok(())
    }

    fn end(&mut self) -> Result<(), String> {
        let Open { content, anchor, weight } = self.open.pop().ok_or("an end without a beginning")?;
        let value = match content {
            Content::Sequence(items) => Value::Array(items),
            Content::Mapping { entries, merged, .. } => Value::Object(merge(entries, merged)?),
        };
        self.finished(value, anchor, weight)
    }

    /// A value is complete: it goes into what is open, or is a document.
    fn finished(&mut self, value: Value, anchor: usize, weight: usize) -> Result<(), String> {
        if anchor > 0 {
            self.weigh(weight)?;
            self.anchors.insert(anchor, (value.clone(), weight));
        }
        let Some(open) = self.open.last_mut() else {
            if self.documents.len() == MAX_DOCUMENTS {
                return Err(format!("more than {MAX_DOCUMENTS} documents"));
            }
            self.documents.extend((!value.is_null()).then_some(value));
            return Ok(());
        };
        open.weight = open.weight.saturating_add(weight);
        match &mut open.content {
            Content::Sequence(items) => items.push(value),
            Content::Mapping { entries, key, merged } => match key.take() {
                None => *key = Some(key_text(value)?),
                Some(name) if name == "<<" => merged.push(value),
                Some(name) if entries.contains_key(&name) => return Err(format!("{name:?} stands twice")),
                Some(name) => drop(entries.insert(name, value)),
            },
        }
        Ok(())
    }
}

/// Tags of the core schema change nothing that is looked at; others change what a value means.
fn check_tag(tag: Option<&Tag>) -> Result<(), String> {
    match tag {
        Some(tag) if tag.handle != "tag:yaml.org,2002:" && !tag.suffix.is_empty() => {
            Err(format!("the tag {}{} is not understood", tag.handle, tag.suffix))
        }
        _ => Ok(()),
    }
}

fn key_text(value: Value) -> Result<String, String> {
    match value {
        Value::String(text) => Ok(text),
        Value::Number(number) => Ok(number.to_string()),
        Value::Bool(switch) => Ok(switch.to_string()),
        _ => Err("a key that is no text".into()),
    }
}

/// `<<`: what is merged in fills what is not there.
fn merge(mut entries: Map<String, Value>, merged: Vec<Value>) -> Result<Map<String, Value>, String> {
    let flat = merged.into_iter().flat_map(|value| match value {
        Value::Array(items) => items,
        other => vec![other],
    });
    for value in flat {
        let Value::Object(more) = value else { return Err("<< takes mappings".into()) };
        for (key, value) in more {
            entries.entry(key).or_insert(value);
        }
    }
    Ok(entries)
}

/// A plain scalar by YAML 1.2's core schema, and the switches of 1.1 that Kubernetes still reads.
fn plain(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" => return Value::Bool(true),
        "false" | "False" | "FALSE" | "no" | "No" | "NO" | "off" | "Off" | "OFF" => {
            return Value::Bool(false);
        }
        _ => {}
    }
    let integer = match (text.strip_prefix("0x"), text.strip_prefix("0o")) {
        (Some(hex), _) => i64::from_str_radix(hex, 16).ok(),
        (_, Some(octal)) => i64::from_str_radix(octal, 8).ok(),
        _ => text.parse::<i64>().ok(),
    };
    if let Some(number) = integer {
        return Value::Number(number.into());
    }
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit() || b"+-.eE".contains(&byte));
    let float = is_number.then(|| text.parse::<f64>().ok()).flatten().and_then(Number::from_f64);
    float.map_or_else(|| Value::String(text.to_owned()), Value::Number)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn one(text: &str) -> Value {
        documents(text).unwrap().pop().unwrap()
    }

    #[test]
    fn values_are_those_of_the_core_schema() {
        let text =
            "a: 1\nb: 0x10\nc: '1'\nd: true\ne: off\nf: ~\ng: 1.5\nh: [x, \"\"]\ni: {j: 80:80}\n0: zero\n";
        assert_eq!(
            one(text),
            json!({"a": 1, "b": 16, "c": "1", "d": true, "e": false, "f": null, "g": 1.5, "h": ["x", ""],
                   "i": {"j": "80:80"}, "0": "zero"})
        );
        assert_eq!(documents("---\na: 1\n---\n---\nb: 2\n").unwrap(), [json!({"a": 1}), json!({"b": 2})]);
        assert_eq!(one(r#"{"a": {"b": [1, "2"]}}"#), json!({"a": {"b": [1, "2"]}}));
        assert_eq!(documents("").unwrap(), Vec::<Value>::new());
    }

    #[test]
    fn anchors_and_merges() {
        let text = "x: &x {a: 1, b: 2}\ny: {<<: *x, a: 3}\nz: *x\n";
        assert_eq!(one(text)["y"], json!({"a": 3, "b": 2}));
        assert_eq!(one(text)["z"], json!({"a": 1, "b": 2}));
        let list = "x: &x {a: 1}\ny: &y {a: 2, c: 4}\nz:\n  <<: [*x, *y]\n";
        assert_eq!(one(list)["z"], json!({"a": 1, "c": 4}));
    }

    #[test]
    fn hostile_texts_are_refused() {
        let deep = "[".repeat(1000);
        let mut laughs = "a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol, lol]\n".to_owned();
        for level in 1..12 {
            let below = format!("*a{}, ", level - 1).repeat(10);
            laughs.push_str(&format!("a{level}: &a{level} [{below}]\n"));
        }
        let many = "---\n1\n".repeat(MAX_DOCUMENTS + 1);
        let large = " ".repeat(MAX_TEXT + 1);
        for text in [
            deep.as_str(),
            &laughs,
            &many,
            &large,
            "a: 1\na: 2",
            "a: !override 1",
            "&x [*x]",
            "a: *nothing",
            "? [a]\n: b",
            "<<: 1",
            "a: [",
            "\t- x: y\n z",
        ] {
            let shown: String = text.chars().take(40).collect();
            assert!(documents(text).is_err(), "{shown}");
        }
    }
}
