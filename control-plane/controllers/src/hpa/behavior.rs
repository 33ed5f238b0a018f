//! What becomes of a recommendation: held steady over a time, and changed no faster than the rules allow. Pure.
//!
//! Without a behaviour a target shrinks to the largest recommendation of five minutes, and at most doubles, or grows to
//! four. With one, its windows, policies and tolerances decide (KEP-853). Reasons and messages are upstream's.

use std::{collections::VecDeque, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::autoscaling::v2::{HPAScalingPolicy, HPAScalingRules, HorizontalPodAutoscalerBehavior};

use super::calculate::{Tolerance, milli};

/// `--horizontal-pod-autoscaler-downscale-stabilization`.
const STABILIZATION: Duration = Duration::from_secs(300);
/// `--horizontal-pod-autoscaler-tolerance`.
const TOLERANCE: f64 = 0.1;
/// The longest window and the longest period that the API takes.
const LONGEST: Duration = Duration::from_secs(3600);

/// A moment and what was recommended, or changed, then.
type Entry = (Timestamp, i32);

/// What was recommended and done lately for one target. Bounded by an hour of looks.
#[derive(Debug, Default)]
pub(super) struct History {
    recommendations: VecDeque<Entry>,
    ups: VecDeque<Entry>,
    downs: VecDeque<Entry>,
}

impl History {
    /// The size that a target has when it is first looked at counts as recommended.
    pub(super) fn begin(&mut self, current: i32, now: Timestamp) {
        if self.recommendations.is_empty() {
            self.recommendations.push_back((now, current));
        }
    }

    /// Notes a change of size.
    pub(super) fn scaled(&mut self, from: i32, to: i32, now: Timestamp) {
        if to > from {
            self.ups.push_back((now, to - from));
        } else {
            self.downs.push_back((now, from - to));
        }
    }

    fn recommend(&mut self, replicas: i32, now: Timestamp) {
        for entries in [&mut self.recommendations, &mut self.ups, &mut self.downs] {
            while entries.front().is_some_and(|(at, _)| is_within(*at, LONGEST, now).is_none()) {
                entries.pop_front();
            }
        }
        self.recommendations.push_back((now, replicas));
    }

    fn recommended(&self, window: Duration, now: Timestamp) -> impl Iterator<Item = i32> + '_ {
        let within = move |(at, replicas): &Entry| is_within(*at, window, now).map(|()| *replicas);
        self.recommendations.iter().filter_map(within)
    }
}

/// Whether a moment lies less than `window` back.
fn is_within(at: Timestamp, window: Duration, now: Timestamp) -> Option<()> {
    let cutoff = now.checked_sub(window).unwrap_or(Timestamp::MIN);
    (at > cutoff).then_some(())
}

/// A decision, with what it says in the conditions `AbleToScale` and `ScalingLimited`.
#[derive(Debug, PartialEq)]
pub(super) struct Decision {
    pub(super) replicas: i32,
    pub(super) steadied: (&'static str, &'static str),
    pub(super) is_limited: bool,
    pub(super) limit: (&'static str, &'static str),
}

const READY: (&str, &str) = ("ReadyForNewScale", "recommended size matches current size");
const HELD_UP: (&str, &str) = (
    "ScaleDownStabilized",
    "recent recommendations were higher than current one, applying the highest recent recommendation",
);
const HELD_DOWN: (&str, &str) = (
    "ScaleUpStabilized",
    "recent recommendations were lower than current one, applying the lowest recent recommendation",
);
const IN_RANGE: (&str, &str) = ("DesiredWithinRange", "the desired count is within the acceptable range");
const TOO_FEW: (&str, &str) =
    ("TooFewReplicas", "the desired replica count is less than the minimum replica count");
const TOO_MANY: (&str, &str) =
    ("TooManyReplicas", "the desired replica count is more than the maximum replica count");
const UP_LIMIT: (&str, &str) =
    ("ScaleUpLimit", "the desired replica count is increasing faster than the maximum scale rate");
const DOWN_LIMIT: (&str, &str) =
    ("ScaleDownLimit", "the desired replica count is decreasing faster than the maximum scale rate");

/// The sizes that a target may have, and the one that it has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    pub(super) current: i32,
    pub(super) least: i32,
    pub(super) most: i32,
}

/// Decides on a size, and remembers what was recommended.
pub(super) fn decide(
    behavior: Option<&HorizontalPodAutoscalerBehavior>,
    history: &mut History,
    sizes: Sizes,
    recommended: i32,
    now: Timestamp,
) -> Decision {
    let steady = steady(behavior, history, sizes.current, recommended, now);
    let steadied = match steady {
        steady if steady == recommended => READY,
        // Without a behaviour nothing holds growth back.
        _ if behavior.is_some() && recommended >= sizes.current => HELD_DOWN,
        _ => HELD_UP,
    };
    history.recommend(recommended, now);
    let (replicas, limit) = match behavior {
        None => limited(sizes, steady),
        Some(behavior) => limited_by_rules(behavior, history, sizes, steady, now),
    };
    Decision { replicas, steadied, is_limited: replicas != steady, limit }
}

fn steady(
    behavior: Option<&HorizontalPodAutoscalerBehavior>,
    history: &History,
    current: i32,
    recommended: i32,
    now: Timestamp,
) -> i32 {
    let Some(behavior) = behavior else {
        return history.recommended(STABILIZATION, now).fold(recommended, i32::max);
    };
    let window = |rules: Option<&HPAScalingRules>, default| {
        let seconds = rules.and_then(|rules| rules.stabilization_window_seconds);
        seconds.map_or(default, |seconds| Duration::from_secs(u64::try_from(seconds).unwrap_or_default()))
    };
    let up = window(behavior.scale_up.as_ref(), Duration::ZERO);
    let down = window(behavior.scale_down.as_ref(), STABILIZATION);
    let lowest = history.recommended(up, now).fold(recommended, i32::min);
    let highest = history.recommended(down, now).fold(recommended, i32::max);
    current.max(lowest).min(highest)
}

fn limited(sizes: Sizes, wanted: i32) -> (i32, (&'static str, &'static str)) {
    let fastest = sizes.current.saturating_mul(2).max(4);
    let (most, reason) = if sizes.most > fastest { (fastest, UP_LIMIT) } else { (sizes.most, TOO_MANY) };
    match wanted {
        wanted if wanted < sizes.least => (sizes.least, TOO_FEW),
        wanted if wanted > most => (most, reason),
        wanted => (wanted, IN_RANGE),
    }
}

fn limited_by_rules(
    behavior: &HorizontalPodAutoscalerBehavior,
    history: &History,
    sizes: Sizes,
    wanted: i32,
    now: Timestamp,
) -> (i32, (&'static str, &'static str)) {
    if wanted > sizes.current {
        let fastest = reach(behavior.scale_up.as_ref(), Direction::Up, history, sizes.current, now);
        let fastest = fastest.max(sizes.current);
        let (most, reason) = if sizes.most > fastest { (fastest, UP_LIMIT) } else { (sizes.most, TOO_MANY) };
        if wanted > most {
            return (most, reason);
        }
    } else if wanted < sizes.current {
        let fastest = reach(behavior.scale_down.as_ref(), Direction::Down, history, sizes.current, now);
        let fastest = fastest.min(sizes.current);
        let (least, reason) =
            if sizes.least < fastest { (fastest, DOWN_LIMIT) } else { (sizes.least, TOO_FEW) };
        if wanted < least {
            return (least, reason);
        }
    }
    (wanted, IN_RANGE)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Up,
    Down,
}

/// The size that the policies allow to be reached now, from what the target had when their periods began.
fn reach(
    rules: Option<&HPAScalingRules>,
    direction: Direction,
    history: &History,
    current: i32,
    now: Timestamp,
) -> i32 {
    let select = rules.and_then(|rules| rules.select_policy.as_deref()).unwrap_or("Max");
    if select == "Disabled" {
        return current;
    }
    let policies = rules.and_then(|rules| rules.policies.clone()).filter(|policies| !policies.is_empty());
    let policies = policies.unwrap_or_else(|| default_policies(direction));
    let reached = policies.iter().map(|policy| {
        let period = Duration::from_secs(u64::try_from(policy.period_seconds).unwrap_or_default());
        let changed = |entries: &VecDeque<Entry>| -> i32 {
            let recent = entries.iter().filter(|(at, _)| is_within(*at, period, now).is_some());
            recent.fold(0_i32, |sum, (_, change)| sum.saturating_add(*change))
        };
        let start = current.saturating_sub(changed(&history.ups)).saturating_add(changed(&history.downs));
        let share = f64::from(policy.value) / 100.0;
        match (policy.type_.as_str(), direction) {
            ("Pods", Direction::Up) => start.saturating_add(policy.value),
            ("Pods", Direction::Down) => start.saturating_sub(policy.value),
            // Rounded up, or a small target would never grow.
            (_, Direction::Up) => (f64::from(start) * (1.0 + share)).ceil() as i32,
            (_, Direction::Down) => (f64::from(start) * (1.0 - share)) as i32,
        }
    });
    // The largest change is the largest size upwards, and the smallest downwards.
    let takes_most = (select == "Max") == (direction == Direction::Up);
    let reached = if takes_most { reached.max() } else { reached.min() };
    reached.unwrap_or(current)
}

fn default_policies(direction: Direction) -> Vec<HPAScalingPolicy> {
    let policy = |kind: &str, value| HPAScalingPolicy { type_: kind.to_owned(), value, period_seconds: 15 };
    match direction {
        Direction::Up => vec![policy("Pods", 4), policy("Percent", 100)],
        Direction::Down => vec![policy("Percent", 100)],
    }
}

pub(super) fn tolerance(behavior: Option<&HorizontalPodAutoscalerBehavior>) -> Tolerance {
    let of = |rules: Option<&HPAScalingRules>| {
        let set = rules.and_then(|rules| rules.tolerance.as_ref());
        set.map_or(TOLERANCE, |tolerance| milli(tolerance) as f64 / 1000.0)
    };
    Tolerance {
        down: of(behavior.and_then(|behavior| behavior.scale_down.as_ref())),
        up: of(behavior.and_then(|behavior| behavior.scale_up.as_ref())),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + second).unwrap()
    }

    /// What becomes of recommendations `(second, replicas)` for a target that follows each decision.
    #[track_caller]
    fn check(name: &str, behavior: Value, first: i32, recommended: &[(i64, i32)], expected: &[(i32, &str)]) {
        let behavior: Option<HorizontalPodAutoscalerBehavior> = serde_json::from_value(behavior).unwrap();
        let (mut history, mut current) = (History::default(), first);
        history.begin(first, at(-10_000));
        let mut found = Vec::new();
        for (second, replicas) in recommended {
            let sizes = Sizes { current, least: 1, most: 100 };
            let decision = decide(behavior.as_ref(), &mut history, sizes, *replicas, at(*second));
            if decision.replicas != current {
                history.scaled(current, decision.replicas, at(*second));
            }
            current = decision.replicas;
            let reason = if decision.is_limited { decision.limit.0 } else { decision.steadied.0 };
            found.push((current, reason));
        }
        assert_eq!(found, expected, "{name}");
    }

    const READY: &str = super::READY.0;

    #[test]
    fn without_a_behaviour_growth_is_at_most_double_and_shrinking_waits() {
        let steady = "ScaleDownStabilized";
        check("grows", Value::Null, 1, &[(0, 3)], &[(3, READY)]);
        check(
            "grows to four, then doubles",
            Value::Null,
            1,
            &[(0, 50), (15, 50)],
            &[(4, "ScaleUpLimit"), (8, "ScaleUpLimit")],
        );
        check("above the most", Value::Null, 90, &[(0, 500)], &[(100, "TooManyReplicas")]);
        check("below the least", Value::Null, 5, &[(0, 0)], &[(1, "TooFewReplicas")]);
        check(
            "shrinks after five minutes",
            Value::Null,
            1,
            &[(0, 4), (15, 2), (299, 2), (301, 2)],
            &[(4, READY), (4, steady), (4, steady), (2, READY)],
        );
    }

    #[test]
    fn windows_hold_recommendations() {
        let up = json!({ "scaleUp": { "stabilizationWindowSeconds": 60 }, "scaleDown": { "stabilizationWindowSeconds": 0 } });
        check(
            "growth waits, shrinking does not",
            up,
            4,
            &[(0, 4), (15, 8), (61, 8), (75, 2)],
            &[(4, READY), (4, "ScaleUpStabilized"), (8, READY), (2, READY)],
        );
    }

    #[test]
    fn policies_limit_the_rate() {
        let rules = |direction: &str, rules: Value| json!({ direction: rules, "scaleDown": { "stabilizationWindowSeconds": 0 } });
        let two_a_minute = json!([{ "type": "Pods", "value": 2, "periodSeconds": 60 }]);
        check(
            "two pods in a minute",
            rules("scaleUp", json!({ "policies": two_a_minute })),
            2,
            &[(0, 50), (15, 50), (61, 50)],
            &[(4, "ScaleUpLimit"), (4, "ScaleUpLimit"), (6, "ScaleUpLimit")],
        );
        check(
            "without policies, four or double",
            rules("scaleUp", json!({})),
            2,
            &[(0, 50), (16, 50)],
            &[(6, "ScaleUpLimit"), (12, "ScaleUpLimit")],
        );
        let both = json!([
            { "type": "Pods", "value": 1, "periodSeconds": 15 }, { "type": "Percent", "value": 50, "periodSeconds": 15 },
        ]);
        check(
            "the smaller change",
            rules("scaleUp", json!({ "selectPolicy": "Min", "policies": both })),
            10,
            &[(0, 50)],
            &[(11, "ScaleUpLimit")],
        );
        let down = |select: &str| {
            json!({ "scaleDown": {
            "stabilizationWindowSeconds": 0, "selectPolicy": select, "policies": both,
        } })
        };
        check("down by half", down("Max"), 10, &[(0, 1)], &[(5, "ScaleDownLimit")]);
        check("down by one", down("Min"), 10, &[(0, 1)], &[(9, "ScaleDownLimit")]);
        check("never down", down("Disabled"), 10, &[(0, 1)], &[(10, "ScaleDownLimit")]);
    }

    #[test]
    fn what_is_old_is_forgotten() {
        let mut history = History::default();
        let sizes = Sizes { current: 1, least: 1, most: 10 };
        for look in 0..1000 {
            decide(None, &mut history, sizes, 1, at(15 * look));
        }
        assert!(history.recommendations.len() <= 241, "{}", history.recommendations.len());
    }
}
