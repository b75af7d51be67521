//! From text to nodes.

/// Most blocks and parentheses inside each other.
const MAX_DEPTH: usize = 100;

/// A piece of a template.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Node {
    /// As it is.
    Text(String),
    /// `{{pipeline}}`, or `{{$x := pipeline}}`, which prints nothing.
    Action(Binding, Pipeline),
    /// `{{if}}`, `{{with}}` and `{{range}}`: pipeline, body, and what follows `{{else}}`.
    Block(BlockKind, Binding, Pipeline, Vec<Node>, Vec<Node>),
}

/// What a block does with its pipeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BlockKind {
    If,
    With,
    Range,
}

/// Variables that take the pipeline's value: at most two, in `range`.
pub(super) type Binding = Vec<String>;

/// Commands, each of which gets the value of the one before as its last argument.
pub(super) type Pipeline = Vec<Vec<Term>>;

/// An operand.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Term {
    /// `"text"`, `12`, `true`.
    Constant(serde_json::Value),
    /// `.A.B`, from the current document.
    Field(Vec<String>),
    /// `$x.A.B`; the name of `$` is empty.
    Variable(String, Vec<String>),
    /// `(pipeline).A.B`
    Group(Pipeline, Vec<String>),
    /// A function's name.
    Function(String),
}

type Parsed<T> = Result<T, String>;

pub(super) fn parse(text: &str) -> Parsed<Vec<Node>> {
    let pieces = split(text)?;
    let mut parser = Blocks { pieces: pieces.into_iter().peekable(), depth: 0 };
    let nodes = parser.nodes()?;
    match parser.pieces.next() {
        None => Ok(nodes),
        Some(Piece::Action(action)) => Err(format!("unexpected {{{{{}}}}}", action.trim())),
        Some(Piece::Text(_)) => Err("text where none can be".into()),
    }
}

enum Piece {
    Text(String),
    Action(String),
}

/// Splits text from actions, and trims as `{{-` and `-}}` ask.
fn split(text: &str) -> Parsed<Vec<Piece>> {
    let mut pieces = Vec::new();
    let mut rest = text;
    let mut trim_next = false;
    loop {
        let (before, after) = match rest.split_once("{{") {
            Some((before, after)) => (before, Some(after)),
            None => (rest, None),
        };
        let mut before = if trim_next { before.trim_start() } else { before };
        let action =
            after.map(|after| action_length(after).map(|length| after.split_at(length))).transpose()?;
        let mut body = "";
        if let Some((inside, _)) = action {
            body = inside;
            if let Some(inner) = body.strip_prefix("- ") {
                before = before.trim_end();
                body = inner;
            }
        }
        if !before.is_empty() {
            pieces.push(Piece::Text(before.to_owned()));
        }
        let Some((_, tail)) = action else { return Ok(pieces) };
        trim_next = body.ends_with(" -");
        if trim_next {
            body = &body[..body.len() - 2];
        }
        let comment = body.trim_start().starts_with("/*") && body.trim_end().ends_with("*/");
        if !comment {
            pieces.push(Piece::Action(body.to_owned()));
        }
        rest = &tail[2..];
    }
}

/// Bytes up to the `}}` that ends an action; those in strings do not.
fn action_length(text: &str) -> Parsed<usize> {
    let mut quote = None;
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate() {
        match quote {
            Some(_) if escaped => escaped = false,
            Some(b'"') if byte == b'\\' => escaped = true,
            Some(open) if byte == open => quote = None,
            Some(_) => {}
            None if byte == b'"' || byte == b'`' => quote = Some(byte),
            None if text[at..].starts_with("}}") => return Ok(at),
            None => {}
        }
    }
    Err(if quote.is_some() { "unterminated string".into() } else { "unclosed action".into() })
}

struct Blocks<I: Iterator<Item = Piece>> {
    pieces: std::iter::Peekable<I>,
    depth: usize,
}

fn keyword(action: &str) -> (&str, &str) {
    let action = action.trim();
    let end = action.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(action.len());
    (&action[..end], action[end..].trim_start())
}

impl<I: Iterator<Item = Piece>> Blocks<I> {
    /// Nodes up to an `else` or `end`, which is left.
    fn nodes(&mut self) -> Parsed<Vec<Node>> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(format!("more than {MAX_DEPTH} blocks inside each other"));
        }
        let mut nodes = Vec::new();
        while let Some(piece) = self.pieces.peek() {
            if let Piece::Action(action) = piece
                && matches!(keyword(action).0, "else" | "end")
            {
                break;
            }
            match self.pieces.next() {
                Some(Piece::Text(text)) => nodes.push(Node::Text(text)),
                Some(Piece::Action(action)) => nodes.push(self.action(&action)?),
                None => {}
            }
        }
        self.depth -= 1;
        Ok(nodes)
    }

    fn action(&mut self, action: &str) -> Parsed<Node> {
        let (word, rest) = keyword(action);
        let kind = match word {
            "if" => BlockKind::If,
            "with" => BlockKind::With,
            "range" => BlockKind::Range,
            _ => {
                let (binding, pipeline) = pipeline(action)?;
                return Ok(Node::Action(binding, pipeline));
            }
        };
        self.block(kind, rest)
    }

    fn block(&mut self, kind: BlockKind, head: &str) -> Parsed<Node> {
        let (binding, pipeline) = pipeline(head)?;
        let body = self.nodes()?;
        let (word, rest) = self.next_keyword()?;
        if word == "end" {
            return Ok(Node::Block(kind, binding, pipeline, body, Vec::new()));
        }
        let (inner, head) = keyword(&rest);
        let inner = match inner {
            "if" => Some(BlockKind::If),
            "with" => Some(BlockKind::With),
            _ => None,
        };
        let otherwise = match inner {
            // The `end` of an `else if` is the whole block's.
            Some(inner) => vec![self.nested(inner, head)?],
            None => {
                let nodes = self.nodes()?;
                if self.next_keyword()?.0 != "end" {
                    return Err("a block has two {{else}}".into());
                }
                nodes
            }
        };
        Ok(Node::Block(kind, binding, pipeline, body, otherwise))
    }

    fn nested(&mut self, kind: BlockKind, head: &str) -> Parsed<Node> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(format!("more than {MAX_DEPTH} blocks inside each other"));
        }
        let node = self.block(kind, head);
        self.depth -= 1;
        node
    }

    fn next_keyword(&mut self) -> Parsed<(String, String)> {
        match self.pieces.next() {
            Some(Piece::Action(action)) => {
                let (word, rest) = keyword(&action);
                Ok((word.to_owned(), rest.to_owned()))
            }
            _ => Err("a block has no {{end}}".into()),
        }
    }
}

/// Reads `[$a[, $b] :=] command [| command]…`.
fn pipeline(text: &str) -> Parsed<(Binding, Pipeline)> {
    let tokens = tokens(text)?;
    let mut parser = Terms { tokens: &tokens, at: 0, depth: 0 };
    let binding = parser.binding()?;
    let pipeline = parser.pipeline()?;
    match parser.peek() {
        None => Ok((binding, pipeline)),
        Some(token) => Err(format!("unexpected {token:?}")),
    }
}

#[derive(Debug, Clone, PartialEq)]
enum Token {
    Open,
    Close,
    Pipe,
    Comma,
    Assign,
    Constant(serde_json::Value),
    /// `.A.B`; `.` alone has no parts. The flag tells that it follows without a space.
    Field(Vec<String>, bool),
    Variable(String),
    Word(String),
}

fn tokens(text: &str) -> Parsed<Vec<Token>> {
    let mut tokens = Vec::new();
    let mut rest = text;
    let mut joined = false;
    while let Some(first) = rest.chars().next() {
        if first.is_whitespace() {
            rest = &rest[first.len_utf8()..];
            joined = false;
            continue;
        }
        let (token, length) = token(rest, first, joined)?;
        tokens.push(token);
        rest = &rest[length..];
        joined = true;
    }
    Ok(tokens)
}

fn token(rest: &str, first: char, joined: bool) -> Parsed<(Token, usize)> {
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    let name = |text: &str| text.find(|c: char| !is_name(c)).unwrap_or(text.len());
    Ok(match first {
        '(' => (Token::Open, 1),
        ')' => (Token::Close, 1),
        '|' => (Token::Pipe, 1),
        ',' => (Token::Comma, 1),
        ':' if rest.starts_with(":=") => (Token::Assign, 2),
        '=' => (Token::Assign, 1),
        '"' => {
            let length = quoted_length(rest)?;
            let text = serde_json::from_str::<String>(&rest[..length]);
            (Token::Constant(text.map_err(|error| format!("bad string: {error}"))?.into()), length)
        }
        '`' => {
            let length = rest[1..].find('`').ok_or("unterminated string")? + 2;
            (Token::Constant(rest[1..length - 1].into()), length)
        }
        '$' => {
            let length = name(&rest[1..]);
            (Token::Variable(rest[1..=length].to_owned()), length + 1)
        }
        '.' => {
            let length = rest.find(|c: char| !is_name(c) && c != '.').unwrap_or(rest.len());
            let parts =
                rest[1..length].split('.').filter(|part| !part.is_empty()).map(str::to_owned).collect();
            (Token::Field(parts, joined), length)
        }
        '-' | '+' | '0'..='9' => {
            let length = rest[1..]
                .find(|c: char| !c.is_ascii_alphanumeric() && c != '.')
                .map_or(rest.len(), |at| at + 1);
            let number = rest[..length].trim_start_matches('+');
            let value = serde_json::from_str(number).map_err(|_| format!("bad number {number:?}"))?;
            (Token::Constant(value), length)
        }
        _ if is_name(first) => {
            let length = name(rest);
            let token = match &rest[..length] {
                "true" => Token::Constant(true.into()),
                "false" => Token::Constant(false.into()),
                "nil" => Token::Constant(serde_json::Value::Null),
                word => Token::Word(word.to_owned()),
            };
            (token, length)
        }
        other => return Err(format!("unexpected {other:?}")),
    })
}

fn quoted_length(text: &str) -> Parsed<usize> {
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return Ok(at + 1),
            _ => {}
        }
    }
    Err("unterminated string".into())
}

struct Terms<'a> {
    tokens: &'a [Token],
    at: usize,
    depth: usize,
}

impl Terms<'_> {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at)
    }

    fn next(&mut self) -> Option<Token> {
        self.at += 1;
        self.tokens.get(self.at - 1).cloned()
    }

    fn binding(&mut self) -> Parsed<Binding> {
        let names = match self.tokens {
            [Token::Variable(one), Token::Assign, ..] => vec![one.clone()],
            [Token::Variable(one), Token::Comma, Token::Variable(two), Token::Assign, ..] => {
                vec![one.clone(), two.clone()]
            }
            _ => return Ok(Vec::new()),
        };
        self.at = names.len() * 2;
        Ok(names)
    }

    fn pipeline(&mut self) -> Parsed<Pipeline> {
        let mut commands = Vec::new();
        loop {
            let mut terms = Vec::new();
            while let Some(term) = self.term()? {
                terms.push(term);
            }
            if terms.is_empty() {
                return Err("missing value".into());
            }
            commands.push(terms);
            if self.peek() != Some(&Token::Pipe) {
                return Ok(commands);
            }
            self.at += 1;
        }
    }

    fn term(&mut self) -> Parsed<Option<Term>> {
        let term = match self.peek() {
            None | Some(Token::Pipe | Token::Close) => return Ok(None),
            Some(_) => self.next(),
        };
        Ok(Some(match term {
            Some(Token::Constant(value)) => Term::Constant(value),
            Some(Token::Field(parts, _)) => Term::Field(parts),
            Some(Token::Word(word)) => Term::Function(word),
            Some(Token::Variable(name)) => Term::Variable(name, self.trailing_fields()),
            Some(Token::Open) => {
                self.depth += 1;
                if self.depth > MAX_DEPTH {
                    return Err(format!("more than {MAX_DEPTH} parentheses inside each other"));
                }
                let pipeline = self.pipeline()?;
                self.depth -= 1;
                if self.next() != Some(Token::Close) {
                    return Err("an unclosed (".into());
                }
                Term::Group(pipeline, self.trailing_fields())
            }
            other => return Err(format!("unexpected {other:?}")),
        }))
    }

    fn trailing_fields(&mut self) -> Vec<String> {
        match self.peek() {
            Some(Token::Field(parts, true)) => {
                let parts = parts.clone();
                self.at += 1;
                parts
            }
            _ => Vec::new(),
        }
    }
}
