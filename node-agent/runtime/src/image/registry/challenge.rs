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

/// The first challenge that is known; a token is preferred.
pub(super) fn parse<'a>(headers: impl Iterator<Item = &'a str>) -> Option<Challenge> {
    let mut basic = None;
    for header in headers {
        let (scheme, rest) = header.trim().split_once(char::is_whitespace).unwrap_or((header.trim(), ""));
        if scheme.eq_ignore_ascii_case("bearer") {
            let mut parameters = parameters(rest);
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

/// `name="value",other=value`, names in small letters. A comma inside quotes is part of the value.
fn parameters(text: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some((name, after)) = rest.split_once('=') {
        let name = name.trim_matches([' ', ',', '\t']).to_ascii_lowercase();
        let (value, next) = match after.strip_prefix('"') {
            Some(quoted) => unquote(quoted),
            None => {
                let end = after.find(',').unwrap_or(after.len());
                (after[..end].trim().to_owned(), &after[end..])
            }
        };
        found.push((name, value));
        rest = next;
    }
    found
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
        check(&["Bearer error=\"invalid\"", "Negotiate"], None);
        check(&[r#"Bearer realm="a\"b"#], Some(bearer("a\"b", None, None)));
    }
}
