//! Watches of ConfigMaps: what they show, from which version, and in which order.

use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, ResourceExt, api::WatchParams};
use serde_json::json;

use crate::{
    coverage::texts,
    support::{Watch, create, delete, patch, test, watch},
};

texts! {
    "watch-configmaps-with-multiple-watchers" =>
        should_observe_add_update_and_delete_watch_notifications_on_configmaps,
    "watch-configmaps-from-resource-version" => should_be_able_to_start_watching_from_a_specific_resource_version,
    "watch-configmaps-closed-and-restarted" =>
        should_be_able_to_restart_watching_from_the_last_resource_version_observed_by_the_previous_watch,
    "watch-configmaps-label-changed" =>
        should_observe_an_object_deletion_if_it_stops_meeting_the_requirements_of_the_selector,
    "watch-consistency" => should_receive_events_on_concurrent_watches_in_same_order,
}

async fn make(maps: &Api<ConfigMap>, name: &str, label: &str) -> ConfigMap {
    create(maps, json!({ "metadata": { "name": name, "labels": { "watch": label } } })).await
}

async fn set(maps: &Api<ConfigMap>, name: &str, value: &str) -> ConfigMap {
    patch(maps, name, json!({ "data": { "value": value } })).await
}

async fn label(maps: &Api<ConfigMap>, name: &str, label: &str) -> ConfigMap {
    patch(maps, name, json!({ "metadata": { "labels": { "watch": label } } })).await
}

fn selecting(selector: &str) -> WatchParams {
    WatchParams::default().labels(selector)
}

fn version(map: &ConfigMap) -> String {
    map.resource_version().expect("a version")
}

/// The next event's type, object and value.
async fn next(events: &mut Watch<ConfigMap>) -> (&'static str, String, String) {
    let (kind, map) = events.next().await;
    let value = map.data.as_ref().and_then(|data| data.get("value").cloned()).unwrap_or_default();
    (kind, map.name_any(), value)
}

fn event(kind: &'static str, name: &str, value: &str) -> (&'static str, String, String) {
    (kind, name.to_owned(), value.to_owned())
}

/// watch-configmaps-with-multiple-watchers
#[test]
fn should_observe_add_update_and_delete_watch_notifications_on_configmaps() {
    test(async |bed| {
        let maps = bed.api::<ConfigMap>();
        let mut of_a = watch(&maps, &selecting("watch=a"), "0").await;
        let mut of_b = watch(&maps, &selecting("watch=b"), "0").await;
        let mut of_both = watch(&maps, &selecting("watch in (a, b)"), "0").await;

        make(&maps, "a", "a").await;
        set(&maps, "a", "1").await;
        set(&maps, "a", "2").await;
        delete(&maps, "a").await;
        make(&maps, "b", "b").await;
        delete(&maps, "b").await;

        let expected_a = [
            event("ADDED", "a", ""),
            event("MODIFIED", "a", "1"),
            event("MODIFIED", "a", "2"),
            event("DELETED", "a", "2"),
        ];
        let expected_b = [event("ADDED", "b", ""), event("DELETED", "b", "")];
        for expected in &expected_a {
            assert_eq!(next(&mut of_a).await, *expected);
        }
        for expected in &expected_b {
            assert_eq!(next(&mut of_b).await, *expected);
        }
        for expected in expected_a.iter().chain(&expected_b) {
            assert_eq!(next(&mut of_both).await, *expected);
        }
    });
}

/// watch-configmaps-from-resource-version
#[test]
fn should_be_able_to_start_watching_from_a_specific_resource_version() {
    test(async |bed| {
        let maps = bed.api::<ConfigMap>();
        make(&maps, "a", "a").await;
        let first = set(&maps, "a", "1").await;
        set(&maps, "a", "2").await;
        delete(&maps, "a").await;
        let mut events = watch(&maps, &selecting("watch=a"), &version(&first)).await;
        assert_eq!(next(&mut events).await, event("MODIFIED", "a", "2"));
        assert_eq!(next(&mut events).await, event("DELETED", "a", "2"));
    });
}

/// watch-configmaps-closed-and-restarted
#[test]
fn should_be_able_to_restart_watching_from_the_last_resource_version_observed_by_the_previous_watch() {
    test(async |bed| {
        let maps = bed.api::<ConfigMap>();
        let mut events = watch(&maps, &selecting("watch=a"), "0").await;
        make(&maps, "a", "a").await;
        set(&maps, "a", "1").await;
        assert_eq!(next(&mut events).await, event("ADDED", "a", ""));
        let (kind, seen) = events.next().await;
        assert_eq!(kind, "MODIFIED");
        drop(events);

        set(&maps, "a", "2").await;
        delete(&maps, "a").await;
        let mut events = watch(&maps, &selecting("watch=a"), &version(&seen)).await;
        assert_eq!(next(&mut events).await, event("MODIFIED", "a", "2"));
        assert_eq!(next(&mut events).await, event("DELETED", "a", "2"));
    });
}

/// watch-configmaps-label-changed
#[test]
fn should_observe_an_object_deletion_if_it_stops_meeting_the_requirements_of_the_selector() {
    test(async |bed| {
        let maps = bed.api::<ConfigMap>();
        let mut events = watch(&maps, &selecting("watch=a"), "0").await;
        make(&maps, "a", "a").await;
        set(&maps, "a", "1").await;
        label(&maps, "a", "other").await;
        set(&maps, "a", "2").await; // not seen
        label(&maps, "a", "a").await;
        set(&maps, "a", "3").await;
        delete(&maps, "a").await;
        for expected in [
            event("ADDED", "a", ""),
            event("MODIFIED", "a", "1"),
            event("DELETED", "a", "1"),
            event("ADDED", "a", "2"),
            event("MODIFIED", "a", "3"),
            event("DELETED", "a", "3"),
        ] {
            assert_eq!(next(&mut events).await, expected);
        }
    });
}

/// watch-consistency
#[test]
fn should_receive_events_on_concurrent_watches_in_same_order() {
    const WRITES: usize = 60;

    test(async |bed| {
        let maps = bed.api::<ConfigMap>();
        let start = version(&make(&maps, "start", "order").await);
        let mut first = watch(&maps, &selecting("watch=order"), &start).await;
        let writes = tokio::spawn(write(maps.clone(), WRITES));

        // Each event of the first watch opens one more, which shows what follows that event.
        let (mut expected, mut others) = (Vec::new(), Vec::new());
        for _ in 0..WRITES {
            let (_, map) = first.next().await;
            others.push(watch(&maps, &selecting("watch=order"), &version(&map)).await);
            expected.push(version(&map));
        }
        writes.await.expect("all is written");
        for (opened_after, mut other) in others.into_iter().enumerate() {
            for expected in &expected[opened_after + 1..] {
                assert_eq!(version(&other.next().await.1), *expected, "opened after event {opened_after}");
            }
        }
    });
}

/// Creates, updates and deletes a few objects in turn, this many writes in all.
async fn write(maps: Api<ConfigMap>, writes: usize) {
    for write in 0..writes {
        let name = format!("map-{}", write / 3 % 4);
        match write % 3 {
            0 => drop(make(&maps, &name, "order").await),
            1 => drop(set(&maps, &name, &write.to_string()).await),
            _ => delete(&maps, &name).await,
        }
    }
}
