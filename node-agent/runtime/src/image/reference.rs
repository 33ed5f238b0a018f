//! Image references: what pods write, made complete the way every container runtime does it.
//!
//! The grammar is that of distribution/reference, and the completion that of its familiar names. It is read by hand: the
//! regular expression of it that libraries compile stays in memory for good, and takes 7 MiB there.

use crate::{Error, PullErrorKind, Result};

/// Bytes of a repository, without its registry.
const MAX_NAME_BYTES: usize = 255;
const MAX_TAG_BYTES: usize = 128;
const MIN_DIGEST_DIGITS: usize = 32;
const DEFAULT_REGISTRY: &str = "docker.io";
/// What the default registry was called once.
const FORMER_REGISTRY: &str = "index.docker.io";

/// `<registry>/<repository>[:<tag>][@<digest>]`; without a digest there is a tag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<String>,
}

impl Reference {
    /// Host, and port if it has one.
    pub(crate) fn registry(&self) -> &str {
        &self.registry
    }

    pub(crate) fn repository(&self) -> &str {
        &self.repository
    }

    pub(crate) fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// `<algorithm>:<hex digits>`
    pub(crate) fn digest(&self) -> Option<&str> {
        self.digest.as_deref()
    }
}

/// `docker.io/library/<name>:latest` for `<name>`, and so on.
pub(crate) fn parse(image: &str) -> Result<Reference> {
    read(image).map_err(|reason| Error::Pull {
        image: image.to_owned(),
        kind: PullErrorKind::InvalidReference,
        message: format!("couldn't parse image name {image:?}: {reason}"),
    })
}

fn read(image: &str) -> std::result::Result<Reference, &'static str> {
    const FORMAT: &str = "invalid reference format";
    let (rest, digest) = match image.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (image, None),
    };
    // A colon before the last slash is a port's.
    let (name, tag) = match rest.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (rest, None),
    };
    let (registry, path) = match name.split_once('/') {
        Some((first, path)) if names_registry(first) => (first, path),
        _ => (DEFAULT_REGISTRY, name),
    };
    if name.is_empty() {
        return Err(FORMAT);
    }
    if path.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err("invalid reference format: repository name must be lowercase");
    }
    if image.len() == 64 && is_digits(image) {
        return Err("invalid repository name: it cannot be 64 hexadecimal digits");
    }
    if !is_registry(registry) || !path.split('/').all(is_path_part) || !tag.is_none_or(is_tag) {
        return Err(FORMAT);
    }
    if let Some(digest) = digest {
        check_digest(digest)?;
    }
    let registry = if registry == FORMER_REGISTRY { DEFAULT_REGISTRY } else { registry };
    let is_familiar = registry == DEFAULT_REGISTRY && !path.contains('/');
    let repository = if is_familiar { format!("library/{path}") } else { path.to_owned() };
    if repository.len() > MAX_NAME_BYTES {
        return Err("repository name must not be more than 255 characters");
    }
    let tag = tag.or(digest.is_none().then_some("latest"));
    Ok(Reference {
        registry: registry.to_owned(),
        repository,
        tag: tag.map(str::to_owned),
        digest: digest.map(str::to_owned),
    })
}

/// Whether the first of several parts is a registry, and not the first part of the default one's repository.
fn names_registry(first: &str) -> bool {
    first.contains(['.', ':']) || first == "localhost" || first.bytes().any(|b| b.is_ascii_uppercase())
}

fn is_registry(registry: &str) -> bool {
    let (host, rest) = match registry.strip_prefix('[').map(|inner| inner.split_once(']')) {
        Some(Some((address, rest))) => {
            if address.is_empty() || !address.bytes().all(|b| b.is_ascii_hexdigit() || b == b':') {
                return false;
            }
            ("", rest)
        }
        Some(None) => return false,
        None => registry.split_at(registry.find(':').unwrap_or(registry.len())),
    };
    let is_label = |label: &str| {
        let inner = label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        inner && !label.is_empty() && !label.starts_with('-') && !label.ends_with('-')
    };
    let is_port = |port: &str| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
    (host.is_empty() && registry.starts_with('[') || host.split('.').all(is_label))
        && (rest.is_empty() || rest.strip_prefix(':').is_some_and(is_port))
}

/// Small letters and digits; between them one dot, one or two low lines, or any number of dashes.
fn is_path_part(part: &str) -> bool {
    let is_plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let mut separators = part.split(|c: char| c.is_ascii() && is_plain(c as u8)).filter(|s| !s.is_empty());
    let ends_plain = |byte: Option<&u8>| byte.is_some_and(|b| is_plain(*b));
    ends_plain(part.as_bytes().first())
        && ends_plain(part.as_bytes().last())
        && separators.all(|s| matches!(s, "." | "_" | "__") || s.bytes().all(|b| b == b'-'))
}

fn is_tag(tag: &str) -> bool {
    let is_word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    tag.len() <= MAX_TAG_BYTES
        && tag.bytes().next().is_some_and(is_word)
        && tag.bytes().all(|b| is_word(b) || b == b'.' || b == b'-')
}

fn check_digest(digest: &str) -> std::result::Result<(), &'static str> {
    let (algorithm, digits) = digest.split_once(':').ok_or("invalid reference format")?;
    let is_part = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_alphabetic()) && part.bytes().all(|b| b.is_ascii_alphanumeric())
    };
    if !algorithm.split(['+', '.', '-', '_']).all(is_part)
        || digits.len() < MIN_DIGEST_DIGITS
        || !is_digits(digits)
    {
        return Err("invalid reference format");
    }
    match (algorithm, digits.len()) {
        ("sha256", 64) | ("sha384", 96) | ("sha512", 128) => Ok(()),
        ("sha256" | "sha384" | "sha512", _) => Err("invalid checksum digest length"),
        _ => Err("unsupported digest algorithm"),
    }
}

/// Hexadecimal digits, small ones.
fn is_digits(text: &str) -> bool {
    text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// The name under which an image is recorded. A digest says more than a tag beside it.
pub(crate) fn record_name(reference: &Reference) -> String {
    match (reference.digest(), reference.tag()) {
        (Some(digest), _) => digest_name(reference, digest),
        (None, tag) => format!("{}:{}", repository(reference), tag.unwrap_or("latest")),
    }
}

pub(crate) fn digest_name(reference: &Reference, digest: &str) -> String {
    format!("{}@{digest}", repository(reference))
}

fn repository(reference: &Reference) -> String {
    format!("{}/{}", reference.registry(), reference.repository())
}

/// An image id rather than a reference: `sha256:<64 hex>`.
pub(crate) fn is_image_id(image: &str) -> bool {
    let hex = image.strip_prefix("sha256:").unwrap_or("");
    hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_completed_as_upstream_does() {
        #[track_caller]
        fn check(image: &str, expected: &str) {
            assert_eq!(record_name(&parse(image).unwrap()), expected);
        }
        let digest = format!("sha256:{}", "a".repeat(64));
        check("busybox", "docker.io/library/busybox:latest");
        check("busybox:1.36", "docker.io/library/busybox:1.36");
        check("someone/tool", "docker.io/someone/tool:latest");
        check("registry.k8s.io/pause:3.9", "registry.k8s.io/pause:3.9");
        check("localhost/x", "localhost/x:latest");
        check("127.0.0.1:5000/x/y:1", "127.0.0.1:5000/x/y:1");
        check(&format!("busybox@{digest}"), &format!("docker.io/library/busybox@{digest}"));
        check(&format!("busybox:1@{digest}"), &format!("docker.io/library/busybox@{digest}"));
        check("index.docker.io/busybox", "docker.io/library/busybox:latest");
        check("docker.io/busybox", "docker.io/library/busybox:latest");
        check("HOST/app", "HOST/app:latest");
        check("[fd00::7]:5000/app:1", "[fd00::7]:5000/app:1");
        check("[fd00::7]/app", "[fd00::7]/app:latest");
        check("a__b/c-----d/e.f_g:V1.2-x_", "docker.io/a__b/c-----d/e.f_g:V1.2-x_");
        check("my-registry:5000/x", "my-registry:5000/x:latest");
        let longest = format!("h.io/{}", "a".repeat(255));
        check(&longest, &format!("{longest}:latest"));
        let hex = "a".repeat(64);
        check(&format!("h.io/{hex}"), &format!("h.io/{hex}:latest"));
        check(&format!("{hex}:v1"), &format!("docker.io/library/{hex}:v1"));
    }

    #[test]
    fn nonsense_is_refused() {
        let (digits, tag) = ("a".repeat(64), "t".repeat(129));
        let [unknown, too_long, too_long_with_library, digits_alone, capitals, twice, short, long_tag] = [
            format!("busybox@md9:{digits}"),
            format!("h.io/{}", "a".repeat(256)),
            "z".repeat(248),
            digits.clone(),
            format!("x@sha256:{}", "A".repeat(64)),
            format!("x@sha256:{digits}@sha256:{digits}"),
            format!("x@sha512:{digits}"),
            format!("x:{tag}"),
        ];
        let generated = [
            &unknown,
            &too_long,
            &too_long_with_library,
            &digits_alone,
            &capitals,
            &twice,
            &short,
            &long_tag,
        ];
        #[rustfmt::skip]
        let written = [
            "", "UPPER/Case", "UPPER", "a b", "x:", ":1", "x:-1", "x:a:b", "busybox@sha256:abc", "busybox@", "@", "/", "/x",
            "x/", "a//b", "a..b/c", "a___b", "-a", "a-", "_a", "a._b", "a.b:/c", "a.b:port/c", "-a.b/c", "a..b:1/c", "[/x", "[]/x",
            "[g::1]/x", "[::1]5/x", "https://h.io/x", "\u{e9}", "x:\u{e9}", "x\n", "h.io/\0",
        ];
        for image in written.into_iter().chain(generated.map(String::as_str)) {
            let error = parse(image).expect_err(image);
            assert!(matches!(error, Error::Pull { kind: PullErrorKind::InvalidReference, .. }), "{image}");
        }
    }
}
