//! The writes of one node that are under way: side by side, those of one object one after the other.
//!
//! A node repeats a write that it got no answer to, perhaps with newer content; carried out in the order in which they
//! were sent, the newest is what stays.

use std::collections::{HashMap, VecDeque};

use futures::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use hawser_api::v1::{Resource, StatusAnswer, StatusUpdate};

/// Writes that are taken in and not answered; the node's stream waits beyond them.
const WRITES: usize = 32;

/// Group, resource, namespace and name.
type Object = [String; 4];

pub(super) struct Writes<'w, F> {
    /// Carries out one write.
    write: F,
    running: FuturesUnordered<BoxFuture<'w, (Object, StatusAnswer)>>,
    /// Writes behind the running one; an object is here as long as it has one.
    behind: HashMap<Object, VecDeque<StatusUpdate>>,
    count: usize,
}

impl<'w, F, A> Writes<'w, F>
where
    F: Fn(StatusUpdate) -> A,
    A: Future<Output = StatusAnswer> + Send + 'w,
{
    pub(super) fn new(write: F) -> Self {
        Self { write, running: FuturesUnordered::new(), behind: HashMap::new(), count: 0 }
    }

    /// No more may be pushed before an answer was taken.
    pub(super) fn is_full(&self) -> bool {
        self.count >= WRITES
    }

    pub(super) fn push(&mut self, update: StatusUpdate) {
        self.count += 1;
        let object = object_of(update.resource.as_ref());
        match self.behind.get_mut(&object) {
            Some(behind) => behind.push_back(update),
            None => {
                self.behind.insert(object.clone(), VecDeque::new());
                self.start(object, update);
            }
        }
    }

    /// The next answer; `None` when nothing is under way. Cancel-safe.
    pub(super) async fn next(&mut self) -> Option<StatusAnswer> {
        let (object, answer) = self.running.next().await?;
        self.count -= 1;
        match self.behind.get_mut(&object).and_then(VecDeque::pop_front) {
            Some(update) => self.start(object, update),
            None => drop(self.behind.remove(&object)),
        }
        Some(answer)
    }

    fn start(&self, object: Object, update: StatusUpdate) {
        let answer = (self.write)(update);
        self.running.push(Box::pin(async move { (object, answer.await) }));
    }
}

fn object_of(resource: Option<&Resource>) -> Object {
    let resource = resource.cloned().unwrap_or_default();
    [resource.group, resource.resource, resource.namespace, resource.name]
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, sync::Arc};

    use futures::FutureExt;
    use tokio::sync::Semaphore;

    use super::*;

    fn update(name: &str, id: u64) -> StatusUpdate {
        let resource = Resource { resource: "pods".into(), name: name.into(), ..Resource::default() };
        StatusUpdate { id, resource: Some(resource), ..StatusUpdate::default() }
    }

    #[tokio::test]
    async fn writes_of_one_object_keep_their_order_and_hold_back_no_other() {
        let begun = RefCell::new(Vec::new());
        let slow = Arc::new(Semaphore::new(0));
        let mut writes = Writes::new(|update: StatusUpdate| {
            begun.borrow_mut().push(update.id);
            let slow = slow.clone();
            async move {
                if update.id == 1 {
                    slow.acquire().await.expect("open").forget();
                }
                StatusAnswer { id: update.id, ..StatusAnswer::default() }
            }
        });
        for (name, id) in [("a", 1), ("a", 2), ("b", 3), ("a", 4)] {
            writes.push(update(name, id));
        }
        assert_eq!(*begun.borrow(), [1, 3]);
        assert_eq!(writes.next().await.map(|a| a.id), Some(3), "another object does not wait");
        assert!(writes.next().now_or_never().is_none(), "newer writes of the object do");
        slow.add_permits(1);
        for id in [1, 2, 4] {
            assert_eq!(writes.next().await.map(|a| a.id), Some(id));
        }
        assert_eq!(writes.next().await, None);
        assert!(writes.behind.is_empty());
    }

    #[tokio::test]
    async fn what_is_taken_in_is_bounded() {
        let mut writes =
            Writes::new(
                |u: StatusUpdate| async move { StatusAnswer { id: u.id, ..StatusAnswer::default() } },
            );
        for id in 0..WRITES as u64 {
            assert!(!writes.is_full());
            writes.push(update("a", id));
        }
        assert!(writes.is_full());
        writes.next().await;
        assert!(!writes.is_full());
    }
}
