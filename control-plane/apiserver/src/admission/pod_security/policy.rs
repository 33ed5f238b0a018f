//! What a namespace's labels ask for.

use std::fmt;

use hawser_api::FieldError;

const PREFIX: &str = "pod-security.kubernetes.io/";

/// How strict; in that order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    #[default]
    Privileged,
    Baseline,
    Restricted,
}

impl Level {
    fn parse(text: &str) -> Option<Self> {
        match text {
            "privileged" => Some(Self::Privileged),
            "baseline" => Some(Self::Baseline),
            "restricted" => Some(Self::Restricted),
            _ => None,
        }
    }
}

/// Rules of which Kubernetes version: a minor version, or the newest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Version {
    #[default]
    Latest,
    Minor(u32),
}

impl Version {
    /// `latest` or `v1.N`, without leading zeros.
    fn parse(text: &str) -> Option<Self> {
        if text == "latest" {
            return Some(Self::Latest);
        }
        let minor = text.strip_prefix("v1.")?;
        let is_plain =
            minor.bytes().all(|byte| byte.is_ascii_digit()) && (minor == "0" || !minor.starts_with('0'));
        minor.parse().ok().filter(|_| is_plain).map(Self::Minor)
    }

    /// Whether rules that came with this minor version hold.
    pub(super) fn has(self, minor: u32) -> bool {
        match self {
            Self::Latest => true,
            Self::Minor(asked) => minor <= asked,
        }
    }
}

/// `restricted:latest`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Standard {
    pub(super) level: Level,
    pub(super) version: Version,
}

impl fmt::Display for Standard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = match self.level {
            Level::Privileged => "privileged",
            Level::Baseline => "baseline",
            Level::Restricted => "restricted",
        };
        match self.version {
            Version::Latest => write!(f, "{level}:latest"),
            Version::Minor(minor) => write!(f, "{level}:v1.{minor}"),
        }
    }
}

/// What a namespace asks for; by default nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Policy {
    pub(super) enforce: Standard,
    pub(super) warn: Standard,
}

impl Policy {
    /// Reads the labels, and says what is wrong with them. What cannot be read is enforced as the strictest, and not
    /// warned of.
    pub(super) fn parse<'a>(label: impl Fn(&str) -> Option<&'a str>) -> (Self, Vec<FieldError>) {
        let mut errors = Vec::new();
        let mut standard = |mode: &str, unreadable: Level| {
            let mut standard = Standard::default();
            let mut read = |key: String, detail: &str, accept: &mut dyn FnMut(&str) -> bool| {
                let key = format!("{PREFIX}{key}");
                if let Some(text) = label(&key)
                    && !accept(text)
                {
                    errors.push(FieldError::invalid(format!("metadata.labels[{key}]"), text, detail));
                }
            };
            read(mode.to_owned(), "must be one of privileged, baseline, restricted", &mut |text| {
                standard.level = Level::parse(text).unwrap_or(unreadable);
                Level::parse(text).is_some()
            });
            read(format!("{mode}-version"), "must be \"latest\" or \"v1.x\"", &mut |text| {
                standard.version = Version::parse(text).unwrap_or_default();
                Version::parse(text).is_some()
            });
            standard
        };
        let enforce = standard("enforce", Level::Restricted);
        standard("audit", Level::Privileged);
        let warn = standard("warn", Level::Privileged);
        (Self { enforce, warn }, errors)
    }
}
