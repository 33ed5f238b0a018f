//! The one door: what every request passes before the registry does anything for it.
//!
//! [`Chain::enter`] takes a user (authentication is behind it) through flow control and authorization and returns a
//! [`Pass`]. The registry's methods ask for a pass, and nothing else can make one: so no read or write of cluster state,
//! from kubectl, gRPC, a node or a component in this process, can go around. Admission and validation follow in the
//! registry, where the object is known.

use std::sync::Arc;

use hawser_api::{Error, GroupVersionResource, error::Reason};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::auth::{Attributes, Authorizer, COMPONENTS, Decision, SYSTEM_MASTERS, User, refusal};

/// Bounds of what is worked on at once; what comes above is told 429 with Retry-After. Upstream's defaults where it has them.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Reads (`--max-requests-inflight`).
    pub reads: usize,
    /// Writes (`--max-mutating-requests-inflight`).
    pub writes: usize,
    /// Bytes of objects that lists of old versions, which are read from the store, hold together.
    pub old_list_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { reads: 400, writes: 200, old_list_bytes: 256 << 20 }
    }
}

pub struct Chain {
    authorizer: Arc<dyn Authorizer>,
    reads: Arc<Semaphore>,
    writes: Arc<Semaphore>,
    /// Leases and node heartbeats have room of their own: a flood of other requests must not look like dead nodes.
    leases: Arc<Semaphore>,
    limits: Limits,
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
            limits,
        }
    }

    pub fn authorizer(&self) -> &Arc<dyn Authorizer> {
        &self.authorizer
    }

    /// Requests being worked on: reads, writes.
    pub fn in_flight(&self) -> (usize, usize) {
        let writes = self.limits.writes;
        (
            self.limits.reads - self.reads.available_permits(),
            2 * writes - self.writes.available_permits() - self.leases.available_permits(),
        )
    }

    /// Lets a request in: flow control, then authorization.
    pub fn enter(&self, user: &Arc<User>, attributes: Attributes) -> Result<Pass, Error> {
        let permit = self.permit(user, &attributes)?;
        self.authorize(user, &attributes)?;
        Ok(Pass { user: user.clone(), attributes, _permit: permit })
    }

    /// Authorization alone: for what goes out on a stream that was let in, message by message. It takes no place in flow
    /// control, so its only error is that the user may not.
    pub fn authorize(&self, user: &User, attributes: &Attributes) -> Result<(), Error> {
        match self.authorizer.authorize(user, attributes) {
            Decision::Allow(_) => Ok(()),
            Decision::Deny(reason) | Decision::NoOpinion(reason) => Err(forbidden(user, attributes, &reason)),
        }
    }

    fn permit(&self, user: &User, attributes: &Attributes) -> Result<Option<OwnedSemaphorePermit>, Error> {
        // Watches and streams are bounded by connections; upstream leaves them out as well, and system:masters too. The
        // components bound themselves (workers, batches), and a cluster that holds them back does not recover.
        let long_running = attributes.verb == "watch"
            || matches!(attributes.subresource.as_str(), "log" | "exec" | "attach" | "portforward" | "proxy");
        if long_running || user.is_in(SYSTEM_MASTERS) || is_component(user) || !attributes.is_resource() {
            return Ok(None);
        }
        let room = if attributes.resource == "leases" {
            &self.leases
        } else if attributes.is_read() {
            &self.reads
        } else {
            &self.writes
        };
        match room.clone().try_acquire_owned() {
            Ok(permit) => Ok(Some(permit)),
            Err(_) => Err(Error::too_many_requests("Too many requests, please try again later.", 1)),
        }
    }
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
