//! Sets of fields, as a tree of paths.
//!
//! A path may be a member, or only lead to members; a field and the fields below it are members apart. Nodes are
//! sorted by their path element, so that every operation on two sets is one walk over both, and what is written is
//! always in the same order. A node that is no member and leads to none does not exist.

use std::cmp::Ordering;

use super::path::PathElement;

/// A set of paths.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSet {
    pub(super) nodes: Vec<Node>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) element: PathElement,
    /// The path that ends here is in the set.
    pub(super) member: bool,
    pub(super) children: FieldSet,
}

impl Node {
    pub(super) fn exists(&self) -> bool {
        self.member || !self.children.is_empty()
    }
}

impl FieldSet {
    /// The set of these paths of fields' names.
    pub fn of_fields(paths: &[&[&str]]) -> Self {
        let mut set = Self::default();
        for path in paths {
            set.insert(path.iter().map(|name| PathElement::field(name)));
        }
        set
    }

    /// Adds a path; an empty one adds nothing.
    pub fn insert(&mut self, path: impl IntoIterator<Item = PathElement>) {
        let mut set = self;
        let mut path = path.into_iter().peekable();
        while let Some(element) = path.next() {
            let at = match set.find(&element) {
                Ok(at) => at,
                Err(at) => {
                    set.nodes.insert(at, Node { element, member: false, children: Self::default() });
                    at
                }
            };
            let node = &mut set.nodes[at];
            node.member |= path.peek().is_none();
            set = &mut node.children;
        }
    }

    /// Adds a child whose element is greater than those that are there; one that would not exist is left out.
    pub(super) fn push(&mut self, element: PathElement, member: bool, children: Self) {
        debug_assert!(self.nodes.last().is_none_or(|last| last.element < element), "nodes come in order");
        let node = Node { element, member, children };
        if node.exists() {
            self.nodes.push(node);
        }
    }

    fn find(&self, element: &PathElement) -> Result<usize, usize> {
        self.nodes.binary_search_by(|node| node.element.cmp(element))
    }

    pub(super) fn node(&self, element: &PathElement) -> Option<&Node> {
        self.find(element).ok().map(|at| &self.nodes[at])
    }

    /// The child of that field's name.
    pub(super) fn field(&self, name: &str) -> Option<&Node> {
        let order = |node: &Node| match &node.element {
            PathElement::Field(field) => (**field).cmp(name),
            _ => Ordering::Greater,
        };
        self.nodes.binary_search_by(order).ok().map(|at| &self.nodes[at])
    }

    /// The number of members.
    pub(super) fn len(&self) -> usize {
        self.nodes.iter().map(|node| usize::from(node.member) + node.children.len()).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Whether the path is a member.
    pub fn has(&self, path: &[PathElement]) -> bool {
        let mut set = self;
        for (at, element) in path.iter().enumerate() {
            let Some(node) = set.node(element) else { return false };
            if at + 1 == path.len() {
                return node.member;
            }
            set = &node.children;
        }
        false
    }

    /// Every member, in order.
    pub fn paths(&self) -> Vec<Vec<PathElement>> {
        let mut found = Vec::new();
        self.collect(&mut Vec::new(), &mut found);
        found
    }

    fn collect(&self, prefix: &mut Vec<PathElement>, found: &mut Vec<Vec<PathElement>>) {
        for node in &self.nodes {
            prefix.push(node.element.clone());
            if node.member {
                found.push(prefix.clone());
            }
            node.children.collect(prefix, found);
            prefix.pop();
        }
    }

    /// Adds the members of `other`.
    pub fn unite(&mut self, other: &Self) {
        if other.is_empty() {
            return;
        }
        let mut own = std::mem::take(&mut self.nodes).into_iter().peekable();
        self.nodes.reserve(own.len().max(other.nodes.len()));
        for theirs in &other.nodes {
            while let Some(node) = own.next_if(|node| node.element < theirs.element) {
                self.nodes.push(node);
            }
            match own.next_if(|node| node.element == theirs.element) {
                Some(mut node) => {
                    node.member |= theirs.member;
                    node.children.unite(&theirs.children);
                    self.nodes.push(node);
                }
                None => self.nodes.push(theirs.clone()),
            }
        }
        self.nodes.extend(own);
    }

    /// Removes the members of `other`; what lies below a member stays.
    pub fn subtract(&mut self, other: &Self) {
        if other.is_empty() {
            return;
        }
        let mut theirs = other.nodes.iter().peekable();
        self.nodes.retain_mut(|node| {
            while theirs.next_if(|their| their.element < node.element).is_some() {}
            if let Some(their) = theirs.next_if(|their| their.element == node.element) {
                node.member &= !their.member;
                node.children.subtract(&their.children);
            }
            node.exists()
        });
    }

    /// The members of both.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        let mut common = Self::default();
        let mut theirs = other.nodes.iter().peekable();
        for node in &self.nodes {
            while theirs.next_if(|their| their.element < node.element).is_some() {}
            if let Some(their) = theirs.next_if(|their| their.element == node.element) {
                let children = node.children.intersection(&their.children);
                common.push(node.element.clone(), node.member && their.member, children);
            }
        }
        common
    }

    /// The members of both sets.
    #[must_use]
    pub fn union(mut self, other: &Self) -> Self {
        self.unite(other);
        self
    }

    /// The members that `other` does not have.
    #[must_use]
    pub fn difference(mut self, other: &Self) -> Self {
        self.subtract(other);
        self
    }
}
