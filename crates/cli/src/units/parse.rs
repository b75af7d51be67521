//! Files in systemd's syntax (systemd.syntax(7)): sections, keys, comments, lines that go on; and values of several words.

use super::At;

/// A file.
#[derive(Debug, Default)]
pub(super) struct File {
    pub sections: Vec<Section>,
}

/// A section; one of a name may come again.
#[derive(Debug)]
pub(super) struct Section {
    pub name: String,
    pub line: usize,
    entries: Vec<Entry>,
}

/// A key with its value.
#[derive(Debug)]
pub(super) struct Entry {
    pub key: String,
    pub value: String,
    pub line: usize,
}

impl File {
    /// All entries of a section, in their order.
    pub fn entries<'file>(&'file self, section: &'file str) -> impl Iterator<Item = &'file Entry> {
        let sections = self.sections.iter().filter(move |found| found.name == section);
        sections.flat_map(|section| &section.entries)
    }

    /// The entry of a key that is meant where only one can be.
    pub fn last<'file>(&'file self, section: &'file str, key: &str) -> Option<&'file Entry> {
        self.entries(section).filter(|entry| entry.key == key).last()
    }
}

/// Reads a file.
pub(super) fn file(text: &str) -> Result<File, At> {
    let mut file = File::default();
    for (number, line) in logical_lines(text)? {
        if let Some(name) = line.strip_prefix('[') {
            let name = name.strip_suffix(']').filter(|name| !name.is_empty());
            let name = name.ok_or((number, format!("{line:?} is no section")))?;
            file.sections.push(Section { name: name.to_owned(), line: number, entries: Vec::new() });
            continue;
        }
        let (key, value) =
            line.split_once('=').ok_or((number, format!("{line:?} is neither a section nor KEY=VALUE")))?;
        let key = key.trim_end();
        if key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
            return Err((number, format!("{key:?} is no key")));
        }
        let section = file.sections.last_mut().ok_or((number, "a key before any section".to_owned()))?;
        let value = value.trim_start().to_owned();
        section.entries.push(Entry { key: key.to_owned(), value, line: number });
    }
    Ok(file)
}

/// Lines without comments and empty ones, those put together that go on behind a backslash; each with its number.
fn logical_lines(text: &str) -> Result<Vec<(usize, String)>, At> {
    let mut lines: Vec<(usize, String)> = Vec::new();
    let mut goes_on = false;
    for (number, line) in (1..).zip(text.lines()) {
        if line.chars().any(|letter| letter.is_control() && letter != '\t') {
            return Err((number, "a control character".to_owned()));
        }
        let line = line.trim();
        // Comments may stand between lines that belong together.
        if line.starts_with(['#', ';']) || (line.is_empty() && !goes_on) {
            continue;
        }
        let (part, more) = line.strip_suffix('\\').map_or((line, false), |part| (part.trim_end(), true));
        match lines.last_mut().filter(|_| goes_on) {
            Some((_, whole)) => {
                whole.push(' ');
                whole.push_str(part);
            }
            None => lines.push((number, part.to_owned())),
        }
        goes_on = more;
    }
    Ok(lines)
}

/// The words of a value: separated by space, or within quotation marks, with escapes as in C.
pub(super) fn words(text: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        match (letter, quote) {
            ('\\', _) => word.get_or_insert_default().push(escaped(&mut letters)?),
            (letter, Some(mark)) if letter == mark => quote = None,
            (letter, Some(_)) => word.get_or_insert_default().push(letter),
            ('"' | '\'', None) => {
                quote = Some(letter);
                word.get_or_insert_default();
            }
            (letter, None) if letter.is_whitespace() => words.extend(word.take()),
            (letter, None) => word.get_or_insert_default().push(letter),
        }
    }
    if quote.is_some() {
        return Err("a quotation mark that is not closed".to_owned());
    }
    words.extend(word);
    Ok(words)
}

fn escaped(letters: &mut impl Iterator<Item = char>) -> Result<char, String> {
    let letter = letters.next().ok_or("nothing behind a backslash")?;
    Ok(match letter {
        'n' => '\n',
        't' => '\t',
        'r' => '\r',
        's' => ' ',
        '\\' | '"' | '\'' => letter,
        'x' => {
            let digits: String = letters.by_ref().take(2).collect();
            let code = u8::from_str_radix(&digits, 16).ok().filter(|code| *code != 0 && code.is_ascii());
            code.ok_or_else(|| format!("\\x{digits} is no character"))?.into()
        }
        other => return Err(format!("\\{other} is no escape")),
    })
}
