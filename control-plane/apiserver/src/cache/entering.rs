//! Objects that this server is writing: made once, for their author's answer and for the cache.
//!
//! Who writes an object has its tree, and knows what reading its bytes would find. The bytes are left here before the
//! write; the feed, to which they come back from the store, finds the object made or makes it for both. What the feed
//! does not find is read as what others write: a miss costs a read, and nothing else.

use std::{
    collections::HashMap,
    sync::{Arc, OnceLock},
};

use bytes::Bytes;
use hawser_store::{Key, KeyValue, Revision};
use parking_lot::Mutex;
use serde_json::Value;

use super::object::{CachedObject, Malformed};

/// Objects on their way at a time. Those beyond are read by the feed.
const MAX_ENTERING: usize = 4_096;

/// By key. An entry goes when the feed comes for it, when its write fails, or when the cache is read anew.
#[derive(Default)]
pub(super) struct Entering(Mutex<HashMap<Key, Arc<Draft>>>);

/// An object that has no revision yet.
struct Draft {
    key: Key,
    /// Printed here, so it is canonical JSON.
    json: Bytes,
    node: Box<str>,
    made: OnceLock<Arc<CachedObject>>,
}

impl Draft {
    fn object(&self, revision: Revision) -> Result<Arc<CachedObject>, Malformed> {
        if let Some(made) = self.made.get().filter(|made| made.revision() == revision) {
            return Ok(made.clone());
        }
        let object = CachedObject::printed(self.key.clone(), &self.json, revision, &self.node)?;
        let object = Arc::new(object);
        // Where both made it at the same time, the first one is everybody's.
        let made = self.made.get_or_init(|| object.clone());
        Ok(if made.revision() == revision { made.clone() } else { object })
    }
}

impl Entering {
    /// Announces an object before it is written; `json` is `object` as it is printed for the store.
    pub(super) fn announce(&self, key: Key, json: Bytes, object: &Value) -> Announced<'_> {
        let node = object["spec"]["nodeName"].as_str().unwrap_or_default().into();
        let draft = Arc::new(Draft { key: key.clone(), json, node, made: OnceLock::new() });
        let mut drafts = self.0.lock();
        if drafts.len() < MAX_ENTERING {
            drafts.insert(key, draft.clone());
        }
        Announced { entering: self, draft, is_written: false }
    }

    /// The object that came back from the store, where it was announced.
    pub(super) fn take(&self, kv: &KeyValue) -> Option<Arc<CachedObject>> {
        let draft = {
            let mut drafts = self.0.lock();
            // Another version of the object may be on its way behind this one.
            drafts.get(&kv.key).filter(|draft| draft.json == kv.value)?;
            drafts.remove(&kv.key)?
        };
        draft.object(kv.mod_revision).ok()
    }

    pub(super) fn clear(&self) {
        self.0.lock().clear();
    }

    fn forget(&self, draft: &Arc<Draft>) {
        let mut drafts = self.0.lock();
        if drafts.get(&draft.key).is_some_and(|known| Arc::ptr_eq(known, draft)) {
            drafts.remove(&draft.key);
        }
    }
}

/// An object that is being written. Dropped without [`Announced::written`], it was not.
pub struct Announced<'c> {
    entering: &'c Entering,
    draft: Arc<Draft>,
    is_written: bool,
}

impl Announced<'_> {
    /// The object as it was written, at that revision.
    pub fn written(mut self, revision: Revision) -> Result<Arc<CachedObject>, Malformed> {
        self.is_written = true;
        self.draft.object(revision)
    }
}

impl Drop for Announced<'_> {
    fn drop(&mut self) {
        if !self.is_written {
            self.entering.forget(&self.draft);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn kv(json: &Bytes, mod_revision: Revision) -> KeyValue {
        KeyValue { key: "/registry/pods/b/a".into(), value: json.clone(), create_revision: 1, mod_revision }
    }

    fn pod(node: &str) -> (Value, Bytes) {
        let object = json!({
            "kind": "Pod", "apiVersion": "v1", "metadata": { "name": "a", "namespace": "b" },
            "spec": { "nodeName": node },
        });
        let text = object.to_string().into();
        (object, text)
    }

    #[test]
    fn author_and_feed_have_one_object_whoever_comes_first() {
        let (object, json) = pod("n1");
        for feed_is_first in [true, false] {
            let entering = Entering::default();
            let announced = entering.announce("/registry/pods/b/a".into(), json.clone(), &object);
            let (of_author, of_feed) = if feed_is_first {
                let of_feed = entering.take(&kv(&json, 7)).expect("announced");
                (announced.written(7).expect("a pod"), of_feed)
            } else {
                let of_author = announced.written(7).expect("a pod");
                (of_author, entering.take(&kv(&json, 7)).expect("announced"))
            };
            assert!(Arc::ptr_eq(&of_author, &of_feed));
            assert_eq!((of_feed.revision(), of_feed.node()), (7, "n1"));
            assert!(entering.take(&kv(&json, 8)).is_none(), "taken once");
        }
    }

    #[test]
    fn what_failed_or_is_another_version_is_not_taken() {
        let (entering, key) = (Entering::default(), || Key::from("/registry/pods/b/a"));
        let ((one, first), (two, second)) = (pod("n1"), pod("n2"));
        drop(entering.announce(key(), first.clone(), &one));
        assert!(entering.take(&kv(&first, 7)).is_none(), "the write failed");
        let written = entering.announce(key(), first.clone(), &one).written(7).expect("a pod");
        let later = entering.announce(key(), second.clone(), &two);
        assert!(entering.take(&kv(&first, 7)).is_none(), "a later version took its place");
        let taken = entering.take(&kv(&second, 8)).expect("announced");
        assert_eq!((written.node(), taken.node()), ("n1", "n2"));
        assert!(Arc::ptr_eq(&taken, &later.written(8).expect("a pod")));
    }
}
