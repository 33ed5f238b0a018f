//! What watchers find after a restart, on engines that tell of compaction in the two ways there are.

mod common;

use std::sync::Arc;

use async_trait::async_trait;
use common::*;
use futures::{StreamExt, stream};
use hawser_store::{
    Error, KeyValue, RangeRequest, RangeResponse, Revision, Status, Store, WatchBatch, WatchStream, Write,
    Written,
};
use serde_json::json;

/// A store that tells of compaction as etcd does: not when a watch is opened, but as what the watch ends with, after the word
/// that it was opened; and not in its status.
struct LikeEtcd(Arc<dyn Store>);

#[async_trait]
impl Store for LikeEtcd {
    async fn get(&self, key: &str) -> Result<Option<KeyValue>, Error> {
        self.0.get(key).await
    }

    async fn range(&self, request: RangeRequest) -> Result<RangeResponse, Error> {
        self.0.range(request).await
    }

    async fn write(&self, write: Write) -> Result<Written, Error> {
        self.0.write(write).await
    }

    async fn transaction(&self, writes: Vec<Write>) -> Result<Revision, Error> {
        self.0.transaction(writes).await
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<WatchStream, Error> {
        match self.0.watch(prefix, from).await {
            Err(Error::Compacted { requested, compacted }) => {
                let opened = WatchBatch { events: Vec::new(), revision: from - 1 };
                let items = [Ok(opened), Err(Error::Compacted { requested, compacted })];
                Ok(WatchStream::new(stream::iter(items)))
            }
            other => other,
        }
    }

    async fn current_revision(&self) -> Result<Revision, Error> {
        self.0.current_revision().await
    }

    async fn compact(&self, revision: Revision) -> Result<(), Error> {
        self.0.compact(revision).await
    }

    async fn status(&self) -> Result<Status, Error> {
        Ok(Status { compacted_revision: None, ..self.0.status().await? })
    }

    async fn close(&self) -> Result<(), Error> {
        self.0.close().await
    }
}

/// Changes, a compaction in the middle of them, a restart: a watch from after the compaction goes on.
async fn check(engine: fn(Arc<dyn Store>) -> Arc<dyn Store>) {
    let directory = Directory::new();
    let running = start_over(engine(embedded(&directory).await), |_| ()).await;
    let admin = running.admin();
    let create = async |name: &str| {
        admin.create(&CONFIG_MAPS, Some("default"), config_map(name, "1")).await.expect("made");
    };
    create("before").await;
    let compacted = running.store.current_revision().await.expect("a revision");
    running.store.compact(compacted).await.expect("compacted");
    create("seen").await;
    let (_, from) = admin.list(&CONFIG_MAPS, Some("default"), "").await;
    create("missed").await;
    running.stop().await;

    let running = start_over(engine(embedded(&directory).await), |_| ()).await;
    let admin = running.admin();
    let mut watch = admin.watch(&CONFIG_MAPS, Some("default"), "", &from).await.expect("no relist");
    admin
        .merge(&CONFIG_MAPS, Some("default"), "seen", json!({ "data": { "a": "b" } }))
        .await
        .expect("patched");
    let mut seen = Vec::new();
    while seen.len() < 2 {
        let event = watch.next().await.expect("an event").expect("no error");
        seen.extend(describe(&event).map(|(event, _)| event));
    }
    assert_eq!(seen, ["ADDED missed", "MODIFIED seen"]);
    running.stop().await;
}

#[tokio::test]
async fn watchers_go_on_after_a_compaction_and_a_restart() {
    check(|store| store).await;
}

#[tokio::test]
async fn watchers_go_on_where_the_store_tells_of_compaction_late() {
    check(|store| Arc::new(LikeEtcd(store))).await;
}
