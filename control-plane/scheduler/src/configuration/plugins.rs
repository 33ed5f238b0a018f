//! Which plugins of a profile run, and with which weights.

use anyhow::{Context, bail, ensure};
use serde::Deserialize;

use crate::profile::{Plugin, Profile};

/// Extension points. `multiPoint` stands for all of a plugin's.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct Plugins {
    multi_point: Point,
    filter: Point,
    score: Point,
    post_filter: Point,
    pre_filter: Point,
    pre_score: Point,
    pre_enqueue: Point,
    queue_sort: Point,
    reserve: Point,
    permit: Point,
    pre_bind: Point,
    bind: Point,
    post_bind: Point,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Point {
    enabled: Vec<Named>,
    disabled: Vec<Named>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Named {
    name: String,
    weight: Option<i64>,
}

/// Upstream's plugins that always run because nothing works without them.
const ALWAYS: [&str; 3] = ["SchedulingGates", "PrioritySort", "DefaultBinder"];

/// What of a plugin is meant.
#[derive(Clone, Copy)]
struct Parts {
    filter: bool,
    score: bool,
    post_filter: bool,
}

impl Plugins {
    pub(super) fn apply(&self, profile: &mut Profile) -> anyhow::Result<()> {
        let none = Parts { filter: false, score: false, post_filter: false };
        let points = [
            ("multiPoint", &self.multi_point, Parts { filter: true, score: true, post_filter: true }),
            ("filter", &self.filter, Parts { filter: true, ..none }),
            ("score", &self.score, Parts { score: true, ..none }),
            ("postFilter", &self.post_filter, Parts { post_filter: true, ..none }),
        ];
        for (name, point, parts) in points {
            point.apply(profile, parts).context(name)?;
        }
        // Their plugins cannot be told apart from filters and scores here: names are checked, that is all.
        let others = [
            ("preFilter", &self.pre_filter),
            ("preScore", &self.pre_score),
            ("preEnqueue", &self.pre_enqueue),
            ("queueSort", &self.queue_sort),
            ("reserve", &self.reserve),
            ("permit", &self.permit),
            ("preBind", &self.pre_bind),
            ("bind", &self.bind),
            ("postBind", &self.post_bind),
        ];
        for (name, point) in others {
            point.apply(profile, none).context(name)?;
        }
        Ok(())
    }
}

impl Point {
    fn apply(&self, profile: &mut Profile, parts: Parts) -> anyhow::Result<()> {
        for (index, named) in self.disabled.iter().enumerate() {
            if named.name == "*" {
                Plugin::ALL.iter().for_each(|plugin| switch(profile, *plugin, parts, None));
            } else if let Some(plugin) =
                plugin(&named.name).with_context(|| format!("disabled[{index}].name"))?
            {
                switch(profile, plugin, parts, None);
            }
        }
        for (index, named) in self.enabled.iter().enumerate() {
            let path = |field: &str| format!("enabled[{index}].{field}");
            let weight = named.weight.unwrap_or_default();
            ensure!((0..=1_000_000).contains(&weight), "{}: {weight} is out of range", path("weight"));
            if let Some(plugin) = plugin(&named.name).with_context(|| path("name"))? {
                switch(profile, plugin, parts, Some(weight));
            }
        }
        Ok(())
    }
}

/// `None` for those that always run.
fn plugin(name: &str) -> anyhow::Result<Option<Plugin>> {
    if ALWAYS.contains(&name) {
        return Ok(None);
    }
    match Plugin::ALL.into_iter().find(|plugin| plugin.name() == name) {
        Some(plugin) => Ok(Some(plugin)),
        None => bail!("no plugin is named {name:?}"),
    }
}

/// Switches parts of a plugin on, with the weight or 1 where that is 0, or off.
fn switch(profile: &mut Profile, plugin: Plugin, parts: Parts, on: Option<i64>) {
    if parts.filter {
        match on {
            Some(_) => profile.filters.insert(plugin),
            None => profile.filters.remove(plugin),
        }
    }
    if parts.post_filter && plugin == Plugin::DefaultPreemption {
        profile.preempts = on.is_some();
    }
    if let Some(own) = profile.weights.of(plugin).filter(|_| parts.score) {
        *own = on.map_or(0, |weight| weight.max(1));
    }
}
