//! One line of a CRI log file.

use jiff::Timestamp;

use crate::logger::Stream;

pub(super) struct Line<'a> {
    pub(super) time_text: &'a [u8],
    pub(super) stream: Stream,
    /// The next line of the same stream continues this one.
    pub(super) partial: bool,
    pub(super) text: &'a [u8],
}

impl<'a> Line<'a> {
    /// `None` for what no log writer wrote; readers pass over it.
    pub(super) fn parse(raw: &'a [u8]) -> Option<Self> {
        let mut parts = raw.splitn(4, |b| *b == b' ');
        let time_text = parts.next()?;
        let stream = match parts.next()? {
            b"stdout" => Stream::Stdout,
            b"stderr" => Stream::Stderr,
            _ => return None,
        };
        // Tags are separated by colons; the first one is `F` or `P`.
        let partial = parts.next()?.first() == Some(&b'P');
        Some(Self { time_text, stream, partial, text: parts.next()? })
    }

    pub(super) fn time(&self) -> Option<Timestamp> {
        std::str::from_utf8(self.time_text).ok()?.parse().ok()
    }
}
