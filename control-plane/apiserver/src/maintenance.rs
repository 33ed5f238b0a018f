//! What the server does to the store by itself: old events go, history is compacted, allocations are put right.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures::{StreamExt, pin_mut};
use hawser_api::Error;
use hawser_store::{Expect, Key, RangeRequest, Revision, Write, pages};
use jiff::Timestamp;
use serde_json::Value;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::{
    allocator::{ADDRESSES, Allocators, PORTS},
    cache::{ROOT, Selection},
    registry::{Registry, store_error},
};

/// How often expired events are looked for; they live at most this much longer than they should.
const EXPIRY_INTERVAL: Duration = Duration::from_secs(30);

/// Deletions in one transaction; below the store's bound.
const BATCH: usize = 100;

/// Removes events that are older than `ttl`, until cancelled.
pub(crate) async fn expire_events(registry: Arc<Registry>, ttl: Duration, shutdown: CancellationToken) {
    let mut ticks = interval(EXPIRY_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = ticks.tick() => {}
        }
        match expire_once(&registry, ttl, Timestamp::now()).await {
            Ok(0) => {}
            Ok(removed) => debug!(removed, "events expired"),
            Err(error) => warn!(%error, "events could not be expired, trying again later"),
        }
    }
}

async fn expire_once(registry: &Registry, ttl: Duration, now: Timestamp) -> Result<usize, Error> {
    let resource = registry.resources().builtin("", "v1", "events");
    let cache = resource.cache()?;
    let oldest = now.as_second() - ttl.as_secs() as i64;
    let expired: Vec<Write> = Selection::default()
        .select(cache, &cache.snapshot().state, "")
        .filter(|event| last_change(&event.value()) < oldest)
        .map(|event| Write::delete(event.key().clone(), Expect::Revision(event.revision())))
        .collect();
    let mut removed = 0;
    for batch in expired.chunks(BATCH) {
        match registry.store().transaction(batch.to_vec()).await {
            Ok(_) => removed += batch.len(),
            // One of them was written meanwhile; the others wait for the next round.
            Err(hawser_store::Error::Conflict { .. }) => {}
            Err(error) => return Err(store_error(error)),
        }
    }
    Ok(removed)
}

/// When an event last said something: upstream's TTL counts from the last write too.
fn last_change(event: &Value) -> i64 {
    let times = [
        &event["series"]["lastObservedTime"],
        &event["lastTimestamp"],
        &event["eventTime"],
        &event["metadata"]["creationTimestamp"],
    ];
    let parse = |time: &Value| time.as_str()?.parse::<Timestamp>().ok().map(Timestamp::as_second);
    times.into_iter().filter_map(parse).max().unwrap_or(i64::MAX)
}

/// Compacts history at each interval to where the store was one interval before, until cancelled.
///
/// So watches and continued lists have between one and two intervals.
pub(crate) async fn compact(registry: Arc<Registry>, every: Duration, shutdown: CancellationToken) {
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut before: Revision = 0;
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let now = registry.cache().progress();
        if before > 0 {
            match registry.store().compact(before).await {
                Ok(()) => debug!(revision = before, "history is compacted"),
                Err(error) => warn!(%error, "history could not be compacted, trying again later"),
            }
        }
        before = now;
    }
}

/// Makes allocations agree with services: those without a service go, those that a service lacks are made.
///
/// Both only happen after a restore or a bug, because they are written together.
pub(crate) async fn repair_allocations(registry: &Registry) -> Result<(), Error> {
    let services = registry.resources().builtin("", "v1", "services").cache()?.clone();
    let mut wanted: HashMap<Key, String> = HashMap::new();
    for service in Selection::default().select(&services, &services.snapshot().state, "") {
        let owner = format!("{}/{}", service.namespace(), service.name());
        for key in Allocators::keys_of(&service.value()) {
            if let Some(other) = wanted.insert(key.clone(), owner.clone()) {
                warn!(%key, %owner, %other, "two services hold the same address or port");
            }
        }
    }
    let mut writes = Vec::new();
    for place in [ADDRESSES, PORTS] {
        let found = pages(&**registry.store(), RangeRequest::prefix(&format!("{ROOT}{place}/")), 1_000);
        pin_mut!(found);
        while let Some(page) = found.next().await {
            for kv in page.map_err(store_error)?.kvs {
                if wanted.remove(&kv.key).is_none() {
                    writes.push(Write::delete(kv.key, Expect::Revision(kv.mod_revision)));
                }
            }
        }
    }
    writes.extend(wanted.into_iter().map(|(key, owner)| Write::create(key, owner)));
    if !writes.is_empty() {
        info!(changes = writes.len(), "allocations of services are repaired");
    }
    for batch in writes.chunks(BATCH) {
        match registry.store().transaction(batch.to_vec()).await {
            // Another server repairs too.
            Ok(_) | Err(hawser_store::Error::Conflict { .. }) => {}
            Err(error) => return Err(store_error(error)),
        }
    }
    Ok(())
}
