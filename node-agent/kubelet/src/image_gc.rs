//! Removing images that nobody uses when the disk fills up.
//!
//! An image is in use while a container is made of it or has it as a volume, and for a while after a pull or a start asked
//! for it. What has been unused longest goes first, and no more than is needed to come below the low threshold.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use hawser_runtime::{Image, Runtime};
use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::config::Config;
use crate::events::{EventType, Recorder, node_reference};
use crate::images::access::ImageAccess;
use crate::metrics::Metrics;
use crate::stats::Collector;

/// How often the disk is looked at.
const INTERVAL: Duration = Duration::from_secs(300);

/// When images are removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageGc {
    /// Share of the disk in use at which removing begins, and at which it ends, in percent.
    pub high_percent: u64,
    pub low_percent: u64,
    /// An image that was asked for is left alone for this long.
    pub min_age: Duration,
    /// One that was not asked for this long goes, however much room there is; `None`: it stays.
    pub max_age: Option<Duration>,
}

impl Default for ImageGc {
    fn default() -> Self {
        Self { high_percent: 85, low_percent: 80, min_age: Duration::from_secs(120), max_age: None }
    }
}

/// When each image was last known to be wanted, by image id. Bounded by the images that are here.
#[derive(Clone, Default)]
pub struct LastUse(Arc<Mutex<BTreeMap<String, Instant>>>);

impl LastUse {
    pub fn used(&self, image_id: &str) {
        self.0.lock().insert(image_id.to_owned(), Instant::now());
    }
}

/// Cheap to clone.
#[derive(Clone)]
pub struct ImageCollector {
    pub config: Arc<Config>,
    pub runtime: Arc<dyn Runtime>,
    pub collector: Collector,
    pub recorder: Recorder,
    pub metrics: Metrics,
    pub last_use: LastUse,
    pub access: Arc<ImageAccess>,
}

impl ImageCollector {
    /// Keeps the disk below the high threshold until the token is cancelled.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut tick = tokio::time::interval(INTERVAL);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = tick.tick() => {
                    if let Some(max_age) = self.config.image_gc.max_age {
                        self.free(u64::MAX, max_age, "age").await;
                    }
                    self.collect_when_full().await;
                    self.forget_removed().await;
                }
            }
        }
    }

    async fn collect_when_full(&self) {
        let Some(fs) = self.collector.image_fs().await else { return };
        let wanted = bytes_to_free(&self.config.image_gc, fs.capacity_bytes, fs.available_bytes);
        let freed = self.free(wanted, self.config.image_gc.min_age, "space").await;
        if freed < wanted {
            let message = format!(
                "Failed to garbage collect required amount of images. Attempted to free {wanted} bytes, but only found {freed} bytes eligible to free."
            );
            let node = node_reference(&self.config.node_name);
            self.recorder.event(node, EventType::Warning, "FreeDiskSpaceFailed", message);
        }
    }

    /// Removes all that nobody uses.
    pub async fn remove_unused(&self) {
        self.free(u64::MAX, self.config.image_gc.min_age, "space").await;
    }

    /// Removes images that were not asked for during `age`. Returns the size of what was removed, in bytes.
    async fn free(&self, wanted: u64, age: Duration, reason: &str) -> u64 {
        let Ok(images) = self.runtime.list_images().await else { return 0 };
        // After the images: one that came between is not in the list.
        let Ok(containers) = self.runtime.list_containers().await else { return 0 };
        let Ok(shown) = self.runtime.images_in_volumes().await else { return 0 };
        let of_containers = containers.into_iter().map(|container| container.image);
        let in_use: BTreeSet<String> = of_containers.chain(shown).collect();
        let chosen = {
            let mut last_use = self.last_use.0.lock();
            let now = Instant::now();
            for image in &images {
                last_use.entry(image.id.clone()).or_insert(now);
            }
            last_use.retain(|id, _| images.iter().any(|image| image.id == *id));
            for (_, at) in last_use.iter_mut().filter(|(id, _)| in_use.contains(*id)) {
                *at = now;
            }
            choose(&images, &last_use, now, age, wanted)
        };
        let mut freed = 0;
        for image in chosen {
            match self.runtime.remove_image(&image.id).await {
                Ok(()) => {
                    info!(image = image.id, bytes = image.size_bytes, "removed an unused image");
                    self.metrics.image_collected(reason);
                    freed += image.size_bytes;
                }
                Err(error) => warn!(image = image.id, %error, "an unused image was not removed"),
            }
        }
        freed
    }

    /// Forgets how images were pulled that are not here any more.
    async fn forget_removed(&self) {
        let known = self.access.known();
        let Ok(images) = self.runtime.list_images().await else { return };
        let present = images.into_iter().map(|image| image.id).collect();
        if let Err(error) = self.access.prune(&known, &present) {
            warn!(%error, "records of images that are not here any more are kept");
        }
    }
}

fn bytes_to_free(policy: &ImageGc, capacity: u64, available: u64) -> u64 {
    let used_percent = 100 - (available.saturating_mul(100) / capacity.max(1)).min(100);
    if capacity == 0 || used_percent < policy.high_percent {
        return 0;
    }
    (capacity / 100 * (100 - policy.low_percent.min(100))).saturating_sub(available)
}

/// Those that were not wanted for `min_age`, longest unused first, until they make up `wanted` bytes.
fn choose(
    images: &[Image],
    last_use: &BTreeMap<String, Instant>,
    now: Instant,
    min_age: Duration,
    wanted: u64,
) -> Vec<Image> {
    let age = |image: &Image| last_use.get(&image.id).map_or(Duration::ZERO, |at| now.duration_since(*at));
    let mut unused: Vec<&Image> = images.iter().filter(|image| age(image) >= min_age).collect();
    unused.sort_by_key(|image| std::cmp::Reverse(age(image)));
    let mut found = 0;
    let enough = unused.into_iter().take_while(|image| {
        let more = found < wanted;
        found = found.saturating_add(image.size_bytes);
        more
    });
    enough.cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn freeing_begins_at_the_high_threshold_and_ends_at_the_low_one() {
        let policy = ImageGc::default();
        assert_eq!(bytes_to_free(&policy, 1000, 160), 0);
        assert_eq!(bytes_to_free(&policy, 1000, 150), 50);
        assert_eq!(bytes_to_free(&policy, 1000, 0), 200);
        assert_eq!(bytes_to_free(&policy, 0, 0), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn longest_unused_goes_first_and_no_more_than_needed() {
        let begin = Instant::now();
        tokio::time::advance(Duration::from_secs(1000)).await;
        let image = |id: &str, size_bytes| Image {
            id: id.into(),
            repo_tags: vec![],
            repo_digests: vec![],
            size_bytes,
            user: String::new(),
        };
        let images = [image("new", 10), image("old", 10), image("oldest", 10), image("used", 10)];
        let ago = |seconds: u64| begin + Duration::from_secs(1000 - seconds);
        let last_use = BTreeMap::from([
            ("new".to_owned(), ago(60)),
            ("old".to_owned(), ago(500)),
            ("oldest".to_owned(), ago(900)),
            ("used".to_owned(), ago(0)),
        ]);
        let chosen = |wanted| -> Vec<String> {
            let chosen = choose(&images, &last_use, Instant::now(), Duration::from_secs(120), wanted);
            chosen.into_iter().map(|image| image.id).collect()
        };
        assert_eq!(chosen(0), [""; 0]);
        assert_eq!(chosen(5), ["oldest"]);
        assert_eq!(chosen(15), ["oldest", "old"]);
        assert_eq!(chosen(u64::MAX), ["oldest", "old"]);
    }
}
