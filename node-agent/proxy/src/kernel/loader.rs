//! Loading: pinned maps are adopted when their layout is this version's, programs when they are of this build.

use std::{
    collections::BTreeMap,
    fs, io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    panic::resume_unwind,
    path::{Path, PathBuf},
    thread,
};

use aya::{EbpfLoader, programs::Program};
use hawser_ebpf_abi::{
    Addr, Affinity, AffinityKey, Backend, FlowKey, Frontend, FrontendKey, LAYOUT_VERSION, MaglevBlock,
    MemberKey, PodLink, RangeKey, Settings, XdpLinks,
};
use tracing::warn;

use super::{
    kept,
    map::{Counters, Map},
    sys,
};
use crate::{error::Error, object, sizes::Sizes};

/// Maps that outlive the agent.
pub(super) const PINNED: [&str; 20] = [
    "SETTINGS",
    "FRONTENDS",
    "BACKENDS",
    "MEMBERS",
    "MAGLEV",
    "AFFINITY",
    "SOURCE_RANGES",
    "OPTED_OUT",
    "PEERS",
    "CONNECTED",
    "UDP_SOCKETS",
    "UDP_OVERFLOW",
    "FLOWS",
    "FLOW_INDEX",
    "FRAGMENTS",
    "PODS",
    "XDP_LINKS",
    "EXHAUSTED",
    "SERVICE_COUNTERS",
    "COUNTERS",
];

/// Maps that grow with the cluster, and how many entries they are to have.
fn growing(sizes: Sizes) -> [(&'static str, u32); 7] {
    [
        ("FRONTENDS", sizes.frontends),
        ("BACKENDS", sizes.backends),
        ("MEMBERS", sizes.members),
        ("MAGLEV", sizes.maglev_blocks),
        ("AFFINITY", sizes.affinities),
        ("SOURCE_RANGES", sizes.source_ranges),
        ("SERVICE_COUNTERS", sizes.frontends),
    ]
}

/// The maps that the agent reads and writes.
#[derive(Debug)]
pub(crate) struct Maps {
    pub(crate) settings: Map<u32, Settings>,
    pub(crate) frontends: Map<FrontendKey, Frontend>,
    pub(crate) backends: Map<u32, Backend>,
    pub(crate) members: Map<MemberKey, u32>,
    pub(crate) maglev: Map<u32, MaglevBlock>,
    pub(crate) affinity: Map<AffinityKey, Affinity>,
    pub(crate) source_ranges: Map<RangeKey, u32>,
    pub(crate) opted_out: Map<u64, u32>,
    pub(crate) pods: Map<Addr, PodLink>,
    pub(crate) xdp_links: Map<u32, XdpLinks>,
    pub(crate) exhausted: Map<FlowKey, u64>,
    pub(crate) service_counters: Counters<2>,
    pub(crate) counters: Counters<1>,
}

/// The program that the node can do without.
pub(crate) const XDP_PROGRAM: &str = "from_wire_xdp";

impl Maps {
    pub(crate) fn sizes(&self) -> Sizes {
        Sizes {
            frontends: self.frontends.capacity(),
            backends: self.backends.capacity(),
            members: self.members.capacity(),
            maglev_blocks: self.maglev.capacity(),
            affinities: self.affinity.capacity(),
            source_ranges: self.source_ranges.capacity(),
        }
    }
}

/// Programs by name, loaded and not attached.
#[derive(Debug)]
pub(crate) struct Programs(pub(super) BTreeMap<String, OwnedFd>);

/// What programs are made with, beside the maps that they use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Build {
    /// Size of the flow table.
    flows: u32,
    /// The kernel lets a socket program choose the error.
    pub(crate) has_set_retval: bool,
    with_xdp: bool,
}

impl Programs {
    pub(crate) fn get(&self, name: &'static str) -> Result<BorrowedFd<'_>, Error> {
        self.find(name).ok_or(Error::MissingProgram { name })
    }

    pub(crate) fn find(&self, name: &str) -> Option<BorrowedFd<'_>> {
        self.0.get(name).map(|fd| fd.as_fd())
    }
}

/// What a load gave.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) maps: Maps,
    pub(crate) programs: Programs,
    /// The maps were there before.
    pub(crate) adopted: bool,
    /// The programs were there before.
    pub(crate) kept: bool,
    pub(crate) build: Build,
}

/// Programs that use larger maps, which are pinned beside the others.
#[derive(Debug)]
pub(crate) struct Larger {
    pub(crate) programs: Programs,
    /// Of the larger maps.
    pub(crate) names: Vec<&'static str>,
}

/// Loads the object with its maps pinned below `maps_dir`, with room for `flows`, a power of two. A map that is already
/// pinned keeps the size it has.
///
/// Refuses before anything is touched when maps of another layout are pinned there. The program at XDP is loaded if
/// `with_xdp`, and where the kernel takes it.
pub(crate) fn load(maps_dir: &Path, sizes: Sizes, flows: u32, with_xdp: bool) -> Result<Loaded, Error> {
    let adopted = check_layout(maps_dir)?;
    // Of an agent that was killed before it made use of them.
    remove_larger(maps_dir, sizes)?;
    let flows = pinned_flows(maps_dir)?.unwrap_or(flows);
    // The helper exists in these hooks on every kernel since 5.18; a kernel without it refuses the program.
    let builds = [true, false].map(|has_set_retval| Build { flows, has_set_retval, with_xdp });
    for build in builds.into_iter().filter(|_| adopted) {
        match kept::find(maps_dir, build) {
            Ok(Some(programs)) => {
                return Ok(Loaded { maps: open_maps(maps_dir)?, programs, adopted, kept: true, build });
            }
            Ok(None) => {}
            Err(error) => warn!(%error, "programs of an earlier agent cannot be taken over"),
        }
    }
    let load_programs = |build| {
        let programs = load_programs(&|name| maps_dir.join(name), sizes, build)?;
        keep(maps_dir, build, &programs);
        Ok(Loaded { maps: open_maps(maps_dir)?, programs, adopted, kept: false, build })
    };
    match load_programs(builds[0]) {
        Err(first @ Error::Load { .. }) => load_programs(builds[1]).map_err(|_| first),
        other => other,
    }
}

/// Keeps programs for the next agent, which loads its own where that fails.
pub(crate) fn keep(maps_dir: &Path, build: Build, programs: &Programs) {
    if let Err(error) = kept::keep(maps_dir, build, programs) {
        warn!(%error, "programs are not kept for the next agent");
    }
}

/// Makes maps of the given sizes beside those of other sizes, with the same content, and loads programs that use them.
/// Nothing is changed that is in use; after an error nothing is left.
pub(crate) fn load_larger(maps_dir: &Path, maps: &Maps, sizes: Sizes, build: Build) -> Result<Larger, Error> {
    // Of a growth that failed: what they hold is of that time.
    remove_larger(maps_dir, sizes)?;
    let same = growing(maps.sizes());
    let names: Vec<_> =
        growing(sizes).into_iter().filter(|growing| !same.contains(growing)).map(|(name, _)| name).collect();
    let pin = |name: &str| {
        if names.contains(&name) { larger_pin(maps_dir, name) } else { maps_dir.join(name) }
    };
    let loaded = load_programs(&pin, sizes, build).and_then(|programs| {
        copy(maps, &open_maps_at(&pin)?, &names)?;
        Ok(programs)
    });
    match loaded {
        Ok(programs) => Ok(Larger { programs, names }),
        Err(error) => {
            remove_larger(maps_dir, sizes)?;
            Err(error)
        }
    }
}

/// Returns the size of the flow table that is pinned.
fn pinned_flows(maps_dir: &Path) -> Result<Option<u32>, Error> {
    let failed = |source| Error::Map { name: "FLOWS", source };
    let Some(fd) = sys::obj_get(&maps_dir.join("FLOWS")).map_err(failed)? else { return Ok(None) };
    Ok(Some(sys::map_info(fd.as_fd()).map_err(failed)?.max_entries))
}

/// Gives the larger maps the places of the others.
pub(crate) fn exchange(maps_dir: &Path, names: &[&'static str]) -> Result<(), Error> {
    for name in names {
        fs::rename(larger_pin(maps_dir, name), maps_dir.join(name))
            .map_err(|source| Error::Map { name, source })?;
    }
    Ok(())
}

fn copy(from: &Maps, to: &Maps, names: &[&'static str]) -> Result<(), Error> {
    for name in names.iter().copied() {
        let copied = match name {
            "FRONTENDS" => from.frontends.entries().and_then(|entries| to.frontends.set_all(&entries)),
            "BACKENDS" => from.backends.entries().and_then(|entries| to.backends.set_all(&entries)),
            "MEMBERS" => from.members.entries().and_then(|entries| to.members.set_all(&entries)),
            "MAGLEV" => from.maglev.entries().and_then(|entries| to.maglev.set_all(&entries)),
            "AFFINITY" => from.affinity.entries().and_then(|entries| to.affinity.set_all(&entries)),
            "SOURCE_RANGES" => from.source_ranges.keys().and_then(|keys| {
                to.source_ranges.set_all(&keys.into_iter().map(|key| (key, 1)).collect::<Vec<_>>())
            }),
            "SERVICE_COUNTERS" => from.service_counters.copy_to(&to.service_counters),
            other => unreachable!("{other} does not grow"),
        };
        copied.map_err(|source| Error::Map { name, source })?;
    }
    Ok(())
}

fn remove_larger(maps_dir: &Path, sizes: Sizes) -> Result<(), Error> {
    growing(sizes).into_iter().try_for_each(|(name, _)| remove(&larger_pin(maps_dir, name), name))
}

/// Where a map is until it takes the place of a smaller one.
fn larger_pin(maps_dir: &Path, name: &str) -> PathBuf {
    maps_dir.join(format!("{name}-larger"))
}

/// `pin` says where the map of a name is pinned, or is to be.
fn load_programs(pin: &dyn Fn(&str) -> PathBuf, sizes: Sizes, build: Build) -> Result<Programs, Error> {
    let Build { flows, has_set_retval, with_xdp } = build;
    let paths: Vec<(&str, PathBuf)> = PINNED.iter().map(|name| (*name, pin(name))).collect();
    let has_set_retval = u32::from(has_set_retval);
    let mut loader = EbpfLoader::new();
    loader
        .override_global("HAS_SET_RETVAL", &has_set_retval, true)
        .override_global("FLOW_SLOTS", &flows, true)
        .map_max_entries("FLOWS", flows)
        .map_max_entries("FLOW_INDEX", flows);
    for (name, size) in growing(sizes) {
        loader.map_max_entries(name, size);
    }
    for (name, path) in &paths {
        loader.map_pin_path(name, path.as_path());
    }
    let mut object = loader
        .load(object::bytes())
        .map_err(|source| Error::Load { program: "object".to_owned(), source: Box::new(source) })?;

    // The verifier takes its time, and for each program by itself: they are loaded side by side.
    let programs = thread::scope(|scope| {
        let loads: Vec<_> = object
            .programs_mut()
            .filter(|(name, _)| with_xdp || *name != XDP_PROGRAM)
            .map(|(name, program)| scope.spawn(move || (name.to_owned(), load_program(name, program))))
            .collect();
        let mut programs = BTreeMap::new();
        for load in loads {
            match load.join().unwrap_or_else(|panic| resume_unwind(panic)) {
                (name, Ok(program)) => drop(programs.insert(name, program)),
                (name, Err(error)) if name == XDP_PROGRAM => {
                    warn!(%error, "this kernel does not take the program at XDP, tc alone");
                }
                (_, Err(error)) => return Err(error),
            }
        }
        Ok(programs)
    })?;
    Ok(Programs(programs))
}

fn load_program(name: &str, program: &mut Program) -> Result<OwnedFd, Error> {
    let failed = |source| Error::Load { program: name.to_owned(), source: Box::new(source) };
    match program {
        Program::CgroupSockAddr(program) => program.load(),
        Program::CgroupSock(program) => program.load(),
        Program::SchedClassifier(program) => program.load(),
        Program::Xdp(program) => program.load(),
        other => unreachable!("the datapath has no program of type {:?}", other.prog_type()),
    }
    .map_err(failed)?;
    let fd = program.fd().map_err(failed)?.as_fd().try_clone_to_owned();
    fd.map_err(|source| Error::Kernel { what: "dup", source })
}

/// Opens the pinned maps without loading anything, for commands that only look.
pub(crate) fn open_maps(maps_dir: &Path) -> Result<Maps, Error> {
    open_maps_at(&|name| maps_dir.join(name))
}

fn open_maps_at(pin: &dyn Fn(&str) -> PathBuf) -> Result<Maps, Error> {
    fn open<T>(
        pin: &dyn Fn(&str) -> PathBuf,
        name: &'static str,
        typed: fn(OwnedFd) -> io::Result<T>,
    ) -> Result<T, Error> {
        let failed = |source| Error::Map { name, source };
        let fd = sys::obj_get(&pin(name)).map_err(failed)?;
        let fd = fd.ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
        typed(fd).map_err(failed)
    }
    Ok(Maps {
        settings: open(pin, "SETTINGS", Map::new)?,
        frontends: open(pin, "FRONTENDS", Map::new)?,
        backends: open(pin, "BACKENDS", Map::new)?,
        members: open(pin, "MEMBERS", Map::new)?,
        maglev: open(pin, "MAGLEV", Map::new)?,
        affinity: open(pin, "AFFINITY", Map::new)?,
        source_ranges: open(pin, "SOURCE_RANGES", Map::new)?,
        opted_out: open(pin, "OPTED_OUT", Map::new)?,
        pods: open(pin, "PODS", Map::new)?,
        xdp_links: open(pin, "XDP_LINKS", Map::new)?,
        exhausted: open(pin, "EXHAUSTED", Map::new)?,
        service_counters: open(pin, "SERVICE_COUNTERS", Counters::new)?,
        counters: open(pin, "COUNTERS", Counters::new)?,
    })
}

/// Returns whether maps of this version's layout are pinned already.
///
/// An agent that was killed while it made the maps leaves a version of 0; those have never been used and go.
fn check_layout(maps_dir: &Path) -> Result<bool, Error> {
    let failed = |source| Error::Map { name: "SETTINGS", source };
    let Some(fd) = sys::obj_get(&maps_dir.join("SETTINGS")).map_err(failed)? else {
        return remove_maps(maps_dir).map(|()| false);
    };
    let info = sys::map_info(fd.as_fd()).map_err(failed)?;
    let mut value = vec![0; info.value_size as usize];
    // SAFETY: the buffers have the sizes of an array's key and of this map's value.
    unsafe { sys::map_lookup(fd.as_fd(), &0u32.to_ne_bytes(), &mut value) }.map_err(failed)?;
    let found = value.first_chunk().map_or(0, |bytes| u32::from_ne_bytes(*bytes));
    match found {
        0 => remove_maps(maps_dir).map(|()| false),
        LAYOUT_VERSION => Ok(true),
        found => Err(Error::Layout { found, expected: LAYOUT_VERSION, path: maps_dir.to_owned() }),
    }
}

fn remove_maps(maps_dir: &Path) -> Result<(), Error> {
    let dir = kept::programs_dir(maps_dir);
    kept::remove_all(maps_dir).map_err(|source| Error::Prepare { path: dir, source })?;
    PINNED.into_iter().try_for_each(|name| remove(&maps_dir.join(name), name))
}

/// Removes the pin of a map. One that is not there is no error.
fn remove(pin: &Path, name: &'static str) -> Result<(), Error> {
    match fs::remove_file(pin) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(Error::Map { name, source }),
        _ => Ok(()),
    }
}
