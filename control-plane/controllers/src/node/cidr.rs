//! Gives every node one block of pod addresses, exactly once.
//!
//! What is held is known from the nodes themselves: their first list fills the table before any block is
//! given, so a restart forgets nothing. A block is held from the moment it is chosen. A write whose answer is
//! lost keeps its block for that node, and the next attempt writes the same. The write is guarded by the
//! node's resource version, so of two leaders for a moment one fails.

use std::{collections::HashMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use hawser_api::{Api, Error, resource::ObjectKey};
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use parking_lot::Mutex;
use serde_json::json;

use super::blocks::Blocks;
use crate::{
    Config, Context, Starts,
    events::Recorder,
    meta::MetaExt,
    queue::Queue,
    worker::{Next, Reconciler},
};

/// Blocks come back when nodes are deleted; nodes without one look that often.
const NO_BLOCK_RETRY: Duration = Duration::from_secs(10);

pub(super) fn register(starts: &mut Starts<'_>) {
    let context = starts.context.clone();
    if context.config.cluster_cidrs.is_empty() {
        return;
    }
    let queue = Queue::new();
    let table = Arc::new(Mutex::new(Table::new(&context.config)));
    let (changed, shared) = (queue.clone(), table.clone());
    context.caches.nodes.on_change(move |change| {
        match change.new {
            Some(node) => {
                let held = blocks_of(node);
                if !held.is_empty() {
                    shared.lock().note(node.name(), held);
                }
            }
            None => shared.lock().forget(&change.key.name),
        }
        changed.add(change.key.clone());
    });
    let recorder = context.recorder.of("cidrAllocator");
    starts.add(Controller { context, table, recorder }, queue, 2);
}

/// What the node's spec says it has.
fn blocks_of(node: &Node) -> Vec<IpNet> {
    let Some(spec) = &node.spec else { return Vec::new() };
    let listed = spec.pod_cidrs.iter().flatten();
    let mut blocks: Vec<IpNet> = listed.filter_map(|text| text.parse().ok()).collect();
    if blocks.is_empty() {
        blocks.extend(spec.pod_cidr.as_ref().and_then(|text| text.parse::<IpNet>().ok()));
    }
    blocks
}

/// Who holds which blocks.
struct Table {
    ranges: Vec<Blocks>,
    nodes: HashMap<String, Vec<IpNet>>,
}

impl Table {
    fn new(config: &Config) -> Self {
        let ranges = config.cluster_cidrs.iter();
        Self {
            ranges: ranges.map(|range| Blocks::new(*range, config.node_mask(range))).collect(),
            nodes: HashMap::new(),
        }
    }

    /// The node holds exactly `blocks`.
    fn note(&mut self, node: &str, blocks: Vec<IpNet>) {
        if self.nodes.get(node) == Some(&blocks) {
            return;
        }
        self.forget(node);
        for range in &mut self.ranges {
            blocks.iter().for_each(|block| range.hold(block));
        }
        self.nodes.insert(node.to_owned(), blocks);
    }

    fn forget(&mut self, node: &str) {
        for block in self.nodes.remove(node).unwrap_or_default() {
            self.ranges.iter_mut().for_each(|range| range.release(&block));
        }
    }

    /// The node's blocks, one of each range; chosen now where it has none. `None` where a range is used up.
    fn blocks_for(&mut self, node: &str) -> Option<Vec<IpNet>> {
        if let Some(chosen) = self.nodes.get(node) {
            return Some(chosen.clone());
        }
        let mut chosen = Vec::new();
        for at in 0..self.ranges.len() {
            match self.ranges[at].allocate() {
                Some(block) => chosen.push(block),
                None => {
                    for (range, block) in self.ranges.iter_mut().zip(&chosen) {
                        range.release(block);
                    }
                    return None;
                }
            }
        }
        self.nodes.insert(node.to_owned(), chosen.clone());
        Some(chosen)
    }
}

struct Controller {
    context: Arc<Context>,
    table: Arc<Mutex<Table>>,
    recorder: Recorder,
}

#[async_trait]
impl Reconciler for Controller {
    type Key = ObjectKey;

    const NAME: &'static str = "nodeipam";

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        let chosen = {
            // Under the table's lock: a node that is deleted now is forgotten after this, not before.
            let mut table = self.table.lock();
            let Some(node) = self.context.caches.nodes.get(key) else { return Ok(Next::Done) };
            if !blocks_of(&node).is_empty() {
                return Ok(Next::Done);
            }
            table.blocks_for(&key.name).map(|blocks| (node.clone(), blocks)).ok_or(node)
        };
        let (node, blocks) = match chosen {
            Ok(chosen) => chosen,
            Err(node) => {
                let message = "no block of pod addresses is left in the cluster range".to_owned();
                self.recorder.warning(&*node, "CIDRNotAvailable", message);
                return Ok(Next::After(NO_BLOCK_RETRY));
            }
        };
        let texts: Vec<String> = blocks.iter().map(ToString::to_string).collect();
        let patch = json!({
            "metadata": { "uid": node.uid(), "resourceVersion": node.resource_version() },
            "spec": { "podCIDR": texts[0], "podCIDRs": texts },
        });
        let nodes: Api<Node> = Api::all(self.context.client.clone());
        nodes.merge_patch(&key.name, &patch).await?;
        Ok(Next::Done)
    }
}
