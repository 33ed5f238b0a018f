//! The one door: what every request passes before the registry does anything for it.
//!
//! [`Chain::enter`] takes a user (authentication is behind it) through authorization and flow control and returns a
//! [`Pass`]. The registry's methods ask for a pass, and nothing else can make one: so no read or write of cluster state,
//! from kubectl, gRPC, a node or a component in this process, can go around. Admission and validation follow in the
//! registry, where the object is known. A request with a body is read between the two steps.

use std::sync::Arc;

use hawser_api::{Error, GroupVersionResource, error::Reason};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{
    auth::{Attributes, Authorizer, COMPONENTS, Decision, NODES, SYSTEM_MASTERS, User, refusal},
    bodies::{BodyRoom, Reading},
};

/// Bounds of what is worked on at once; what comes above is told 429 with Retry-After. Upstream's defaults where it has them.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Reads (`--max-requests-inflight`).
    pub reads: usize,
    /// Writes (`--max-mutating-requests-inflight`).
    pub writes: usize,
    /// Bytes of objects that lists of old versions, which are read from the store, hold together.
    pub old_list_bytes: usize,
    /// Bytes of bodies that are being read, of all requests together; one user has a quarter of them at most.
    pub body_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { reads: 400, writes: 200, old_list_bytes: 256 << 20, body_bytes: 192 << 20 }
    }
}

pub struct Chain {
    authorizer: Arc<dyn Authorizer>,
    reads: Arc<Semaphore>,
    writes: Arc<Semaphore>,
    /// Leases have room of their own: who leads must not change because others write much.
    leases: Arc<Semaphore>,
    /// So have nodes for what shows that they live: a flood of other requests must not look like dead nodes.
    heartbeats: Arc<Semaphore>,
    /// Bodies on their way, and those of who is not held back.
    bodies: (BodyRoom, BodyRoom),
    limits: Limits,
}

/// Which room a request takes its place in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Room {
    Reads,
    Writes,
    Leases,
    Heartbeats,
    /// Watches and streams are bounded by connections; upstream leaves them out as well, and system:masters too. The
    /// components bound themselves (workers, batches), and a cluster that holds them back does not recover.
    Exempt,
}

impl Room {
    fn of(user: &User, attributes: &Attributes) -> Self {
        let long_running = attributes.verb == "watch"
            || matches!(attributes.subresource.as_str(), "log" | "exec" | "attach" | "portforward" | "proxy");
        if long_running || user.is_in(SYSTEM_MASTERS) || is_component(user) || !attributes.is_resource() {
            return Self::Exempt;
        }
        match attributes.resource.as_str() {
            "leases" | "nodes" if user.is_in(NODES) => Self::Heartbeats,
            "leases" => Self::Leases,
            _ if attributes.is_read() => Self::Reads,
            _ => Self::Writes,
        }
    }
}

/// A request that may come in and has no place yet, because its body is still to be read.
pub struct Entry {
    user: Arc<User>,
    attributes: Attributes,
    room: Room,
}

/// Permission for one request; what the registry asks for.
pub struct Pass {
    user: Arc<User>,
    attributes: Attributes,
    /// Held until the request is answered; none for watches and streams, and for administrators and components.
    _permit: Option<OwnedSemaphorePermit>,
}

impl Pass {
    pub fn user(&self) -> &Arc<User> {
        &self.user
    }

    pub fn attributes(&self) -> &Attributes {
        &self.attributes
    }
}

impl Chain {
    pub fn new(authorizer: Arc<dyn Authorizer>, limits: Limits) -> Self {
        let room = |size| Arc::new(Semaphore::new(size));
        Self {
            authorizer,
            reads: room(limits.reads),
            writes: room(limits.writes),
            leases: room(limits.writes),
            heartbeats: room(limits.writes),
            bodies: (BodyRoom::new(limits.body_bytes), BodyRoom::new(limits.body_bytes / 3)),
            limits,
        }
    }

    pub fn authorizer(&self) -> &Arc<dyn Authorizer> {
        &self.authorizer
    }

    /// Requests being worked on: reads, writes.
    pub fn in_flight(&self) -> (usize, usize) {
        let free = |room: &Semaphore| room.available_permits();
        let writes = [&self.writes, &self.leases, &self.heartbeats];
        (
            self.limits.reads - free(&self.reads),
            writes.iter().map(|room| self.limits.writes - free(room)).sum(),
        )
    }

    /// Lets a request in that is all there: authorization, then flow control.
    pub fn enter(&self, user: &Arc<User>, attributes: Attributes) -> Result<Pass, Error> {
        self.place(self.admit(user, attributes)?)
    }

    /// Lets a request in whose body is still to be read: authorization alone. [`Chain::place`] is to follow.
    pub fn admit(&self, user: &Arc<User>, attributes: Attributes) -> Result<Entry, Error> {
        self.authorize(user, &attributes)?;
        let room = Room::of(user, &attributes);
        Ok(Entry { user: user.clone(), attributes, room })
    }

    /// Gives a request its place among those that are worked on, until the pass is dropped.
    pub fn place(&self, entry: Entry) -> Result<Pass, Error> {
        let Entry { user, attributes, room } = entry;
        let room = match room {
            Room::Exempt => return Ok(Pass { user, attributes, _permit: None }),
            Room::Reads => &self.reads,
            Room::Writes => &self.writes,
            Room::Leases => &self.leases,
            Room::Heartbeats => &self.heartbeats,
        };
        let permit = room.clone().try_acquire_owned().map_err(|_| too_many())?;
        Ok(Pass { user, attributes, _permit: Some(permit) })
    }

    /// What the body of a request takes its bytes from while it is read.
    pub(crate) fn read_body<'a>(&'a self, entry: &'a Entry) -> Reading<'a> {
        let room = match entry.room {
            Room::Reads | Room::Writes => &self.bodies.0,
            Room::Leases | Room::Heartbeats | Room::Exempt => &self.bodies.1,
        };
        room.begin(&entry.user)
    }

    /// Authorization alone: for what goes out on a stream that was let in, message by message. It takes no place in flow
    /// control, so its only error is that the user may not.
    pub fn authorize(&self, user: &User, attributes: &Attributes) -> Result<(), Error> {
        match self.authorizer.authorize(user, attributes) {
            Decision::Allow(_) => Ok(()),
            Decision::Deny(reason) | Decision::NoOpinion(reason) => Err(forbidden(user, attributes, &reason)),
        }
    }
}

/// What is told those for whom there is no room.
pub(crate) fn too_many() -> Error {
    Error::too_many_requests("Too many requests, please try again later.", 1)
}

fn is_component(user: &User) -> bool {
    COMPONENTS.contains(&user.name.as_str())
}

fn forbidden(user: &User, attributes: &Attributes, reason: &str) -> Error {
    let why = refusal(user, attributes, reason);
    if !attributes.is_resource() {
        return Error::new(Reason::Forbidden, format!("forbidden: {why}"));
    }
    let resource = GroupVersionResource {
        group: attributes.group.clone().into(),
        version: attributes.version.clone().into(),
        resource: attributes.resource.clone().into(),
    };
    Error::forbidden(&resource, &attributes.name, &why)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::{Grounds, Rules, authz::Superusers};

    struct Everybody;

    impl Authorizer for Everybody {
        fn authorize(&self, _: &User, _: &Attributes) -> Decision {
            Decision::Allow(Grounds::Unsaid)
        }

        fn rules(&self, _: &User, _: &str) -> Rules {
            Rules::default()
        }
    }

    #[test]
    fn a_full_server_says_429_and_leases_still_pass() {
        let chain = Chain::new(Arc::new(Everybody), Limits { reads: 1, writes: 1, ..Limits::default() });
        let client = User::named("client", &[]);
        let request = |verb: &'static str, resource: &str| Attributes {
            verb: verb.into(),
            resource: resource.to_owned(),
            ..Attributes::default()
        };
        let first = chain.enter(&client, request("update", "pods")).expect("there is room");
        let refused = chain.enter(&client, request("update", "pods")).err().expect("no room");
        assert_eq!((refused.code(), refused.retry_after_seconds()), (429, Some(1)));
        assert!(chain.enter(&client, request("update", "leases")).is_ok());
        assert!(chain.enter(&client, request("get", "pods")).is_ok());
        assert!(chain.authorize(&client, &request("update", "pods")).is_ok(), "no place is needed for this");
        for component in COMPONENTS {
            let component = User::named(component, &[]);
            assert!(chain.enter(&component, request("update", "pods")).is_ok(), "{}", component.name);
        }
        drop(first);
        assert!(chain.enter(&client, request("update", "pods")).is_ok());
    }

    #[test]
    fn nodes_show_that_they_live_whatever_others_do() {
        let chain = Chain::new(Arc::new(Everybody), Limits { reads: 1, writes: 1, ..Limits::default() });
        let (client, node) = (User::named("client", &[]), User::named("system:node:n1", &[NODES]));
        let request = |verb: &'static str, resource: &str| Attributes {
            verb: verb.into(),
            resource: resource.to_owned(),
            ..Attributes::default()
        };
        let flood: Vec<Pass> = [("update", "pods"), ("update", "leases"), ("list", "pods")]
            .into_iter()
            .map(|(verb, resource)| chain.enter(&client, request(verb, resource)).expect("there is room"))
            .collect();
        assert!(chain.enter(&client, request("update", "leases")).is_err());
        assert!(chain.enter(&node, request("update", "leases")).is_ok());
        assert!(chain.enter(&node, request("patch", "nodes")).is_ok());
        assert_eq!(chain.in_flight(), (1, 2));
        drop(flood);
        assert_eq!(chain.in_flight(), (0, 0));
    }

    #[test]
    fn a_request_whose_body_is_on_its_way_has_no_place() {
        let chain = Chain::new(Arc::new(Everybody), Limits { writes: 1, ..Limits::default() });
        let client = User::named("client", &[]);
        let update =
            || Attributes { verb: "update".into(), resource: "pods".to_owned(), ..Attributes::default() };
        let slow: Vec<Entry> = (0..3).map(|_| chain.admit(&client, update()).expect("it may")).collect();
        let quick = chain.enter(&client, update()).expect("there is room");
        let placed: Vec<_> = slow.into_iter().map(|entry| chain.place(entry).is_ok()).collect();
        assert_eq!(placed, [false, false, false], "it is taken by now");
        drop(quick);
    }

    #[test]
    fn refusals_are_worded_as_upstream_does() {
        let chain = Chain::new(Arc::new(Superusers), Limits::default());
        let attributes = Attributes {
            verb: "list".into(),
            resource: "pods".to_owned(),
            namespace: "shop".to_owned(),
            ..Attributes::default()
        };
        let error = chain.enter(&User::anonymous(), attributes).err().expect("nobody may");
        assert_eq!(
            error.message(),
            "pods is forbidden: User \"system:anonymous\" cannot list resource \"pods\" in API group \"\" \
             in the namespace \"shop\""
        );
    }
}
