//! Addresses that the other side of a proxy names, as its client reaches them.
//!
//! Follows upstream's `k8s.io/apimachinery/pkg/util/proxy` (`transport.go`): an absolute path gets the proxy's in front, and
//! so does an address of the other side itself. Relative ones are right as they are, and other hosts are left alone.

/// Rewrites for one request.
#[derive(Debug)]
pub(super) struct Rewriter {
    /// `/api/v1/namespaces/shop/services/web/proxy`
    prefix: String,
    /// Host and port of the other side.
    own: String,
    /// Host and port that the client asked, which are passed on and may come back.
    asked: String,
}

impl Rewriter {
    pub(super) fn new(prefix: &str, own: &str, asked: &str) -> Self {
        // The prefix is put between the quotes of attributes.
        let prefix = prefix.replace('"', "%22").replace('\'', "%27").replace('<', "%3C").replace('>', "%3E");
        Self { prefix, own: own.to_owned(), asked: asked.to_owned() }
    }

    /// What to say instead of `url`; `None` where it is right as it is.
    pub(super) fn url(&self, url: &str) -> Option<String> {
        let (origin, host, path) = split(url);
        let is_elsewhere = !host.is_empty() && host != self.own && host != self.asked;
        if is_elsewhere || !path.starts_with('/') {
            return None;
        }
        // The client's own way to this server is kept, the other side's address is not reached by it.
        let origin = if host == self.asked { origin } else { "" };
        let prefix = if path.starts_with(&self.prefix) { "" } else { &self.prefix };
        Some(format!("{origin}{prefix}{path}")).filter(|rewritten| rewritten != url)
    }
}

/// `http://a:80/b?c` as `http://a:80`, `a:80`, `/b?c`; without a host the first two are empty.
fn split(url: &str) -> (&str, &str, &str) {
    let after = match url.split_once("//") {
        Some(("", after)) => after,
        Some((scheme, after)) if scheme.strip_suffix(':').is_some_and(is_scheme) => after,
        _ => return ("", "", url),
    };
    let end = after.find(['/', '?', '#']).unwrap_or(after.len());
    let (host, path) = after.split_at(end);
    (&url[..url.len() - path.len()], host, path)
}

fn is_scheme(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphabetic())
        && text.chars().all(|letter| letter.is_ascii_alphanumeric() || "+-.".contains(letter))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(url: &str, expected: &str) {
        let rewriter = Rewriter::new("/api/v1/namespaces/a/pods/b/proxy", "10.0.0.7:80", "localhost:8001");
        assert_eq!(rewriter.url(url).unwrap_or_else(|| url.to_owned()), expected, "{url}");
    }

    #[test]
    fn own_addresses_lead_through_the_proxy() {
        const PROXY: &str = "/api/v1/namespaces/a/pods/b/proxy";
        check("/", &format!("{PROXY}/"));
        check("/login?next=http://other/#top", &format!("{PROXY}/login?next=http://other/#top"));
        check("http://10.0.0.7:80/x/", &format!("{PROXY}/x/"));
        check("//10.0.0.7:80/x", &format!("{PROXY}/x"));
        check("http://localhost:8001/x", &format!("http://localhost:8001{PROXY}/x"));
        check(&format!("{PROXY}/x"), &format!("{PROXY}/x"));
        check(&format!("https://10.0.0.7:80{PROXY}/x"), &format!("{PROXY}/x"));
    }

    #[test]
    fn other_addresses_are_left_alone() {
        for url in [
            "",
            "x",
            "../x",
            "#top",
            "?page=2",
            "http://example.com/",
            "http://10.0.0.7:81/",
            "//example.com/x",
            "http://10.0.0.7:80",
            "mailto:a@b",
            "javascript:go('//x/')",
            "data:text/plain,//10.0.0.7:80/",
        ] {
            check(url, url);
        }
    }

    #[test]
    fn quotes_of_a_path_do_not_end_an_attribute() {
        let rewriter = Rewriter::new("/a\"b'c", "", "");
        assert_eq!(rewriter.url("/x").as_deref(), Some("/a%22b%27c/x"));
    }
}
