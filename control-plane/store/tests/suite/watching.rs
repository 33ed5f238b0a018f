//! What a watch delivers, from where, and how it ends.

use hawser_store::{Error, Event, EventKind, Expect, WatchProgress, Write};

use crate::{
    engines::{Engine, end_of, events_until},
    for_both_engines,
};

for_both_engines!(
    watch_starts_with_an_announcement,
    events_carry_the_value_before_and_after,
    watch_from_an_old_revision_delivers_history_then_goes_on,
    watch_delivers_its_prefix_only,
    watch_beyond_compaction_is_refused,
    watch_from_the_future_is_refused,
    transaction_is_delivered_in_one_batch,
    dropped_wait_loses_no_event,
    slow_watch_holds_nobody_back,
    progress_without_events_is_announced,
);

fn summary(event: &Event) -> String {
    let text = |value: &[u8]| String::from_utf8(value.to_vec()).unwrap();
    let previous =
        event.previous.as_ref().map_or("-".into(), |kv| format!("{}@{}", text(&kv.value), kv.mod_revision));
    let kv = &event.kv;
    match event.kind {
        EventKind::Put => {
            format!(
                "put {}={}@{}/{} was {previous}",
                kv.key,
                text(&kv.value),
                kv.create_revision,
                kv.mod_revision
            )
        }
        EventKind::Delete => format!("delete {}@{} was {previous}", kv.key, kv.mod_revision),
    }
}

async fn watch_starts_with_an_announcement(Engine { store, .. }: Engine) {
    store.write(Write::create("/a", "x")).await.unwrap();
    for from in [0, 3] {
        let mut watch = store.watch("/", from).await.unwrap();
        let first = watch.next().await.unwrap().unwrap();
        assert_eq!((first.events.len(), first.revision), (0, 2), "from {from}");
    }
}

async fn events_carry_the_value_before_and_after(Engine { store, .. }: Engine) {
    let mut watch = store.watch("/", 0).await.unwrap();
    store.write(Write::create("/a", "one")).await.unwrap();
    store.write(Write::put("/a", "two", Expect::Revision(2))).await.unwrap();
    store.write(Write::delete("/a", Expect::Any)).await.unwrap();
    store.write(Write::delete("/a", Expect::Any)).await.unwrap();
    store.write(Write::create("/a", "three")).await.unwrap();
    let expected = [
        "put /a=one@2/2 was -",
        "put /a=two@2/3 was one@2",
        "delete /a@4 was two@3",
        "put /a=three@5/5 was -",
    ];
    let live = events_until(&mut watch, 5).await;
    assert_eq!(live.iter().map(summary).collect::<Vec<_>>(), expected);
    assert_eq!(live.iter().map(Event::is_create).collect::<Vec<_>>(), [true, false, false, true]);
    // The same from history.
    let mut watch = store.watch("/", 1).await.unwrap();
    assert_eq!(events_until(&mut watch, 5).await, live);
}

async fn watch_from_an_old_revision_delivers_history_then_goes_on(Engine { store, .. }: Engine) {
    for n in 0..20 {
        store.write(Write::put("/a", format!("{n}"), Expect::Any)).await.unwrap(); // 2..=21
    }
    let mut watch = store.watch("/", 12).await.unwrap();
    let events = events_until(&mut watch, 21).await;
    assert_eq!(
        events.iter().map(|event| event.kv.mod_revision).collect::<Vec<_>>(),
        (12..=21).collect::<Vec<_>>()
    );
    assert_eq!(summary(&events[0]), "put /a=10@2/12 was 9@11");
    store.write(Write::put("/a", "live", Expect::Any)).await.unwrap();
    let events = events_until(&mut watch, 22).await;
    assert_eq!(events.iter().map(summary).collect::<Vec<_>>(), ["put /a=live@2/22 was 19@21"]);
}

async fn watch_delivers_its_prefix_only(Engine { store, .. }: Engine) {
    let mut watch = store.watch("/pods/", 0).await.unwrap();
    for key in ["/pods", "/pods/a", "/pods0", "/podsx/a", "/pods/b/c", "/other"] {
        store.write(Write::create(key, "x")).await.unwrap(); // 2..=7
    }
    let last = store.write(Write::create("/pods/z", "x")).await.unwrap().revision;
    let events = events_until(&mut watch, last).await;
    assert_eq!(
        events.iter().map(|event| &*event.kv.key).collect::<Vec<_>>(),
        ["/pods/a", "/pods/b/c", "/pods/z"]
    );
    let mut all = store.watch("", 2).await.unwrap();
    assert_eq!(events_until(&mut all, last).await.len(), 7);
}

async fn watch_beyond_compaction_is_refused(Engine { store, .. }: Engine) {
    for n in 0..10 {
        store.write(Write::put("/a", format!("{n}"), Expect::Any)).await.unwrap(); // 2..=11
    }
    store.compact(7).await.unwrap();
    let error = match store.watch("/", 6).await {
        Ok(mut watch) => end_of(&mut watch).await,
        Err(error) => error,
    };
    assert!(matches!(error, Error::Compacted { requested: 6, compacted: 7 }), "{error}");
    let mut watch = store.watch("/", 8).await.unwrap();
    let events = events_until(&mut watch, 11).await;
    assert_eq!(events.len(), 4);
    assert_eq!(summary(&events[0]), "put /a=6@2/8 was 5@7");
}

async fn watch_from_the_future_is_refused(Engine { store, .. }: Engine) {
    store.write(Write::create("/a", "x")).await.unwrap();
    let error = store.watch("/", 4).await.unwrap_err();
    assert!(matches!(error, Error::FutureRevision { requested: 4, current: 2 }), "{error}");
    assert!(store.watch("/", 3).await.is_ok());
}

async fn transaction_is_delivered_in_one_batch(Engine { store, .. }: Engine) {
    let mut watch = store.watch("/", 0).await.unwrap();
    let writes: Vec<Write> = (0..128).map(|n| Write::create(format!("/n/{n:03}"), "x")).collect();
    let revision = store.transaction(writes).await.unwrap();
    loop {
        let batch = watch.next().await.unwrap().unwrap();
        if batch.events.is_empty() {
            continue;
        }
        assert_eq!((batch.events.len(), batch.revision), (128, revision));
        assert!(batch.events.is_sorted_by_key(|event| event.kv.key.clone()));
        break;
    }
}

async fn dropped_wait_loses_no_event(Engine { store, .. }: Engine) {
    let mut watch = store.watch("/", 0).await.unwrap();
    let mut seen = Vec::new();
    for n in 0..50 {
        // Polled once or twice and dropped, at whatever point that is.
        if let Ok(item) = tokio::time::timeout(std::time::Duration::ZERO, watch.next()).await {
            seen.extend(item.unwrap().unwrap().events);
        }
        store.write(Write::create(format!("/k/{n:02}"), "x")).await.unwrap();
    }
    seen.extend(events_until(&mut watch, 51).await);
    assert_eq!(
        seen.iter().map(|event| event.kv.mod_revision).collect::<Vec<_>>(),
        (2..=51).collect::<Vec<_>>()
    );
}

async fn slow_watch_holds_nobody_back(Engine { store, .. }: Engine) {
    // Nobody reads `slow` while far more is written than any buffer on its way holds.
    let mut slow = store.watch("/", 0).await.unwrap();
    slow.next().await.unwrap().unwrap();
    let mut fast = store.watch("/", 0).await.unwrap();
    let value = vec![b'x'; 100 * 1024];
    for _ in 0..300 {
        store.write(Write::put("/a", value.clone(), Expect::Any)).await.unwrap();
    }
    assert_eq!(events_until(&mut fast, 301).await.len(), 300);
    let events = events_until(&mut slow, 301).await;
    assert_eq!(
        events.iter().map(|event| event.kv.mod_revision).collect::<Vec<_>>(),
        (2..=301).collect::<Vec<_>>()
    );
}

async fn progress_without_events_is_announced(Engine { store, .. }: Engine) {
    if store.status().await.unwrap().watch_progress == WatchProgress::EventsOnly {
        println!("skipped: this etcd's progress announcements cannot be trusted");
        return;
    }
    let mut watch = store.watch("/quiet/", 0).await.unwrap();
    store.write(Write::create("/loud/a", "x")).await.unwrap();
    let current = store.current_revision().await.unwrap();
    assert!(events_until(&mut watch, current).await.is_empty());
}
