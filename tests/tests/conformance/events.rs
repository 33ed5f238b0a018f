//! Events, in both API versions.

use k8s_openapi::api::{core::v1::Event as CoreEvent, events::v1::Event};
use kube::{
    Api, Resource, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::{
    coverage::texts,
    support::{Bed, create, delete, object, patch, test, unique},
};

texts! {
    "Event, manage lifecycle of an Event" => should_manage_the_lifecycle_of_an_event,
    "Event, delete a collection" => events_should_delete_a_collection_of_events,
    "New Event resource lifecycle, testing a single event" =>
        should_ensure_that_an_event_can_be_fetched_patched_deleted_and_listed,
    "New Event resource lifecycle, testing a list of events" =>
        events_api_should_delete_a_collection_of_events,
}

const TIME: &str = "2017-09-19T13:49:16.000000Z";

/// An event of `v1` about a pod.
fn core_event(bed: &Bed, name: &str, label: &str) -> Value {
    json!({
        "metadata": { "name": name, "labels": { "conformance": label } },
        "involvedObject": { "kind": "Pod", "namespace": bed.namespace, "name": "somebody" },
        "source": { "component": "conformance-controller" },
        "type": "Normal",
        "reason": "Test",
        "message": format!("this is {name}"),
    })
}

/// An event of `events.k8s.io/v1` about a pod.
fn new_event(bed: &Bed, name: &str, label: &str) -> Value {
    json!({
        "metadata": { "name": name, "labels": { "conformance": label } },
        "regarding": { "kind": "Pod", "namespace": bed.namespace, "name": "somebody" },
        "eventTime": TIME,
        "reportingController": "conformance-controller",
        "reportingInstance": "conformance-node",
        "action": "Do",
        "type": "Normal",
        "reason": "Test",
        "note": format!("this is {name}"),
    })
}

fn labelled(label: &str) -> ListParams {
    ListParams::default().labels(&format!("conformance={label}"))
}

async fn names<K>(api: &Api<K>, params: &ListParams) -> Vec<String>
where
    K: Resource + Clone + DeserializeOwned + std::fmt::Debug,
{
    api.list(params).await.expect("listed").iter().map(ResourceExt::name_any).collect()
}

/// The object as JSON, without what the server keeps book of.
fn bare<K: Resource + serde::Serialize + Clone>(object: &K) -> Value {
    let mut object = object.clone();
    object.meta_mut().resource_version = None;
    object.meta_mut().managed_fields = None;
    json!(object)
}

/// Event, manage lifecycle of an Event
#[test]
fn should_manage_the_lifecycle_of_an_event() {
    test(async |bed| {
        let (events, everywhere, label) = (bed.api::<CoreEvent>(), bed.all::<CoreEvent>(), unique("event"));
        create(&events, core_event(bed, "event", &label)).await;
        assert_eq!(names(&everywhere, &labelled(&label)).await, ["event"]);

        patch(&events, "event", json!({ "message": "this is patched" })).await;
        let mut found = events.get("event").await.expect("found");
        assert_eq!(found.message.as_deref(), Some("this is patched"));

        let series = json!({ "count": 100, "lastObservedTime": TIME });
        found.series = Some(object(series));
        events.replace("event", &PostParams::default(), &found).await.expect("updated");
        let updated = events.get("event").await.expect("found");
        assert_eq!(bare(&updated), bare(&found));

        delete(&events, "event").await;
        assert_eq!(names(&everywhere, &labelled(&label)).await, [""; 0]);
    });
}

/// Event, delete a collection
#[test]
fn events_should_delete_a_collection_of_events() {
    test(async |bed| deletes_together(bed, &bed.api::<CoreEvent>(), core_event).await);
}

/// New Event resource lifecycle, testing a list of events
#[test]
fn events_api_should_delete_a_collection_of_events() {
    test(async |bed| deletes_together(bed, &bed.api::<Event>(), new_event).await);
}

/// Makes three events, deletes them by their label, and leaves a fourth.
async fn deletes_together<K>(bed: &Bed, events: &Api<K>, event: fn(&Bed, &str, &str) -> Value)
where
    K: Resource + Clone + serde::Serialize + DeserializeOwned + std::fmt::Debug,
{
    let three = ["event-1", "event-2", "event-3"];
    for name in three {
        create(events, event(bed, name, "together")).await;
    }
    create(events, event(bed, "event-4", "alone")).await;
    assert_eq!(names(events, &labelled("together")).await, three);
    events.delete_collection(&DeleteParams::default(), &labelled("together")).await.expect("deleted");
    assert_eq!(names(events, &labelled("together")).await, [""; 0]);
    assert_eq!(names(events, &labelled("alone")).await, ["event-4"]);
}

/// New Event resource lifecycle, testing a single event
#[test]
fn should_ensure_that_an_event_can_be_fetched_patched_deleted_and_listed() {
    test(async |bed| {
        let (events, everywhere, label) = (bed.api::<Event>(), bed.all::<Event>(), unique("event"));
        create(&events, new_event(bed, "event", &label)).await;
        for api in [&events, &everywhere] {
            assert_eq!(names(api, &labelled(&label)).await, ["event"]);
        }
        // Both versions show it, and select it by who reports it.
        let by_source = ListParams::default().fields("source=conformance-controller");
        assert_eq!(names(&bed.api::<CoreEvent>(), &by_source).await, ["event"]);
        let by_reporter = ListParams::default().fields("reportingController=conformance-controller");
        assert_eq!(names(&events, &by_reporter).await, ["event"]);

        let mut expected = events.get("event").await.expect("found");
        // The text speaks of a new note, which upstream's own test has given up: but for their series, events of this API are
        // not to be changed.
        let series = json!({ "count": 2, "lastObservedTime": TIME });
        patch(&events, "event", json!({ "series": series.clone() })).await;
        expected.series = Some(object(series));
        let other_note = Patch::Merge(json!({ "note": "this is patched" }));
        let refused =
            events.patch("event", &PatchParams::default(), &other_note).await.expect_err("immutable");
        assert!(refused.to_string().contains("field is immutable"), "{refused}");
        let found = events.get("event").await.expect("found");
        assert_eq!(bare(&found), bare(&expected));

        expected = found;
        expected.series = Some(object(json!({ "count": 100, "lastObservedTime": TIME })));
        events.replace("event", &PostParams::default(), &expected).await.expect("updated");
        let found = events.get("event").await.expect("found");
        assert_eq!(bare(&found), bare(&expected));

        delete(&events, "event").await;
        for api in [&events, &everywhere] {
            assert_eq!(names(api, &labelled(&label)).await, [""; 0]);
        }
    });
}
