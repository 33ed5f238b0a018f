//! Writing an object together with what it claims and releases: addresses and node ports.
//!
//! All of it, and what it charges to quotas, is one transaction where that fits the store's bound. Quotas that are charged
//! together share a revision: how a watch goes on that ended between two of them is [`crate::cache::ring`]'s. A service with
//! hundreds of node ports does not fit: its claims are then made first, by transactions of their own, and marked as
//! reservations; the object follows, and takes what it names. So no two objects ever hold the same claim. What a failure
//! leaves behind is a reservation without a service, which is taken back here, or by [`crate::maintenance`] when this
//! process died in between.

use hawser_store::{Error, Expect, Key, MAX_OPERATIONS, Revision, Write};
use jiff::Timestamp;
use tracing::warn;

use super::Registry;
use crate::allocator::Allocations;

/// A claim that was written ahead of its object.
struct Reserved {
    key: Key,
    revision: Revision,
}

impl Registry {
    /// Writes `object` and what belongs to it; returns the revision of the object. `charges` are quotas, which are never
    /// written apart from it.
    pub(super) async fn commit(
        &self,
        object: Write,
        allocations: &Allocations,
        charges: Vec<Write>,
    ) -> Result<Revision, Error> {
        if allocations.is_empty() && charges.is_empty() {
            return self.store.write(object).await.map(|written| written.revision);
        }
        let together = std::iter::once(object).chain(charges);
        if allocations.len() + together.size_hint().0 <= MAX_OPERATIONS {
            let writes = together.chain(allocations.claims()).chain(allocations.releases());
            return self.store.transaction(writes.collect()).await;
        }
        let together: Vec<Write> = together.collect();
        let mut reserved = Vec::new();
        if let Err(error) = self.reserve(allocations, &mut reserved).await {
            // The object was not written, so none of them is needed; one that may have been made waits for maintenance.
            self.take_back(reserved).await;
            return Err(error);
        }
        let releases: Vec<Write> = allocations.releases().collect();
        let room = MAX_OPERATIONS.saturating_sub(together.len());
        let (with_object, later) = releases.split_at(releases.len().min(room));
        let writes = together.into_iter().chain(with_object.iter().cloned());
        let written = self.store.transaction(writes.collect()).await;
        match &written {
            Ok(_) => self.release_later(allocations, later).await,
            // Perhaps the object is there: then its claims must stay. Maintenance finds out.
            Err(Error::Ambiguous { .. }) => {}
            Err(_) => self.take_back(reserved).await,
        }
        written
    }

    /// Makes the claims, a transaction at a time; `reserved` are those made so far, on failure too.
    async fn reserve(&self, allocations: &Allocations, reserved: &mut Vec<Reserved>) -> Result<(), Error> {
        let claims: Vec<Write> = allocations.reservations(Timestamp::now()).collect();
        for chunk in claims.chunks(MAX_OPERATIONS) {
            let revision = self.store.transaction(chunk.to_vec()).await?;
            reserved.extend(chunk.iter().map(|write| Reserved { key: write.key.clone(), revision }));
        }
        Ok(())
    }

    async fn take_back(&self, reserved: Vec<Reserved>) {
        let deletions =
            reserved.into_iter().map(|claim| Write::delete(claim.key, Expect::Revision(claim.revision)));
        self.delete_in_chunks(deletions.collect()).await;
    }

    /// Releases what did not fit beside the object. Another may have taken it over meanwhile: only own claims go.
    async fn release_later(&self, allocations: &Allocations, later: &[Write]) {
        let mut deletions = Vec::new();
        for write in later {
            if let Ok(Some(kv)) = self.store.get(&write.key).await
                && allocations.owns(&kv.value)
            {
                deletions.push(Write::delete(kv.key, Expect::Revision(kv.mod_revision)));
            }
        }
        self.delete_in_chunks(deletions).await;
    }

    async fn delete_in_chunks(&self, deletions: Vec<Write>) {
        for chunk in deletions.chunks(MAX_OPERATIONS) {
            if let Err(error) = self.store.transaction(chunk.to_vec()).await {
                warn!(claims = chunk.len(), %error, "claims without an owner stay until they are repaired");
            }
        }
    }
}
