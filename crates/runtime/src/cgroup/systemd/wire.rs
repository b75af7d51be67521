//! Messages of D-Bus as bytes: of its specification, what calls of systemd need. All of ours are little-endian.

/// Longest message that is read; systemd's are some hundred bytes.
const MAX: usize = 1 << 20;
const LITTLE: u8 = b'l';
const VERSION: u8 = 1;
/// Bytes from which the length of a message can be told.
pub(super) const HEAD: usize = 16;

/// `METHOD_CALL`
pub(super) const CALL: u8 = 1;
/// `METHOD_RETURN`
pub(super) const RETURN: u8 = 2;
/// `ERROR`
pub(super) const ERROR: u8 = 3;
/// `SIGNAL`
pub(super) const SIGNAL: u8 = 4;

const FIELD_PATH: u8 = 1;
const FIELD_INTERFACE: u8 = 2;
const FIELD_MEMBER: u8 = 3;
const FIELD_ERROR: u8 = 4;
const FIELD_REPLY: u8 = 5;
const FIELD_DESTINATION: u8 = 6;
const FIELD_SIGNATURE: u8 = 8;

/// A value of a property of a unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Value {
    /// `s`
    Text(String),
    /// `b`
    Flag(bool),
    /// `i`
    Signed(i32),
    /// `u`
    Short(u32),
    /// `t`
    Number(u64),
    /// `au`
    Numbers(Vec<u32>),
    /// `ay`
    Bytes(Vec<u8>),
    /// `a(ss)`
    Pairs(Vec<(String, String)>),
}

impl Value {
    fn signature(&self) -> &'static str {
        match self {
            Self::Text(_) => "s",
            Self::Flag(_) => "b",
            Self::Signed(_) => "i",
            Self::Short(_) => "u",
            Self::Number(_) => "t",
            Self::Numbers(_) => "au",
            Self::Bytes(_) => "ay",
            Self::Pairs(_) => "a(ss)",
        }
    }
}

/// A property and its value.
pub(crate) type Property = (String, Value);

/// Bytes of a message, aligned as they are written.
#[derive(Debug, Default)]
pub(super) struct Writer(Vec<u8>);

impl Writer {
    fn align(&mut self, to: usize) {
        self.0.resize(self.0.len().next_multiple_of(to), 0);
    }

    pub(super) fn short(&mut self, number: u32) {
        self.align(4);
        self.0.extend(number.to_le_bytes());
    }

    pub(super) fn flag(&mut self, flag: bool) {
        self.short(u32::from(flag));
    }

    pub(super) fn text(&mut self, text: &str) {
        self.short(text.len() as u32);
        self.0.extend(text.as_bytes());
        self.0.push(0);
    }

    fn signature(&mut self, signature: &str) {
        self.0.push(signature.len() as u8);
        self.0.extend(signature.as_bytes());
        self.0.push(0);
    }

    /// An array of elements with this alignment.
    pub(super) fn array(&mut self, alignment: usize, write: impl FnOnce(&mut Self)) {
        self.short(0);
        let length_at = self.0.len() - 4;
        // What stands before the first element does not count.
        self.align(alignment);
        let begin = self.0.len();
        write(self);
        let length = (self.0.len() - begin) as u32;
        self.0[length_at..length_at + 4].copy_from_slice(&length.to_le_bytes());
    }

    fn variant(&mut self, value: &Value) {
        self.signature(value.signature());
        match value {
            Value::Text(text) => self.text(text),
            Value::Flag(flag) => self.flag(*flag),
            Value::Signed(number) => self.short(*number as u32),
            Value::Short(number) => self.short(*number),
            Value::Number(number) => {
                self.align(8);
                self.0.extend(number.to_le_bytes());
            }
            Value::Numbers(numbers) => self.array(4, |own| numbers.iter().for_each(|n| own.short(*n))),
            Value::Bytes(bytes) => self.array(1, |own| own.0.extend(bytes)),
            Value::Pairs(pairs) => self.array(8, |own| {
                for (first, second) in pairs {
                    own.align(8);
                    own.text(first);
                    own.text(second);
                }
            }),
        }
    }

    /// `a(sv)`
    pub(super) fn properties(&mut self, properties: &[Property]) {
        self.array(8, |own| {
            for (name, value) in properties {
                own.align(8);
                own.text(name);
                own.variant(value);
            }
        });
    }

    fn field(&mut self, code: u8, signature: &str, text: &str) {
        self.align(8);
        self.0.push(code);
        self.signature(signature);
        if signature == "g" { self.signature(text) } else { self.text(text) }
    }
}

/// Whom a call is for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Target {
    pub destination: &'static str,
    pub path: &'static str,
    pub interface: &'static str,
}

/// A call, ready to be sent. `signature` is that of what `body` holds.
pub(super) fn call(target: &Target, member: &str, serial: u32, signature: &str, body: Writer) -> Vec<u8> {
    let mut message = Writer(vec![LITTLE, CALL, 0, VERSION]);
    message.short(body.0.len() as u32);
    message.short(serial);
    message.array(8, |fields| {
        fields.field(FIELD_PATH, "o", target.path);
        fields.field(FIELD_INTERFACE, "s", target.interface);
        fields.field(FIELD_MEMBER, "s", member);
        fields.field(FIELD_DESTINATION, "s", target.destination);
        if !signature.is_empty() {
            fields.field(FIELD_SIGNATURE, "g", signature);
        }
    });
    message.align(8);
    message.0.extend(body.0);
    message.0
}

/// A message that came.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Message {
    pub kind: u8,
    pub reply_to: u32,
    pub error: String,
    pub member: String,
    /// What stands in the body, up to the first value that is no number, text or variant of a text.
    pub texts: Vec<String>,
}

/// How long a message is, from its first bytes; `None` if it is none that we read.
pub(super) fn length(head: &[u8; HEAD]) -> Option<usize> {
    let number =
        |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]) as usize;
    let (body, fields) = (number(4), number(12));
    let is_ours = head[0] == LITTLE && head[3] == VERSION && body <= MAX && fields <= MAX;
    is_ours.then(|| (HEAD + fields).next_multiple_of(8) + body)
}

/// Reads a whole message; `None` if it is broken.
pub(super) fn parse(bytes: &[u8]) -> Option<Message> {
    let mut reader = Reader { bytes, at: 12 };
    let mut message = Message { kind: *bytes.get(1)?, ..Message::default() };
    let end = reader.short()? as usize + HEAD;
    let mut signature = String::new();
    while reader.at < end {
        reader.align(8);
        let code = reader.byte()?;
        let kind = reader.signature()?;
        let (mut text, mut number) = (String::new(), 0);
        match kind.as_str() {
            "s" | "o" => text = reader.text()?,
            "g" => text = reader.signature()?,
            "u" => number = reader.short()?,
            _ => return None,
        }
        match code {
            FIELD_MEMBER => message.member = text,
            FIELD_ERROR => message.error = text,
            FIELD_REPLY => message.reply_to = number,
            FIELD_SIGNATURE => signature = text,
            _ => {}
        }
    }
    reader.align(8);
    for kind in signature.chars() {
        match kind {
            'u' => drop(reader.short()?),
            's' | 'o' => message.texts.push(reader.text()?),
            'v' if reader.signature()? == "s" => message.texts.push(reader.text()?),
            _ => break,
        }
    }
    Some(message)
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn align(&mut self, to: usize) {
        self.at = self.at.next_multiple_of(to);
    }

    fn byte(&mut self) -> Option<u8> {
        self.at += 1;
        self.bytes.get(self.at - 1).copied()
    }

    fn short(&mut self) -> Option<u32> {
        self.align(4);
        let bytes = self.bytes.get(self.at..self.at + 4)?.try_into().ok()?;
        self.at += 4;
        Some(u32::from_le_bytes(bytes))
    }

    fn text(&mut self) -> Option<String> {
        let length = self.short()? as usize;
        self.terminated(length)
    }

    fn signature(&mut self) -> Option<String> {
        let length = usize::from(self.byte()?);
        self.terminated(length)
    }

    fn terminated(&mut self, length: usize) -> Option<String> {
        let text = self.bytes.get(self.at..self.at.checked_add(length)?)?;
        self.at += length + 1;
        String::from_utf8(text.to_vec()).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGET: Target = Target { destination: "org.x", path: "/x", interface: "org.x.Y" };

    /// By hand from the specification.
    #[test]
    fn a_call_is_laid_out_as_specified() {
        let mut body = Writer::default();
        body.text("ab");
        let bytes = call(&TARGET, "Do", 7, "s", body);
        let mut expected = b"l\x01\0\x01\x07\0\0\0\x07\0\0\0\x47\0\0\0".to_vec();
        expected.extend(b"\x01\x01o\0\x02\0\0\0/x\0\0\0\0\0\0");
        expected.extend(b"\x02\x01s\0\x07\0\0\0org.x.Y\0");
        expected.extend(b"\x03\x01s\0\x02\0\0\0Do\0\0\0\0\0\0");
        expected.extend(b"\x06\x01s\0\x05\0\0\0org.x\0\0\0");
        expected.extend(b"\x08\x01g\0\x01s\0");
        // The header says how long its fields are, and ends at a multiple of 8.
        assert_eq!(expected.len(), 16 + 0x47);
        expected.push(0);
        expected.extend(b"\x02\0\0\0ab\0");
        assert_eq!(bytes, expected, "{}", bytes.escape_ascii());
        assert_eq!(length(bytes[..HEAD].try_into().unwrap()), Some(bytes.len()));
        let message = parse(&bytes).unwrap();
        assert_eq!((message.kind, message.member.as_str()), (CALL, "Do"));
        assert_eq!(message.texts, ["ab"]);
    }

    #[test]
    fn arrays_do_not_count_what_aligns_them() {
        let mut body = Writer::default();
        body.properties(&[("P".into(), Value::Numbers(vec![5])), ("Q".into(), Value::Number(6))]);
        let expected = b"\x30\0\0\0\0\0\0\0\x01\0\0\0P\0\x02au\0\0\0\x04\0\0\0\x05\0\0\0\0\0\0\0\
                         \x01\0\0\0Q\0\x01t\0\0\0\0\0\0\0\0\x06\0\0\0\0\0\0\0";
        assert_eq!(body.0, expected, "{}", body.0.escape_ascii());
    }

    #[test]
    fn what_is_broken_is_not_read() {
        let mut body = Writer::default();
        body.text("ab");
        let bytes = call(&TARGET, "Do", 7, "s", body);
        for length in 0..bytes.len() - 1 {
            assert!(parse(&bytes[..length]).is_none(), "{length}");
        }
        let head = |change: fn(&mut [u8; HEAD])| {
            let mut head: [u8; HEAD] = bytes[..HEAD].try_into().unwrap();
            change(&mut head);
            length(&head)
        };
        assert!(head(|head| head[0] = b'B').is_none());
        assert!(head(|head| head[7] = 0xff).is_none());
        assert!(head(|head| head[15] = 0xff).is_none());
    }
}
