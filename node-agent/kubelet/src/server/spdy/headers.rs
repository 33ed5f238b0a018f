//! Header blocks: names and values, compressed with one zlib stream for each direction of a connection.

use flate2::{Decompress, FlushDecompress, Status};

use super::{Error, dictionary};

pub type Headers = Vec<(String, String)>;

/// Largest header block, uncompressed: streams of Kubernetes carry a handful of short headers.
const MAX_BLOCK_BYTES: usize = 64 << 10;

/// Reads the header blocks of one direction.
pub(super) struct HeaderDecoder {
    inflater: Decompress,
    started: bool,
}

impl HeaderDecoder {
    pub(super) fn new() -> Self {
        // Raw, because the inflater in pure Rust takes no dictionary: the head of the zlib stream is read
        // here, and the dictionary given to it as data that came before.
        Self { inflater: Decompress::new(false), started: false }
    }

    pub(super) fn decode(&mut self, mut block: &[u8]) -> Result<Headers, Error> {
        if !self.started {
            block = self.start(block)?;
        }
        let text = self.inflate(block)?;
        parse(&text)
    }

    /// Checks the head of the zlib stream (RFC 1950) and returns what follows it.
    fn start<'a>(&mut self, block: &'a [u8]) -> Result<&'a [u8], Error> {
        let [method, flags, rest @ ..] = block else { return Err(Error::Headers("short")) };
        if method & 0x0f != 8 {
            return Err(Error::Headers("not deflate"));
        }
        self.started = true;
        if flags & 0x20 == 0 {
            return Ok(rest);
        }
        let Some((id, rest)) = rest.split_first_chunk::<4>() else { return Err(Error::Headers("short")) };
        if u32::from_be_bytes(*id) != dictionary::ID {
            return Err(Error::Headers("unknown dictionary"));
        }
        self.inflate(&stored_block(&dictionary::bytes()))?;
        Ok(rest)
    }

    fn inflate(&mut self, mut input: &[u8]) -> Result<Vec<u8>, Error> {
        let mut output = Vec::new();
        let mut chunk = [0; 4096];
        loop {
            let (taken, given) = (self.inflater.total_in(), self.inflater.total_out());
            let status = self.inflater.decompress(input, &mut chunk, FlushDecompress::Sync);
            let status = status.map_err(|_| Error::Headers("not deflate"))?;
            let (taken, given) =
                ((self.inflater.total_in() - taken) as usize, (self.inflater.total_out() - given) as usize);
            input = &input[taken..];
            output.extend_from_slice(&chunk[..given]);
            if output.len() > MAX_BLOCK_BYTES {
                return Err(Error::Headers("too large"));
            }
            if status == Status::StreamEnd {
                return Err(Error::Headers("compression ended"));
            }
            if input.is_empty() && given < chunk.len() {
                return Ok(output);
            }
            if taken == 0 && given == 0 {
                return Err(Error::Headers("truncated"));
            }
        }
    }
}

/// Writes the header blocks of one direction: valid zlib, without compressing.
pub(super) struct HeaderEncoder {
    started: bool,
}

impl HeaderEncoder {
    pub(super) fn new() -> Self {
        Self { started: false }
    }

    pub(super) fn encode(&mut self, headers: &Headers) -> Vec<u8> {
        let mut text = Vec::new();
        text.extend((headers.len() as u32).to_be_bytes());
        for part in headers.iter().flat_map(|(name, value)| [name, value]) {
            text.extend((part.len() as u32).to_be_bytes());
            text.extend(part.as_bytes());
        }
        let mut block = Vec::new();
        if !self.started {
            self.started = true;
            // Deflate with a 32 KiB window, no dictionary; the check bits make it a multiple of 31.
            block.extend([0x78, 0x01]);
        }
        block.extend(stored_block(&text));
        // An empty block is how deflate says "all of it up to here, now" (a sync flush): Go's inflater holds
        // back what comes before it.
        block.extend(stored_block(&[]));
        block
    }
}

/// RFC 1951, section 3.2.4: not the last block, not compressed.
fn stored_block(bytes: &[u8]) -> Vec<u8> {
    let length = u16::try_from(bytes.len()).expect("the dictionary and own headers are short");
    let mut block = vec![0];
    block.extend(length.to_le_bytes());
    block.extend((!length).to_le_bytes());
    block.extend(bytes);
    block
}

fn parse(mut text: &[u8]) -> Result<Headers, Error> {
    let count = take_u32(&mut text)?;
    let mut headers = Headers::new();
    for _ in 0..count {
        let name = take_string(&mut text)?;
        headers.push((name, take_string(&mut text)?));
    }
    Ok(headers)
}

fn take_u32(text: &mut &[u8]) -> Result<u32, Error> {
    let (number, rest) = text.split_first_chunk::<4>().ok_or(Error::Headers("short"))?;
    *text = rest;
    Ok(u32::from_be_bytes(*number))
}

fn take_string(text: &mut &[u8]) -> Result<String, Error> {
    let length = take_u32(text)? as usize;
    let (string, rest) = text.split_at_checked(length).ok_or(Error::Headers("short"))?;
    *text = rest;
    Ok(String::from_utf8_lossy(string).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> Headers {
        pairs.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
    }

    #[test]
    fn blocks_come_back_in_order() {
        let (mut encoder, mut decoder) = (HeaderEncoder::new(), HeaderDecoder::new());
        for pairs in [&[("streamtype", "error"), ("port", "80")][..], &[], &[("streamtype", "data")]] {
            let block = encoder.encode(&headers(pairs));
            assert_eq!(decoder.decode(&block).unwrap(), headers(pairs));
        }
    }

    /// Two blocks as Python's zlib compresses them with the dictionary of SPDY/3.
    #[test]
    fn compression_with_the_dictionary_is_understood() {
        let first = b"\x78\xf9\xe3\xc6\xa7\xc2\x02\x25\x6f\xa4\xf2\x80\x31\x11\x9c\xe8\x4a\x8a\x52\x13\x73\xa1\xe5\x0a\x6b\x2a\x28\xd4\x21\x65\x74\x11\x38\x3b\x58\x18\x58\x18\x00\x69\xce\x22\x48\x9c\x66\x82\xd2\x3a\xa3\x01\x00\x00\x00\xff\xff";
        let second = b"\x22\x6c\x12\xa8\x84\x4a\x24\x6c\x10\x00\x00\x00\xff\xff";
        let mut decoder = HeaderDecoder::new();
        let expected =
            headers(&[("host", "a"), ("streamtype", "error"), ("port", "8080"), ("requestid", "0")]);
        assert_eq!(decoder.decode(first).unwrap(), expected);
        let expected =
            headers(&[("host", "a"), ("streamtype", "data"), ("port", "8080"), ("requestid", "0")]);
        assert_eq!(decoder.decode(second).unwrap(), expected);
    }

    #[test]
    fn garbage_is_an_error() {
        for bad in
            [&b""[..], b"x", b"\x78\xbb\0\0\0\0", b"\x78\x01\xff\xff\xff", b"\x78\x01\0\x02\0\xfd\xff\0\0"]
        {
            assert!(HeaderDecoder::new().decode(bad).is_err(), "{bad:?}");
        }
    }
}
