//! The fields of a configuration file, taken one after the other; what nobody takes is unknown.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, bail, ensure};
use jiff::SignedDuration;
use serde::de::DeserializeOwned;
use serde_yaml_ng::{Mapping, Value};

use super::Given;

/// Larger than any sensible file; it is read as a whole.
const MAX_BYTES: usize = 1 << 20;

/// What is left of a file. As in upstream's, `null`, and of times and texts nothing at all, say as much as no field.
pub(super) struct Fields<'a> {
    left: BTreeMap<String, Value>,
    given: &'a Given,
}

impl<'a> Fields<'a> {
    /// # Errors
    /// What is no mapping, has a field twice, or is of another kind or version.
    pub(super) fn parse(text: &str, given: &'a Given) -> anyhow::Result<Self> {
        ensure!(text.len() <= MAX_BYTES, "has more than {MAX_BYTES} bytes");
        let mapping: Mapping = serde_yaml_ng::from_str(text).context("is no YAML or JSON object")?;
        let named = |(name, value): (Value, Value)| match name {
            Value::String(name) => Ok((name, value)),
            other => bail!("a field's name is expected, not {other:?}"),
        };
        let mut fields = Self { left: mapping.into_iter().map(named).collect::<Result<_, _>>()?, given };
        let kind: String = fields.take("kind")?.unwrap_or_default();
        ensure!(kind == "KubeletConfiguration", "kind: {kind:?} is not KubeletConfiguration");
        let version: String = fields.take("apiVersion")?.unwrap_or_default();
        ensure!(
            version == "kubelet.config.k8s.io/v1beta1",
            "apiVersion: {version:?} is not kubelet.config.k8s.io/v1beta1"
        );
        Ok(fields)
    }

    pub(super) fn take<T: DeserializeOwned>(&mut self, name: &str) -> anyhow::Result<Option<T>> {
        match self.left.remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => serde_yaml_ng::from_value(value).map(Some).with_context(|| name.to_owned()),
        }
    }

    /// As [`Self::take`]; `None` too where the flag is on the command line, which wins. The field is checked all the same.
    pub(super) fn unless<T: DeserializeOwned>(
        &mut self,
        flag: &str,
        name: &str,
    ) -> anyhow::Result<Option<T>> {
        let value = self.take(name)?;
        Ok(value.filter(|_| !self.given.has(flag)))
    }

    /// Puts the field where the flag's value is.
    pub(super) fn set<T: DeserializeOwned>(
        &mut self,
        flag: &str,
        name: &str,
        target: &mut T,
    ) -> anyhow::Result<()> {
        if let Some(value) = self.unless(flag, name)? {
            *target = value;
        }
        Ok(())
    }

    /// A text that is not empty.
    pub(super) fn text(&mut self, name: &str) -> anyhow::Result<Option<String>> {
        Ok(self.take::<String>(name)?.filter(|text| !text.is_empty()))
    }

    /// A text that is not empty, unless the flag is given.
    pub(super) fn text_unless(&mut self, flag: &str, name: &str) -> anyhow::Result<Option<String>> {
        Ok(self.unless::<String>(flag, name)?.filter(|text| !text.is_empty()))
    }

    /// A time as Go writes it, `1m30s`; none where it is zero.
    pub(super) fn time(&mut self, name: &str) -> anyhow::Result<Option<Duration>> {
        let text = self.text(name)?;
        let time = text.map(|text| time(&text)).transpose().with_context(|| name.to_owned())?;
        Ok(time.filter(|time| !time.is_zero()))
    }

    /// Takes a field that has one value here.
    ///
    /// # Errors
    /// Another value than `accepted`: to go on as if it were not there would do what is not wanted.
    pub(super) fn only<T>(&mut self, name: &str, accepted: T, why: &str) -> anyhow::Result<()>
    where
        T: DeserializeOwned + PartialEq + std::fmt::Debug,
    {
        match self.take::<T>(name)? {
            Some(value) if value != accepted => bail!("{name}: {value:?} is not supported: {why}"),
            _ => Ok(()),
        }
    }

    pub(super) fn has_flag(&self, flag: &str) -> bool {
        self.given.has(flag)
    }

    /// Names of those of `names` that say something, which are taken.
    pub(super) fn drain(&mut self, names: &[&'static str]) -> Vec<&'static str> {
        let says = |value: Value| match value {
            Value::Null => false,
            Value::String(text) => !text.is_empty() && text != "0s",
            Value::Mapping(mapping) => !mapping.is_empty(),
            Value::Sequence(list) => !list.is_empty(),
            _ => true,
        };
        names.iter().copied().filter(|name| self.left.remove(*name).is_some_and(says)).collect()
    }

    /// # Errors
    /// A field that nobody took.
    pub(super) fn end(self) -> anyhow::Result<()> {
        match self.left.keys().next() {
            Some(name) => bail!("unknown field {name:?}"),
            None => Ok(()),
        }
    }
}

/// `1m30s`, `0s`, `1.5h`
pub(super) fn time(text: &str) -> anyhow::Result<Duration> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let time: SignedDuration = text.parse().with_context(|| format!("{text:?} is no time such as 90s"))?;
    Duration::try_from(time).ok().with_context(|| format!("{text:?} is less than nothing"))
}
