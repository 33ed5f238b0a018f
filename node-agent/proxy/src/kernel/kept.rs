//! Programs that outlive the agent: the next one of the same build takes them as they are, instead of having the verifier
//! look at them once more, which is most of a start.
//!
//! They are pinned in a directory whose name says what they were made of: the object, what was set in it, and the maps
//! that they use. A directory has its name once all of them are in it.

use std::{
    collections::BTreeMap,
    fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
};

use super::{
    loader::{Build, PINNED, Programs},
    sys,
};
use crate::object;

/// Until it is whole. (bpffs allows no dots in names.)
const UNFINISHED: &str = "unfinished";

/// Beside the directory of programs, while they are removed.
const REMOVED: &str = "programs_removed";

/// Beside the directory of the maps.
pub(crate) fn programs_dir(maps_dir: &Path) -> PathBuf {
    maps_dir.with_file_name("programs")
}

/// The programs of this build over the maps that are pinned now, if they are kept.
pub(crate) fn find(maps_dir: &Path, build: Build) -> io::Result<Option<Programs>> {
    let dir = programs_dir(maps_dir).join(name(maps_dir, build)?);
    let entries = match fs::read_dir(&dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        entries => entries?,
    };
    let mut programs = BTreeMap::new();
    for entry in entries {
        let entry = entry?;
        if let Some(program) = sys::obj_get(&entry.path())? {
            programs.insert(entry.file_name().to_string_lossy().into_owned(), program);
        }
    }
    Ok(Some(Programs(programs)))
}

/// Keeps the programs, in place of those that were kept before. They must use the maps that are pinned now.
pub(crate) fn keep(maps_dir: &Path, build: Build, programs: &Programs) -> io::Result<()> {
    let all = programs_dir(maps_dir);
    remove_all(maps_dir)?;
    let dir = all.join(UNFINISHED);
    fs::create_dir_all(&dir)?;
    for (name, program) in &programs.0 {
        sys::obj_pin(program.as_fd(), &dir.join(name))?;
    }
    fs::rename(&dir, all.join(name(maps_dir, build)?))
}

/// Removes what is kept, all of it or nothing: an agent that is killed meanwhile leaves no directory that lacks some.
/// Programs that are attached stay so; nothing there is no error.
pub(crate) fn remove_all(maps_dir: &Path) -> io::Result<()> {
    let all = programs_dir(maps_dir);
    let gone = all.with_file_name(REMOVED);
    let present = |outcome: io::Result<()>| match outcome {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        outcome => outcome.map(|()| true),
    };
    // Of an agent that was killed here.
    present(fs::remove_dir_all(&gone))?;
    if present(fs::rename(&all, &gone))? {
        fs::remove_dir_all(&gone)?;
    }
    Ok(())
}

/// 16 hexadecimal digits. Hashes of two versions of the compiler may differ, and then nothing is found.
fn name(maps_dir: &Path, build: Build) -> io::Result<String> {
    let mut hasher = DefaultHasher::new();
    object::bytes().hash(&mut hasher);
    build.hash(&mut hasher);
    for map in PINNED {
        // The kernel gives a number to one map only, until it is booted anew, and then nothing is pinned.
        let map = sys::obj_get(&maps_dir.join(map))?;
        map.map(|map| sys::map_info(map.as_fd())).transpose()?.map(|info| info.id).hash(&mut hasher);
    }
    Ok(format!("{:016x}", hasher.finish()))
}
