//! Single calls: compare-and-put, reads at revisions, transactions, compaction, limits.

use futures::{StreamExt as _, TryStreamExt as _};
use hawser_store::{
    Error, Expect, MAX_OPERATIONS, MAX_REQUEST_BYTES, Op, RangeRequest, Select, Write, pages,
};

use crate::{engines::Engine, for_both_engines};

for_both_engines!(
    empty_store_is_at_revision_one,
    create_read_update_delete,
    compare_refuses_what_moved_on,
    deleting_an_absent_key_changes_nothing,
    recreated_key_has_a_new_create_revision,
    range_is_ordered_and_stays_in_its_bounds,
    range_at_an_old_revision_shows_that_revision,
    pages_show_one_revision,
    transaction_is_all_or_nothing_at_one_revision,
    limits_are_clear_errors,
    compacted_and_future_revisions_are_refused,
    compaction_keeps_what_is_readable,
    closed_store_says_so,
);

fn names(kvs: &[hawser_store::KeyValue]) -> Vec<&str> {
    kvs.iter().map(|kv| &*kv.key).collect()
}

async fn empty_store_is_at_revision_one(Engine { store, .. }: Engine) {
    assert_eq!(store.current_revision().await.unwrap(), 1);
    let response = store.range(RangeRequest::prefix("/")).await.unwrap();
    assert_eq!((response.kvs.len(), response.revision, response.more, response.count), (0, 1, false, 0));
    assert_eq!(store.status().await.unwrap().revision, 1);
}

async fn create_read_update_delete(Engine { store, .. }: Engine) {
    let created = store.write(Write::create("/a", "one")).await.unwrap();
    assert_eq!((created.revision, created.previous), (2, None));
    let read = store.get("/a").await.unwrap().unwrap();
    assert_eq!((&*read.key, &*read.value), ("/a", b"one".as_slice()));
    assert_eq!((read.create_revision, read.mod_revision), (2, 2));

    let updated = store.write(Write::put("/a", "two", Expect::Revision(2))).await.unwrap();
    assert_eq!((updated.revision, updated.previous), (3, Some(read)));
    let read = store.get("/a").await.unwrap().unwrap();
    assert_eq!((&*read.value, read.create_revision, read.mod_revision), (b"two".as_slice(), 2, 3));

    let deleted = store.write(Write::delete("/a", Expect::Revision(3))).await.unwrap();
    assert_eq!((deleted.revision, deleted.previous), (4, Some(read)));
    assert_eq!(store.get("/a").await.unwrap(), None);
    assert_eq!(store.current_revision().await.unwrap(), 4);

    // Values may be empty, and any bytes.
    for value in [vec![], vec![0, 255, 10]] {
        store.write(Write::put("/a", value.clone(), Expect::Any)).await.unwrap();
        assert_eq!(store.get("/a").await.unwrap().unwrap().value, value);
    }
}

async fn compare_refuses_what_moved_on(Engine { store, .. }: Engine) {
    store.write(Write::create("/a", "one")).await.unwrap();
    let check = async |name: &str, write: Write, current: Option<u64>| {
        let expect = write.expect;
        match store.write(write).await.unwrap_err() {
            Error::Conflict { key, expected, current: found } => {
                assert_eq!(expected, expect, "{name}");
                assert_eq!(found.as_ref().map(|kv| kv.mod_revision), current, "{name}");
                assert!(found.is_none_or(|kv| kv.key == key && kv.value == "one"), "{name}");
            }
            other => panic!("{name}: {other}"),
        }
    };
    check("create of a key that exists", Write::create("/a", "x"), Some(2)).await;
    check("put at another revision", Write::put("/a", "x", Expect::Revision(1)), Some(2)).await;
    check("delete at another revision", Write::delete("/a", Expect::Revision(9)), Some(2)).await;
    check("delete of what must not exist", Write::delete("/a", Expect::Absent), Some(2)).await;
    check("put of an absent key", Write::put("/b", "x", Expect::Revision(2)), None).await;
    check("delete of an absent key", Write::delete("/b", Expect::Revision(2)), None).await;
    assert_eq!(store.current_revision().await.unwrap(), 2, "refused writes take no revision");
}

async fn deleting_an_absent_key_changes_nothing(Engine { store, .. }: Engine) {
    store.write(Write::create("/a", "one")).await.unwrap();
    for expect in [Expect::Any, Expect::Absent] {
        let written = store.write(Write::delete("/b", expect)).await.unwrap();
        assert_eq!((written.revision, written.previous), (2, None));
    }
    let revision = store.transaction(vec![Write::delete("/b", Expect::Any)]).await.unwrap();
    assert_eq!(revision, 2);
    assert_eq!(store.transaction(vec![]).await.unwrap(), 2);
    assert_eq!(store.current_revision().await.unwrap(), 2);
}

async fn recreated_key_has_a_new_create_revision(Engine { store, .. }: Engine) {
    store.write(Write::create("/a", "one")).await.unwrap();
    store.write(Write::put("/a", "two", Expect::Any)).await.unwrap();
    store.write(Write::delete("/a", Expect::Any)).await.unwrap();
    let created = store.write(Write::create("/a", "three")).await.unwrap();
    assert_eq!((created.revision, created.previous), (5, None));
    let read = store.get("/a").await.unwrap().unwrap();
    assert_eq!((read.create_revision, read.mod_revision), (5, 5));
    for (revision, value) in [(1, None), (2, Some("one")), (3, Some("two")), (4, None), (5, Some("three"))] {
        let then = store.range(RangeRequest::prefix("/a").at(revision)).await.unwrap();
        let found = then.kvs.first().map(|kv| std::str::from_utf8(&kv.value).unwrap());
        assert_eq!((found, then.revision), (value, revision));
    }
}

async fn range_is_ordered_and_stays_in_its_bounds(Engine { store, .. }: Engine) {
    for key in ["/pods/b/2", "/pods/a/1", "/pods/b/1", "/podsx", "/pod", "/pods/\u{10FFFF}", "/secrets/a"] {
        store.write(Write::create(key, key)).await.unwrap();
    }
    let check = async |request: RangeRequest, expected: &[&str]| {
        let response = store.range(request.clone()).await.unwrap();
        assert_eq!(names(&response.kvs), expected, "{request:?}");
        assert_eq!((response.count, response.more), (expected.len() as u64, false), "{request:?}");
        let counted = store.range(request.clone().select(Select::Count)).await.unwrap();
        assert_eq!((counted.count, counted.kvs.len()), (expected.len() as u64, 0), "{request:?}");
        let keys = store.range(request.clone().select(Select::Keys)).await.unwrap();
        assert_eq!(names(&keys.kvs), expected, "{request:?}");
        assert!(keys.kvs.iter().all(|kv| kv.value.is_empty() && kv.mod_revision > 1), "{request:?}");
    };
    let pods = ["/pods/a/1", "/pods/b/1", "/pods/b/2", "/pods/\u{10FFFF}"];
    check(RangeRequest::prefix("/pods/"), &pods).await;
    check(RangeRequest::prefix("/pods/b/"), &pods[1..3]).await;
    check(RangeRequest::prefix("/pods/c/"), &[]).await;
    check(RangeRequest::between("/pods/a/1", "/pods/b/2"), &pods[..2]).await;
    check(RangeRequest::between("/podsx", ""), &["/podsx", "/secrets/a"]).await;
    check(RangeRequest::between("/z", "/a"), &[]).await;
    check(RangeRequest::prefix("/pods/").after("/pods/b/1"), &pods[2..]).await;
    let all = store.range(RangeRequest::prefix("")).await.unwrap();
    assert_eq!(all.count, 7);
}

async fn range_at_an_old_revision_shows_that_revision(Engine { store, .. }: Engine) {
    for n in 0..5 {
        store.write(Write::create(format!("/k/{n}"), "old")).await.unwrap(); // 2..=6
    }
    store.write(Write::put("/k/1", "new", Expect::Any)).await.unwrap(); // 7
    store.write(Write::delete("/k/2", Expect::Any)).await.unwrap(); // 8
    store.write(Write::put("/k/1", "newer", Expect::Any)).await.unwrap(); // 9
    let at = async |revision| {
        let response = store.range(RangeRequest::prefix("/k/").at(revision)).await.unwrap();
        assert_eq!(response.revision, revision);
        response
            .kvs
            .iter()
            .map(|kv| format!("{}={}", &kv.key[3..], str::from_utf8(&kv.value).unwrap()))
            .collect::<Vec<_>>()
    };
    assert_eq!(at(1).await, Vec::<String>::new());
    assert_eq!(at(4).await, ["0=old", "1=old", "2=old"]);
    assert_eq!(at(6).await, ["0=old", "1=old", "2=old", "3=old", "4=old"]);
    assert_eq!(at(7).await, ["0=old", "1=new", "2=old", "3=old", "4=old"]);
    assert_eq!(at(8).await, ["0=old", "1=new", "3=old", "4=old"]);
    assert_eq!(at(9).await, ["0=old", "1=newer", "3=old", "4=old"]);
    let limited = store.range(RangeRequest::prefix("/k/").at(7).limit(2)).await.unwrap();
    assert_eq!((names(&limited.kvs), limited.more, limited.count), (vec!["/k/0", "/k/1"], true, 5));
}

async fn pages_show_one_revision(Engine { store, .. }: Engine) {
    for n in 0..25 {
        store.write(Write::create(format!("/k/{n:02}"), "old")).await.unwrap();
    }
    let revision = store.current_revision().await.unwrap();
    let request = RangeRequest::prefix("/k/");
    let mut stream = std::pin::pin!(pages(&*store, request.clone(), 10));
    let first = stream.next().await.unwrap().unwrap();
    assert_eq!((first.kvs.len(), first.more, first.revision, first.count), (10, true, revision, 25));
    // What happens between the pages is not seen in them.
    store.write(Write::create("/k/15x", "new")).await.unwrap();
    store.write(Write::delete("/k/16", Expect::Any)).await.unwrap();
    store.write(Write::put("/k/24", "new", Expect::Any)).await.unwrap();
    let rest: Vec<_> = stream.try_collect().await.unwrap();
    assert_eq!(rest.iter().map(|page| page.kvs.len()).collect::<Vec<_>>(), [10, 5]);
    assert!(rest.iter().all(|page| page.revision == revision));
    assert!(rest.iter().flat_map(|page| &page.kvs).all(|kv| kv.value == "old"));
    assert!(!rest[1].more);
    // An exact number of pages has no empty one at its end; an empty range has one.
    let exact: Vec<_> = pages(&*store, request.at(revision), 5).try_collect().await.unwrap();
    assert_eq!(exact.iter().map(|page| page.kvs.len()).collect::<Vec<_>>(), [5; 5]);
    let empty: Vec<_> = pages(&*store, RangeRequest::prefix("/none/"), 5).try_collect().await.unwrap();
    assert_eq!(empty.len(), 1);
}

async fn transaction_is_all_or_nothing_at_one_revision(Engine { store, .. }: Engine) {
    store.write(Write::create("/a", "one")).await.unwrap();
    let refused = store
        .transaction(vec![
            Write::create("/b", "x"),
            Write::put("/a", "x", Expect::Revision(2)),
            Write::delete("/c", Expect::Revision(5)),
        ])
        .await
        .unwrap_err();
    assert!(matches!(&refused, Error::Conflict { key, current: None, .. } if &**key == "/c"), "{refused}");
    assert_eq!(store.current_revision().await.unwrap(), 2);
    assert_eq!(store.get("/b").await.unwrap(), None);

    let revision = store
        .transaction(vec![
            Write::create("/b", "two"),
            Write::delete("/a", Expect::Revision(2)),
            Write::delete("/absent", Expect::Any),
            Write::put("/c", "three", Expect::Absent),
        ])
        .await
        .unwrap();
    assert_eq!(revision, 3);
    let all = store.range(RangeRequest::prefix("/")).await.unwrap();
    assert_eq!(names(&all.kvs), ["/b", "/c"]);
    assert!(all.kvs.iter().all(|kv| kv.mod_revision == 3 && kv.create_revision == 3));

    let mut watch = store.watch("/", 3).await.unwrap();
    let events = crate::engines::events_until(&mut watch, 3).await;
    assert_eq!(events.iter().map(|event| &*event.kv.key).collect::<Vec<_>>(), ["/b", "/a", "/c"]);
}

async fn limits_are_clear_errors(Engine { store, .. }: Engine) {
    let full: Vec<Write> = (0..MAX_OPERATIONS).map(|n| Write::create(format!("/n/{n:03}"), "x")).collect();
    assert_eq!(store.transaction(full.clone()).await.unwrap(), 2);
    let deletions =
        full.iter().map(|write| Write { op: Op::Delete, expect: Expect::Revision(2), ..write.clone() });
    assert_eq!(store.transaction(deletions.collect()).await.unwrap(), 3);

    let mut many = full;
    many.push(Write::create("/n/more", "x"));
    let error = store.transaction(many).await.unwrap_err();
    assert!(matches!(error, Error::TooManyOperations { count: 129, limit: 128 }), "{error}");

    // The largest value there can be comes back whole.
    let largest = vec![7; MAX_REQUEST_BYTES - Write::create("/large", "").size()];
    store.write(Write::create("/large", largest.clone())).await.unwrap();
    assert_eq!(store.get("/large").await.unwrap().unwrap().value, largest);
    let error = store.write(Write::create("/larges", largest)).await.unwrap_err();
    assert!(matches!(error, Error::TooLarge { limit: MAX_REQUEST_BYTES, .. }), "{error}");

    let long = format!("/{}", "k".repeat(1023));
    store.write(Write::create(long.as_str(), "x")).await.unwrap();
    assert!(store.get(&long).await.unwrap().is_some());
    for key in ["", "/a\0b", &format!("{long}k")] {
        let error = store.write(Write::create(key, "x")).await.unwrap_err();
        assert!(matches!(error, Error::InvalidKey { .. }), "{key:?}: {error}");
    }
    let twice = vec![Write::put("/a", "1", Expect::Any), Write::put("/a", "2", Expect::Any)];
    let error = store.transaction(twice).await.unwrap_err();
    assert!(matches!(&error, Error::DuplicateKey { key } if &**key == "/a"), "{error}");
}

async fn compacted_and_future_revisions_are_refused(Engine { store, .. }: Engine) {
    for n in 0..10 {
        store.write(Write::put("/a", format!("{n}"), Expect::Any)).await.unwrap(); // 2..=11
    }
    store.compact(6).await.unwrap();
    store.compact(6).await.unwrap();
    store.compact(3).await.unwrap();
    let error = store.range(RangeRequest::prefix("/").at(5)).await.unwrap_err();
    assert!(matches!(error, Error::Compacted { requested: 5, .. }), "{error}");
    for revision in [6, 7, 11] {
        let response = store.range(RangeRequest::prefix("/").at(revision)).await.unwrap();
        assert_eq!(response.kvs[0].mod_revision, revision);
    }
    let error = store.range(RangeRequest::prefix("/").at(12)).await.unwrap_err();
    assert!(matches!(error, Error::FutureRevision { requested: 12, current: 11 }), "{error}");
    let error = store.compact(12).await.unwrap_err();
    assert!(matches!(error, Error::FutureRevision { requested: 12, .. }), "{error}");
}

async fn compaction_keeps_what_is_readable(Engine { store, .. }: Engine) {
    // Keys that live, are overwritten, are deleted, and are created again, around the compaction.
    for round in 0..4 {
        for n in 0..50 {
            let key = format!("/k/{n:02}");
            let write = match (n + round) % 5 {
                0 => Write::delete(key, Expect::Any),
                _ => Write::put(key, format!("{round}"), Expect::Any),
            };
            store.write(write).await.unwrap();
        }
    }
    let newest = store.current_revision().await.unwrap();
    let middle = newest / 2;
    let mut expected = Vec::new();
    for revision in middle..=newest {
        expected.push(store.range(RangeRequest::prefix("/k/").at(revision)).await.unwrap().kvs);
    }
    store.compact(middle).await.unwrap();
    // The space is freed in the background: what is readable must not depend on how far that is.
    for _ in 0..3 {
        for (revision, expected) in (middle..=newest).zip(&expected) {
            let response = store.range(RangeRequest::prefix("/k/").at(revision)).await.unwrap();
            assert_eq!(&response.kvs, expected, "at {revision}");
        }
    }
    store.compact(newest).await.unwrap();
    let response = store.range(RangeRequest::prefix("/k/")).await.unwrap();
    assert_eq!(Some(&response.kvs), expected.last());
    assert_eq!(store.write(Write::put("/k/new", "x", Expect::Absent)).await.unwrap().revision, newest + 1);
}

async fn closed_store_says_so(Engine { store, .. }: Engine) {
    store.write(Write::create("/a", "one")).await.unwrap();
    let mut watch = store.watch("/", 0).await.unwrap();
    store.close().await.unwrap();
    store.close().await.unwrap();
    assert!(matches!(store.get("/a").await, Err(Error::Closed)));
    assert!(matches!(store.range(RangeRequest::prefix("/")).await, Err(Error::Closed)));
    assert!(matches!(store.write(Write::create("/b", "x")).await, Err(Error::Closed)));
    assert!(matches!(store.current_revision().await, Err(Error::Closed)));
    assert!(matches!(store.watch("/", 0).await, Err(Error::Closed)));
    assert!(matches!(store.compact(2).await, Err(Error::Closed)));
    assert!(matches!(crate::engines::end_of(&mut watch).await, Error::Closed));
}
