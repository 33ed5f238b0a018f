//! Room for the bodies of requests that are being read.
//!
//! A request gets its place in flow control when its body is there, so a client that sends slowly holds what it has sent
//! and nothing else. What all hold together is bounded, and so is what one user holds, so that whoever sends slowly on
//! many connections takes room from nobody but himself. Those beyond either bound are told 429 with Retry-After.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use hawser_api::Error;

use crate::{auth::User, chain::too_many};

/// How many users can fill a room together.
const SHARES: usize = 4;

/// Bytes of bodies, of all users and of each.
pub(crate) struct BodyRoom {
    bytes: usize,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    total: usize,
    /// By name; only those who hold something, so no more than there are requests.
    users: HashMap<String, usize>,
}

impl BodyRoom {
    pub(crate) fn new(bytes: usize) -> Self {
        Self { bytes, held: Mutex::default() }
    }

    /// Begins to read a body of the user's.
    pub(crate) fn begin<'a>(&'a self, user: &'a User) -> Reading<'a> {
        Reading { room: self, user: &user.name, bytes: 0 }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One body that is being read; it gives back what it holds when it is dropped.
pub(crate) struct Reading<'a> {
    room: &'a BodyRoom,
    user: &'a str,
    bytes: usize,
}

impl Reading<'_> {
    /// Takes room for a piece of the body.
    ///
    /// # Errors
    /// 429 where all bodies, or those of the user, would hold more than they may.
    pub(crate) fn take(&mut self, bytes: usize) -> Result<(), Error> {
        if bytes == 0 {
            return Ok(());
        }
        let mut held = self.room.held();
        let own = held.users.get(self.user).copied().unwrap_or_default() + bytes;
        if held.total + bytes > self.room.bytes || own > self.room.bytes / SHARES {
            return Err(too_many());
        }
        held.total += bytes;
        self.bytes += bytes;
        match held.users.get_mut(self.user) {
            Some(known) => *known = own,
            None => drop(held.users.insert(self.user.to_owned(), own)),
        }
        Ok(())
    }
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        if self.bytes == 0 {
            return;
        }
        let mut held = self.room.held();
        held.total -= self.bytes;
        if let Some(own) = held.users.get_mut(self.user) {
            *own -= self.bytes;
            if *own == 0 {
                held.users.remove(self.user);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_user_takes_no_more_than_a_share() {
        let room = BodyRoom::new(40);
        let [one, two] = ["one", "two"].map(|name| User::named(name, &[]));
        let (mut first, mut second) = (room.begin(&one), room.begin(&one));
        first.take(6).expect("there is room");
        second.take(4).expect("there is room");
        let refused = second.take(1).expect_err("beyond the share");
        assert_eq!((refused.code(), refused.retry_after_seconds()), (429, Some(1)));
        room.begin(&two).take(10).expect("another user's share");
        drop(first);
        second.take(6).expect("given back");
        drop(second);
        let held = room.held();
        assert_eq!((held.total, held.users.len()), (0, 0), "nothing stays behind");
    }

    #[test]
    fn all_users_take_no_more_than_there_is() {
        let room = BodyRoom::new(40);
        let users: Vec<_> = (0..5).map(|number| User::named(&format!("user-{number}"), &[])).collect();
        let mut reading: Vec<_> = users.iter().map(|user| room.begin(user)).collect();
        let taken: Vec<bool> = reading.iter_mut().map(|body| body.take(10).is_ok()).collect();
        assert_eq!(taken, [true, true, true, true, false]);
        reading.clear();
        room.begin(&users[4]).take(10).expect("there is room");
    }
}
