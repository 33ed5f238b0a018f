//! Output bytes of one stream into lines of the CRI log format: `<time> <stream> <F|P> <text>`.
//!
//! A line longer than 16 KiB is split, all parts but the last tagged `P`; so is containerd's habit, and
//! readers join the parts. Bytes are passed on as they are, text or not.

use jiff::Timestamp;

use super::Stream;

/// Longest text in one log line.
const MAX_LINE_BYTES: usize = 16 << 10;

pub(crate) struct LineEncoder {
    stream: Stream,
    /// The beginning of a line whose end has not come yet; shorter than `MAX_LINE_BYTES`.
    pending: Vec<u8>,
    /// The line's first parts are written already.
    continued: bool,
}

impl LineEncoder {
    pub(crate) fn new(stream: Stream) -> Self {
        Self { stream, pending: Vec::new(), continued: false }
    }

    /// Appends the lines that `bytes` completes to `out`.
    pub(crate) fn feed(&mut self, mut bytes: &[u8], now: Timestamp, out: &mut Vec<u8>) {
        let head = format!("{now:.9} {} ", self.stream.name());
        while let Some(end) = bytes.iter().position(|b| *b == b'\n') {
            self.push(&bytes[..end], &head, out);
            write_line(&head, b'F', &self.pending, out);
            self.pending.clear();
            self.continued = false;
            bytes = &bytes[end + 1..];
        }
        self.push(bytes, &head, out);
    }

    /// The stream has ended: an unfinished line is a line too, and stays without its end.
    pub(crate) fn finish(&mut self, now: Timestamp, out: &mut Vec<u8>) {
        if self.pending.is_empty() && !self.continued {
            return;
        }
        let head = format!("{now:.9} {} ", self.stream.name());
        write_line(&head, b'P', &self.pending, out);
        self.pending.clear();
        self.continued = false;
    }

    /// Adds to the unfinished line, writing out what exceeds the limit.
    fn push(&mut self, mut bytes: &[u8], head: &str, out: &mut Vec<u8>) {
        while self.pending.len() + bytes.len() > MAX_LINE_BYTES {
            let (now, later) = bytes.split_at(MAX_LINE_BYTES - self.pending.len());
            self.pending.extend_from_slice(now);
            write_line(head, b'P', &self.pending, out);
            self.pending.clear();
            self.continued = true;
            bytes = later;
        }
        self.pending.extend_from_slice(bytes);
    }
}

fn write_line(head: &str, tag: u8, text: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(head.as_bytes());
    out.extend_from_slice(&[tag, b' ']);
    out.extend_from_slice(text);
    out.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encode(chunks: &[&[u8]]) -> String {
        let now: Timestamp = "2024-02-03T04:05:06.000000007Z".parse().unwrap();
        let mut encoder = LineEncoder::new(Stream::Stdout);
        let mut out = Vec::new();
        for chunk in chunks {
            encoder.feed(chunk, now, &mut out);
        }
        encoder.finish(now, &mut out);
        String::from_utf8(out).unwrap().replace("2024-02-03T04:05:06.000000007Z stdout ", "")
    }

    #[test]
    fn lines_carry_nine_digits_stream_and_tag() {
        let now: Timestamp = "2024-02-03T04:05:06Z".parse().unwrap();
        let mut out = Vec::new();
        LineEncoder::new(Stream::Stderr).feed(b"hi\n", now, &mut out);
        assert_eq!(out, b"2024-02-03T04:05:06.000000000Z stderr F hi\n");
    }

    #[test]
    fn chunks_do_not_show_in_lines() {
        assert_eq!(encode(&[b"a", b"b\nc", b"\n\n"]), "F ab\nF c\nF \n");
    }

    #[test]
    fn unfinished_line_is_written_at_the_end() {
        assert_eq!(encode(&[b"a\nb"]), "F a\nP b\n");
        assert_eq!(encode(&[b"a\n"]), "F a\n");
    }

    #[test]
    fn long_line_is_split_and_nothing_is_lost() {
        let long = vec![b'x'; 2 * MAX_LINE_BYTES + 5];
        let out = encode(&[&long[..100], &long[100..], b"\nend\n"]);
        let tags: Vec<_> = out.lines().map(|l| (l.as_bytes()[0], l.len() - 2)).collect();
        let whole = MAX_LINE_BYTES;
        assert_eq!(tags, [(b'P', whole), (b'P', whole), (b'F', 5), (b'F', 3)]);
    }
}
