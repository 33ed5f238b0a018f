//! Drivers that run on this node, and calls of them with deadlines.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::time::Duration;

use parking_lot::RwLock;

use crate::sockets::{connect, within};
use proto::v1::dra_plugin_client::DraPluginClient;
use proto::v1::{Claim, Device, NodePrepareResourcesRequest, NodeUnprepareResourcesRequest};
use proto::v1beta1::dra_plugin_client::DraPluginClient as BetaClient;

/// The generated code of `proto/dra.proto` and `proto/dra_v1beta1.proto`.
pub mod proto {
    #[expect(clippy::allow_attributes_without_reason, unused_qualifications, reason = "generated")]
    pub mod v1 {
        tonic::include_proto!("k8s.io.kubelet.pkg.apis.dra.v1");
    }
    #[expect(clippy::allow_attributes_without_reason, unused_qualifications, reason = "generated")]
    pub mod v1beta1 {
        tonic::include_proto!("k8s.io.kubelet.pkg.apis.dra.v1beta1");
    }
}

/// Upstream's deadline of a call.
const TIMEOUT: Duration = Duration::from_secs(45);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Service {
    V1,
    V1Beta1,
}

/// What the kubelet speaks, the best first.
const SERVICES: [(&str, Service); 2] =
    [("v1.DRAPlugin", Service::V1), ("v1beta1.DRAPlugin", Service::V1Beta1)];

/// One of a driver's plugins; while it is replaced a driver has two.
#[derive(Clone, Debug)]
pub struct Driver {
    endpoint: PathBuf,
    service: Service,
}

/// By name, each driver's plugins in the order in which they came.
#[derive(Debug, Default)]
pub struct Drivers(RwLock<BTreeMap<String, Vec<Driver>>>);

impl Drivers {
    /// # Errors
    /// It offers nothing that is spoken here, or another one is at that socket.
    pub fn add(&self, name: &str, endpoint: PathBuf, offered: &[String]) -> Result<(), String> {
        let invalid = |why: String| {
            let place = endpoint.display();
            format!("invalid supported gRPC versions of DRA driver plugin {name} at endpoint {place}: {why}")
        };
        if offered.is_empty() {
            return Err(invalid("empty list of supported gRPC services (aka supported versions)".to_owned()));
        }
        let spoken = SERVICES.iter().find(|(service, _)| offered.iter().any(|offer| offer == service));
        let (_, service) = *spoken.ok_or_else(|| {
            let ours = SERVICES.map(|(service, _)| service);
            invalid(format!(
                "none of services supported by the plugin ({offered:?}) are supported by the kubelet ({ours:?})"
            ))
        })?;
        let mut drivers = self.0.write();
        let plugins = drivers.entry(name.to_owned()).or_default();
        if plugins.iter().any(|known| known.endpoint == endpoint) {
            let place = endpoint.display();
            return Err(format!("endpoint {place} already registered for DRA driver plugin {name}"));
        }
        plugins.push(Driver { endpoint, service });
        Ok(())
    }

    /// True when it was the driver's last plugin.
    pub fn remove(&self, name: &str, endpoint: &Path) -> bool {
        let mut drivers = self.0.write();
        let Some(plugins) = drivers.get_mut(name) else { return false };
        plugins.retain(|known| known.endpoint != endpoint);
        let is_last = plugins.is_empty();
        if is_last {
            drivers.remove(name);
        }
        is_last
    }

    pub fn is_there(&self, name: &str) -> bool {
        self.0.read().contains_key(name)
    }

    /// The plugin that came last.
    pub fn get(&self, name: &str) -> Result<Driver, String> {
        let found = self.0.read().get(name).and_then(|plugins| plugins.last().cloned());
        found.ok_or_else(|| format!("DRA driver {name} is not registered"))
    }
}

impl Driver {
    /// Devices by the claims' uids.
    ///
    /// # Errors
    /// One claim that was not prepared; others may have been, and are prepared again.
    pub async fn prepare(&self, claims: &[Claim]) -> Result<HashMap<String, Vec<Device>>, String> {
        let request = NodePrepareResourcesRequest { claims: claims.to_vec() };
        let channel = connect(self.endpoint.clone()).await.map_err(|error| format!("{error}"))?;
        let answer = within(TIMEOUT, async {
            match self.service {
                Service::V1 => DraPluginClient::new(channel).node_prepare_resources(request).await,
                Service::V1Beta1 => BetaClient::new(channel).node_prepare_resources(request).await,
            }
        });
        let answers = answer.await.map_err(|why| format!("NodePrepareResources failed: {why}"))?.claims;
        check("NodePrepareResources", claims, answers.iter().map(|(uid, answer)| (uid, &answer.error)))?;
        Ok(answers.into_iter().map(|(uid, answer)| (uid, answer.devices)).collect())
    }

    pub async fn unprepare(&self, claims: &[Claim]) -> Result<(), String> {
        let request = NodeUnprepareResourcesRequest { claims: claims.to_vec() };
        let channel = connect(self.endpoint.clone()).await.map_err(|error| format!("{error}"))?;
        let answer = within(TIMEOUT, async {
            match self.service {
                Service::V1 => DraPluginClient::new(channel).node_unprepare_resources(request).await,
                Service::V1Beta1 => BetaClient::new(channel).node_unprepare_resources(request).await,
            }
        });
        let answers = answer.await.map_err(|why| format!("NodeUnprepareResources failed: {why}"))?.claims;
        check("NodeUnprepareResources", claims, answers.iter().map(|(uid, answer)| (uid, &answer.error)))
    }
}

/// Every claim has an answer without an error, and nothing else has one.
fn check<'a>(
    call: &str,
    claims: &[Claim],
    answers: impl Iterator<Item = (&'a String, &'a String)>,
) -> Result<(), String> {
    let mut answered = 0;
    for (uid, error) in answers {
        let claim = claims.iter().find(|claim| claim.uid == *uid);
        let claim = claim.ok_or_else(|| format!("{call} returned result for unknown claim UID {uid}"))?;
        if !error.is_empty() {
            return Err(format!("{call} failed for ResourceClaim {}: {error}", claim.name));
        }
        answered += 1;
    }
    match claims.len() - answered {
        0 => Ok(()),
        left => Err(format!("{call} skipped {left} ResourceClaims")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newest_plugin_of_a_driver_speaks_for_it() {
        let drivers = Drivers::default();
        let offers = |list: &[&str]| list.iter().map(|offer| (*offer).to_owned()).collect::<Vec<_>>();
        drivers.add("d", "/old".into(), &offers(&["v1beta1.DRAPlugin"])).expect("taken");
        drivers.add("d", "/new".into(), &offers(&["v1beta1.DRAPlugin", "v1.DRAPlugin"])).expect("taken");
        assert_eq!(drivers.get("d").map(|driver| driver.service), Ok(Service::V1));
        assert!(drivers.add("d", "/new".into(), &offers(&["v1.DRAPlugin"])).is_err(), "its socket is taken");
        assert!(drivers.add("d", "/x".into(), &[]).expect_err("nothing").contains("empty list"));
        assert!(
            drivers
                .add("d", "/x".into(), &offers(&["v9.DRAPlugin"]))
                .expect_err("no")
                .contains("v9.DRAPlugin")
        );
        assert!(!drivers.remove("d", Path::new("/new")));
        assert_eq!(drivers.get("d").map(|driver| driver.service), Ok(Service::V1Beta1));
        assert!(drivers.remove("d", Path::new("/old")));
        assert_eq!(drivers.get("d").err().as_deref(), Some("DRA driver d is not registered"));
        assert!(!drivers.is_there("d"));
    }

    #[test]
    fn answers_have_to_be_for_all_claims_and_no_other() {
        let claim = |uid: &str| Claim { namespace: "n".into(), uid: uid.into(), name: format!("name-{uid}") };
        let checked = |answers: &[(&str, &str)]| {
            let answers: Vec<(String, String)> =
                answers.iter().map(|(uid, error)| ((*uid).to_owned(), (*error).to_owned())).collect();
            check("Call", &[claim("a"), claim("b")], answers.iter().map(|(uid, error)| (uid, error)))
        };
        assert_eq!(checked(&[("a", ""), ("b", "")]), Ok(()));
        assert_eq!(checked(&[("a", "")]), Err("Call skipped 1 ResourceClaims".into()));
        assert_eq!(checked(&[("c", "")]), Err("Call returned result for unknown claim UID c".into()));
        let failed = "Call failed for ResourceClaim name-b: no room";
        assert_eq!(checked(&[("a", ""), ("b", "no room")]), Err(failed.into()));
    }
}
