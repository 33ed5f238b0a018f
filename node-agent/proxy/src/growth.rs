//! Maps that are full get larger ones in their place, and nothing that is served notices.
//!
//! The larger maps are made and filled beside the others, and programs are loaded that use them: until then a failure
//! costs nothing. Then they take the pins, and the programs are replaced in place, one after the other. Meanwhile some
//! use the old maps and some the new ones, which say the same, as the agent writes nothing to either. An agent that
//! starts instead, because this one was killed, finds under every pin a map that is whole, and loads programs for them.

use std::time::{Duration, Instant};

use tracing::{info, warn};

use crate::{
    error::Error,
    kernel::loader::{self, Larger},
    proxy::{Proxy, maps_dir},
    sizes::Sizes,
};

/// After a failure, how long no growth is tried.
const PAUSE: Duration = Duration::from_secs(60);

/// Growing, as far as it has come.
#[derive(Debug, Default)]
pub(crate) struct Growth {
    /// The maps have been exchanged, and not yet all programs.
    is_under_way: bool,
    /// Until when none is tried.
    paused_until: Option<Instant>,
}

impl Proxy {
    /// Makes room for what is `lacking`. Returns false where there is nothing to do, where the maps may not be larger,
    /// and where the kernel refuses, which is logged. Where programs could not be replaced, the next call of
    /// [`Proxy::finish_growth`] goes on.
    pub(crate) fn grow(&mut self, lacking: Sizes) -> Result<bool, Error> {
        let now = Instant::now();
        let old = self.maps.sizes();
        let Some(sizes) = old.grown(lacking, self.config.max_sizes) else { return Ok(false) };
        if self.growth.paused_until.is_some_and(|until| now < until) {
            return Ok(false);
        }
        let dir = maps_dir(&self.config.bpffs_dir);
        let Larger { programs, names } = match loader::load_larger(&dir, &self.maps, sizes, self.build) {
            Ok(larger) => larger,
            Err(error) => {
                warn!(error = &error as &dyn std::error::Error, ?old, ?sizes, "the maps cannot grow");
                self.growth.paused_until = Some(now + PAUSE);
                return Ok(false);
            }
        };
        loader::exchange(&dir, &names)?;
        loader::keep(&dir, self.build, &programs);
        let maps = loader::open_maps(&dir)?;
        let old_maps = std::mem::replace(&mut self.maps, maps);
        self.programs = programs;
        self.growth.is_under_way = true;
        self.finish_growth()?;
        // What the old programs have noted since. A client that one of the new programs has chosen for keeps that.
        let failed = |source| Error::Map { name: "AFFINITY", source };
        self.maps.affinity.add_new(&old_maps.affinity.entries().map_err(failed)?).map_err(failed)?;
        info!(?old, new = ?sizes, "the maps have grown");
        Ok(true)
    }

    /// Replaces the programs of maps that have been exchanged. To be called before anything is written.
    pub(crate) fn finish_growth(&mut self) -> Result<(), Error> {
        if self.growth.is_under_way {
            self.attach_all()?;
            self.growth.is_under_way = false;
        }
        Ok(())
    }
}
