//! Cluster addresses and node ports of services: each belongs to at most one service.
//!
//! An allocation is a key of its own (`/registry/ranges/serviceips/10.0.0.1`), written in the transaction that writes the
//! service, or ahead of it where that would not fit, and deleted with it. So two services can never hold one address, whatever happens between
//! servers, and nothing leaks when a process dies. What is in memory only helps to choose: it is fed by the watch, and when
//! it is behind, the transaction fails and another address is tried.

mod pool;
mod service;

pub use pool::{IpRange, ParseRangeError, PortRange};

use std::{collections::HashSet, net::IpAddr, sync::Arc};

use hawser_api::{Error, FieldError};
use hawser_store::{Expect, Key, KeyValue, Write};
use jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::Value;

use crate::{
    cache::{ROOT, RawSink},
    resources::Resource,
};

/// Places of the allocations, below [`ROOT`].
pub const ADDRESSES: &str = "ranges/serviceips";
pub const PORTS: &str = "ranges/servicenodeports";

/// Between owner and time, in the value of a claim that was written ahead of its service. No name has a space.
const RESERVED: &str = " reserved ";

/// A claim without a service is a service on its way while it is this young. Creating one takes a minute at most.
const RESERVATION_SECONDS: i64 = 600;

/// What is known to be taken.
struct Taken<T> {
    set: Mutex<HashSet<T>>,
}

impl<T> Default for Taken<T> {
    fn default() -> Self {
        Self { set: Mutex::default() }
    }
}

pub struct Allocators {
    ranges: Vec<IpRange>,
    ports: PortRange,
    addresses: Arc<Taken<IpAddr>>,
    used_ports: Arc<Taken<u16>>,
}

/// Keys that a write claims and releases.
#[derive(Default)]
pub struct Allocations {
    owner: String,
    claims: Vec<Claim>,
    releases: Vec<Key>,
}

struct Claim {
    key: Key,
    /// The client asked for this very one: nothing else will do.
    chosen: bool,
    field: String,
    value: Value,
}

impl Allocations {
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Writes that this takes.
    pub fn len(&self) -> usize {
        self.claims.len() + self.releases.len()
    }

    pub fn claims(&self) -> impl Iterator<Item = Write> {
        self.claims.iter().map(|claim| Write::create(claim.key.clone(), self.owner.clone()))
    }

    pub fn releases(&self) -> impl Iterator<Item = Write> {
        self.releases.iter().map(|key| Write::delete(key.clone(), Expect::Any))
    }

    /// The claims, to be written ahead of their service: with the time, so that they are not taken for leftovers.
    pub fn reservations(&self, now: Timestamp) -> impl Iterator<Item = Write> {
        let value = format!("{}{RESERVED}{}", self.owner, now.as_second());
        self.claims.iter().map(move |claim| Write::create(claim.key.clone(), value.clone()))
    }

    /// Whether a claim with this value is this owner's.
    pub fn owns(&self, value: &[u8]) -> bool {
        value
            .strip_prefix(self.owner.as_bytes())
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(RESERVED.as_bytes()))
    }

    /// Another service was faster with `key`: an error where the client wanted that very one.
    pub fn lost(&self, resource: &Resource, object: &Value, key: &str) -> Result<(), Error> {
        let Some(claim) = self.claims.iter().find(|claim| &*claim.key == key && claim.chosen) else {
            return Ok(());
        };
        Err(taken(resource, object, &claim.field, &claim.value))
    }
}

fn taken(resource: &Resource, object: &Value, field: &str, value: &Value) -> Error {
    let error = match value {
        Value::Number(_) => FieldError::invalid(field, value.clone(), "provided port is already allocated"),
        value => FieldError::invalid(
            field,
            value.clone(),
            format!(
                "failed to allocate IP {}: provided IP is already allocated",
                value[0].as_str().or_else(|| value.as_str()).unwrap_or_default()
            ),
        ),
    };
    invalid(resource, object, error)
}

fn invalid(resource: &Resource, object: &Value, error: FieldError) -> Error {
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    Error::invalid(resource.row.group, resource.row.kind, name, &[error])
}

impl Allocators {
    /// `ranges`: one, or one of each family, the primary first.
    pub fn new(ranges: Vec<IpRange>, ports: PortRange) -> Self {
        Self { ranges, ports, addresses: Arc::default(), used_ports: Arc::default() }
    }

    pub fn ranges(&self) -> &[IpRange] {
        &self.ranges
    }

    /// What the cache feeds with the allocations in the store.
    pub fn sinks(&self) -> [(String, Arc<dyn RawSink>); 2] {
        [(ADDRESSES.to_owned(), self.addresses.clone()), (PORTS.to_owned(), self.used_ports.clone())]
    }

    /// Whether objects of this kind are given anything.
    pub fn concern(resource: &Resource) -> bool {
        is_service(resource)
    }

    /// Gives a service the addresses and ports that it lacks, and says what to write with it.
    ///
    /// Changes nothing for other kinds. `old` is the service before an update.
    pub fn allocate(
        &self,
        resource: &Resource,
        object: &mut Value,
        old: Option<&Value>,
    ) -> Result<Allocations, Error> {
        if !Self::concern(resource) {
            return Ok(Allocations::default());
        }
        service::allocate(self, resource, object, old)
    }

    /// What to give back when a service is deleted.
    pub fn release(&self, resource: &Resource, object: &Value) -> Allocations {
        if !is_service(resource) {
            return Allocations::default();
        }
        Allocations {
            owner: service::owner(object),
            releases: service::keys_of(object),
            ..Allocations::default()
        }
    }

    /// Whether a claim belongs to a service that is being written right now, by any server.
    pub fn is_reserved(value: &[u8], now: Timestamp) -> bool {
        let since =
            std::str::from_utf8(value).ok().and_then(|text| text.split_once(RESERVED)?.1.parse().ok());
        since.is_some_and(|since: i64| now.as_second().saturating_sub(since) < RESERVATION_SECONDS)
    }

    /// The keys that a service holds.
    pub fn keys_of(service: &Value) -> Vec<Key> {
        service::keys_of(service)
    }
}

fn is_service(resource: &Resource) -> bool {
    resource.row.group.is_empty() && resource.row.plural == "services"
}

fn address_key(address: IpAddr) -> Key {
    format!("{ROOT}{ADDRESSES}/{address}").into()
}

fn port_key(port: u16) -> Key {
    format!("{ROOT}{PORTS}/{port}").into()
}

fn last_part<T: std::str::FromStr>(key: &str) -> Option<T> {
    key.rsplit('/').next()?.parse().ok()
}

impl<T> RawSink for Taken<T>
where
    T: std::str::FromStr + std::hash::Hash + Eq + Send + Sync,
{
    fn put(&self, kv: &KeyValue) {
        if let Some(value) = last_part(&kv.key) {
            self.set.lock().insert(value);
        }
    }

    fn delete(&self, key: &str) {
        if let Some(value) = last_part::<T>(key) {
            self.set.lock().remove(&value);
        }
    }

    fn reset(&self) {
        self.set.lock().clear();
    }
}
