//! Which conformance texts have a test here: every text has one, or a reason why not.

use std::{collections::BTreeSet, fs, path::Path};

use serde::Deserialize;

use crate::{
    admission_registration, apps, custom_resource_definitions, discovery, events, excluded::EXCLUDED,
    field_validation, flow_control, garbage_collector, identity, kubectl, lists, namespaces, network, node,
    resource_quota, running, scheduling, service_accounts, storage, watchers,
};

/// The tables of the modules.
const COVERED: &[&[Text]] = &[
    admission_registration::TEXTS,
    apps::batch::TEXTS,
    apps::daemon_sets::TEXTS,
    apps::deployments::TEXTS,
    apps::disruption::TEXTS,
    apps::replica_sets::TEXTS,
    apps::replication_controllers::TEXTS,
    apps::rollouts::TEXTS,
    apps::stateful_sets::TEXTS,
    custom_resource_definitions::TEXTS,
    discovery::TEXTS,
    events::TEXTS,
    field_validation::TEXTS,
    flow_control::TEXTS,
    garbage_collector::TEXTS,
    identity::TEXTS,
    kubectl::TEXTS,
    lists::TEXTS,
    namespaces::TEXTS,
    network::endpoints::TEXTS,
    network::kinds::TEXTS,
    network::publishing::TEXTS,
    network::service_types::TEXTS,
    network::services::TEXTS,
    node::configuration::TEXTS,
    node::devices::TEXTS,
    node::generation::TEXTS,
    node::leases::TEXTS,
    node::pod_templates::TEXTS,
    node::pods::TEXTS,
    node::runtime_classes::TEXTS,
    node::taints::TEXTS,
    resource_quota::lives::TEXTS,
    resource_quota::objects::TEXTS,
    resource_quota::scopes::TEXTS,
    running::containers::TEXTS,
    running::contents::TEXTS,
    running::contents::FILES,
    running::contents::PAIRS,
    running::contents::UPDATES,
    running::contents::OPTIONALS,
    running::cron_jobs::TEXTS,
    running::daemon_sets::TEXTS,
    running::dns::TEXTS,
    running::downward::NAMES,
    running::downward::RESOURCES,
    running::downward::DEFAULTS,
    running::downward::CHANGES,
    running::empty_dir::TEXTS,
    running::empty_dir::FILES,
    running::empty_dir::VOLUMES,
    running::environment::TEXTS,
    running::hooks::TEXTS,
    running::init_containers::TEXTS,
    running::jobs::TEXTS,
    running::kubectl::TEXTS,
    running::network::TEXTS,
    running::network::GRANULAR,
    running::pods::TEXTS,
    running::probes::TEXTS,
    running::proxy::TEXTS,
    running::resize::TEXTS,
    running::runtime::TEXTS,
    running::scheduling::TEXTS,
    running::security::TEXTS,
    running::service_accounts::TEXTS,
    running::stateful_sets::TEXTS,
    running::subpaths::TEXTS,
    scheduling::limit_ranges::TEXTS,
    scheduling::predicates::TEXTS,
    scheduling::priority_classes::TEXTS,
    service_accounts::TEXTS,
    storage::csi::TEXTS,
    storage::immutable::TEXTS,
    storage::lifecycles::TEXTS,
    storage::volumes::TEXTS,
    watchers::TEXTS,
];

/// A conformance text that has a test.
pub(crate) struct Text {
    /// Upstream's name of it, which is not always unique.
    pub(crate) name: &'static str,
    /// The test's name: the end of the text's sentence.
    pub(crate) test: &'static str,
}

/// The table of a module: the name of each text, and the function that tests it.
macro_rules! texts {
    ($($name:literal => $test:ident),+ $(,)?) => {
        pub(crate) const TEXTS: &[crate::coverage::Text] = &[$({
            let _: fn() = $test;
            crate::coverage::Text { name: $name, test: stringify!($test) }
        }),+];
    };
}
pub(crate) use texts;

/// As [`texts!`] for texts that differ in figures alone: makes the tests too, each a call of the same check.
macro_rules! cases {
    ($check:ident: $($name:literal => $test:ident($($argument:expr),* $(,)?)),+ $(,)?) => {
        $(
            #[doc = $name]
            #[test]
            fn $test() {
                $check($($argument),*);
            }
        )+
        crate::coverage::texts! { $($name => $test),+ }
    };
}
pub(crate) use cases;

/// An entry of upstream's list.
#[derive(Deserialize)]
struct Entry {
    testname: String,
    /// `[sig-apps] Job should ... [Conformance]`: unique.
    codename: String,
}

impl Entry {
    fn is_of(&self, text: &Text) -> bool {
        self.testname == text.name
            && format!("_{}", slug(&self.codename)).ends_with(&format!("_{}", text.test))
    }

    fn reason(&self) -> Option<&'static str> {
        EXCLUDED
            .iter()
            .find(|(_, starts)| starts.iter().any(|start| self.codename.starts_with(start)))
            .map(|(reason, _)| *reason)
    }
}

/// A sentence as the name of a function, without what stands in brackets.
fn slug(sentence: &str) -> String {
    let mut words = Vec::new();
    for part in sentence.split('[') {
        let outside = part.rsplit(']').next().unwrap_or_default().to_lowercase();
        words.extend(
            outside
                .split(|letter: char| !letter.is_ascii_alphanumeric())
                .map(str::to_owned)
                .collect::<Vec<_>>(),
        );
    }
    words.retain(|word| !word.is_empty());
    words.join("_")
}

/// Upstream's list; `None`, with a message, where the facts about upstream are not beside the repository.
fn upstream() -> Option<Vec<Entry>> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/kubernetes-v1.36/conformance.yaml");
    let Ok(text) = fs::read_to_string(&file) else {
        println!("skipped: {} is absent", file.display());
        return None;
    };
    Some(serde_yaml_ng::from_str(&text).expect("upstream's list can be read"))
}

#[test]
fn every_text_has_a_test_or_a_reason() {
    let Some(entries) = upstream() else { return };
    let covered: Vec<&Text> = COVERED.iter().copied().flatten().collect();
    let (tested, rest): (Vec<&Entry>, Vec<&Entry>) =
        entries.iter().partition(|entry| covered.iter().any(|text| entry.is_of(text)));
    println!("{} of {} texts have a test", tested.len(), entries.len());

    let forgotten: Vec<_> =
        rest.iter().filter(|entry| entry.reason().is_none()).map(|entry| &entry.codename).collect();
    assert!(forgotten.is_empty(), "neither a test nor a reason: {forgotten:#?}");
    let unknown: Vec<_> = covered
        .iter()
        .filter(|text| !entries.iter().any(|entry| entry.is_of(text)))
        .map(|text| (text.name, text.test))
        .collect();
    assert!(unknown.is_empty(), "no text of upstream's has this name and sentence: {unknown:#?}");
    let stale: Vec<_> = EXCLUDED
        .iter()
        .flat_map(|(_, starts)| *starts)
        .filter(|start| !rest.iter().any(|entry| entry.codename.starts_with(**start)))
        .collect();
    assert!(stale.is_empty(), "excluded, but no such text is without a test: {stale:#?}");
    let names: BTreeSet<_> = covered.iter().map(|text| (text.name, text.test)).collect();
    assert_eq!(names.len(), covered.len(), "a text is listed twice");
}

#[test]
fn sentences_become_names() {
    assert_eq!(slug("[sig-a] Some [Serial] thing's ends-with. [Conformance]"), "some_thing_s_ends_with");
}
