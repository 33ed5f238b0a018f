//! Loading: pinned maps are adopted when their layout is this version's, programs are always loaded anew.

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
    map::{Counters, Map},
    sys,
};
use crate::{error::Error, object};

/// Maps that outlive the agent.
const PINNED: [&str; 19] = [
    "SETTINGS",
    "FRONTENDS",
    "BACKENDS",
    "MEMBERS",
    "MAGLEV",
    "AFFINITY",
    "SOURCE_RANGES",
    "OPTED_OUT",
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

/// Sizes of the maps that grow with the cluster. A map that is already pinned keeps the size it has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    pub(crate) frontends: u32,
    pub(crate) backends: u32,
    pub(crate) members: u32,
    pub(crate) maglev_blocks: u32,
    pub(crate) affinities: u32,
    pub(crate) source_ranges: u32,
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

/// Programs by name, loaded and not attached.
#[derive(Debug)]
pub(crate) struct Programs(BTreeMap<String, OwnedFd>);

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
    /// The kernel lets a socket program choose the error.
    pub(crate) has_set_retval: bool,
}

/// Loads the object with its maps pinned below `maps_dir`.
///
/// Refuses before anything is touched when maps of another layout are pinned there. The program at XDP is loaded if
/// `with_xdp`, and where the kernel takes it.
pub(crate) fn load(maps_dir: &Path, sizes: Sizes, with_xdp: bool) -> Result<Loaded, Error> {
    let adopted = check_layout(maps_dir)?;
    // The helper exists in these hooks on every kernel since 5.18; a kernel without it refuses the program.
    let load_programs = |set_retval| load_programs(maps_dir, sizes, set_retval, with_xdp);
    match load_programs(true) {
        Ok((maps, programs)) => Ok(Loaded { maps, programs, adopted, has_set_retval: true }),
        Err(first @ Error::Load { .. }) => match load_programs(false) {
            Ok((maps, programs)) => Ok(Loaded { maps, programs, adopted, has_set_retval: false }),
            Err(_) => Err(first),
        },
        Err(error) => Err(error),
    }
}

fn load_programs(
    maps_dir: &Path,
    sizes: Sizes,
    set_retval: bool,
    with_xdp: bool,
) -> Result<(Maps, Programs), Error> {
    let paths: Vec<(&str, PathBuf)> = PINNED.iter().map(|name| (*name, maps_dir.join(name))).collect();
    let has_set_retval = u32::from(set_retval);
    let mut loader = EbpfLoader::new();
    loader
        .override_global("HAS_SET_RETVAL", &has_set_retval, true)
        .map_max_entries("FRONTENDS", sizes.frontends)
        .map_max_entries("BACKENDS", sizes.backends)
        .map_max_entries("MEMBERS", sizes.members)
        .map_max_entries("MAGLEV", sizes.maglev_blocks)
        .map_max_entries("AFFINITY", sizes.affinities)
        .map_max_entries("SOURCE_RANGES", sizes.source_ranges);
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
    Ok((open_maps(maps_dir)?, Programs(programs)))
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
    fn open<T>(maps_dir: &Path, name: &'static str, typed: fn(OwnedFd) -> io::Result<T>) -> Result<T, Error> {
        let failed = |source| Error::Map { name, source };
        let fd = sys::obj_get(&maps_dir.join(name)).map_err(failed)?;
        let fd = fd.ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
        typed(fd).map_err(failed)
    }
    Ok(Maps {
        settings: open(maps_dir, "SETTINGS", Map::new)?,
        frontends: open(maps_dir, "FRONTENDS", Map::new)?,
        backends: open(maps_dir, "BACKENDS", Map::new)?,
        members: open(maps_dir, "MEMBERS", Map::new)?,
        maglev: open(maps_dir, "MAGLEV", Map::new)?,
        affinity: open(maps_dir, "AFFINITY", Map::new)?,
        source_ranges: open(maps_dir, "SOURCE_RANGES", Map::new)?,
        opted_out: open(maps_dir, "OPTED_OUT", Map::new)?,
        pods: open(maps_dir, "PODS", Map::new)?,
        xdp_links: open(maps_dir, "XDP_LINKS", Map::new)?,
        exhausted: open(maps_dir, "EXHAUSTED", Map::new)?,
        service_counters: open(maps_dir, "SERVICE_COUNTERS", Counters::new)?,
        counters: open(maps_dir, "COUNTERS", Counters::new)?,
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
    for name in PINNED {
        match fs::remove_file(maps_dir.join(name)) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(Error::Map { name, source });
            }
            _ => {}
        }
    }
    Ok(())
}
