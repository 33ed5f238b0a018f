//! Who may use an image that is on the node already (KEP-2535): it is no proof that a pod may have it that another pod,
//! with credentials of its own, had it pulled.
//!
//! For every image that the agent pulled there is a record of the credentials that got it; a pod without any of them has
//! its own tried by the registry, as if the image were not there. What somebody else brought to the node has no record.
//! The intent to pull is on disk before a pull begins, so that no agent that is killed in between makes what it pulled look
//! as if it had been brought. Records go with their images.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::host_and_path;
use crate::config::Config;
use crate::durable::Note;

const FILE: &str = "image_access.json";
/// Secrets remembered for one image under one name; who has another one asks the registry. Upstream's number.
const MAX_SECRETS: usize = 100;

/// Which images that are on the node need the pod's credentials (`imagePullCredentialsVerificationPolicy`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Verification {
    /// None does.
    Never,
    /// Those that the agent pulled.
    #[default]
    UnlessPreloaded,
    /// All but those of these repositories that the agent did not pull; `/*` at the end stands for all below.
    UnlessListed(Vec<String>),
    All,
}

impl Verification {
    /// KubeletConfiguration's name.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Never => "NeverVerify",
            Self::UnlessPreloaded => "NeverVerifyPreloadedImages",
            Self::UnlessListed(_) => "NeverVerifyAllowlistedImages",
            Self::All => "AlwaysVerify",
        }
    }

    /// # Errors
    /// A policy that is not known, or a list that belongs to another one.
    pub fn parse(policy: &str, listed: Vec<String>) -> Result<Self, String> {
        if policy != "NeverVerifyAllowlistedImages" && !listed.is_empty() {
            return Err(
                "preloadedImagesVerificationAllowlist: is only for NeverVerifyAllowlistedImages".into()
            );
        }
        match policy {
            "" | "NeverVerifyPreloadedImages" => Ok(Self::UnlessPreloaded),
            "NeverVerify" => Ok(Self::Never),
            "AlwaysVerify" => Ok(Self::All),
            "NeverVerifyAllowlistedImages" => {
                let repository = |pattern: &String| {
                    let (path, below) = match pattern.strip_suffix("/*") {
                        Some(path) => (path, true),
                        None => (pattern.as_str(), false),
                    };
                    !path.is_empty()
                        && !path.contains(['*', '@'])
                        && (below || repository_of(path).ends_with(path))
                };
                match listed.iter().find(|pattern| !repository(pattern)) {
                    Some(wrong) => {
                        Err(format!("preloadedImagesVerificationAllowlist: {wrong:?} is no repository"))
                    }
                    None => Ok(Self::UnlessListed(listed)),
                }
            }
            other => Err(format!("imagePullCredentialsVerificationPolicy: {other:?} is not known")),
        }
    }

    fn applies(&self, image: &str, was_pulled: bool) -> bool {
        match self {
            Self::Never => false,
            Self::UnlessPreloaded => was_pulled,
            Self::All => true,
            Self::UnlessListed(listed) => was_pulled || !listed.iter().any(|pattern| covers(pattern, image)),
        }
    }
}

fn covers(pattern: &str, image: &str) -> bool {
    let repository = repository_of(image);
    match pattern.strip_suffix("/*") {
        Some(path) => repository.strip_prefix(path).is_some_and(|rest| rest.starts_with('/')),
        None => repository == repository_of(pattern),
    }
}

/// A secret that got an image, and what was in it then.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SecretUsed {
    pub uid: String,
    pub namespace: String,
    pub name: String,
    /// SHA-256 of the credentials, in hex.
    pub hash: String,
}

impl SecretUsed {
    /// The same credentials wherever they are kept, or the same secret, whose word counts for its newer credentials too.
    fn stands_for(&self, other: &Self) -> bool {
        self.hash == other.hash
            || (&self.uid, &self.namespace, &self.name) == (&other.uid, &other.namespace, &other.name)
    }
}

/// What a pod has to show.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shown {
    pub secrets: Vec<SecretUsed>,
    /// Namespace and names of secrets that it names and that cannot be read now, as the API is away: they count as what they
    /// were when they got the image.
    pub unread: Vec<(String, String)>,
}

impl Shown {
    fn fits(&self, used: &SecretUsed) -> bool {
        self.secrets.iter().any(|own| used.stands_for(own))
            || self.unread.iter().any(|(namespace, name)| (namespace, name) == (&used.namespace, &used.name))
    }
}

/// What got an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Means {
    /// No credentials, or some of the node's own: every pod may have it.
    Everybody,
    Secret(SecretUsed),
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Access {
    everybody: bool,
    secrets: BTreeSet<SecretUsed>,
}

/// As it is on disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Records {
    /// By image id, then by repository: another repository has its own rules for the same image.
    images: BTreeMap<String, BTreeMap<String, Access>>,
    /// Images that are being pulled, as pods name them.
    pulling: BTreeSet<String>,
    /// Earlier records are lost: what has none may have been pulled all the same.
    incomplete: bool,
}

impl Records {
    fn may_use(&self, policy: &Verification, image: &str, id: &str, shown: &Shown) -> bool {
        let record = self.images.get(id);
        let was_pulled = self.incomplete || record.is_some() || self.pulling.contains(image);
        if !policy.applies(image, was_pulled) {
            return true;
        }
        let access = record.and_then(|repositories| repositories.get(&repository_of(image)));
        access.is_some_and(|access| access.everybody || access.secrets.iter().any(|used| shown.fits(used)))
    }

    /// `None`: it was pulled, and it is not known how.
    fn pulled(&mut self, image: &str, id: &str, means: Option<Means>) {
        self.pulling.remove(image);
        let repositories = self.images.entry(id.to_owned()).or_default();
        let Some(means) = means else { return };
        let access = repositories.entry(repository_of(image)).or_default();
        match means {
            Means::Everybody => *access = Access { everybody: true, secrets: BTreeSet::new() },
            Means::Secret(_) if access.everybody => {}
            Means::Secret(secret) => {
                access.secrets.retain(|known| known.uid != secret.uid);
                if access.secrets.len() < MAX_SECRETS {
                    access.secrets.insert(secret);
                }
            }
        }
    }
}

/// The records, in memory and on disk.
pub struct ImageAccess {
    policy: Verification,
    note: Note,
    /// With their version, which counts changes.
    records: Mutex<(u64, Records)>,
    /// Images whose pull is under way in this agent.
    under_way: Mutex<BTreeSet<String>>,
}

/// A pull that is under way, until it is dropped: how it ended has been said by then, or is unknown.
pub struct Intent {
    access: Arc<ImageAccess>,
    image: String,
}

impl Drop for Intent {
    fn drop(&mut self) {
        self.access.under_way.lock().remove(&self.image);
    }
}

impl ImageAccess {
    /// Where the file cannot be read, every image may be one that the agent pulled, and is treated so.
    pub fn load(config: &Config) -> Self {
        let path = config.root_dir.join(FILE);
        let records = read(&path).unwrap_or_else(|error| {
            warn!(file = %path.display(), %error, "who may use which image is not known any more");
            Records { incomplete: true, ..Records::default() }
        });
        let policy = config.image_verification.clone();
        let records = Mutex::new((0, records));
        Self { policy, note: Note::new(path), records, under_way: Mutex::default() }
    }

    /// Whether a pod may use the image of that id without the registry being asked.
    pub fn may_use(&self, image: &str, id: &str, shown: &Shown) -> bool {
        self.records.lock().1.may_use(&self.policy, image, id, shown)
    }

    /// Images whose pull was begun, and of which nobody said how that ended: it was called off, or its agent killed.
    pub fn interrupted(&self) -> Vec<String> {
        let under_way = self.under_way.lock();
        self.records.lock().1.pulling.difference(&under_way).cloned().collect()
    }

    /// Before a pull, one of an image at a time. Blocks.
    pub fn begin(self: &Arc<Self>, image: &str) -> io::Result<Intent> {
        self.under_way.lock().insert(image.to_owned());
        let intent = Intent { access: Arc::clone(self), image: image.to_owned() };
        self.change(|records| records.pulling.insert(image.to_owned()))?;
        Ok(intent)
    }

    /// After a pull; `means` is what got the image. Blocks.
    pub fn pulled(&self, image: &str, id: &str, means: Option<Means>) -> io::Result<()> {
        self.change(|records| {
            let before = records.clone();
            records.pulled(image, id, means);
            *records != before
        })
    }

    /// After a pull that gave nothing. Blocks.
    pub fn failed(&self, image: &str) -> io::Result<()> {
        self.change(|records| records.pulling.remove(image))
    }

    /// Ids of the images that have records.
    pub fn known(&self) -> BTreeSet<String> {
        self.records.lock().1.images.keys().cloned().collect()
    }

    /// Forgets those of `known` that are not among `present`, which was looked at later. Blocks.
    pub fn prune(&self, known: &BTreeSet<String>, present: &BTreeSet<String>) -> io::Result<()> {
        self.change(|records| {
            let before = records.images.len();
            records.images.retain(|id, _| present.contains(id) || !known.contains(id));
            records.images.len() != before
        })
    }

    fn change(&self, change: impl FnOnce(&mut Records) -> bool) -> io::Result<()> {
        {
            let mut records = self.records.lock();
            if change(&mut records.1) {
                records.0 += 1;
            }
        }
        self.note.write(|written| {
            let records = self.records.lock();
            (records.0 != written).then(|| (records.0, records.1.clone()))
        })
    }
}

fn read(path: &Path) -> io::Result<Records> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Records::default()),
        Err(error) => Err(error),
    }
}

/// `docker.io/library/busybox` for `busybox:1@sha256:...`.
pub(super) fn repository_of(image: &str) -> String {
    let named = image.split('@').next().unwrap_or(image);
    let at = named.rfind('/').map_or(0, |slash| slash + 1);
    let named = named[at..].find(':').map_or(named, |colon| &named[..at + colon]);
    match host_and_path(named) {
        ("docker.io", path) if !path.contains('/') => format!("docker.io/library/{path}"),
        (host, path) => format!("{host}/{path}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(name: &str, hash: &str) -> SecretUsed {
        let (uid, namespace) = (format!("uid-{name}"), "default".to_owned());
        SecretUsed { uid, namespace, name: name.to_owned(), hash: hash.to_owned() }
    }

    fn with(secrets: &[SecretUsed]) -> Shown {
        Shown { secrets: secrets.to_vec(), unread: Vec::new() }
    }

    #[test]
    fn repositories_are_told_without_tag_and_digest() {
        for (image, expected) in [
            ("busybox", "docker.io/library/busybox"),
            ("team/app:1", "docker.io/team/app"),
            ("localhost:5000/app", "localhost:5000/app"),
            ("registry.test:5000/a/b:2@sha256:00", "registry.test:5000/a/b"),
        ] {
            assert_eq!(repository_of(image), expected);
        }
    }

    #[test]
    fn an_image_is_for_those_whose_credentials_got_it() {
        let policy = Verification::UnlessPreloaded;
        let mut records = Records::default();
        let image = "registry.test/app:1";
        assert!(records.may_use(&policy, image, "id", &with(&[])), "somebody else brought it");
        records.pulling.insert(image.to_owned());
        assert!(
            !records.may_use(&policy, image, "id", &with(&[])),
            "the agent has, and does not know yet how"
        );
        records.pulled(image, "id", Some(Means::Secret(secret("a", "1"))));
        assert!(records.pulling.is_empty());
        let may = |records: &Records, image: &str, secret: SecretUsed| {
            records.may_use(&policy, image, "id", &with(&[secret]))
        };
        assert!(!records.may_use(&policy, image, "id", &with(&[])));
        assert!(may(&records, image, secret("a", "1")));
        assert!(may(&records, image, secret("copy", "1")), "the same credentials elsewhere");
        assert!(may(&records, image, secret("a", "2")), "the same secret with newer ones");
        assert!(!may(&records, image, secret("b", "2")));
        let unread = |name: &str| Shown { unread: vec![("default".into(), name.into())], ..Shown::default() };
        assert!(records.may_use(&policy, image, "id", &unread("a")), "the API is away");
        assert!(!records.may_use(&policy, image, "id", &unread("b")));
        assert!(may(&records, "registry.test/app:2", secret("a", "1")), "another tag of the repository");
        assert!(!may(&records, "mirror.test/app:1", secret("a", "1")), "another repository");
        records.pulled(image, "id", Some(Means::Everybody));
        assert!(records.may_use(&policy, image, "id", &with(&[])));
        records.pulled(image, "id", Some(Means::Secret(secret("a", "1"))));
        assert!(records.may_use(&policy, image, "id", &with(&[])), "what is for everybody stays so");
    }

    #[test]
    fn policies_tell_which_images_are_asked_for() {
        let listed = Verification::parse(
            "NeverVerifyAllowlistedImages",
            vec!["docker.io/library/busybox".into(), "registry.test/base/*".into()],
        );
        let listed = listed.expect("a policy");
        let check = |policy: &Verification, image: &str, was_pulled: bool, expected: bool| {
            assert_eq!(policy.applies(image, was_pulled), expected, "{policy:?} {image}");
        };
        check(&Verification::Never, "a", true, false);
        check(&Verification::UnlessPreloaded, "a", false, false);
        check(&Verification::UnlessPreloaded, "a", true, true);
        check(&Verification::All, "a", false, true);
        check(&listed, "busybox:1", false, false);
        check(&listed, "busybox:1", true, true);
        check(&listed, "registry.test/base/os:1", false, false);
        check(&listed, "registry.test/basement/os:1", false, true);
        assert!(Verification::parse("Sometimes", vec![]).is_err());
        assert!(Verification::parse("AlwaysVerify", vec!["a/b".into()]).is_err());
        assert!(Verification::parse("NeverVerifyAllowlistedImages", vec!["a/b:1".into()]).is_err());
    }

    #[test]
    fn records_outlive_the_agent_and_go_with_their_images() {
        let dir = tempfile::tempdir().expect("a directory");
        let config = Config::new("n1", "10.0.0.1".parse().expect("address"), dir.path());
        let access = Arc::new(ImageAccess::load(&config));
        let intent = access.begin("registry.test/app:1").expect("noted");
        assert!(access.interrupted().is_empty(), "it is under way");
        drop(intent);
        assert_eq!(access.interrupted(), ["registry.test/app:1"], "it was called off");
        access.pulled("registry.test/app:1", "one", Some(Means::Secret(secret("a", "1")))).expect("noted");
        drop(access.begin("registry.test/other:1").expect("noted"));
        let next = ImageAccess::load(&config);
        assert_eq!(next.interrupted(), ["registry.test/other:1"]);
        assert!(!next.may_use("registry.test/app:1", "one", &with(&[])));
        assert!(next.may_use("registry.test/app:1", "one", &with(&[secret("a", "1")])));
        next.failed("registry.test/other:1").expect("noted");
        next.prune(&next.known(), &BTreeSet::new()).expect("noted");
        let last = ImageAccess::load(&config);
        assert!(last.interrupted().is_empty() && last.may_use("registry.test/app:1", "one", &with(&[])));
        std::fs::write(dir.path().join(FILE), "{").expect("written");
        let damaged = ImageAccess::load(&config);
        assert!(
            !damaged.may_use("registry.test/app:1", "one", &with(&[])),
            "it may have been pulled with a secret"
        );
    }

    #[test]
    fn no_more_secrets_are_remembered_than_there_is_room_for() {
        let mut records = Records::default();
        for n in 0..2 * MAX_SECRETS {
            let used = secret(&n.to_string(), &n.to_string());
            records.pulled("registry.test/app", "id", Some(Means::Secret(used)));
        }
        assert_eq!(records.images["id"]["registry.test/app"].secrets.len(), MAX_SECRETS);
    }
}
