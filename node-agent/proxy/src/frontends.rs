//! The frontends of a service port, sorted by key: most ports have one, so a map of nodes would cost many times that.

use std::ops::Index;

use hawser_ebpf_abi::FrontendKey;

use crate::desired::DesiredFrontend;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Frontends(Box<[(FrontendKey, DesiredFrontend)]>);

impl FromIterator<(FrontendKey, DesiredFrontend)> for Frontends {
    /// Of two with one key the later one counts.
    fn from_iter<I: IntoIterator<Item = (FrontendKey, DesiredFrontend)>>(frontends: I) -> Self {
        let mut sorted: Vec<_> = frontends.into_iter().collect();
        sorted.sort_by_key(|(key, _)| *key);
        sorted.dedup_by(|later, kept| {
            let is_same = later.0 == kept.0;
            if is_same {
                *kept = *later;
            }
            is_same
        });
        Self(sorted.into())
    }
}

impl Frontends {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn contains(&self, key: &FrontendKey) -> bool {
        self.get(key).is_some()
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = &FrontendKey> {
        self.0.iter().map(|(key, _)| key)
    }

    pub(crate) fn values(&self) -> impl Iterator<Item = &DesiredFrontend> {
        self.0.iter().map(|(_, frontend)| frontend)
    }

    pub(crate) fn iter(&self) -> std::slice::Iter<'_, (FrontendKey, DesiredFrontend)> {
        self.0.iter()
    }

    #[cfg(test)]
    pub(crate) fn values_mut(&mut self) -> impl Iterator<Item = &mut DesiredFrontend> {
        self.0.iter_mut().map(|(_, frontend)| frontend)
    }

    fn get(&self, key: &FrontendKey) -> Option<&DesiredFrontend> {
        let place = self.0.binary_search_by_key(key, |(key, _)| *key).ok()?;
        Some(&self.0[place].1)
    }
}

impl<'a> IntoIterator for &'a Frontends {
    type Item = &'a (FrontendKey, DesiredFrontend);
    type IntoIter = std::slice::Iter<'a, (FrontendKey, DesiredFrontend)>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl Index<&FrontendKey> for Frontends {
    type Output = DesiredFrontend;

    /// Panics where there is no such frontend.
    fn index(&self, key: &FrontendKey) -> &DesiredFrontend {
        self.get(key).expect("a frontend of the port")
    }
}
