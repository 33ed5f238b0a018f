//! Fields that a patch names twice, which a parsed patch no longer shows.

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use std::{collections::HashSet, fmt};

/// As many as upstream reports.
const MAX_FINDINGS: usize = 100;

/// Says `duplicate field "spec.replicas"` of each field that stands twice in its object; for strict or warning
/// field validation of merge patches. A body that is no JSON has none: applying it says what is wrong.
pub fn duplicate_fields(patch: &[u8]) -> Vec<String> {
    let mut finder = Finder { path: Vec::new(), findings: Vec::new() };
    let mut source = serde_json::Deserializer::from_slice(patch);
    // What was found before a syntax error does not matter.
    match (&mut finder).deserialize(&mut source) {
        Ok(()) => finder.findings,
        Err(_) => Vec::new(),
    }
}

struct Finder {
    /// Names and `[index]` of what is around.
    path: Vec<String>,
    findings: Vec<String>,
}

impl Finder {
    fn path_to(&self, name: &str) -> String {
        let mut text = String::new();
        for step in self.path.iter().map(String::as_str).chain([name]) {
            if !text.is_empty() && !step.starts_with('[') {
                text.push('.');
            }
            text.push_str(step);
        }
        text
    }
}

impl<'de> DeserializeSeed<'de> for &mut Finder {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, source: D) -> Result<(), D::Error> {
        source.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for &mut Finder {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<(), A::Error> {
        let mut index = 0;
        loop {
            self.path.push(format!("[{index}]"));
            let item = access.next_element_seed(&mut *self)?;
            self.path.pop();
            if item.is_none() {
                return Ok(());
            }
            index += 1;
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<(), A::Error> {
        let mut seen = HashSet::new();
        while let Some(name) = access.next_key::<String>()? {
            if seen.contains(&name) && self.findings.len() < MAX_FINDINGS {
                let finding = format!("duplicate field {:?}", self.path_to(&name));
                self.findings.push(finding);
            }
            self.path.push(name);
            access.next_value_seed(&mut *self)?;
            seen.extend(self.path.pop());
        }
        Ok(())
    }
}
