//! Finding places in JSON text without building a tree.
//!
//! Works on text that is known to be valid JSON (it was parsed, or written here): a wrong guess could only come from
//! text that is not, and ends in `None`, never in a panic.

use std::ops::Range;

/// The members of an object: ranges of each key (without quotes) and value.
pub struct Members<'a> {
    text: &'a [u8],
    at: usize,
    /// A value begins at `at` that was not passed over yet.
    before_value: bool,
}

impl<'a> Members<'a> {
    /// `at` is the offset of the opening brace.
    pub fn new(text: &'a [u8], at: usize) -> Option<Self> {
        (text.get(at) == Some(&b'{')).then_some(Self { text, at: at + 1, before_value: false })
    }

    /// The next key, and where its value begins, which is not looked at yet.
    pub fn next_key(&mut self) -> Option<(Range<usize>, usize)> {
        if self.before_value {
            self.pass_value()?;
        }
        self.at = skip_comma(self.text, self.at);
        if self.text.get(self.at) != Some(&b'"') {
            return None;
        }
        let key_end = skip_string(self.text, self.at)?;
        let key = self.at + 1..key_end - 1;
        let colon = skip_space(self.text, key_end);
        self.at = skip_space(self.text, colon + 1);
        self.before_value = true;
        Some((key, self.at))
    }

    /// Passes over the value of the key that was read last; returns its end.
    pub fn pass_value(&mut self) -> Option<usize> {
        self.at = skip_value(self.text, self.at)?;
        self.before_value = false;
        Some(self.at)
    }
}

impl Iterator for Members<'_> {
    type Item = (Range<usize>, Range<usize>);

    fn next(&mut self) -> Option<Self::Item> {
        let (key, start) = self.next_key()?;
        Some((key, start..self.pass_value()?))
    }
}

/// The items of a list.
pub struct Items<'a> {
    text: &'a [u8],
    at: usize,
}

impl<'a> Items<'a> {
    /// `at` is the offset of the opening bracket.
    pub fn new(text: &'a [u8], at: usize) -> Option<Self> {
        (text.get(at) == Some(&b'[')).then_some(Self { text, at: at + 1 })
    }
}

impl Iterator for Items<'_> {
    type Item = Range<usize>;

    fn next(&mut self) -> Option<Range<usize>> {
        let start = skip_comma(self.text, self.at);
        if self.text.get(start) == Some(&b']') {
            return None;
        }
        let end = skip_value(self.text, start)?;
        self.at = end;
        Some(start..end)
    }
}

/// The offset of what is no white space.
pub fn skip_space(text: &[u8], mut at: usize) -> usize {
    while text.get(at).is_some_and(u8::is_ascii_whitespace) {
        at += 1;
    }
    at
}

fn skip_comma(text: &[u8], at: usize) -> usize {
    let at = skip_space(text, at);
    if text.get(at) == Some(&b',') { skip_space(text, at + 1) } else { at }
}

/// The offset after the string that starts at `at`.
fn skip_string(text: &[u8], at: usize) -> Option<usize> {
    let mut at = at + 1;
    loop {
        match text.get(at)? {
            b'"' => return Some(at + 1),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
}

/// The offset after the value that starts at `at`.
fn skip_value(text: &[u8], at: usize) -> Option<usize> {
    match text.get(at)? {
        b'"' => skip_string(text, at),
        b'{' | b'[' => {
            let (mut depth, mut at) = (0_usize, at);
            loop {
                match text.get(at)? {
                    b'"' => {
                        at = skip_string(text, at)?;
                        continue;
                    }
                    b'{' | b'[' => depth += 1,
                    b'}' | b']' => depth -= 1,
                    _ => {}
                }
                at += 1;
                if depth == 0 {
                    return Some(at);
                }
            }
        }
        _ => {
            let rest = text.get(at..)?;
            let len =
                rest.iter().position(|byte| matches!(byte, b',' | b'}' | b']') || byte.is_ascii_whitespace());
            Some(at + len?)
        }
    }
}
