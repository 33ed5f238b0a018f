//! The answer to `control-plane explain pod`: what each node is for a pod, as data and as a table.

use std::fmt;

use serde::Serialize;

/// What the scheduler makes of a pod.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// `namespace/name`
    pub pod: String,
    pub scheduler_name: String,
    /// What holds for the pod whatever the node.
    pub notes: Vec<String>,
    /// Nodes that it would go to, one of them by chance; empty where none can run it.
    pub best: Vec<String>,
    /// Those that can run it, the best first; then the others. Empty where its volumes rule out all of them.
    pub nodes: Vec<NodeVerdict>,
}

#[derive(Clone, Debug, Serialize)]
pub struct NodeVerdict {
    pub node: String,
    #[serde(flatten)]
    pub verdict: Verdict,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Verdict {
    Fits {
        scores: Vec<Score>,
        /// Scores times weights, added up.
        total: i64,
    },
    Refused {
        /// The first filter that says no.
        plugin: &'static str,
        /// In upstream's words.
        reasons: Vec<String>,
        /// What of the node it is; may be empty.
        detail: String,
    },
}

#[derive(Clone, Copy, Debug, Serialize)]
pub struct Score {
    pub plugin: &'static str,
    /// 0 to 100.
    pub score: i64,
    pub weight: i64,
}

impl Verdict {
    pub(crate) fn fits(scores: Vec<Score>) -> Self {
        let total = scores.iter().map(|score| score.score * score.weight).sum();
        Self::Fits { scores, total }
    }
}

impl NodeVerdict {
    /// Unset where the node cannot run the pod.
    pub fn total(&self) -> Option<i64> {
        match &self.verdict {
            Verdict::Fits { total, .. } => Some(*total),
            Verdict::Refused { .. } => None,
        }
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(to, "{}, placed by {}", self.pod, self.scheduler_name)?;
        for note in &self.notes {
            writeln!(to, "- {note}")?;
        }
        let fitting = self.nodes.iter().filter(|node| node.total().is_some()).count();
        match fitting {
            0 => writeln!(to, "none of the nodes can run it")?,
            _ => {
                let (all, best) = (self.nodes.len(), self.best.join(", "));
                writeln!(to, "{fitting} of {all} nodes can run it; the best: {best}")?;
            }
        }
        let (mut scored, mut refused) = (Vec::new(), Vec::new());
        for NodeVerdict { node, verdict } in &self.nodes {
            match verdict {
                Verdict::Fits { scores, total } => {
                    if scored.is_empty() {
                        let names = scores.iter().map(|score| format!("{} x{}", score.plugin, score.weight));
                        scored
                            .push(["NODE".to_owned(), "TOTAL".to_owned()].into_iter().chain(names).collect());
                    }
                    let numbers = scores.iter().map(|score| score.score.to_string());
                    scored.push([node.clone(), total.to_string()].into_iter().chain(numbers).collect());
                }
                Verdict::Refused { plugin, reasons, detail } => {
                    if refused.is_empty() {
                        refused.push(["NODE", "REFUSED BY", "WHY"].map(str::to_owned).into());
                    }
                    let reasons = reasons.join(", ");
                    let why = if detail.is_empty() { reasons } else { format!("{reasons} ({detail})") };
                    refused.push(vec![node.clone(), (*plugin).to_owned(), why]);
                }
            }
        }
        table(to, &scored)?;
        table(to, &refused)
    }
}

/// Rows with aligned columns, after an empty line.
fn table(to: &mut fmt::Formatter<'_>, rows: &[Vec<String>]) -> fmt::Result {
    let Some(head) = rows.first() else {
        return Ok(());
    };
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(String::len).max();
    let widths: Vec<usize> = (0..head.len()).map(|column| width(column).unwrap_or_default()).collect();
    writeln!(to)?;
    for row in rows {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        writeln!(to, "{}", cells.join("   ").trim_end())?;
    }
    Ok(())
}
