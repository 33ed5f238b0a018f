//! What the instances of a container leave on the node's disk, and taking it away when nothing shows them any more.
//!
//! An instance has a log (with its rotated files), a termination file and a bind mount a subPath. Kept are those of
//! the newest instance and of the one before it, as upstream does; each is named by its attempt.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::{log_path, termination_file};
use crate::config::Config;
use crate::pod::DesiredPod;
use crate::volumes::mounts;

/// Where the subPath of a container's mount number `index` is bound.
pub(crate) fn sub_path_place(
    config: &Config,
    uid: &str,
    volume: &str,
    container: &str,
    attempt: u32,
    index: usize,
) -> PathBuf {
    sub_paths(config, uid).join(volume).join(container).join(format!("{attempt}-{index}"))
}

fn sub_paths(config: &Config, uid: &str) -> PathBuf {
    config.pod_dir(uid).join("volume-subpaths")
}

/// Removes what instances of `container` before `oldest_kept` have left. Repeating it is harmless.
pub(crate) fn remove_before(
    config: &Config,
    pod: &DesiredPod,
    container: &str,
    oldest_kept: u32,
) -> io::Result<()> {
    let is_old = |name: &str| attempt_of(name).is_some_and(|attempt| attempt < oldest_kept);
    let files = [
        log_path(config, pod, container, oldest_kept),
        termination_file(config, pod.uid(), container, oldest_kept),
    ];
    for dir in files.iter().filter_map(|file| file.parent()) {
        for file in entries(dir)?.filter(|(name, _)| is_old(name)).map(|(_, path)| path) {
            absent_is_success(fs::remove_file(file))?;
        }
    }
    for (_, volume) in entries(&sub_paths(config, pod.uid()))? {
        for (_, place) in entries(&volume.join(container))?.filter(|(name, _)| is_old(name)) {
            remove_place(&place)?;
        }
    }
    Ok(())
}

/// `3.log`, `3.log.20260101-000000.1`, `3` and `3-0` are of attempt 3.
fn attempt_of(name: &str) -> Option<u32> {
    name.split(['.', '-']).next()?.parse().ok()
}

/// Never deletes through a mount: a place is an empty directory or file once nothing is mounted on it.
fn remove_place(place: &Path) -> io::Result<()> {
    mounts::unmount_below(place)?;
    absent_is_success(match place.is_dir() {
        true => fs::remove_dir(place),
        false => fs::remove_file(place),
    })
}

fn entries(dir: &Path) -> io::Result<impl Iterator<Item = (String, PathBuf)> + use<>> {
    let listed = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        listed => listed?.collect::<io::Result<Vec<_>>>()?,
    };
    Ok(listed.into_iter().map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.path())))
}

fn absent_is_success(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::pod::testing::{self, container, spec};

    /// Unmounts what a failed test leaves, before its directory goes.
    struct Mounts(PathBuf);

    impl Drop for Mounts {
        fn drop(&mut self) {
            let _ = mounts::unmount_below(&self.0);
        }
    }

    fn left(dir: &Path) -> BTreeSet<String> {
        entries(dir).expect("listed").map(|(name, _)| name).collect()
    }

    fn names<const N: usize>(names: [&str; N]) -> BTreeSet<String> {
        names.map(str::to_owned).into()
    }

    #[test]
    fn files_of_old_attempts_go_and_others_stay() {
        let dir = tempfile::tempdir().expect("directory");
        let config = Config::new("n1", "10.0.0.1".parse().expect("address"), dir.path());
        let pod = testing::pod(spec("Always", vec![], vec![container("web")]));
        let logs = log_path(&config, &pod, "web", 0).parent().expect("in a directory").to_owned();
        let messages = termination_file(&config, pod.uid(), "web", 0).parent().expect("in one").to_owned();
        let places = sub_paths(&config, pod.uid()).join("data").join("web");
        for path in [&logs, &messages, &places] {
            fs::create_dir_all(path).expect("made");
        }
        for attempt in [0, 9, 10, 11] {
            fs::write(logs.join(format!("{attempt}.log")), "text").expect("written");
            fs::write(messages.join(attempt.to_string()), "text").expect("written");
            fs::create_dir(places.join(format!("{attempt}-0"))).expect("made");
            fs::write(places.join(format!("{attempt}-1")), "").expect("written");
        }
        fs::write(logs.join("9.log.20260101-000000.000000001"), "text").expect("written");
        let (volume, _mounts) = (dir.path().join("volume"), Mounts(places.clone()));
        fs::create_dir(&volume).expect("made");
        fs::write(volume.join("precious"), "text").expect("written");
        match mounts::bind(&volume, &places.join("0-0")) {
            Ok(()) => {}
            Err(error) => println!("without a mount (needs root): {error}"),
        }

        remove_before(&config, &pod, "web", 10).expect("removed");
        assert_eq!(left(&logs), names(["10.log", "11.log"]));
        assert_eq!(left(&messages), names(["10", "11"]));
        assert_eq!(left(&places), names(["10-0", "10-1", "11-0", "11-1"]));
        assert!(volume.join("precious").exists(), "what was mounted is not the place's to delete");
        remove_before(&config, &pod, "web", 10).expect("nothing left to do");
        remove_before(&config, &pod, "other", 10).expect("nothing there");
    }
}
