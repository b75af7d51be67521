//! Functions of templates, and how values print.

use std::cmp::Ordering;

use serde_json::Value;

type Evaluated<T> = Result<T, String>;

/// A value as Go prints it.
pub(super) fn display(value: &Value) -> String {
    match value {
        Value::Null => "<no value>".into(),
        Value::String(text) => text.clone(),
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(display).collect();
            format!("[{}]", items.join(" "))
        }
        Value::Object(map) => {
            let pairs: Vec<String> =
                map.iter().map(|(key, value)| format!("{key}:{}", display(value))).collect();
            format!("map[{}]", pairs.join(" "))
        }
        other => other.to_string(),
    }
}

/// Whether a value counts as true.
pub(super) fn truth(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(map) => !map.is_empty(),
    }
}

pub(super) fn call(name: &str, arguments: Vec<Value>) -> Evaluated<Value> {
    let wrong = || format!("wrong arguments for {name}");
    Ok(match (name, arguments.as_slice()) {
        ("json", [value]) => value.to_string().into(),
        ("prettyjson", [value]) => format!("{value:#}").into(),
        ("lower", [value]) => display(value).to_lowercase().into(),
        ("upper", [value]) => display(value).to_uppercase().into(),
        ("title", [value]) => title(&display(value)).into(),
        ("join", [Value::Array(items), Value::String(with)]) => {
            items.iter().map(display).collect::<Vec<_>>().join(with).into()
        }
        ("join", [Value::Null, Value::String(_)]) => "".into(),
        ("split", [Value::String(text), Value::String(at)]) => {
            text.split(at.as_str()).map(Value::from).collect::<Vec<_>>().into()
        }
        ("truncate", [value, length]) => {
            let length = size(length).ok_or_else(wrong)?;
            display(value).chars().take(length).collect::<String>().into()
        }
        ("pad", [value, before, after]) => {
            let (before, after) = (size(before).ok_or_else(wrong)?, size(after).ok_or_else(wrong)?);
            format!("{}{}{}", " ".repeat(before.min(1000)), display(value), " ".repeat(after.min(1000)))
                .into()
        }
        ("len", [value]) => length(value).ok_or_else(wrong)?.into(),
        ("index", [value, path @ ..]) if !path.is_empty() => index(value, path)?,
        ("slice", [value, bounds @ ..]) if bounds.len() <= 2 => slice(value, bounds)?,
        ("print", values) => print(values).into(),
        ("println", values) => {
            format!("{}\n", values.iter().map(display).collect::<Vec<_>>().join(" ")).into()
        }
        ("printf", [Value::String(format), values @ ..]) => printf(format, values).into(),
        ("not", [value]) => (!truth(value)).into(),
        ("and", [first, ..]) => {
            let last = arguments.last().unwrap_or(first);
            arguments.iter().find(|value| !truth(value)).unwrap_or(last).clone()
        }
        ("or", [first, ..]) => {
            let last = arguments.last().unwrap_or(first);
            arguments.iter().find(|value| truth(value)).unwrap_or(last).clone()
        }
        ("eq", [first, others @ ..]) if !others.is_empty() => {
            others.iter().any(|other| compare(first, other) == Some(Ordering::Equal)).into()
        }
        ("ne", [a, b]) => (compare(a, b) != Some(Ordering::Equal)).into(),
        ("lt", [a, b]) => (compare(a, b) == Some(Ordering::Less)).into(),
        ("le", [a, b]) => compare(a, b).is_some_and(Ordering::is_le).into(),
        ("gt", [a, b]) => (compare(a, b) == Some(Ordering::Greater)).into(),
        ("ge", [a, b]) => compare(a, b).is_some_and(Ordering::is_ge).into(),
        (known, _) if NAMES.contains(&known) => return Err(wrong()),
        _ => return Err(format!("no function {name:?}; there are {}", NAMES.join(", "))),
    })
}

const NAMES: &[&str] = &[
    "and",
    "eq",
    "ge",
    "gt",
    "index",
    "join",
    "json",
    "le",
    "len",
    "lower",
    "lt",
    "ne",
    "not",
    "or",
    "pad",
    "prettyjson",
    "print",
    "printf",
    "println",
    "slice",
    "split",
    "title",
    "truncate",
    "upper",
];

fn size(value: &Value) -> Option<usize> {
    usize::try_from(value.as_u64()?).ok()
}

fn length(value: &Value) -> Option<usize> {
    match value {
        Value::String(text) => Some(text.len()),
        Value::Array(items) => Some(items.len()),
        Value::Object(map) => Some(map.len()),
        Value::Null => Some(0),
        Value::Bool(_) | Value::Number(_) => None,
    }
}

fn index(value: &Value, path: &[Value]) -> Evaluated<Value> {
    let mut current = value.clone();
    for key in path {
        current = match (&current, key) {
            (Value::Array(items), key) => {
                let item = size(key).and_then(|at| items.get(at));
                item.ok_or_else(|| format!("index {} is out of range", display(key)))?.clone()
            }
            // Go gives the zero value of the map's type, which is a string in all maps that are printed here.
            (Value::Object(map), Value::String(key)) => map.get(key).cloned().unwrap_or_else(|| "".into()),
            (Value::Null, _) => return Err("index of nothing".into()),
            (other, key) => return Err(format!("cannot index {} by {}", display(other), display(key))),
        };
    }
    Ok(current)
}

fn slice(value: &Value, bounds: &[Value]) -> Evaluated<Value> {
    let total = length(value).ok_or("slice of what has no length")?;
    let bound = |at: usize, default: usize| bounds.get(at).map_or(Some(default), size);
    let range = bound(0, 0).zip(bound(1, total)).filter(|(from, to)| from <= to && *to <= total);
    let (from, to) = range.ok_or("slice out of range")?;
    match value {
        Value::String(text) => {
            text.get(from..to).map(Value::from).ok_or_else(|| "slice inside a character".into())
        }
        Value::Array(items) => Ok(items[from..to].to_vec().into()),
        _ => Err("slice of what has no order".into()),
    }
}

fn compare(a: &Value, b: &Value) -> Option<Ordering> {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a.as_f64()?.partial_cmp(&b.as_f64()?),
        (Value::String(a), Value::String(b)) => Some(a.cmp(b)),
        (a, b) => (a == b).then_some(Ordering::Equal),
    }
}

fn title(text: &str) -> String {
    let mut start = true;
    let characters = text.chars().map(|c| {
        let upper = start;
        start = !c.is_alphanumeric();
        if upper { c.to_ascii_uppercase() } else { c }
    });
    characters.collect()
}

/// Go's `Sprint`: a space between two values of which neither is a string.
fn print(values: &[Value]) -> String {
    let mut out = String::new();
    for (at, value) in values.iter().enumerate() {
        if at > 0 && !value.is_string() && !values[at - 1].is_string() {
            out.push(' ');
        }
        out.push_str(&display(value));
    }
    out
}

/// Go's `Sprintf` with the verbs `s v d q f t x` and `%%`, widths and precisions.
fn printf(format: &str, values: &[Value]) -> String {
    let mut out = String::new();
    let mut values = values.iter();
    let mut characters = format.chars().peekable();
    while let Some(c) = characters.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut flags = String::new();
        while let Some(flag) = characters.next_if(|c| "-+0 #".contains(*c) || c.is_ascii_digit() || *c == '.')
        {
            flags.push(flag);
        }
        match characters.next() {
            Some('%') => out.push('%'),
            Some(verb) => match values.next() {
                Some(value) => out.push_str(&formatted(verb, &flags, value)),
                None => out.push_str(&format!("%!{verb}(MISSING)")),
            },
            None => out.push_str("%!(NOVERB)"),
        }
    }
    out
}

fn formatted(verb: char, flags: &str, value: &Value) -> String {
    let (width, precision) = flags.split_once('.').unwrap_or((flags, ""));
    let left = width.contains('-');
    let zeros = width.trim_start_matches(['+', ' ', '#']).starts_with('0') && !left;
    let width = width.trim_start_matches(['-', '+', '0', ' ', '#']).parse::<usize>().unwrap_or(0).min(10_000);
    let precision = precision.parse::<usize>().ok().map(|precision| precision.min(100));
    let text = match (verb, value) {
        ('q', value) => Value::from(display(value)).to_string(),
        ('x', Value::Number(number)) => format!("{:x}", number.as_i64().unwrap_or(0)),
        ('f', Value::Number(number)) => {
            format!("{:.*}", precision.unwrap_or(6), number.as_f64().unwrap_or(0.0))
        }
        ('s', value) => display(value).chars().take(precision.unwrap_or(usize::MAX)).collect(),
        (_, value) => display(value),
    };
    let missing = width.saturating_sub(text.chars().count());
    let padding = if zeros { "0" } else { " " }.repeat(missing);
    if left { text + &padding } else { padding + &text }
}
