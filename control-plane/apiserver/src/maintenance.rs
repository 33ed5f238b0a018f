//! What the server does to the store by itself: old events go, history is compacted, allocations are put right.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures::{StreamExt, pin_mut, stream};
use hawser_api::Error;
use hawser_store::{Expect, Key, KeyValue, RangeRequest, Revision, Write, pages};
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

/// How often claims of services are compared with services, as upstream.
const REPAIR_INTERVAL: Duration = Duration::from_secs(180);

/// Writes at the same time.
const WRITES: usize = 16;

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
    let expired = Selection::default()
        .select(cache, &cache.snapshot().state, "")
        .filter(|event| last_change(&event.value(), now) < oldest)
        .map(|event| Write::delete(event.key().clone(), Expect::Revision(event.revision())));
    write_each(registry, expired.collect()).await
}

/// When an event last said something: upstream's TTL counts from the last write too.
///
/// Clients write these times by their own clocks. One that is still to come says nothing: the event would never expire.
fn last_change(event: &Value, now: Timestamp) -> i64 {
    let times = [
        &event["series"]["lastObservedTime"],
        &event["lastTimestamp"],
        &event["eventTime"],
        &event["metadata"]["creationTimestamp"],
    ];
    let parse = |time: &Value| time.as_str()?.parse::<Timestamp>().ok().map(Timestamp::as_second);
    let known = times.into_iter().filter_map(parse).filter(|time| *time <= now.as_second());
    known.max().unwrap_or(i64::MAX)
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

/// Repairs allocations at each interval, until cancelled.
pub(crate) async fn keep_allocations(registry: Arc<Registry>, shutdown: CancellationToken) {
    let mut ticks = interval(REPAIR_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The first one was at the start.
    ticks.reset();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = ticks.tick() => {}
        }
        if let Err(error) = repair_allocations(&registry, Timestamp::now()).await {
            warn!(%error, "allocations of services could not be repaired, trying again later");
        }
    }
}

/// Makes allocations agree with services: those without a service go, those that a service lacks are made.
///
/// Both only happen after a restore, a bug, or the death of a process that had made claims ahead of their service. Other
/// servers write meanwhile. So the claims are read first: what has one then has its service in the cache by now.
pub(crate) async fn repair_allocations(registry: &Registry, now: Timestamp) -> Result<(), Error> {
    let mut claims: HashMap<Key, KeyValue> = HashMap::new();
    let (mut oldest, mut newest) = (Revision::MAX, 0);
    for place in [ADDRESSES, PORTS] {
        let found = pages(&**registry.store(), RangeRequest::prefix(&format!("{ROOT}{place}/")), 1_000);
        pin_mut!(found);
        while let Some(page) = found.next().await {
            let page = page.map_err(store_error)?;
            (oldest, newest) = (oldest.min(page.revision), newest.max(page.revision));
            claims.extend(page.kvs.into_iter().map(|kv| (kv.key.clone(), kv)));
        }
    }
    registry.cache().wait_for(newest).await?;
    let services = registry.resources().builtin("", "v1", "services").cache()?.clone();
    let mut owners: HashMap<Key, String> = HashMap::new();
    let mut writes = Vec::new();
    for service in Selection::default().select(&services, &services.snapshot().state, "") {
        let owner = format!("{}/{}", service.namespace(), service.name());
        for key in Allocators::keys_of(&service.value()) {
            if let Some(other) = owners.insert(key.clone(), owner.clone()) {
                warn!(%key, %owner, %other, "two services hold the same address or port");
            } else if claims.remove(&key).is_none() && service.revision() <= oldest {
                // One that was written since has claims that were not read.
                writes.push(Write::create(key, owner.clone()));
            }
        }
    }
    let leftover = claims.into_values().filter(|claim| !Allocators::is_reserved(&claim.value, now));
    writes.extend(leftover.map(|claim| Write::delete(claim.key, Expect::Revision(claim.mod_revision))));
    let changes = write_each(registry, writes).await?;
    if changes > 0 {
        info!(changes, "allocations of services are repaired");
    }
    Ok(())
}

/// Writes one by one, some at the same time; returns how many were made. A conflict means that somebody else was there.
///
/// Not in transactions: all writes of one have the same revision, and a watch that is resumed in the middle of many changes
/// of one revision would miss the rest. The store commits what comes at the same time together anyway.
async fn write_each(registry: &Registry, writes: Vec<Write>) -> Result<usize, Error> {
    let mut written =
        stream::iter(writes).map(|write| registry.store().write(write)).buffer_unordered(WRITES);
    let mut made = 0;
    while let Some(outcome) = written.next().await {
        match outcome {
            Ok(_) => made += 1,
            Err(hawser_store::Error::Conflict { .. }) => {}
            Err(error) => return Err(store_error(error)),
        }
    }
    Ok(made)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(name: &str, event: Value, expected: i64) {
        let now: Timestamp = "2026-01-01T10:00:00Z".parse().expect("a time");
        assert_eq!(last_change(&event, now) - now.as_second(), expected, "{name}");
    }

    #[test]
    fn an_event_is_as_old_as_what_it_last_said() {
        let created = json!({ "creationTimestamp": "2026-01-01T09:00:00Z" });
        check("created", json!({ "metadata": created }), -3600);
        check("seen later", json!({ "metadata": created, "lastTimestamp": "2026-01-01T09:59:00Z" }), -60);
        check(
            "in a series",
            json!({ "metadata": created, "series": { "lastObservedTime": "2026-01-01T09:59:30.000000Z" } }),
            -30,
        );
        check(
            "a clock that runs ahead does not count",
            json!({ "metadata": created, "eventTime": "2036-01-01T00:00:00Z" }),
            -3600,
        );
    }

    /// A watch that is resumed between two deletions must find the second: so each has a revision of its own.
    #[tokio::test]
    async fn expired_events_go_at_revisions_of_their_own() {
        use std::collections::HashSet;

        use hawser_api::{Client, GroupVersionResource, client::WriteOptions, resource::Target};
        use hawser_store::{EmbeddedOptions, EmbeddedStore, Store};

        use crate::{
            ApiServer, Config,
            auth::{SYSTEM_MASTERS, User, jwt::SigningKey},
            local::LocalClient,
        };

        let directory = std::env::temp_dir().join(format!("hawser-expiry-{}", std::process::id()));
        let store = EmbeddedStore::open(EmbeddedOptions::new(&directory)).await.expect("a store");
        let store: Arc<dyn Store> = Arc::new(store);
        let (mut tasks, shutdown) = (tokio::task::JoinSet::new(), CancellationToken::new());
        let config = Config::new("192.0.2.1".parse().expect("an address"), 6443, SigningKey::ephemeral());
        let server =
            ApiServer::start(store.clone(), config, &mut tasks, shutdown.clone()).await.expect("a server");
        let client = LocalClient::new(server.clone(), User::named("admin", &[SYSTEM_MASTERS]));
        let target = Target::collection(GroupVersionResource::fixed("", "v1", "events"), Some("default"));
        for name in 0..5 {
            let event = json!({
                "metadata": { "name": format!("e{name}") },
                "involvedObject": { "kind": "Pod", "namespace": "default", "name": "a" },
            });
            client
                .create(&target, event.to_string().into(), &WriteOptions::default())
                .await
                .expect("created");
        }
        let from = server.registry().cache().consistent().await.expect("a revision");
        let later = Timestamp::from_second(Timestamp::now().as_second() + 7200).expect("a time");
        let hour = Duration::from_secs(3600);
        assert_eq!(expire_once(server.registry(), hour, later).await.expect("expired"), 5);
        let mut watch = store.watch("/registry/events/", from + 1).await.expect("a watch");
        let mut revisions = Vec::new();
        while revisions.len() < 5 {
            let batch = watch.next().await.expect("a batch").expect("no error");
            revisions.extend(batch.events.iter().map(|event| event.kv.mod_revision));
        }
        assert_eq!(revisions.iter().collect::<HashSet<_>>().len(), 5, "{revisions:?}");
        shutdown.cancel();
        while tasks.join_next().await.is_some() {}
        store.close().await.expect("closed");
        let _ = std::fs::remove_dir_all(&directory);
    }
}
