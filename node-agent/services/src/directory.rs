//! All Services and their slices, by the Service that they belong to. Bounded by what the cluster has.
//!
//! One task writes; readers copy `Arc`s out. Handlers hear of each change after the directory holds it, in order; a
//! handler must not block: it adds a key to a queue and returns.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use k8s_openapi::api::{core, discovery};
use parking_lot::RwLock;

use crate::{EndpointSlice, Key, Service};

/// Annotation of EndpointSlices: when what they show began to change.
const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// What changed of a Service.
#[derive(Debug)]
pub enum Change<'a> {
    /// Itself: `old` is unset for a new one, `new` for a deleted one.
    Service { old: Option<&'a Service>, new: Option<&'a Service> },
    /// A slice of it. `trigger_time` is the text of the annotation that says since when.
    Slice { trigger_time: Option<&'a str> },
}

type Handler = Box<dyn Fn(&Key, &Change<'_>) + Send + Sync>;

/// The directory. Cheap to clone; all clones read the same.
#[derive(Clone, Default)]
pub struct Directory {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    content: RwLock<Content>,
    /// Grows only before the directory is fed; called with no lock held on `content`.
    handlers: RwLock<Vec<Handler>>,
}

#[derive(Default)]
struct Content {
    services: HashMap<Key, Entry>,
    /// The Service of each slice, by the slice's own key.
    slices: HashMap<Key, Arc<str>>,
}

/// Never without both.
#[derive(Default)]
struct Entry {
    service: Option<Arc<Service>>,
    /// With their names, in no order.
    slices: Box<[(Arc<str>, Arc<EndpointSlice>)]>,
}

impl Directory {
    /// Registers a handler; it hears of every change from now on, with the key of the Service.
    pub fn on_change(&self, handler: impl Fn(&Key, &Change<'_>) + Send + Sync + 'static) {
        self.shared.handlers.write().push(Box::new(handler));
    }

    pub fn get(&self, key: &Key) -> Option<Arc<Service>> {
        self.shared.content.read().services.get(key)?.service.clone()
    }

    /// The Services for which `keep` holds, in no order.
    pub fn filter(&self, keep: impl Fn(&Service) -> bool) -> Vec<Arc<Service>> {
        let content = self.shared.content.read();
        let services = content.services.values().filter_map(|entry| entry.service.as_ref());
        services.filter(|service| keep(service)).cloned().collect()
    }

    /// The slices of a Service, in no order.
    pub fn slices(&self, service: &Key) -> Vec<Arc<EndpointSlice>> {
        let content = self.shared.content.read();
        let slices = content.services.get(service).into_iter().flat_map(|entry| &entry.slices);
        slices.map(|(_, slice)| slice.clone()).collect()
    }

    /// All slices, in no order.
    pub fn all_slices(&self) -> Vec<Arc<EndpointSlice>> {
        let content = self.shared.content.read();
        content.services.values().flat_map(|entry| &entry.slices).map(|(_, slice)| slice.clone()).collect()
    }

    /// Number of Services.
    pub fn services(&self) -> usize {
        self.shared.content.read().services.values().filter(|entry| entry.service.is_some()).count()
    }

    /// Adds or replaces a Service.
    pub fn put_service(&self, object: &core::v1::Service) {
        let new = Arc::new(Service::from(object));
        let key = new.key.clone();
        let old = {
            let mut content = self.shared.content.write();
            content.services.entry(key.clone()).or_default().service.replace(new.clone())
        };
        self.tell(&key, &Change::Service { old: old.as_deref(), new: Some(&new) });
    }

    /// Removes a Service; one that is not there changes nothing.
    pub fn remove_service(&self, key: &Key) {
        let old = {
            let mut content = self.shared.content.write();
            let old = content.services.get_mut(key).and_then(|entry| entry.service.take());
            content.remove_if_empty(key);
            old
        };
        if let Some(old) = &old {
            self.tell(key, &Change::Service { old: Some(old), new: None });
        }
    }

    /// Adds or replaces a slice. One that is of no Service is none.
    pub fn put_slice(&self, object: &discovery::v1::EndpointSlice) {
        let meta = &object.metadata;
        let key = Key {
            namespace: crate::names::shared(meta.namespace.as_deref().unwrap_or_default()),
            name: meta.name.as_deref().unwrap_or_default().into(),
        };
        let trigger_time = meta.annotations.as_ref().and_then(|it| it.get(TRIGGER_TIME)).map(String::as_str);
        let Some(slice) = EndpointSlice::of(object) else {
            self.remove_slice(&key);
            return;
        };
        let service = slice.service.clone();
        let moved_from = {
            let mut content = self.shared.content.write();
            let old = content.slices.insert(key.clone(), service.name.clone());
            let moved_from = old.filter(|old| *old != service.name);
            let moved_from = moved_from.map(|name| Key { namespace: key.namespace.clone(), name });
            if let Some(from) = &moved_from {
                content.set_slice(from, &key.name, None);
            }
            content.set_slice(&service, &key.name, Some(Arc::new(slice)));
            moved_from
        };
        if let Some(from) = moved_from {
            self.tell(&from, &Change::Slice { trigger_time });
        }
        self.tell(&service, &Change::Slice { trigger_time });
    }

    /// Removes a slice; one that is not there changes nothing.
    pub fn remove_slice(&self, key: &Key) {
        let service = {
            let mut content = self.shared.content.write();
            let Some(name) = content.slices.remove(key) else { return };
            let service = Key { namespace: key.namespace.clone(), name };
            content.set_slice(&service, &key.name, None);
            service
        };
        self.tell(&service, &Change::Slice { trigger_time: None });
    }

    /// Removes all but the Services and slices with these keys.
    pub fn retain(&self, services: &HashSet<Key>, slices: &HashSet<Key>) {
        let (gone_services, gone_slices) = {
            let content = self.shared.content.read();
            let with_service = content.services.iter().filter(|(_, entry)| entry.service.is_some());
            let gone_services = with_service.map(|(key, _)| key).filter(|key| !services.contains(*key));
            let gone_slices = content.slices.keys().filter(|key| !slices.contains(*key));
            (gone_services.cloned().collect::<Vec<_>>(), gone_slices.cloned().collect::<Vec<_>>())
        };
        gone_slices.iter().for_each(|key| self.remove_slice(key));
        gone_services.iter().for_each(|key| self.remove_service(key));
    }

    fn tell(&self, key: &Key, change: &Change<'_>) {
        for handler in self.shared.handlers.read().iter() {
            handler(key, change);
        }
    }
}

impl Content {
    /// Puts a slice in the place of the one of this name; `None` takes it away.
    fn set_slice(&mut self, service: &Key, name: &Arc<str>, slice: Option<Arc<EndpointSlice>>) {
        let entry = self.services.entry(service.clone()).or_default();
        let others = std::mem::take(&mut entry.slices).into_iter().filter(|(other, _)| other != name);
        entry.slices = others.chain(slice.map(|slice| (name.clone(), slice))).collect();
        self.remove_if_empty(service);
    }

    fn remove_if_empty(&mut self, key: &Key) {
        if self.services.get(key).is_some_and(|entry| entry.service.is_none() && entry.slices.is_empty()) {
            self.services.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;
    use serde_json::json;

    use super::*;

    fn service(name: &str) -> core::v1::Service {
        serde_json::from_value(json!({ "metadata": { "namespace": "shop", "name": name } })).unwrap()
    }

    fn slice(name: &str, service: Option<&str>) -> discovery::v1::EndpointSlice {
        let labels = service.map(|service| json!({ "kubernetes.io/service-name": service }));
        serde_json::from_value(json!({
            "metadata": {
                "namespace": "shop", "name": name, "labels": labels,
                "annotations": { TRIGGER_TIME: "2026-01-01T00:00:00Z" },
            },
            "addressType": "IPv4", "endpoints": [],
        }))
        .unwrap()
    }

    fn key(name: &str) -> Key {
        Key::new("shop", name)
    }

    /// A directory, and what its handlers have heard since the last look.
    fn directory() -> (Directory, impl Fn() -> Vec<String>) {
        let (directory, heard) = (Directory::default(), Arc::new(Mutex::new(Vec::new())));
        let ears = heard.clone();
        directory.on_change(move |key, change| {
            let what = match change {
                Change::Service { old, new } => format!("{key} {} {}", old.is_some(), new.is_some()),
                Change::Slice { trigger_time } => format!("slice of {key} {}", trigger_time.is_some()),
            };
            ears.lock().push(what);
        });
        (directory, move || std::mem::take(&mut *heard.lock()))
    }

    #[test]
    fn slices_are_found_by_their_service_whichever_comes_first() {
        let (directory, heard) = directory();
        directory.put_slice(&slice("web-1", Some("web")));
        assert_eq!(directory.slices(&key("web")).len(), 1);
        assert!(directory.get(&key("web")).is_none());
        directory.put_service(&service("web"));
        directory.put_slice(&slice("web-2", Some("web")));
        directory.put_slice(&slice("web-2", Some("web")));
        assert_eq!(directory.slices(&key("web")).len(), 2);
        let slice_changed = "slice of shop/web true";
        assert_eq!(heard(), [slice_changed, "shop/web false true", slice_changed, slice_changed]);
        directory.remove_service(&key("web"));
        assert_eq!((directory.services(), directory.all_slices().len()), (0, 2));
        directory.remove_slice(&key("web-1"));
        directory.remove_slice(&key("web-2"));
        directory.remove_slice(&key("web-2"));
        assert_eq!(heard(), ["shop/web true false", "slice of shop/web false", "slice of shop/web false"]);
        assert!(directory.shared.content.read().services.is_empty());
    }

    #[test]
    fn slice_that_changes_its_service_changes_both() {
        let (directory, heard) = directory();
        directory.put_slice(&slice("a", Some("web")));
        heard();
        directory.put_slice(&slice("a", Some("api")));
        assert_eq!(heard(), ["slice of shop/web true", "slice of shop/api true"]);
        assert!(directory.slices(&key("web")).is_empty());
        directory.put_slice(&slice("a", None));
        assert_eq!(heard(), ["slice of shop/api false"]);
        assert!(directory.shared.content.read().services.is_empty());
    }

    #[test]
    fn snapshot_takes_away_what_it_does_not_name() {
        let (directory, heard) = directory();
        for name in ["a", "b"] {
            directory.put_service(&service(name));
            directory.put_slice(&slice(name, Some(name)));
        }
        let both: HashSet<Key> = ["a", "b"].map(key).into();
        heard();
        directory.retain(&both, &both);
        assert!(heard().is_empty());
        directory.retain(&[key("a")].into(), &[key("b")].into());
        assert_eq!(heard(), ["slice of shop/a false", "shop/b true false"]);
    }
}
