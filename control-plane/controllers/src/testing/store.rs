//! The objects of the fake API, and the rules by which they change. No async, no clock but the tests'.

use std::collections::BTreeMap;

use hawser_api::{
    Error,
    client::{DeleteOptions, Propagation},
    error::Reason,
    resource::{GroupVersionResource, Target},
};
use serde_json::{Value, json};

use crate::meta::now;

/// Plural with group, namespace, name.
pub(crate) type Key = (String, String, String);
pub(crate) type Objects = BTreeMap<Key, Value>;

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum What {
    Added,
    Modified,
    Deleted,
}

#[derive(Clone, Debug)]
pub(super) struct Event {
    pub(super) revision: u64,
    pub(super) what: What,
    pub(super) key: Key,
    pub(super) object: Value,
}

#[derive(Default)]
pub(super) struct Store {
    pub(super) revision: u64,
    pub(super) objects: Objects,
    pub(super) history: Vec<Event>,
    made: u64,
}

pub(super) fn key_of(target: &Target) -> Key {
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    (target.resource.qualified(), text(&target.namespace), text(&target.name))
}

impl Store {
    pub(super) fn get(&self, target: &Target) -> Result<Value, Error> {
        let found = self.objects.get(&key_of(target)).cloned();
        found.ok_or_else(|| missing(target))
    }

    /// What a request reads: the object, or its scale.
    pub(super) fn read(&self, target: &Target) -> Result<Value, Error> {
        let object = self.get(target)?;
        if target.subresource.as_deref() != Some("scale") {
            return Ok(object);
        }
        let labels = object["spec"]["selector"]["matchLabels"].as_object().cloned().unwrap_or_default();
        let pairs = labels.iter().map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()));
        let selector = pairs.collect::<Vec<_>>().join(",");
        let replicas = object["status"]["replicas"].as_i64().unwrap_or_default();
        Ok(json!({
            "kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": object["metadata"],
            "spec": { "replicas": object["spec"]["replicas"] },
            "status": { "replicas": replicas, "selector": selector },
        }))
    }

    pub(super) fn create(&mut self, target: &Target, mut object: Value) -> Result<Value, Error> {
        self.made += 1;
        let namespace = target.namespace.clone().unwrap_or_default();
        self.check_namespace(target, &namespace)?;
        let meta = &mut object["metadata"];
        if meta["name"].is_null() {
            let prefix = meta["generateName"].as_str().expect("name or generateName").to_owned();
            meta["name"] = json!(format!("{prefix}{:05}", self.made));
        }
        let name = meta["name"].as_str().expect("name").to_owned();
        meta["uid"] = json!(format!("uid-{}", self.made));
        meta["creationTimestamp"] = stamp();
        if !namespace.is_empty() {
            meta["namespace"] = json!(namespace);
        }
        if object.get("spec").is_some() {
            object["metadata"]["generation"] = json!(1);
        }
        if target.resource.resource == "namespaces" {
            object["spec"]["finalizers"] = json!(["kubernetes"]);
            object["status"]["phase"] = json!("Active");
        }
        let key = (target.resource.qualified(), namespace, name.clone());
        if self.objects.contains_key(&key) {
            return Err(Error::already_exists(&target.resource, &name));
        }
        Ok(self.put(key, object, What::Added))
    }

    fn check_namespace(&self, target: &Target, namespace: &str) -> Result<(), Error> {
        let key = ("namespaces".to_owned(), String::new(), namespace.to_owned());
        let Some(found) = self.objects.get(&key) else { return Ok(()) };
        if found["metadata"].get("deletionTimestamp").is_none() {
            return Ok(());
        }
        let why =
            format!("unable to create new content in namespace {namespace} because it is being terminated");
        Err(Error::forbidden(&target.resource, "", &why))
    }

    pub(super) fn update(&mut self, target: &Target, mut new: Value) -> Result<Value, Error> {
        let old = self.get(target)?;
        let version = &new["metadata"]["resourceVersion"];
        if !version.is_null() && *version != old["metadata"]["resourceVersion"] {
            return Err(Error::conflict(&target.resource, &key_of(target).2, "the object has been modified"));
        }
        let uid = &new["metadata"]["uid"];
        if !uid.is_null() && *uid != old["metadata"]["uid"] {
            return Err(Error::conflict(&target.resource, &key_of(target).2, "another uid"));
        }
        match target.subresource.as_deref() {
            Some("status" | "approval") => {
                let annotations = new["metadata"]["annotations"].clone();
                new = with(&old, "status", &new);
                if target.resource.resource == "deployments" {
                    new["metadata"]["annotations"] = annotations;
                }
            }
            Some("scale") => {
                let replicas = new["spec"]["replicas"].clone();
                new = old.clone();
                new["spec"]["replicas"] = replicas;
            }
            Some("finalize") => {
                let finalizers = new["spec"]["finalizers"].clone();
                new = old.clone();
                new["spec"]["finalizers"] = finalizers;
            }
            _ => new = with(&new, "status", &old),
        }
        for kept in ["uid", "creationTimestamp", "deletionTimestamp", "generation", "namespace", "name"] {
            new["metadata"][kept] = old["metadata"][kept].clone();
        }
        prune_nulls(&mut new);
        if new.get("spec") != old.get("spec") && matches!(target.subresource.as_deref(), None | Some("scale"))
        {
            let generation = old["metadata"]["generation"].as_i64().unwrap_or(1);
            new["metadata"]["generation"] = json!(generation + 1);
        }
        new["metadata"]["resourceVersion"] = old["metadata"]["resourceVersion"].clone();
        if new == old {
            return Ok(old);
        }
        Ok(self.put_or_remove(key_of(target), new))
    }

    pub(super) fn merge_patch(&mut self, target: &Target, patch: &Value) -> Result<Value, Error> {
        let mut new = self.get(target)?;
        merge(&mut new, patch);
        if patch.pointer("/metadata/resourceVersion").is_none() {
            new["metadata"]["resourceVersion"] = Value::Null;
        }
        self.update(target, new)
    }

    pub(super) fn delete(&mut self, target: &Target, options: &DeleteOptions) -> Result<Value, Error> {
        let mut object = self.get(target)?;
        let key = key_of(target);
        let differs = |wanted: &Option<String>, field: &str| {
            wanted.as_ref().is_some_and(|wanted| object["metadata"][field] != json!(wanted))
        };
        if differs(&options.uid, "uid") || differs(&options.resource_version, "resourceVersion") {
            return Err(Error::conflict(&target.resource, &key.2, "the precondition does not hold"));
        }
        let finalizer = match options.propagation {
            Some(Propagation::Orphan) => Some("orphan"),
            Some(Propagation::Foreground) => Some("foregroundDeletion"),
            _ => None,
        };
        let mut finalizers = object["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
        if let Some(finalizer) = finalizer.filter(|it| !finalizers.contains(&json!(it))) {
            finalizers.push(json!(finalizer));
            object["metadata"]["finalizers"] = json!(finalizers);
        }
        let runs = target.resource.resource == "pods" && !object["spec"]["nodeName"].is_null();
        let is_graceful = runs && options.grace_period_seconds != Some(0);
        let is_namespace = target.resource.resource == "namespaces";
        if finalizers.is_empty() && !is_graceful && !is_namespace {
            return Ok(self.remove(&key));
        }
        if object["metadata"].get("deletionTimestamp").is_none() {
            object["metadata"]["deletionTimestamp"] = stamp();
            if is_namespace {
                object["status"]["phase"] = json!("Terminating");
            }
            return Ok(self.put_or_remove(key, object));
        }
        Ok(object)
    }

    /// An object that ends goes with its last finalizer; pods on a node wait for the node.
    fn put_or_remove(&mut self, key: Key, object: Value) -> Value {
        let is_empty = |value: &Value| value.as_array().is_none_or(Vec::is_empty);
        let ending = object["metadata"].get("deletionTimestamp").is_some();
        let held = !is_empty(&object["metadata"]["finalizers"])
            || (key.0 == "namespaces" && !is_empty(&object["spec"]["finalizers"]))
            || key.0 == "pods";
        if ending && !held {
            self.objects.insert(key.clone(), object);
            return self.remove(&key);
        }
        self.put(key, object, What::Modified)
    }

    fn put(&mut self, key: Key, mut object: Value, what: What) -> Value {
        self.revision += 1;
        object["metadata"]["resourceVersion"] = json!(self.revision.to_string());
        self.objects.insert(key.clone(), object.clone());
        self.history.push(Event { revision: self.revision, what, key, object: object.clone() });
        object
    }

    fn remove(&mut self, key: &Key) -> Value {
        let mut object = self.objects.remove(key).expect("the object was looked up");
        self.revision += 1;
        object["metadata"]["resourceVersion"] = json!(self.revision.to_string());
        let event =
            Event { revision: self.revision, what: What::Deleted, key: key.clone(), object: object.clone() };
        self.history.push(event);
        object
    }
}

fn missing(target: &Target) -> Error {
    Error::not_found(&target.resource, &key_of(target).2)
}

/// `object` with one part taken from another, or without it where that has none.
fn with(object: &Value, part: &str, from: &Value) -> Value {
    let mut object = object.clone();
    object[part] = from.get(part).cloned().unwrap_or_default();
    object
}

fn prune_nulls(object: &mut Value) {
    for part in [&mut *object] {
        if let Some(fields) = part.as_object_mut() {
            fields.retain(|_, value| !value.is_null());
        }
    }
    if let Some(fields) = object["metadata"].as_object_mut() {
        fields.retain(|_, value| !value.is_null());
    }
}

fn merge(object: &mut Value, patch: &Value) {
    let Value::Object(changes) = patch else {
        *object = patch.clone();
        return;
    };
    if !object.is_object() {
        *object = json!({});
    }
    let fields = object.as_object_mut().expect("made one above");
    for (name, change) in changes {
        if change.is_null() {
            fields.remove(name);
        } else {
            merge(fields.entry(name.clone()).or_insert(Value::Null), change);
        }
    }
}

fn stamp() -> Value {
    json!(now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
}

/// The error of a server that is not there.
pub(super) fn unavailable() -> Error {
    Error::new(Reason::ServiceUnavailable, "the server is gone")
}

/// The resource of a plural with group, as kept in keys.
pub(super) fn matches(resource: &GroupVersionResource, key: &Key) -> bool {
    resource.qualified() == key.0
}
