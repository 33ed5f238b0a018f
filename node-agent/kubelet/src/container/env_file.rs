//! Files of variables that a container has written into an emptyDir for those after it (`fileKeyRef`, KEP-3721).
//!
//! The format is a small part of the shell's: `NAME='value'`, the value in single quotes and as it stands, over several
//! lines if it likes; lines that are empty or begin with `#` say nothing. What is written differently is an error and no
//! guess.

/// Longest file that is read.
pub(super) const MAX_BYTES: u64 = 64 << 10;

/// The value of `key`; the first where there are several, `None` where there is none. Lines after it are not looked at.
///
/// # Errors
/// The line that is no assignment.
pub(super) fn value(text: &str, key: &str) -> Result<Option<String>, String> {
    let mut lines = text.lines().enumerate().map(|(index, line)| (index + 1, line));
    while let Some((number, line)) = lines.next() {
        let wrong = |why: &str| format!("invalid environment variable format at line {number}: {why}");
        let line = line.trim_start_matches(BLANKS);
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (name, given) = line.split_once('=').ok_or_else(|| wrong("missing '='"))?;
        if name.trim_end_matches(BLANKS).is_empty() {
            return Err(wrong("empty variable name"));
        }
        if name.ends_with(BLANKS) {
            return Err(wrong("whitespace before '=' is not allowed"));
        }
        // As in the shell: what follows a blank is no part of the assignment.
        if given.starts_with(BLANKS) {
            if name == key {
                return Ok(Some(String::new()));
            }
            continue;
        }
        let mut rest =
            given.strip_prefix('\'').ok_or_else(|| wrong("value must be enclosed in single quotes"))?;
        let mut value = String::new();
        let after = loop {
            match rest.split_once('\'') {
                Some((last, after)) => {
                    value.push_str(last);
                    break after.trim_start_matches(BLANKS);
                }
                None => {
                    value.push_str(rest);
                    value.push('\n');
                    rest = lines.next().ok_or_else(|| wrong("unclosed single quote"))?.1;
                }
            }
        };
        if !after.is_empty() && !after.starts_with('#') {
            return Err(wrong("unexpected content after closing quote"));
        }
        if name == key {
            return Ok(Some(value));
        }
    }
    Ok(None)
}

const BLANKS: [char; 2] = [' ', '\t'];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_stand_in_single_quotes() {
        let text = "# a file\n\n  A='1 # not a remark' # a remark\nEMPTY=''\nB= 'x'\nC='one\n two'\nA='2'\n";
        let check = |key: &str, expected: Option<&str>| {
            assert_eq!(value(text, key), Ok(expected.map(str::to_owned)), "{key}");
        };
        check("A", Some("1 # not a remark"));
        check("EMPTY", Some(""));
        check("B", Some(""));
        check("C", Some("one\n two"));
        check("D", None);
    }

    #[test]
    fn what_is_no_assignment_is_told_with_its_line() {
        for (text, expected) in [
            ("A", "line 1: missing '='"),
            ("\n='1'", "line 2: empty variable name"),
            ("A ='1'", "line 1: whitespace before '='"),
            ("A=1", "line 1: value must be enclosed"),
            ("A='1' 2", "line 1: unexpected content"),
            ("A='1\n2", "line 1: unclosed single quote"),
        ] {
            let error = value(text, "Z").unwrap_err();
            assert!(error.contains(expected), "{text:?}: {error}");
        }
        assert_eq!(value("A='1'\nB", "A"), Ok(Some("1".into())), "what comes after it is not looked at");
    }
}
