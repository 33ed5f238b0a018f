//! What only the embedded engine can show: its directory, its disk, its ring.

use std::{path::Path, process::Command};

use hawser_store::{EmbeddedOptions, EmbeddedStore, Error, Expect, RangeRequest, Store, Write};

use crate::engines::{TestDirectory, end_of, events_until, eventually, open_embedded};

#[tokio::test]
async fn reopened_store_goes_on_with_its_history() {
    let directory = TestDirectory::new();
    let store = open_embedded(directory.path()).await;
    for n in 0..100 {
        store.write(Write::put(format!("/k/{}", n % 7), format!("{n}"), Expect::Any)).await.unwrap(); // 2..=101
    }
    let mut watch = store.watch("/k/", 2).await.unwrap();
    let events = events_until(&mut watch, 101).await;
    let old = store.range(RangeRequest::prefix("/k/").at(50)).await.unwrap();
    store.close().await.unwrap();
    assert!(matches!(end_of(&mut watch).await, Error::Closed));

    // The closed watch is still around: it does not keep the directory open.
    let store = open_embedded(directory.path()).await;
    assert_eq!(store.current_revision().await.unwrap(), 101);
    let mut watch = store.watch("/k/", 2).await.unwrap();
    assert_eq!(events_until(&mut watch, 101).await, events);
    assert_eq!(store.range(RangeRequest::prefix("/k/").at(50)).await.unwrap().kvs, old.kvs);
    assert_eq!(store.write(Write::create("/new", "x")).await.unwrap().revision, 102);
    assert_eq!(events_until(&mut watch, 102).await.len(), 0);
}

#[tokio::test]
async fn revisions_never_go_back() {
    let directory = TestDirectory::new();
    for round in 0..3_u64 {
        let store = open_embedded(directory.path()).await;
        let before = 1 + round * 20;
        assert_eq!(store.current_revision().await.unwrap(), before);
        for n in 0..10 {
            store.write(Write::create(format!("/k/{n}"), "x")).await.unwrap();
        }
        for n in 0..10 {
            store.write(Write::delete(format!("/k/{n}"), Expect::Any)).await.unwrap();
        }
        let current = store.current_revision().await.unwrap();
        assert_eq!(current, before + 20);
        store.compact(current).await.unwrap();
        store.close().await.unwrap();
        let store = open_embedded(directory.path()).await;
        assert_eq!(store.current_revision().await.unwrap(), current);
        assert_eq!(store.range(RangeRequest::prefix("")).await.unwrap().count, 0);
        let error = store.watch("/", current).await.unwrap_err();
        assert!(matches!(error, Error::Compacted { .. }), "{error}");
        store.close().await.unwrap();
    }
}

#[tokio::test]
async fn directory_is_open_once() {
    let directory = TestDirectory::new();
    let store = open_embedded(directory.path()).await;
    let error =
        EmbeddedStore::open(EmbeddedOptions::new(directory.path().join("store"))).await.err().unwrap();
    assert!(matches!(&error, Error::Locked { .. }), "{error}");
    // Another process is refused too: it finds the file locked.
    let lock = directory.path().join("store/LOCK");
    let status = Command::new("flock").arg("--nonblock").arg(&lock).arg("true").status().unwrap();
    assert!(!status.success());
    store.close().await.unwrap();
    open_embedded(directory.path()).await;
}

#[tokio::test]
async fn dropped_store_frees_its_directory_though_watches_are_open() {
    let directory = TestDirectory::new();
    let store = open_embedded(directory.path()).await;
    store.write(Write::create("/a", "x")).await.unwrap();
    let mut watch = store.watch("/", 0).await.unwrap();
    drop(store);
    assert!(matches!(end_of(&mut watch).await, Error::Closed));
    let options = EmbeddedOptions::new(directory.path().join("store"));
    let store =
        eventually("the writer is gone", || async { EmbeddedStore::open(options.clone()).await.ok() }).await;
    assert_eq!(store.current_revision().await.unwrap(), 2);
}

#[tokio::test]
async fn what_is_no_store_is_refused_and_left_alone() {
    let directory = TestDirectory::new();
    let path = directory.path().join("store");
    std::fs::create_dir(&path).unwrap();
    let garbage = vec![0xAB; 64 * 1024];
    std::fs::write(path.join("data.mdb"), &garbage).unwrap();
    let error = EmbeddedStore::open(EmbeddedOptions::new(&path)).await.err().unwrap();
    assert!(matches!(&error, Error::Corrupt { .. }), "{error}");
    assert_eq!(std::fs::read(path.join("data.mdb")).unwrap(), garbage);

    let file = directory.path().join("file");
    std::fs::write(&file, "x").unwrap();
    let error = EmbeddedStore::open(EmbeddedOptions::new(&file)).await.err().unwrap();
    assert!(matches!(&error, Error::Io { .. }), "{error}");
}

#[tokio::test]
async fn watch_that_falls_out_of_the_ring_goes_on_from_disk() {
    let directory = TestDirectory::new();
    let options = EmbeddedOptions { ring_events: 4, ..EmbeddedOptions::new(directory.path().join("store")) };
    let store = EmbeddedStore::open(options).await.unwrap();
    let mut watch = store.watch("/k/", 0).await.unwrap();
    let mut overtaken = store.watch("/k/", 0).await.unwrap();
    for n in 0..3000 {
        let prefix = if n % 3 == 0 { "/k" } else { "/other" };
        store.write(Write::put(format!("{prefix}/{}", n % 5), format!("{n}"), Expect::Any)).await.unwrap();
    }
    let events = events_until(&mut watch, 3001).await;
    assert_eq!(events.len(), 1000);
    // One whose history is gone hears of it.
    store.compact(2000).await.unwrap();
    let error = end_of(&mut overtaken).await;
    assert!(matches!(error, Error::Compacted { requested: 2, compacted: 2000 }), "{error}");
}

#[tokio::test]
async fn full_store_says_so_and_goes_on_after_compaction() {
    let directory = TestDirectory::new();
    let max_size_bytes = 4 * 1024 * 1024;
    let options = EmbeddedOptions { max_size_bytes, ..EmbeddedOptions::new(directory.path().join("store")) };
    let store = EmbeddedStore::open(options).await.unwrap();
    let mut acknowledged = 0;
    let error = loop {
        match store.write(Write::put("/a", vec![acknowledged; 100_000], Expect::Any)).await {
            Ok(_) => acknowledged += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(&error, Error::Full { .. }) && error.is_retryable(), "{error}");
    assert!(acknowledged > 10, "{acknowledged}");
    // Nothing acknowledged is lost, reads go on, and so do writes that fit.
    let kv = store.get("/a").await.unwrap().unwrap();
    assert_eq!((kv.mod_revision, kv.value[0]), (1 + u64::from(acknowledged), acknowledged - 1));
    store.write(Write::put("/small", "x", Expect::Any)).await.unwrap();

    // Compacted as it goes, the store takes many times its size.
    for n in 0..200_u8 {
        let current = store.current_revision().await.unwrap();
        store.compact(current).await.unwrap();
        eventually("the sweep makes room", || async {
            store.write(Write::put("/a", vec![n; 100_000], Expect::Any)).await.ok()
        })
        .await;
    }
    assert_eq!(store.get("/a").await.unwrap().unwrap().value[0], 199);
}

/// A file system of the test's own, small enough to fill.
struct SmallDisk<'a>(&'a Path);

impl<'a> SmallDisk<'a> {
    fn mount(path: &'a Path) -> Option<Self> {
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=24m", "hawser-store-test"])
            .arg(path)
            .stderr(std::process::Stdio::null())
            .status();
        if status.is_ok_and(|status| status.success()) {
            return Some(Self(path));
        }
        println!("skipped: cannot mount a file system to fill (needs root)");
        None
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.0).status();
    }
}

#[tokio::test]
async fn full_disk_loses_nothing_and_writes_resume_when_there_is_space() {
    let directory = TestDirectory::new();
    let Some(disk) = SmallDisk::mount(directory.path()) else { return };
    let ballast = disk.0.join("ballast");
    std::fs::write(&ballast, vec![1; 16 * 1024 * 1024]).unwrap();
    let store = open_embedded(directory.path()).await;
    let mut acknowledged = 0_u64;
    let error = loop {
        let value = vec![b'x'; 50_000];
        match store.write(Write::create(format!("/k/{acknowledged:05}"), value)).await {
            Ok(_) => acknowledged += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(&error, Error::Full { .. }), "{error:?}");
    let all = store.range(RangeRequest::prefix("/k/")).await.unwrap();
    assert_eq!((all.count, all.revision), (acknowledged, 1 + acknowledged));

    std::fs::remove_file(&ballast).unwrap();
    for n in acknowledged..acknowledged + 20 {
        store.write(Write::create(format!("/k/{n:05}"), vec![b'x'; 50_000])).await.unwrap();
    }
    store.close().await.unwrap();
    let store = open_embedded(directory.path()).await;
    assert_eq!(store.range(RangeRequest::prefix("/k/")).await.unwrap().count, acknowledged + 20);
    store.close().await.unwrap();
}
