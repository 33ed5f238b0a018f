//! D-Bus messages, as much of them as a client of logind needs: headers, and bodies of basic types.
//!
//! Follows the D-Bus specification, "Message Protocol". A bus passes on what its clients have written, in either order of
//! bytes and of any size: what is not waited for is read as far as it takes to pass it over.

/// A message that is larger is none that is waited for: its header alone is read.
pub const MAX_BYTES: usize = 1 << 20;
/// The specification's.
const MAX_MESSAGE_BYTES: usize = 1 << 27;
const FIXED_HEADER_BYTES: usize = 16;
const LITTLE_ENDIAN: u8 = b'l';
const BIG_ENDIAN: u8 = b'B';
const PROTOCOL_VERSION: u8 = 1;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    #[default]
    Call = 1,
    Return = 2,
    Error = 3,
    Signal = 4,
    /// Of a later version: to be ignored.
    Unknown = 0,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    pub kind: Kind,
    pub serial: u32,
    pub reply_serial: Option<u32>,
    pub path: String,
    pub interface: String,
    pub member: String,
    pub destination: String,
    /// The connection that it is from; the bus sees to that.
    pub sender: String,
    /// Of an error.
    pub error: String,
    pub body: Vec<Value>,
    /// File descriptors that come with it.
    pub fds: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    Bool(bool),
    I32(i32),
    U32(u32),
    U64(u64),
    Text(String),
    /// Index of a file descriptor that came with the message.
    Fd(u32),
    Variant(Box<Value>),
}

impl Value {
    fn signature(&self) -> char {
        match self {
            Self::Bool(_) => 'b',
            Self::I32(_) => 'i',
            Self::U32(_) => 'u',
            Self::U64(_) => 't',
            Self::Text(_) => 's',
            Self::Fd(_) => 'h',
            Self::Variant(_) => 'v',
        }
    }
}

/// Numbers of header fields.
mod field {
    pub(super) const PATH: u8 = 1;
    pub(super) const INTERFACE: u8 = 2;
    pub(super) const MEMBER: u8 = 3;
    pub(super) const ERROR: u8 = 4;
    pub(super) const REPLY_SERIAL: u8 = 5;
    pub(super) const DESTINATION: u8 = 6;
    pub(super) const SENDER: u8 = 7;
    pub(super) const SIGNATURE: u8 = 8;
    pub(super) const FDS: u8 = 9;
}

#[derive(Default)]
struct Writer(Vec<u8>);

impl Writer {
    fn align(&mut self, to: usize) {
        self.0.resize(self.0.len().next_multiple_of(to), 0);
    }

    fn u32(&mut self, value: u32) {
        self.align(4);
        self.0.extend(value.to_le_bytes());
    }

    fn text(&mut self, text: &str) {
        self.u32(text.len() as u32);
        self.0.extend(text.as_bytes());
        self.0.push(0);
    }

    fn signature(&mut self, signature: &str) {
        self.0.push(signature.len() as u8);
        self.0.extend(signature.as_bytes());
        self.0.push(0);
    }

    fn value(&mut self, value: &Value) {
        match value {
            Value::Bool(value) => self.u32(u32::from(*value)),
            Value::I32(value) => {
                self.align(4);
                self.0.extend(value.to_le_bytes());
            }
            Value::U32(value) | Value::Fd(value) => self.u32(*value),
            Value::U64(value) => {
                self.align(8);
                self.0.extend(value.to_le_bytes());
            }
            Value::Text(text) => self.text(text),
            Value::Variant(value) => {
                self.signature(&value.signature().to_string());
                self.value(value);
            }
        }
    }

    /// A header field: its number, and a variant of that type.
    fn field(&mut self, number: u8, signature: &str, write: impl FnOnce(&mut Self)) {
        self.align(8);
        self.0.push(number);
        self.signature(signature);
        write(self);
    }
}

/// The message's bytes.
pub fn encode(message: &Message) -> Vec<u8> {
    let mut body = Writer::default();
    message.body.iter().for_each(|value| body.value(value));
    let mut out = Writer(vec![LITTLE_ENDIAN, message.kind as u8, 0, PROTOCOL_VERSION]);
    out.u32(body.0.len() as u32);
    out.u32(message.serial);
    let length_at = out.0.len();
    out.u32(0);
    let texts = [
        (field::PATH, "o", &message.path),
        (field::INTERFACE, "s", &message.interface),
        (field::MEMBER, "s", &message.member),
        (field::ERROR, "s", &message.error),
        (field::DESTINATION, "s", &message.destination),
        (field::SENDER, "s", &message.sender),
    ];
    for (number, signature, text) in texts.into_iter().filter(|(.., text)| !text.is_empty()) {
        out.field(number, signature, |out| out.text(text));
    }
    if let Some(serial) = message.reply_serial {
        out.field(field::REPLY_SERIAL, "u", |out| out.u32(serial));
    }
    if !message.body.is_empty() {
        let signature: String = message.body.iter().map(Value::signature).collect();
        out.field(field::SIGNATURE, "g", |out| out.signature(&signature));
    }
    if message.fds > 0 {
        out.field(field::FDS, "u", |out| out.u32(message.fds));
    }
    let fields_length = (out.0.len() - length_at - 4) as u32;
    out.0[length_at..length_at + 4].copy_from_slice(&fields_length.to_le_bytes());
    out.align(8);
    out.0.extend(body.0);
    out.0
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    is_big_endian: bool,
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], String> {
        let end = self.at.checked_add(count).filter(|end| *end <= self.bytes.len());
        let end = end.ok_or("a D-Bus message ends too early")?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn align(&mut self, to: usize) -> Result<(), String> {
        let padding = self.at.next_multiple_of(to) - self.at;
        self.take(padding).map(drop)
    }

    fn u8(&mut self) -> Result<u8, String> {
        Ok(self.take(1)?[0])
    }

    fn u32(&mut self) -> Result<u32, String> {
        self.align(4)?;
        let mut bytes = [0; 4];
        bytes.copy_from_slice(self.take(4)?);
        Ok(if self.is_big_endian { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) })
    }

    fn u64(&mut self) -> Result<u64, String> {
        self.align(8)?;
        let mut bytes = [0; 8];
        bytes.copy_from_slice(self.take(8)?);
        Ok(if self.is_big_endian { u64::from_be_bytes(bytes) } else { u64::from_le_bytes(bytes) })
    }

    fn string(&mut self, length: usize) -> Result<String, String> {
        let text = String::from_utf8_lossy(self.take(length)?).into_owned();
        self.take(1)?;
        Ok(text)
    }

    fn text(&mut self) -> Result<String, String> {
        let length = self.u32()? as usize;
        self.string(length)
    }

    fn signature(&mut self) -> Result<String, String> {
        let length = usize::from(self.u8()?);
        self.string(length)
    }

    fn value(&mut self, signature: char) -> Result<Value, String> {
        Ok(match signature {
            'b' => Value::Bool(self.u32()? != 0),
            'i' => Value::I32(self.u32()?.cast_signed()),
            'u' => Value::U32(self.u32()?),
            't' => Value::U64(self.u64()?),
            's' | 'o' => Value::Text(self.text()?),
            'g' => Value::Text(self.signature()?),
            'h' => Value::Fd(self.u32()?),
            'v' => {
                let inner = self.signature()?;
                let mut types = inner.chars();
                match (types.next(), types.next()) {
                    // A variant in a variant could be nested without end, and none is waited for.
                    (Some(one), None) if one != 'v' => Value::Variant(Box::new(self.value(one)?)),
                    _ => return Err(format!("a D-Bus variant of type {inner:?} is not read")),
                }
            }
            other => return Err(format!("a D-Bus value of type {other:?} is not read")),
        })
    }
}

/// Bytes of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Length {
    /// With the padding before the body.
    pub header: usize,
    pub whole: usize,
}

/// What a message's first 16 bytes say of its length; `None` of fewer.
///
/// # Errors
/// The end of the message cannot be found, or nobody may send so much.
pub fn length(head: &[u8]) -> Result<Option<Length>, String> {
    if head.len() < FIXED_HEADER_BYTES {
        return Ok(None);
    }
    if ![LITTLE_ENDIAN, BIG_ENDIAN].contains(&head[0]) || head[3] != PROTOCOL_VERSION {
        return Err("a D-Bus message of another version".to_owned());
    }
    let mut reader = Reader { bytes: head, at: 4, is_big_endian: head[0] == BIG_ENDIAN };
    let body = reader.u32()? as usize;
    reader.at = 12;
    let fields = reader.u32()? as usize;
    let header = fields.saturating_add(FIXED_HEADER_BYTES).checked_next_multiple_of(8);
    let header = header.filter(|header| *header <= MAX_BYTES);
    let header =
        header.ok_or_else(|| format!("a D-Bus message with a header of more than {MAX_BYTES} bytes"))?;
    match header.checked_add(body).filter(|whole| *whole <= MAX_MESSAGE_BYTES) {
        Some(whole) => Ok(Some(Length { header, whole })),
        None => Err(format!("a D-Bus message of more than {MAX_MESSAGE_BYTES} bytes")),
    }
}

/// Reads a whole message, or the header of one. Of a body with types that are not read, what comes before them.
pub fn decode(bytes: &[u8]) -> Result<Message, String> {
    let length = length(bytes)?.filter(|length| [length.header, length.whole].contains(&bytes.len()));
    length.ok_or("a D-Bus message of another length than it says")?;
    let mut message = Message {
        kind: match bytes[1] {
            1 => Kind::Call,
            2 => Kind::Return,
            3 => Kind::Error,
            4 => Kind::Signal,
            _ => Kind::Unknown,
        },
        ..Message::default()
    };
    let is_big_endian = bytes[0] == BIG_ENDIAN;
    let mut reader = Reader { bytes, at: 8, is_big_endian };
    message.serial = reader.u32()?;
    let fields_end = reader.u32()? as usize + FIXED_HEADER_BYTES;
    let mut signature = String::new();
    while reader.at < fields_end {
        reader.align(8)?;
        let number = reader.u8()?;
        let of = reader.signature()?;
        let value = reader.value(of.chars().next().unwrap_or_default())?;
        match (number, value) {
            (field::PATH, Value::Text(text)) => message.path = text,
            (field::INTERFACE, Value::Text(text)) => message.interface = text,
            (field::MEMBER, Value::Text(text)) => message.member = text,
            (field::ERROR, Value::Text(text)) => message.error = text,
            (field::DESTINATION, Value::Text(text)) => message.destination = text,
            (field::SENDER, Value::Text(text)) => message.sender = text,
            (field::SIGNATURE, Value::Text(text)) => signature = text,
            (field::REPLY_SERIAL, Value::U32(serial)) => message.reply_serial = Some(serial),
            (field::FDS, Value::U32(count)) => message.fds = count,
            _ => {}
        }
    }
    reader.align(8)?;
    let mut body = Reader { bytes: &bytes[reader.at..], at: 0, is_big_endian };
    for of in signature.chars() {
        match body.value(of) {
            Ok(value) => message.body.push(value),
            Err(_) => break,
        }
    }
    Ok(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call() -> Message {
        Message {
            kind: Kind::Call,
            serial: 7,
            path: "/org/freedesktop/login1".into(),
            interface: "org.freedesktop.login1.Manager".into(),
            member: "Inhibit".into(),
            destination: "org.freedesktop.login1".into(),
            sender: ":1.7".into(),
            body: vec![
                Value::Text("shutdown".into()),
                Value::Bool(true),
                Value::U64(1 << 40),
                Value::I32(-1),
                Value::Variant(Box::new(Value::U64(5))),
                Value::Fd(0),
            ],
            fds: 1,
            ..Message::default()
        }
    }

    #[test]
    fn what_was_written_is_read_again() {
        let answer = Message { kind: Kind::Return, reply_serial: Some(7), ..Message::default() };
        for message in [call(), answer, Message { kind: Kind::Signal, ..call() }] {
            let bytes = encode(&message);
            let told = length(&bytes[..16]).expect("a message").expect("its length");
            assert_eq!(told.whole, bytes.len());
            assert_eq!(length(&bytes), Ok(Some(told)));
            assert_eq!(length(&bytes[..15]), Ok(None));
            let header = Message { body: Vec::new(), ..message.clone() };
            assert_eq!(decode(&bytes[..told.header]), Ok(header));
            assert_eq!(decode(&bytes), Ok(message));
        }
    }

    /// As `dbus-monitor --binary` has it of `Hello`.
    #[test]
    fn bytes_are_those_of_the_specification() {
        let hello = Message {
            serial: 1,
            path: "/org/freedesktop/DBus".into(),
            interface: "org.freedesktop.DBus".into(),
            member: "Hello".into(),
            destination: "org.freedesktop.DBus".into(),
            ..Message::default()
        };
        let expected = b"l\x01\x00\x01\x00\x00\x00\x00\x01\x00\x00\x00\x6d\x00\x00\x00\
            \x01\x01o\x00\x15\x00\x00\x00/org/freedesktop/DBus\x00\x00\x00\
            \x02\x01s\x00\x14\x00\x00\x00org.freedesktop.DBus\x00\x00\x00\x00\
            \x03\x01s\x00\x05\x00\x00\x00Hello\x00\x00\x00\
            \x06\x01s\x00\x14\x00\x00\x00org.freedesktop.DBus\x00\x00\x00\x00";
        let bytes = encode(&hello);
        assert_eq!(bytes[..12], expected[..12]);
        assert_eq!(bytes[16..], expected[16..]);
        assert_eq!(decode(&bytes), Ok(hello));
    }

    #[test]
    fn damage_is_an_error_and_never_a_panic() {
        let bytes = encode(&call());
        for at in 0..bytes.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut damaged = bytes.clone();
                damaged[at] = value;
                let _ = decode(&damaged);
                let _ = decode(&damaged[..at]);
            }
        }
        let mut other = bytes;
        other[3] = 2;
        assert!(decode(&other).is_err());
    }

    #[test]
    fn other_order_of_bytes_is_read_and_other_kinds_are_known_as_such() {
        // A signal with serial 9 and `true`.
        let mut bytes = b"B\x04\x00\x01\x00\x00\x00\x04\x00\x00\x00\x09\x00\x00\x00\x07\
            \x08\x01g\x00\x01b\x00\x00\x00\x00\x00\x01"
            .to_vec();
        let signal =
            Message { kind: Kind::Signal, serial: 9, body: vec![Value::Bool(true)], ..Message::default() };
        assert_eq!(decode(&bytes), Ok(signal.clone()));
        bytes[1] = 9;
        assert_eq!(decode(&bytes), Ok(Message { kind: Kind::Unknown, ..signal }));
    }
}
