//! Candidates against an API in memory that fails when told to, on a paused clock.

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use serde_json::Value;
use tokio::task::JoinHandle;

use super::*;
use crate::{
    client::{Binding, DeleteOptions, List, ListOptions, Patch, WatchOptions, WatchStream, WriteOptions},
    resource::{GroupVersionResource, Target},
};

/// What happens to the requests of one candidate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Weather {
    #[default]
    Fair,
    /// Every request fails.
    Fails,
    /// Writes take effect, and their answers are lost.
    AnswersLost,
    /// Nothing ever answers.
    Hangs,
}

/// One Lease, with the rule of versions.
#[derive(Default)]
struct Leases {
    lease: Mutex<Option<Value>>,
    version: Mutex<u64>,
}

struct Connection {
    leases: Arc<Leases>,
    weather: Mutex<Weather>,
}

const LEASES: GroupVersionResource = GroupVersionResource::fixed("coordination.k8s.io", "v1", "leases");

impl Connection {
    async fn pass(&self) -> Result<Weather, Error> {
        let weather = *self.weather.lock();
        match weather {
            Weather::Fails => Err(Error::unavailable("told to fail")),
            Weather::Hangs => std::future::pending().await,
            Weather::Fair | Weather::AnswersLost => Ok(weather),
        }
    }

    fn put(&self, object: &Bytes, weather: Weather) -> Result<Bytes, Error> {
        let mut object: Value = serde_json::from_slice(object).unwrap();
        let mut version = self.leases.version.lock();
        *version += 1;
        object["metadata"]["resourceVersion"] = version.to_string().into();
        *self.leases.lease.lock() = Some(object.clone());
        if weather == Weather::AnswersLost {
            return Err(Error::timeout("told to lose the answer"));
        }
        Ok(object.to_string().into())
    }
}

#[async_trait]
impl Client for Connection {
    async fn get(&self, target: &Target) -> Result<Bytes, Error> {
        self.pass().await?;
        assert_eq!(
            (target.namespace.as_deref(), target.name.as_deref()),
            (Some("kube-system"), Some("work"))
        );
        let lease = self.leases.lease.lock().clone();
        lease.map(|lease| lease.to_string().into()).ok_or_else(|| Error::not_found(&LEASES, "work"))
    }

    async fn create(&self, _: &Target, object: Bytes, _: &WriteOptions) -> Result<Bytes, Error> {
        let weather = self.pass().await?;
        if self.leases.lease.lock().is_some() {
            return Err(Error::already_exists(&LEASES, "work"));
        }
        self.put(&object, weather)
    }

    async fn update(&self, _: &Target, object: Bytes, _: &WriteOptions) -> Result<Bytes, Error> {
        let weather = self.pass().await?;
        let new: Value = serde_json::from_slice(&object).unwrap();
        let known = self.leases.lease.lock().clone().unwrap();
        if new["metadata"]["resourceVersion"] != known["metadata"]["resourceVersion"] {
            return Err(Error::conflict(&LEASES, "work", "it has changed"));
        }
        self.put(&object, weather)
    }

    async fn list(&self, _: &Target, _: &ListOptions) -> Result<List, Error> {
        Err(Error::internal("not used"))
    }

    async fn watch(&self, _: &Target, _: &WatchOptions) -> Result<WatchStream, Error> {
        Err(Error::internal("not used"))
    }

    async fn patch(&self, _: &Target, _: Patch, _: &WriteOptions) -> Result<Bytes, Error> {
        Err(Error::internal("not used"))
    }

    async fn delete(&self, _: &Target, _: &DeleteOptions) -> Result<Bytes, Error> {
        Err(Error::internal("not used"))
    }

    async fn bind(&self, _: &[Binding]) -> Vec<Result<(), Error>> {
        Vec::new()
    }
}

/// Who works, noted by the work itself.
#[derive(Clone, Default)]
struct Workers(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    working: Vec<String>,
    /// Everybody who ever began, in order.
    began: Vec<String>,
    /// More than one worked at a time.
    broken: bool,
}

struct Working(Workers, String);

impl Workers {
    fn begin(&self, name: &str) -> Working {
        let mut state = self.0.lock();
        state.broken |= !state.working.is_empty();
        state.working.push(name.to_owned());
        state.began.push(name.to_owned());
        Working(self.clone(), name.to_owned())
    }

    fn began(&self) -> Vec<String> {
        self.0.lock().began.clone()
    }

    fn working(&self) -> Vec<String> {
        self.0.lock().working.clone()
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        self.0.0.lock().working.retain(|name| *name != self.1);
    }
}

struct Runner {
    connection: Arc<Connection>,
    election: Election,
    shutdown: CancellationToken,
    task: JoinHandle<Result<(), String>>,
}

/// How a worker takes its end.
#[derive(Clone, Copy)]
enum Manner {
    Obedient,
    /// Hears of nothing.
    Deaf,
}

fn start(name: &str, leases: &Arc<Leases>, workers: &Workers, manner: Manner) -> Runner {
    let connection = Arc::new(Connection { leases: leases.clone(), weather: Mutex::default() });
    let election = Election::new("work", name);
    let shutdown = CancellationToken::new();
    let task = {
        let (election, client, shutdown) = (election.clone(), connection.clone(), shutdown.clone());
        let (workers, name) = (workers.clone(), name.to_owned());
        tokio::spawn(async move {
            election
                .run(client, shutdown, |stop| {
                    let (workers, name) = (workers.clone(), name.clone());
                    async move {
                        let _working = workers.begin(&name);
                        match manner {
                            Manner::Obedient => stop.cancelled().await,
                            Manner::Deaf => std::future::pending().await,
                        }
                        Ok::<(), String>(())
                    }
                })
                .await
        })
    };
    Runner { connection, election, shutdown, task }
}

/// Lets the paused clock run.
async fn seconds(count: u64) {
    tokio::time::sleep(Duration::from_secs(count)).await;
}

#[tokio::test(start_paused = true)]
async fn one_leads_and_the_other_takes_over_when_it_is_killed() {
    let (leases, workers) = (Arc::<Leases>::default(), Workers::default());
    let first = start("a", &leases, &workers, Manner::Obedient);
    seconds(1).await;
    let second = start("b", &leases, &workers, Manner::Obedient);
    seconds(100).await;
    assert_eq!(workers.working(), ["a"]);
    assert!(first.election.leads() && !second.election.leads());
    first.task.abort();
    // The lease was renewed two seconds before at most.
    seconds(12).await;
    assert_eq!(workers.working(), Vec::<String>::new());
    seconds(9).await;
    assert_eq!(workers.working(), ["b"]);
    let lease = leases.lease.lock().clone().unwrap();
    assert_eq!(lease["spec"]["holderIdentity"], "b");
    assert_eq!(lease["spec"]["leaseTransitions"], 1);
    assert_eq!(lease["spec"]["leaseDurationSeconds"], 15);
    assert!(!workers.0.lock().broken);
}

#[tokio::test(start_paused = true)]
async fn who_is_told_to_stop_gives_the_lease_back() {
    let (leases, workers) = (Arc::<Leases>::default(), Workers::default());
    let first = start("a", &leases, &workers, Manner::Obedient);
    seconds(1).await;
    let _second = start("b", &leases, &workers, Manner::Obedient);
    seconds(5).await;
    first.shutdown.cancel();
    assert_eq!(first.task.await.unwrap(), Ok(()));
    assert_eq!(leases.lease.lock().clone().unwrap()["spec"]["holderIdentity"], "");
    seconds(4).await;
    assert_eq!(workers.working(), ["b"]);
    assert!(!workers.0.lock().broken);
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_cannot_renew_stops_before_another_begins() {
    for manner in [Manner::Obedient, Manner::Deaf] {
        for weather in [Weather::Fails, Weather::Hangs] {
            let (leases, workers) = (Arc::<Leases>::default(), Workers::default());
            let first = start("a", &leases, &workers, manner);
            seconds(1).await;
            let _second = start("b", &leases, &workers, Manner::Obedient);
            seconds(30).await;
            *first.connection.weather.lock() = weather;
            // It stops 10 s after its last renewal, or is dropped within the 5 s that are left.
            seconds(13).await;
            assert_eq!(workers.working(), Vec::<String>::new(), "{weather:?}");
            seconds(7).await;
            assert_eq!(workers.working(), ["b"], "{weather:?}");
            // Back again, it waits for its turn.
            *first.connection.weather.lock() = Weather::Fair;
            seconds(60).await;
            assert_eq!(workers.began(), ["a", "b"], "{weather:?}");
            assert!(!workers.0.lock().broken, "{weather:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_short_break_and_lost_answers_change_no_leader() {
    let (leases, workers) = (Arc::<Leases>::default(), Workers::default());
    let first = start("a", &leases, &workers, Manner::Obedient);
    // The very first answer is lost: the lease is its own all the same.
    *first.connection.weather.lock() = Weather::AnswersLost;
    seconds(1).await;
    assert_eq!(workers.working(), Vec::<String>::new());
    *first.connection.weather.lock() = Weather::Fair;
    seconds(3).await;
    assert_eq!(workers.working(), ["a"]);
    let _second = start("b", &leases, &workers, Manner::Obedient);
    for weather in
        [Weather::Fails, Weather::Fair, Weather::Hangs, Weather::Fair, Weather::AnswersLost, Weather::Fair]
    {
        *first.connection.weather.lock() = weather;
        seconds(6).await;
        assert_eq!(workers.working(), ["a"], "{weather:?}");
    }
    assert_eq!(workers.began(), ["a"]);
}

#[tokio::test(start_paused = true)]
async fn among_many_there_is_never_more_than_one() {
    let (leases, workers) = (Arc::<Leases>::default(), Workers::default());
    let mut runners: Vec<Runner> =
        ["a", "b", "c"].into_iter().map(|name| start(name, &leases, &workers, Manner::Deaf)).collect();
    for round in 0..60_usize {
        // A small generator would do no better: every combination comes up.
        let weathers = [Weather::Fair, Weather::Fails, Weather::AnswersLost, Weather::Hangs];
        for (index, runner) in runners.iter().enumerate() {
            *runner.connection.weather.lock() = weathers[(round * (index + 1) + round / 7) % 4];
        }
        if round % 11 == 10 {
            let restarted = start(&format!("d{round}"), &leases, &workers, Manner::Deaf);
            std::mem::replace(&mut runners[round % 3], restarted).task.abort();
        }
        seconds(1 + (round as u64 * 7) % 23).await;
    }
    let state = workers.0.lock();
    assert!(!state.broken, "{:?}", state.began);
    assert!(state.began.len() > 3, "{:?}", state.began);
}

#[tokio::test(start_paused = true)]
async fn the_works_own_end_ends_the_election() {
    let connection = Arc::new(Connection { leases: Arc::default(), weather: Mutex::default() });
    let election = Election::new("work", "a");
    let failed =
        election.run(connection.clone(), CancellationToken::new(), |_| async { Err("broken") }).await;
    assert_eq!(failed, Err("broken"));
    assert!(!election.leads());
    assert_eq!(connection.leases.lease.lock().clone().unwrap()["spec"]["holderIdentity"], "");
}

#[test]
fn settings_that_cannot_work_are_named() {
    let check = |change: fn(&mut Election), expected: &str| {
        let mut election = Election::new("work", "a");
        change(&mut election);
        assert_eq!(election.check().err().unwrap_or_default(), expected);
    };
    check(|_| (), "");
    check(
        |election| election.retry_period = Duration::ZERO,
        "leader-elect-retry-period must be greater than zero",
    );
    check(
        |election| election.renew_deadline = Duration::from_millis(2400),
        "leader-elect-renew-deadline must be greater than 1.2 times leader-elect-retry-period",
    );
    check(
        |election| election.lease_duration = Duration::from_secs(10),
        "leader-elect-lease-duration must be greater than leader-elect-renew-deadline",
    );
}
