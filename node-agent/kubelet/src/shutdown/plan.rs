//! Which pods end when, and how long each may take: pure.

use std::time::Duration;

use crate::pod::DesiredPod;

/// Of `system-cluster-critical`, the lower of the two classes of critical pods.
const CRITICAL_PRIORITY: i32 = 2_000_000_000;
/// Of pods without a class, unless another one is the default.
const DEFAULT_PRIORITY: i32 = 0;

/// Pods of that priority and above, up to the next one's, have so much time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grace {
    pub priority: i32,
    pub time: Duration,
}

/// How long a shutdown waits for pods; nothing where it does not. In the order of priorities.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Graces(Vec<Grace>);

impl Graces {
    /// Of the `total` time (`shutdownGracePeriod`) the last part is for `critical` pods alone
    /// (`shutdownGracePeriodCriticalPods`).
    ///
    /// # Errors
    /// More for critical pods than there is.
    pub fn of_total(total: Duration, critical: Duration) -> Result<Self, String> {
        let others = total.checked_sub(critical).ok_or_else(|| {
            format!("shutdownGracePeriodCriticalPods {critical:?} must be <= shutdownGracePeriod {total:?}")
        })?;
        if total.is_zero() {
            return Ok(Self::default());
        }
        Ok(Self(vec![
            Grace { priority: DEFAULT_PRIORITY, time: others },
            Grace { priority: CRITICAL_PRIORITY, time: critical },
        ]))
    }

    /// `shutdownGracePeriodByPodPriority`.
    ///
    /// # Errors
    /// A priority that is named twice.
    pub fn by_priority(mut graces: Vec<Grace>) -> Result<Self, String> {
        graces.sort_by_key(|grace| grace.priority);
        match graces.windows(2).find(|pair| pair[0].priority == pair[1].priority) {
            Some(pair) => {
                Err(format!("shutdownGracePeriodByPodPriority: {} is named twice", pair[0].priority))
            }
            None => Ok(Self(graces)),
        }
    }

    /// In the order of priorities.
    pub fn all(&self) -> &[Grace] {
        &self.0
    }

    /// What [`Self::of_total`] was given, where it made these.
    pub fn as_total(&self) -> Option<(Duration, Duration)> {
        match self.0[..] {
            [] => Some((Duration::ZERO, Duration::ZERO)),
            [
                Grace { priority: DEFAULT_PRIORITY, time: others },
                Grace { priority: CRITICAL_PRIORITY, time: critical },
            ] => Some((others + critical, critical)),
            _ => None,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn total(&self) -> Duration {
        self.0.iter().map(|grace| grace.time).sum()
    }

    /// Pods that end together, with their time, in the order in which they do. A pod below all priorities is of the
    /// lowest group.
    pub fn groups(&self, pods: Vec<DesiredPod>) -> Vec<(Duration, Vec<DesiredPod>)> {
        let mut groups: Vec<_> = self.0.iter().map(|grace| (grace.time, Vec::new())).collect();
        for pod in pods {
            let priority = pod.spec().priority.unwrap_or(DEFAULT_PRIORITY);
            let above = self.0.iter().filter(|grace| grace.priority <= priority).count();
            if let Some((_, group)) = groups.get_mut(above.saturating_sub(1)) {
                group.push(pod);
            }
        }
        groups
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::pod::testing::{container, pod_object, spec};

    const fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn pod(name: &str, priority: Option<i32>) -> DesiredPod {
        let mut object = pod_object(spec("Always", vec![], vec![container("main")]));
        object.metadata.name = Some(name.to_owned());
        object.spec.as_mut().expect("a spec").priority = priority;
        DesiredPod::new(Arc::new(object))
    }

    fn shown(graces: &Graces, pods: Vec<DesiredPod>) -> Vec<(u64, Vec<String>)> {
        let groups = graces.groups(pods).into_iter();
        groups
            .map(|(time, pods)| (time.as_secs(), pods.iter().map(|pod| pod.name().to_owned()).collect()))
            .collect()
    }

    #[test]
    fn critical_pods_end_last() {
        let graces = Graces::of_total(seconds(30), seconds(10)).expect("fits");
        assert_eq!(graces.total(), seconds(30));
        let pods = vec![
            pod("node-critical", Some(2_000_001_000)),
            pod("low", Some(-5)),
            pod("plain", None),
            pod("high", Some(1_999_999_999)),
            pod("cluster-critical", Some(2_000_000_000)),
        ];
        let expected = [
            (20, vec!["low".into(), "plain".into(), "high".into()]),
            (10, vec!["node-critical".into(), "cluster-critical".into()]),
        ];
        assert_eq!(shown(&graces, pods), expected);
    }

    #[test]
    fn each_priority_has_its_time() {
        let grace = |priority, time| Grace { priority, time: seconds(time) };
        let graces =
            Graces::by_priority(vec![grace(1000, 20), grace(0, 5), grace(500, 10)]).expect("unequal");
        let pods = vec![pod("a", Some(1000)), pod("b", Some(999)), pod("c", Some(499)), pod("d", Some(-1))];
        let expected =
            [(5, vec!["c".into(), "d".into()]), (10, vec!["b".into()]), (20, vec!["a".to_owned()])];
        assert_eq!(shown(&graces, pods), expected);
        assert!(
            Graces::by_priority(vec![grace(1, 2), grace(1, 3)]).expect_err("twice").contains("1 is named")
        );
    }

    #[test]
    fn nothing_is_waited_for_without_a_time() {
        assert!(Graces::of_total(seconds(0), seconds(0)).expect("off").is_empty());
        assert!(Graces::of_total(seconds(5), seconds(6)).is_err());
        assert!(Graces::default().groups(vec![pod("a", None)]).is_empty());
    }
}
