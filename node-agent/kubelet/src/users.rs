//! Which users of the node a pod has to itself (`hostUsers: false`, KEP-127).
//!
//! Each such pod has a range of numbers, of users and groups alike, that no other has. It is noted in the pod's directory
//! before anything is made with it, as upstream's kubelet notes it, and is the pod's until it has ended, or, where its
//! processes are shared, as long as the directory is there.
//! There is no other list: who gives one away reads the notes of all pods, of which there are few.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hawser_runtime::IdRange;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::durable;

/// What a pod has at least, and ranges are a multiple of, so that images find the users that they expect.
pub const UNIT: u32 = 1 << 16;
/// A pod's range, in its directory.
const NOTE: &str = "userns";
/// Whose entry in `/etc/subuid` and `/etc/subgid` says which numbers of the node are for pods.
const DELEGATE: &str = "kubelet";

/// The numbers of the node that pods may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdPool {
    /// A multiple of [`UNIT`], and not 0: what is below is the node's own.
    first: u32,
    /// Of one pod.
    each: u32,
    /// How many pods can have some.
    pods: u32,
}

impl Default for IdPool {
    fn default() -> Self {
        Self { first: UNIT, each: UNIT, pods: 110 }
    }
}

impl IdPool {
    /// `each` for as many as `max_pods`, from what `/etc/subuid` and `/etc/subgid` give to `kubelet`; where they do not know
    /// it, from [`UNIT`] upward.
    ///
    /// # Errors
    /// Which of it does not fit together.
    pub fn new(each: u32, max_pods: u32, subuid: &str, subgid: &str) -> Result<Self, String> {
        if each == 0 || !each.is_multiple_of(UNIT) {
            return Err(format!("idsPerPod: {each} is no multiple of {UNIT}"));
        }
        let of_users = delegated(subuid).map_err(|why| format!("/etc/subuid: {why}"))?;
        let of_groups = delegated(subgid).map_err(|why| format!("/etc/subgid: {why}"))?;
        if of_users != of_groups {
            return Err(format!("/etc/subuid and /etc/subgid give {DELEGATE:?} different numbers"));
        }
        let (first, count) = of_users.unwrap_or((UNIT, each.saturating_mul(max_pods).min(u32::MAX - UNIT)));
        let pods = count / each;
        if first < UNIT || !first.is_multiple_of(UNIT) || first.checked_add(count).is_none() {
            return Err(format!(
                "the numbers of {DELEGATE:?} must begin at a multiple of {UNIT}, not at {first}"
            ));
        }
        if pods < max_pods {
            let whose =
                if of_users.is_some() { format!("of {DELEGATE:?}") } else { "of the node".to_owned() };
            return Err(format!(
                "idsPerPod: the {count} numbers {whose} are too few for {max_pods} pods with {each} each"
            ));
        }
        Ok(Self { first, each, pods })
    }

    /// `userNamespaces.idsPerPod`
    pub fn ids_per_pod(&self) -> u32 {
        self.each
    }

    /// The lowest range that does not meet any of these.
    fn free(&self, taken: &[IdRange]) -> Option<IdRange> {
        let ranges = (0..self.pods).map(|n| IdRange { first: self.first + n * self.each, count: self.each });
        let meets = |a: &IdRange, b: &IdRange| {
            let end = |range: &IdRange| u64::from(range.first) + u64::from(range.count);
            u64::from(a.first) < end(b) && u64::from(b.first) < end(a)
        };
        ranges.into_iter().find(|range| !taken.iter().any(|other| meets(range, other)))
    }
}

/// First and count of the numbers that the delegate has, which must be in one piece.
fn delegated(text: &str) -> Result<Option<(u32, u32)>, String> {
    let mut entries = text.lines().filter_map(|line| line.strip_prefix(DELEGATE)?.strip_prefix(':'));
    let (Some(entry), None) = (entries.next(), entries.next()) else {
        return match text.lines().any(|line| line.starts_with(&format!("{DELEGATE}:"))) {
            true => Err(format!("{DELEGATE:?} has several entries")),
            false => Ok(None),
        };
    };
    let numbers = entry
        .trim()
        .split_once(':')
        .and_then(|(first, count)| Some((first.parse().ok()?, count.parse().ok()?)));
    numbers.map(Some).ok_or_else(|| format!("{entry:?} is not a first number and a count"))
}

/// Gives pods their ranges, one after the other.
#[derive(Debug, Default)]
pub(crate) struct Users {
    turn: Arc<Mutex<()>>,
}

impl Users {
    /// The pod's range, which it keeps.
    ///
    /// # Errors
    /// Where none is left, or a note cannot be read: whose numbers these are is not known.
    pub(crate) async fn of_pod(&self, config: &Arc<Config>, uid: &str) -> Result<IdRange, String> {
        let (turn, config, uid) = (self.turn.clone(), config.clone(), uid.to_owned());
        let given = tokio::task::spawn_blocking(move || {
            let _alone = turn.lock();
            give(&config, &uid)
        });
        given.await.map_err(|error| error.to_string())?
    }

    /// The range that the pod was given earlier.
    pub(crate) async fn known(&self, config: &Arc<Config>, uid: &str) -> Result<Option<IdRange>, String> {
        let note = config.pod_dir(uid).join(NOTE);
        let known = tokio::task::spawn_blocking(move || read(&note));
        known.await.map_err(|error| error.to_string())?
    }

    /// The pod has ended, and no process is left that has any of its numbers. Repeating it is harmless.
    pub(crate) async fn release(&self, config: &Arc<Config>, uid: &str) -> Result<(), String> {
        let (turn, note) = (self.turn.clone(), config.pod_dir(uid).join(NOTE));
        let removed = tokio::task::spawn_blocking(move || {
            let _alone = turn.lock();
            match fs::remove_file(&note) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    Err(format!("cannot remove {}: {error}", note.display()))
                }
                _ => Ok(()),
            }
        });
        removed.await.map_err(|error| error.to_string())?
    }
}

fn give(config: &Config, uid: &str) -> Result<IdRange, String> {
    let own = config.pod_dir(uid).join(NOTE);
    if let Some(known) = read(&own)? {
        return Ok(known);
    }
    let taken = noted(&config.root_dir.join("pods"))?;
    let free = config.users.free(&taken);
    let range = free.ok_or_else(|| format!("all {} ranges of users are taken", config.users.pods))?;
    let note = serde_json::to_vec(&Note::of(range)).expect("a note is plain data");
    durable::write(&own, &note).map_err(|error| format!("cannot write {}: {error}", own.display()))?;
    Ok(range)
}

/// The ranges of all pods that have a directory.
fn noted(pods: &Path) -> Result<Vec<IdRange>, String> {
    let failed = |error| format!("cannot list {}: {error}", pods.display());
    let entries = match fs::read_dir(pods) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed)?,
    };
    let mut found = Vec::new();
    for entry in entries {
        found.extend(read(&entry.map_err(failed)?.path().join(NOTE))?);
    }
    Ok(found)
}

fn read(path: &PathBuf) -> Result<Option<IdRange>, String> {
    let failed = |why: String| format!("cannot read {}: {why}", path.display());
    let text = match fs::read(path) {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        text => text.map_err(|error| failed(error.to_string()))?,
    };
    let note: Note = serde_json::from_slice(&text).map_err(|error| failed(error.to_string()))?;
    note.range()
        .map(Some)
        .ok_or_else(|| failed("it is not one range from 0 on, of users and groups alike".into()))
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Note {
    uid_mappings: Vec<Mapping>,
    gid_mappings: Vec<Mapping>,
}

#[derive(Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Mapping {
    host_id: u32,
    container_id: u32,
    length: u32,
}

impl Note {
    fn of(range: IdRange) -> Self {
        let mapping = Mapping { host_id: range.first, container_id: 0, length: range.count };
        Self { uid_mappings: vec![mapping], gid_mappings: vec![mapping] }
    }

    fn range(&self) -> Option<IdRange> {
        match (&self.uid_mappings[..], &self.gid_mappings[..]) {
            ([users], [groups]) if users == groups && users.container_id == 0 => {
                let range = IdRange { first: users.host_id, count: users.length };
                let is_sound = range.first >= UNIT && range.count > 0;
                Some(range).filter(|_| is_sound && range.first.checked_add(range.count).is_some())
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(pods: u32) -> IdPool {
        IdPool { pods, ..IdPool::default() }
    }

    #[tokio::test]
    async fn pods_keep_ranges_that_no_other_has() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut config = Config::new("n1", "10.0.0.1".parse().expect("address"), dir.path());
        config.users = pool(3);
        let config = Arc::new(config);
        let users = Users::default();
        let first = async |uid: &str| users.of_pod(&config, uid).await.map(|range| range.first / UNIT);
        assert_eq!((first("a").await, first("b").await, first("c").await), (Ok(1), Ok(2), Ok(3)));
        assert_eq!(first("d").await, Err("all 3 ranges of users are taken".into()));
        let text = fs::read_to_string(config.pod_dir("b").join(NOTE)).expect("noted");
        let mapping = r#"[{"hostId":131072,"containerId":0,"length":65536}]"#;
        assert_eq!(text, format!(r#"{{"uidMappings":{mapping},"gidMappings":{mapping}}}"#));

        // Another agent knows them from the disk.
        let users = Users::default();
        fs::create_dir_all(config.pod_dir("without")).expect("made");
        fs::remove_dir_all(config.pod_dir("b")).expect("removed");
        let first = async |uid: &str| users.of_pod(&config, uid).await.map(|range| range.first / UNIT);
        assert_eq!((first("c").await, first("d").await, first("a").await), (Ok(3), Ok(2), Ok(1)));

        assert!(first("e").await.is_err());
        users.release(&config, "d").await.expect("given back");
        users.release(&config, "d").await.expect("given back before");
        assert_eq!(users.known(&config, "d").await, Ok(None));
        assert_eq!((first("e").await, first("d").await.is_err()), (Ok(2), true));
        assert_eq!(users.known(&config, "e").await.map(|known| known.is_some()), Ok(true));

        fs::remove_dir_all(config.pod_dir("e")).expect("removed");
        for damaged in
            ["{}".to_owned(), text.replace("131072", "0"), text.replace("\"length\":65536", "\"length\":0")]
        {
            fs::write(config.pod_dir("c").join(NOTE), damaged).expect("written");
            assert!(first("f").await.expect_err("whose are they?").contains("pods/c/userns"));
        }
    }

    #[test]
    fn ranges_of_another_size_are_not_given_twice() {
        let wide = IdRange { first: 2 * UNIT, count: 2 * UNIT };
        assert_eq!(pool(4).free(&[wide]).map(|range| range.first), Some(UNIT));
        let taken = [wide, IdRange { first: UNIT, count: UNIT }];
        assert_eq!(pool(4).free(&taken).map(|range| range.first), Some(4 * UNIT));
        assert_eq!(pool(3).free(&taken), None);
    }

    #[test]
    fn numbers_come_from_the_delegate_where_there_is_one() {
        let pool = |each: u32, pods: u32, text: &str| IdPool::new(each, pods, text, text);
        let made = |first, each, pods| Ok(IdPool { first, each, pods });
        assert_eq!(pool(UNIT, 110, ""), made(UNIT, UNIT, 110));
        assert_eq!(pool(2 * UNIT, 110, "root:1:2\nkubelets:1:1\n"), made(UNIT, 2 * UNIT, 110));
        assert_eq!(pool(UNIT, 65534, "").map(|pool| pool.pods), Ok(65534));
        assert!(pool(UNIT, 65535, "").is_err(), "there are no more numbers");
        assert!(pool(u32::MAX - UNIT + 1, 110, "").is_err(), "for no pod at all");
        assert_eq!(pool(UNIT, 2, "a:1:2\nkubelet:1310720:196608\n"), made(20 * UNIT, UNIT, 3));
        for (name, each, text) in [
            ("no multiple", 1000, ""),
            ("nothing", 0, ""),
            ("too few", UNIT, "kubelet:65536:65536"),
            ("the node's own", UNIT, "kubelet:0:655360"),
            ("begins anywhere", UNIT, "kubelet:100000:655360"),
            ("beyond the last", UNIT, "kubelet:4294901760:655360"),
            ("no numbers", UNIT, "kubelet:a:b"),
            ("in pieces", UNIT, "kubelet:65536:655360\nkubelet:1310720:655360"),
        ] {
            assert!(pool(each, 2, text).is_err(), "{name}");
        }
        assert!(IdPool::new(UNIT, 1, "kubelet:65536:65536", "").is_err(), "users without groups");
    }
}
