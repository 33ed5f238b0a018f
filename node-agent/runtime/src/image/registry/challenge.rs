//! What a registry asks for with a 401 (`WWW-Authenticate`, RFC 9110 and the distribution project's token scheme).

/// How it wants to be told who asks.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    /// A token, from `realm`.
    Bearer {
        realm: String,
        service: Option<String>,
        scope: Option<String>,
    },
}

/// The first challenge that is known; a token is preferred. A header may have several, of which each begins with its scheme.
pub(super) fn parse<'a>(headers: impl Iterator<Item = &'a str>) -> Option<Challenge> {
    let mut basic = None;
    for (scheme, mut parameters) in headers.flat_map(challenges) {
        if scheme.eq_ignore_ascii_case("bearer") {
            let mut take = |name: &str| {
                let at = parameters.iter().position(|(known, _)| known == name)?;
                Some(parameters.swap_remove(at).1)
            };
            if let Some(realm) = take("realm") {
                return Some(Challenge::Bearer { realm, service: take("service"), scope: take("scope") });
            }
        } else if scheme.eq_ignore_ascii_case("basic") {
            basic = Some(Challenge::Basic);
        }
    }
    basic
}

/// Names in small letters, and their values.
type Parameters = Vec<(String, String)>;

/// `Scheme name="value",other=value, Scheme ...`: each scheme with its parameters. A comma inside quotes is part of the
/// value; a single token instead of parameters, as some schemes have it, is left out.
fn challenges(header: &str) -> Vec<(&str, Parameters)> {
    let mut found: Vec<(&str, Parameters)> = Vec::new();
    let mut rest = header;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let end = rest.find([' ', '\t', ',', '=']).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        if word.is_empty() && after.is_empty() {
            return found;
        }
        rest = match after.trim_start_matches([' ', '\t']).strip_prefix('=') {
            Some(value) => {
                let (value, next) = value_of(value.trim_start_matches([' ', '\t']));
                if let Some((_, parameters)) = found.last_mut() {
                    parameters.push((word.to_ascii_lowercase(), value));
                }
                next
            }
            None => {
                found.push((word, Parameters::new()));
                after
            }
        };
    }
}

/// The value at the beginning of the text, and what comes after it.
fn value_of(text: &str) -> (String, &str) {
    match text.strip_prefix('"') {
        Some(quoted) => unquote(quoted),
        None => {
            let end = text.find(',').unwrap_or(text.len());
            (text[..end].trim().to_owned(), &text[end..])
        }
    }
}

/// What is before the closing quote, and what comes after it.
fn unquote(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut letters = text.char_indices();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '"' => return (value, &text[at + 1..]),
            '\\' => value.extend(letters.next().map(|(_, letter)| letter)),
            _ => value.push(letter),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read_as_registries_write_them() {
        let bearer = |realm: &str, service: Option<&str>, scope: Option<&str>| Challenge::Bearer {
            realm: realm.into(),
            service: service.map(str::to_owned),
            scope: scope.map(str::to_owned),
        };
        let check = |headers: &[&str], expected: Option<Challenge>| {
            assert_eq!(parse(headers.iter().copied()), expected, "{headers:?}");
        };
        let hub = r#"Bearer realm="https://auth.test/token",service="hub",scope="repository:a/b:pull,push""#;
        let expected = bearer("https://auth.test/token", Some("hub"), Some("repository:a/b:pull,push"));
        check(&[hub], Some(expected));
        check(
            &[r#"Basic realm="r""#, "bearer realm=https://a, service=b"],
            Some(bearer("https://a", Some("b"), None)),
        );
        check(&["Basic realm=\"r\""], Some(Challenge::Basic));
        check(
            &[r#"Basic realm="one, two", Bearer realm="https://a",service="b", Negotiate"#],
            Some(bearer("https://a", Some("b"), None)),
        );
        check(&[r#"Negotiate dG9rZW4=, Basic realm="r""#], Some(Challenge::Basic));
        check(
            &[r#"Bearer realm = "https://a" , scope="s", Basic realm="r""#],
            Some(bearer("https://a", None, Some("s"))),
        );
        check(&[r#"Digest realm="r", nonce="x", BASIC"#], Some(Challenge::Basic));
        check(&[", ,", "=", "Bearer =x", "realm=\"https://a\""], None);
        check(&["Bearer error=\"invalid\"", "Negotiate"], None);
        check(&[r#"Bearer realm="a\"b"#], Some(bearer("a\"b", None, None)));
    }
}
