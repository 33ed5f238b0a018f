//! An ordered map whose clones are snapshots: a B+ tree with shared nodes, copied where they change.
//!
//! The watch cache publishes a clone after each batch of events, and readers keep theirs for as long as a list takes,
//! so cloning is one reference count and an update copies one path (a node is at most [`MAX`] entries). Subtree
//! sizes make counting a range O(log n). Nodes may become small by removals; neighbours are merged where they fit.

use std::sync::Arc;

use hawser_store::Key;

/// Entries of a node. Copying a leaf is the cost of an update, depth the cost of a lookup; 64 keeps both near 1 µs.
const MAX: usize = 64;

pub struct CowMap<V> {
    root: Arc<Node<V>>,
    len: usize,
}

impl<V> Clone for CowMap<V> {
    fn clone(&self) -> Self {
        Self { root: self.root.clone(), len: self.len }
    }
}

impl<V> Default for CowMap<V> {
    fn default() -> Self {
        Self { root: Arc::new(Node::Leaf(Vec::new())), len: 0 }
    }
}

enum Node<V> {
    Leaf(Vec<(Key, V)>),
    /// Never empty; `first` is at most the subtree's smallest key and above everything to its left.
    Branch(Vec<Child<V>>),
}

struct Child<V> {
    first: Key,
    len: usize,
    node: Arc<Node<V>>,
}

impl<V> Clone for Child<V> {
    fn clone(&self) -> Self {
        Self { first: self.first.clone(), len: self.len, node: self.node.clone() }
    }
}

impl<V: Clone> Clone for Node<V> {
    fn clone(&self) -> Self {
        match self {
            // Room for one more, because a node is only cloned to be changed.
            Self::Leaf(entries) => {
                let mut copy = Vec::with_capacity(entries.len() + 1);
                copy.extend_from_slice(entries);
                Self::Leaf(copy)
            }
            Self::Branch(children) => Self::Branch(children.clone()),
        }
    }
}

impl<V> Node<V> {
    fn entries(&self) -> usize {
        match self {
            Self::Leaf(entries) => entries.len(),
            Self::Branch(children) => children.len(),
        }
    }
}

/// The child that holds `key`, if any does.
fn child_of<V>(children: &[Child<V>], key: &str) -> usize {
    children.partition_point(|child| &*child.first <= key).saturating_sub(1)
}

impl<V: Clone> CowMap<V> {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn get(&self, key: &str) -> Option<&V> {
        let mut node = &*self.root;
        loop {
            match node {
                Node::Leaf(entries) => {
                    let at = entries.binary_search_by(|(known, _)| (**known).cmp(key)).ok()?;
                    return Some(&entries[at].1);
                }
                Node::Branch(children) => node = &children[child_of(children, key)].node,
            }
        }
    }

    /// A value to be changed in its place; copies the path to it where that is shared.
    pub fn get_mut(&mut self, key: &str) -> Option<&mut V> {
        let mut node = &mut self.root;
        loop {
            match Arc::make_mut(node) {
                Node::Leaf(entries) => {
                    let at = entries.binary_search_by(|(known, _)| (**known).cmp(key)).ok()?;
                    return Some(&mut entries[at].1);
                }
                Node::Branch(children) => {
                    let at = child_of(children, key);
                    node = &mut children[at].node;
                }
            }
        }
    }

    /// The first answer that `find` gives, asked of each value in order. Borrows, where [`CowMap::iter`] counts references.
    pub fn find_map<R>(&self, find: &mut impl FnMut(&V) -> Option<R>) -> Option<R> {
        find_in(&self.root, find)
    }

    /// Returns what stood there before.
    pub fn insert(&mut self, key: Key, value: V) -> Option<V> {
        let (previous, split) = insert_into(&mut self.root, key, value);
        self.len += usize::from(previous.is_none());
        if let Some(right) = split {
            let left = std::mem::take(self).root;
            let left = Child { first: first_key(&left), len: len_of(&left), node: left };
            self.len = left.len + right.len;
            self.root = Arc::new(Node::Branch(vec![left, right]));
        }
        previous
    }

    pub fn remove(&mut self, key: &str) -> Option<V> {
        // A look first: removing what is not there must not copy the path.
        self.get(key)?;
        let removed = remove_from(&mut self.root, key);
        self.len -= usize::from(removed.is_some());
        while let Node::Branch(children) = &*self.root
            && let [only] = children.as_slice()
        {
            self.root = only.node.clone();
        }
        removed
    }

    /// Keys below `key`.
    pub fn rank(&self, key: &str) -> usize {
        let mut node = &*self.root;
        let mut rank = 0;
        loop {
            match node {
                Node::Leaf(entries) => return rank + entries.partition_point(|(known, _)| &**known < key),
                Node::Branch(children) => {
                    let at = child_of(children, key);
                    rank += children[..at].iter().map(|child| child.len).sum::<usize>();
                    node = &children[at].node;
                }
            }
        }
    }

    /// Keys in `start..end`; an empty `end` is none.
    pub fn count(&self, start: &str, end: &str) -> usize {
        let below = if end.is_empty() { self.len } else { self.rank(end) };
        below.saturating_sub(self.rank(start))
    }

    /// The entries from `start` on, in order. The iterator owns its snapshot.
    pub fn iter_from(&self, start: &str) -> Iter<V> {
        let mut stack = Vec::new();
        let mut node = self.root.clone();
        loop {
            let (at, next) = match &*node {
                Node::Leaf(entries) => (entries.partition_point(|(known, _)| &**known < start), None),
                Node::Branch(children) => {
                    let at = child_of(children, start);
                    (at + 1, Some(children[at].node.clone()))
                }
            };
            stack.push((node, at));
            match next {
                Some(next) => node = next,
                None => return Iter { stack },
            }
        }
    }

    pub fn iter(&self) -> Iter<V> {
        self.iter_from("")
    }
}

fn find_in<V, R>(node: &Node<V>, find: &mut impl FnMut(&V) -> Option<R>) -> Option<R> {
    match node {
        Node::Leaf(entries) => entries.iter().find_map(|(_, value)| find(value)),
        Node::Branch(children) => children.iter().find_map(|child| find_in(&child.node, find)),
    }
}

fn first_key<V>(node: &Node<V>) -> Key {
    match node {
        Node::Leaf(entries) => entries.first().map_or_else(|| "".into(), |(key, _)| key.clone()),
        Node::Branch(children) => children.first().map_or_else(|| "".into(), |child| child.first.clone()),
    }
}

fn len_of<V>(node: &Node<V>) -> usize {
    match node {
        Node::Leaf(entries) => entries.len(),
        Node::Branch(children) => children.iter().map(|child| child.len).sum(),
    }
}

/// Where to split a full node: in the middle, but appending in order leaves full nodes behind.
fn split_point(len: usize, at: usize) -> usize {
    if at + 1 == len { len - 1 } else { len / 2 }
}

fn insert_into<V: Clone>(node: &mut Arc<Node<V>>, key: Key, value: V) -> (Option<V>, Option<Child<V>>) {
    match Arc::make_mut(node) {
        Node::Leaf(entries) => {
            // Whole kinds are read in order of their keys.
            let is_last = entries.last().is_none_or(|(last, _)| *last < key);
            let found = if is_last {
                Err(entries.len())
            } else {
                entries.binary_search_by(|(known, _)| known.cmp(&key))
            };
            let at = match found {
                Ok(at) => return (Some(std::mem::replace(&mut entries[at].1, value)), None),
                Err(at) => at,
            };
            entries.insert(at, (key, value));
            if entries.len() <= MAX {
                return (None, None);
            }
            let right = entries.split_off(split_point(entries.len(), at));
            let right = Node::Leaf(right);
            (None, Some(Child { first: first_key(&right), len: len_of(&right), node: Arc::new(right) }))
        }
        Node::Branch(children) => {
            let is_last = children.last().is_some_and(|last| last.first <= key);
            let at = if is_last { children.len() - 1 } else { child_of(children, &key) };
            if key < children[at].first {
                children[at].first = key.clone();
            }
            let (previous, split) = insert_into(&mut children[at].node, key, value);
            children[at].len += usize::from(previous.is_none());
            if let Some(right) = split {
                children[at].len -= right.len;
                children.insert(at + 1, right);
            }
            if children.len() <= MAX {
                return (previous, None);
            }
            let right = children.split_off(split_point(children.len(), at + 1));
            let right = Node::Branch(right);
            (previous, Some(Child { first: first_key(&right), len: len_of(&right), node: Arc::new(right) }))
        }
    }
}

fn remove_from<V: Clone>(node: &mut Arc<Node<V>>, key: &str) -> Option<V> {
    match Arc::make_mut(node) {
        Node::Leaf(entries) => {
            let at = entries.binary_search_by(|(known, _)| (**known).cmp(key)).ok()?;
            Some(entries.remove(at).1)
        }
        Node::Branch(children) => {
            let at = child_of(children, key);
            let removed = remove_from(&mut children[at].node, key)?;
            children[at].len -= 1;
            if children[at].len == 0 && children.len() > 1 {
                children.remove(at);
            } else if children[at].node.entries() < MAX / 4 {
                merge(children, at);
            }
            Some(removed)
        }
    }
}

/// Joins the child at `at` with a neighbour where both fit into one node.
fn merge<V: Clone>(children: &mut Vec<Child<V>>, at: usize) {
    let fits = |left: usize| {
        children
            .get(left + 1)
            .is_some_and(|right| children[left].node.entries() + right.node.entries() <= MAX)
    };
    let left = if at > 0 && fits(at - 1) {
        at - 1
    } else if fits(at) {
        at
    } else {
        return;
    };
    let right = children.remove(left + 1);
    children[left].len += right.len;
    match (Arc::make_mut(&mut children[left].node), &*right.node) {
        (Node::Leaf(into), Node::Leaf(from)) => into.extend_from_slice(from),
        (Node::Branch(into), Node::Branch(from)) => into.extend_from_slice(from),
        _ => unreachable!("all leaves are at the same depth"),
    }
}

/// Entries in order of their keys; holds its snapshot alive.
pub struct Iter<V> {
    /// From the root down: a node, and the next entry or child of it to visit.
    stack: Vec<(Arc<Node<V>>, usize)>,
}

impl<V: Clone> Iterator for Iter<V> {
    type Item = (Key, V);

    fn next(&mut self) -> Option<(Key, V)> {
        loop {
            let (node, at) = self.stack.last_mut()?;
            let position = *at;
            *at += 1;
            let descend = match &**node {
                Node::Leaf(entries) => match entries.get(position) {
                    Some(entry) => return Some(entry.clone()),
                    None => None,
                },
                Node::Branch(children) => children.get(position).map(|child| child.node.clone()),
            };
            match descend {
                Some(child) => self.stack.push((child, 0)),
                None => drop(self.stack.pop()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// A small generator, so that the histories are the same on every run.
    fn random(state: &mut u64) -> u64 {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        *state
    }

    fn contents(map: &CowMap<u64>) -> Vec<(String, u64)> {
        map.iter().map(|(key, value)| (key.to_string(), value)).collect()
    }

    #[test]
    fn agrees_with_a_btree_over_random_histories() {
        for seed in 1..20_u64 {
            let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
            let (mut map, mut twin) = (CowMap::default(), BTreeMap::new());
            let span = 50 + random(&mut state) % 3000;
            for step in 0..4000 {
                let key = format!("/registry/pods/{:06}", random(&mut state) % span);
                // Long runs of removals make nodes small, so that merging is exercised.
                let removing = (step / 700) % 2 == 1;
                if random(&mut state) % 4 < if removing { 3 } else { 1 } {
                    assert_eq!(map.remove(&key), twin.remove(&key));
                } else {
                    assert_eq!(map.insert(key.as_str().into(), step), twin.insert(key.clone(), step));
                }
                // What is changed in place is not changed in a snapshot.
                let other = format!("/registry/pods/{:06}", random(&mut state) % span);
                let (snapshot, before) = (map.clone(), twin.get(&other).copied());
                assert_eq!(map.get_mut(&other).map(|value| *value += 1), before.map(|_| ()));
                twin.entry(other.clone()).and_modify(|value| *value += 1);
                assert_eq!(snapshot.get(&other).copied(), before);
                assert_eq!(map.len(), twin.len());
                assert_eq!(map.get(&key), twin.get(&key));
                assert_eq!(map.rank(&key), twin.range(..key).count());
            }
            assert_eq!(contents(&map), twin.clone().into_iter().collect::<Vec<_>>());
            let from = format!("/registry/pods/{:06}", span / 2);
            let tail: Vec<_> = map.iter_from(&from).map(|(key, _)| key.to_string()).collect();
            assert_eq!(tail, twin.range(from..).map(|(key, _)| key.clone()).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_clone_does_not_see_later_changes() {
        let mut map: CowMap<u64> = CowMap::default();
        for number in 0..1000_u64 {
            map.insert(format!("{number:05}").into(), number);
        }
        let snapshot = map.clone();
        for number in 0..1000_u64 {
            map.remove(&format!("{number:05}"));
        }
        assert!(map.is_empty() && map.iter().next().is_none());
        assert_eq!(snapshot.len(), 1000);
        assert_eq!(contents(&snapshot)[999], ("00999".to_owned(), 999));
        assert_eq!(snapshot.count("00100", "00200"), 100);
    }
}
