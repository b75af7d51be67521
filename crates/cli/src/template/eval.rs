//! From nodes and a document to text.

use serde_json::Value;

use super::functions;
use super::parse::{BlockKind, Node, Pipeline, Term};

/// Keys of maps in which any key may stand, so that one that does not is no mistake.
const FREE_MAPS: &[&str] =
    &["Labels", "Annotations", "Volumes", "ExposedPorts", "Ports", "Tmpfs", "Sysctls", "Networks"];

type Evaluated<T> = Result<T, String>;

pub(super) fn render(nodes: &[Node], document: &Value) -> Evaluated<String> {
    let mut evaluator = Evaluator { variables: vec![(String::new(), document.clone())], out: String::new() };
    evaluator.nodes(nodes, document)?;
    Ok(evaluator.out)
}

struct Evaluator {
    /// The innermost last; `$` has the empty name.
    variables: Vec<(String, Value)>,
    out: String,
}

impl Evaluator {
    fn nodes(&mut self, nodes: &[Node], dot: &Value) -> Evaluated<()> {
        let scope = self.variables.len();
        for node in nodes {
            match node {
                Node::Text(text) => self.out.push_str(text),
                Node::Action(binding, pipeline) => {
                    let value = self.pipeline(pipeline, dot)?;
                    match binding.last() {
                        Some(name) => self.variables.push((name.clone(), value)),
                        None => self.out.push_str(&functions::display(&value)),
                    }
                }
                Node::Block(BlockKind::Range, binding, pipeline, body, otherwise) => {
                    let value = self.pipeline(pipeline, dot)?;
                    self.range(value, binding, body, otherwise, dot)?;
                }
                Node::Block(kind, binding, pipeline, body, otherwise) => {
                    let value = self.pipeline(pipeline, dot)?;
                    let holds = functions::truth(&value);
                    let inner = self.variables.len();
                    let dot = if holds && *kind == BlockKind::With { value.clone() } else { dot.clone() };
                    self.variables.extend(binding.last().map(|name| (name.clone(), value)));
                    self.nodes(if holds { body } else { otherwise }, &dot)?;
                    self.variables.truncate(inner);
                }
            }
        }
        self.variables.truncate(scope.max(1));
        Ok(())
    }

    fn range(
        &mut self,
        value: Value,
        binding: &[String],
        body: &[Node],
        otherwise: &[Node],
        dot: &Value,
    ) -> Evaluated<()> {
        let pairs: Vec<(Value, Value)> = match value {
            Value::Array(items) => {
                items.into_iter().enumerate().map(|(at, item)| (at.into(), item)).collect()
            }
            Value::Object(map) => map.into_iter().map(|(key, item)| (key.into(), item)).collect(),
            Value::Null => Vec::new(),
            other => return Err(format!("range cannot go over {}", functions::display(&other))),
        };
        if pairs.is_empty() {
            return self.nodes(otherwise, dot);
        }
        for (key, item) in pairs {
            let scope = self.variables.len();
            match binding {
                [one] => self.variables.push((one.clone(), item.clone())),
                [one, two] => {
                    self.variables.push((one.clone(), key));
                    self.variables.push((two.clone(), item.clone()));
                }
                _ => {}
            }
            self.nodes(body, &item)?;
            self.variables.truncate(scope);
        }
        Ok(())
    }

    fn pipeline(&self, pipeline: &Pipeline, dot: &Value) -> Evaluated<Value> {
        let mut piped = None;
        for command in pipeline {
            piped = Some(self.command(command, piped, dot)?);
        }
        Ok(piped.unwrap_or_default())
    }

    fn command(&self, terms: &[Term], piped: Option<Value>, dot: &Value) -> Evaluated<Value> {
        let Some((first, rest)) = terms.split_first() else { return Err("missing value".into()) };
        if let (Term::Field(path), [key]) = (first, rest)
            && path.last().is_some_and(|last| last == "Label")
        {
            let labels = dot.get("Labels").unwrap_or(&Value::Null);
            return Ok(label(labels, &functions::display(&self.term(key, dot)?)).into());
        }
        let Term::Function(name) = first else {
            if !rest.is_empty() || piped.is_some() {
                return Err("an argument for what is no function".into());
            }
            return self.term(first, dot);
        };
        let mut arguments = rest.iter().map(|term| self.term(term, dot)).collect::<Evaluated<Vec<_>>>()?;
        arguments.extend(piped);
        functions::call(name, arguments)
    }

    fn term(&self, term: &Term, dot: &Value) -> Evaluated<Value> {
        match term {
            Term::Constant(value) => Ok(value.clone()),
            Term::Field(path) => fields(dot, path),
            Term::Variable(name, path) => {
                let found = self.variables.iter().rev().find(|(known, _)| known == name);
                let (_, value) = found.ok_or_else(|| format!("undefined variable ${name}"))?;
                fields(value, path)
            }
            Term::Group(pipeline, path) => fields(&self.pipeline(pipeline, dot)?, path),
            Term::Function(name) => functions::call(name, Vec::new()),
        }
    }
}

/// One of the labels that a listing has in one text, as `key=value,…`: `.Label "key"`. A value goes on to the next key.
fn label(labels: &Value, key: &str) -> String {
    let mut found = String::new();
    let mut is_in = false;
    for piece in labels.as_str().unwrap_or_default().split(',') {
        match piece.split_once('=') {
            Some((name, value)) => {
                is_in = name == key;
                if is_in {
                    value.clone_into(&mut found);
                }
            }
            None if is_in => found.extend([",", piece]),
            None => {}
        }
    }
    found
}

fn fields(value: &Value, path: &[String]) -> Evaluated<Value> {
    let mut current = value;
    let mut parent = "";
    for part in path {
        current = match current {
            Value::Object(map) => match map.get(part) {
                Some(found) => found,
                None if FREE_MAPS.contains(&parent) => &Value::Null,
                None => {
                    let known: Vec<&str> = map.keys().map(String::as_str).collect();
                    return Err(format!("no field {part:?}; there are {}", known.join(", ")));
                }
            },
            Value::Null => &Value::Null,
            other => return Err(format!("no field {part:?} in {}", functions::display(other))),
        };
        parent = part;
    }
    Ok(current.clone())
}
