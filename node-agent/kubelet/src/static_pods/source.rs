//! The files that static pods come from: one, or a directory of them, looked at once a second.
//!
//! A file that cannot be read or says no pod is told once, and the others go on; the pod that it said before runs on,
//! as long as the file is there. Where an earlier agent made that pod, it is not known here: what is left of it is spared
//! until the file can be read, or is gone. Names that begin with a dot are none of ours.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hawser_api::resource::ObjectKey;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::manifest::parse;
use super::{CONFIG_SEEN, StaticPods, Unread};
use crate::events::{EventType, Recorder, node_reference};

const LOOK: Duration = Duration::from_secs(1);
/// As large as the API takes an object.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// More than any node runs; the rest of a directory is told, and not read.
const MAX_FILES: usize = 512;

pub struct Source {
    path: PathBuf,
    node_name: String,
    pods: StaticPods,
    recorder: Recorder,
    files: BTreeMap<PathBuf, Known>,
    /// The path could be read, once at least.
    was_listed: bool,
    /// What was last said of the path as a whole.
    complaint: Option<String>,
}

/// What is known of one file.
#[derive(Default)]
struct Known {
    stamp: Option<Stamp>,
    /// The last pod that it described.
    pod: Option<Arc<Pod>>,
    /// What was last said of it.
    complaint: Option<String>,
}

/// What changes with a file's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
}

impl Source {
    pub fn new(path: PathBuf, node_name: String, pods: StaticPods, recorder: Recorder) -> Self {
        Self { path, node_name, pods, recorder, files: BTreeMap::new(), was_listed: false, complaint: None }
    }

    /// Looks again and again until the token is cancelled.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut tick = tokio::time::interval(LOOK);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = tick.tick() => {}
            }
            let looked = tokio::task::spawn_blocking(move || {
                self.look();
                self
            });
            match looked.await {
                Ok(source) => self = source,
                Err(error) => {
                    tracing::error!(%error, "static pods are not followed any more");
                    return shutdown.cancelled().await;
                }
            }
        }
    }

    /// Brings the pods in step with the files. Blocks.
    pub fn look(&mut self) {
        let paths = match list(&self.path) {
            Ok(paths) => paths,
            Err(error) => {
                // What was there is not taken for gone.
                if !self.was_listed {
                    self.pods.set_unread(Unread::All);
                }
                return self.complain(format!("{} cannot be read: {error}", self.path.display()));
            }
        };
        match paths.len() > MAX_FILES {
            true => {
                let path = self.path.display();
                self.complain(format!("{path} has {} files; {MAX_FILES} are read", paths.len()));
            }
            false => self.complaint = None,
        }
        self.was_listed = true;
        let (paths, beyond) = paths.split_at(paths.len().min(MAX_FILES));
        self.files.retain(|path, _| paths.contains(path));
        for path in paths {
            self.look_at(path);
        }
        let chosen = self.chosen();
        self.pods.set(chosen);
        // After the pods: what is read by now is among them.
        let unknown = self.files.iter().filter(|(_, known)| known.pod.is_none()).map(|(path, _)| path);
        self.pods.set_unread(Unread::These(unknown.chain(beyond).cloned().collect()));
    }

    fn look_at(&mut self, path: &Path) {
        let stamp = stamp(path);
        let known = self.files.entry(path.to_owned()).or_default();
        if stamp.is_some() && known.stamp == stamp {
            return;
        }
        known.stamp = stamp;
        let read = read(path).and_then(|content| parse(&content, path, &self.node_name));
        match read {
            Ok(mut pod) => {
                if let Some(same) = known.pod.as_ref().filter(|old| old.metadata.uid == pod.metadata.uid) {
                    pod = (**same).clone();
                } else {
                    let annotations = pod.metadata.annotations.get_or_insert_default();
                    annotations.insert(CONFIG_SEEN.to_owned(), Timestamp::now().to_string());
                }
                known.pod = Some(Arc::new(pod));
                known.complaint = None;
            }
            Err(error) => {
                let complaint = format!("{}: {error}", path.display());
                if known.complaint.as_ref() != Some(&complaint) {
                    tell(&self.recorder, &self.node_name, complaint.clone());
                    known.complaint = Some(complaint);
                }
            }
        }
    }

    /// One pod a name: of several, the one of the first file.
    fn chosen(&mut self) -> Vec<Arc<Pod>> {
        let mut by_name: BTreeMap<ObjectKey, (PathBuf, Arc<Pod>)> = BTreeMap::new();
        for (path, known) in &mut self.files {
            let Some(pod) = &known.pod else { continue };
            let name = ObjectKey::of(&**pod);
            let Some((first, _)) = by_name.get(&name) else {
                by_name.insert(name, (path.clone(), pod.clone()));
                continue;
            };
            let complaint =
                format!("{}: metadata.name: the pod is that of {}", path.display(), first.display());
            if known.complaint.as_ref() != Some(&complaint) {
                tell(&self.recorder, &self.node_name, complaint.clone());
                known.complaint = Some(complaint);
            }
        }
        by_name.into_values().map(|(_, pod)| pod).collect()
    }

    fn complain(&mut self, complaint: String) {
        if self.complaint.as_ref() != Some(&complaint) {
            tell(&self.recorder, &self.node_name, complaint.clone());
            self.complaint = Some(complaint);
        }
    }
}

fn tell(recorder: &Recorder, node_name: &str, message: String) {
    warn!(message, "a static pod cannot be had");
    recorder.event(node_reference(node_name), EventType::Warning, "FailedStaticPod", message);
}

/// The files, in order of their names.
fn list(path: &Path) -> io::Result<Vec<PathBuf>> {
    if !std::fs::metadata(path)?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut found = Vec::new();
    for entry in std::fs::read_dir(path)? {
        let path = entry?.path();
        let is_hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        // A link is what it leads to; one that leads nowhere is a file that cannot be read.
        if !is_hidden && !path.is_dir() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn stamp(path: &Path) -> Option<Stamp> {
    let meta = std::fs::metadata(path).ok()?;
    Some(Stamp { inode: meta.ino(), bytes: meta.len(), modified: (meta.mtime(), meta.mtime_nsec()) })
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let meta = std::fs::metadata(path).map_err(|error| error.to_string())?;
    if !meta.is_file() {
        return Err("is no regular file".to_owned());
    }
    if meta.len() > MAX_FILE_BYTES {
        return Err(format!("has {} bytes, more than {MAX_FILE_BYTES}", meta.len()));
    }
    std::fs::read(path).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Dir {
        dir: tempfile::TempDir,
        source: Source,
        pods: StaticPods,
        events: tokio::sync::mpsc::Receiver<crate::events::NewEvent>,
    }

    impl Dir {
        fn new() -> Self {
            let dir = tempfile::tempdir().expect("a directory");
            let (recorder, events) = Recorder::new();
            let pods = StaticPods::default();
            let source = Source::new(dir.path().to_owned(), "n1".into(), pods.clone(), recorder);
            Self { dir, source, pods, events }
        }

        fn put(&self, name: &str, content: &str) {
            std::fs::write(self.dir.path().join(name), content).expect("written");
        }

        /// Looks; returns the pods' names with their images, and what was told.
        fn look(&mut self) -> (Vec<String>, Vec<String>) {
            self.source.look();
            let mut pods: Vec<String> = self
                .pods
                .all()
                .iter()
                .map(|pod| {
                    let image = pod.spec.as_ref().and_then(|spec| spec.containers[0].image.clone());
                    format!("{}={}", pod.metadata.name.clone().unwrap_or_default(), image.unwrap_or_default())
                })
                .collect();
            pods.sort();
            let mut told = Vec::new();
            while let Ok(event) = self.events.try_recv() {
                told.push(event.message);
            }
            (pods, told)
        }
    }

    fn manifest(name: &str, image: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{ name: {name} }}\nspec:\n  containers: [{{ name: c, image: '{image}' }}]\n"
        )
    }

    #[test]
    fn files_come_change_and_go() {
        let mut dir = Dir::new();
        assert_eq!(dir.look(), (vec![], vec![]));
        dir.put("a.yaml", &manifest("a", "one"));
        dir.put(".hidden", &manifest("h", "one"));
        std::fs::create_dir(dir.dir.path().join("folder")).expect("made");
        assert_eq!(dir.look(), (vec!["a-n1=one".into()], vec![]));
        let seen = dir.pods.all()[0].clone();
        assert!(seen.metadata.annotations.as_ref().is_some_and(|all| all.contains_key(CONFIG_SEEN)));
        dir.put("a.yaml", &format!("# The same.\n{}", manifest("a", "one")));
        dir.look();
        assert_eq!(dir.pods.all()[0], seen, "it was seen when it was first seen");
        dir.put("a.yaml", &manifest("a", "another"));
        assert_eq!(dir.look().0, ["a-n1=another"]);
        std::fs::remove_file(dir.dir.path().join("a.yaml")).expect("removed");
        assert_eq!(dir.look(), (vec![], vec![]));
    }

    #[test]
    fn bad_file_is_told_once_and_harms_nobody() {
        let mut dir = Dir::new();
        dir.put("good.yaml", &manifest("good", "one"));
        dir.put("bad.yaml", "kind: [");
        let (pods, told) = dir.look();
        assert_eq!(pods, ["good-n1=one"]);
        assert!(told.len() == 1 && told[0].contains("bad.yaml"), "{told:?}");
        assert_eq!(dir.look(), (vec!["good-n1=one".into()], vec![]));
        dir.put("good.yaml", "kind: broken meanwhile");
        let (pods, told) = dir.look();
        assert_eq!(pods, ["good-n1=one"], "what ran runs on");
        assert_eq!(told.len(), 1);
        dir.put("large.yaml", &" ".repeat((1 << 20) + 1));
        assert!(dir.look().1[0].contains("more than 1048576"));
    }

    #[test]
    fn second_file_of_a_pod_is_told() {
        let mut dir = Dir::new();
        dir.put("a.yaml", &manifest("web", "one"));
        dir.put("b.yaml", &manifest("web", "two"));
        let (pods, told) = dir.look();
        assert_eq!(pods, ["web-n1=one"]);
        assert!(told.len() == 1 && told[0].contains("b.yaml: metadata.name"), "{told:?}");
        assert_eq!(dir.look().1, Vec::<String>::new());
        std::fs::remove_file(dir.dir.path().join("a.yaml")).expect("removed");
        assert_eq!(dir.look(), (vec!["web-n1=two".into()], vec![]));
    }

    #[test]
    fn directory_that_cannot_be_read_is_told_and_stops_no_pod() {
        let mut dir = Dir::new();
        dir.put("a.yaml", &manifest("a", "one"));
        dir.look();
        let moved = dir.dir.path().with_extension("moved");
        std::fs::rename(dir.dir.path(), &moved).expect("moved");
        let (pods, told) = dir.look();
        assert_eq!((pods.len(), told.len()), (1, 1));
        assert_eq!(dir.look().1.len(), 0);
        std::fs::rename(&moved, dir.dir.path()).expect("moved back");
    }
}
