//! Names, each held once however many objects have it.

use std::{
    collections::HashSet,
    fmt,
    sync::{Arc, LazyLock},
};

use parking_lot::Mutex;

/// Namespace and name of an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
}

impl Key {
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// All shared names; bounded by twice those in use, as those that nobody has are dropped when the number has doubled.
#[derive(Default)]
struct Names {
    names: HashSet<Arc<str>>,
    kept: usize,
}

static NAMES: LazyLock<Mutex<Names>> = LazyLock::new(Mutex::default);

/// Fewer names than these are not worth a look at who uses them.
const FEW: usize = 1024;

/// Returns the one string of these characters.
pub(crate) fn shared(name: &str) -> Arc<str> {
    NAMES.lock().get(name)
}

impl Names {
    fn get(&mut self, name: &str) -> Arc<str> {
        if let Some(known) = self.names.get(name) {
            return known.clone();
        }
        if self.names.len() >= FEW.max(2 * self.kept) {
            self.names.retain(|name| Arc::strong_count(name) > 1);
            self.kept = self.names.len();
        }
        let new: Arc<str> = name.into();
        self.names.insert(new.clone());
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_names_are_one_and_unused_ones_go() {
        let mut names = Names::default();
        let first = names.get("default");
        assert!(Arc::ptr_eq(&first, &names.get("default")));
        for number in 0..10 * FEW {
            names.get(&number.to_string());
            assert!(names.names.len() <= FEW, "nobody has them");
        }
        assert!(Arc::ptr_eq(&first, &names.get("default")), "one that is used stays");
        let used: Vec<_> = (0..10 * FEW).map(|number| names.get(&number.to_string())).collect();
        assert!(used.iter().all(|name| names.names.contains(name)));
    }
}
