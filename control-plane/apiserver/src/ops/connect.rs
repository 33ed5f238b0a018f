//! Streams to a pod: where its kubelet is, and what to ask there.

use std::net::{IpAddr, SocketAddr};

use hawser_api::{Error, error::Reason};
use serde_json::Value;

use super::Call;
use crate::{
    ApiServer,
    admission::{Operation, Request},
    auth::Attributes,
};

const KUBELET_PORT: u64 = 10_250;

/// Which stream of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamKind {
    Log,
    Exec,
    Attach,
    PortForward,
}

impl StreamKind {
    pub fn of(subresource: &str) -> Option<Self> {
        Some(match subresource {
            "log" => Self::Log,
            "exec" => Self::Exec,
            "attach" => Self::Attach,
            "portforward" => Self::PortForward,
            _ => return None,
        })
    }
}

/// A node's kubelet, and where it listens.
#[derive(Debug)]
pub struct Kubelet {
    pub node: String,
    pub address: SocketAddr,
}

/// A kubelet to connect to, and the path and query of the request.
#[derive(Debug)]
pub struct KubeletEndpoint {
    pub kubelet: Kubelet,
    pub path_and_query: String,
}

/// Query parameters, decoded, in order.
pub(super) type Parameters = [(String, String)];

impl ApiServer {
    /// Finds the kubelet of a pod and translates the request for it; `None` for the log of a pod that has no node yet,
    /// which is an empty one.
    ///
    /// Whoever may only read may not open a stream that does more, though WebSockets begin with a GET (upstream since
    /// v1.35, kubernetes/kubernetes#133515).
    pub async fn connect(
        &self,
        call: &Call,
        kind: StreamKind,
        parameters: &Parameters,
    ) -> Result<Option<KubeletEndpoint>, Error> {
        if kind != StreamKind::Log {
            let create = Attributes { verb: "create".into(), ..call.pass.attributes().clone() };
            self.chain().authorize(call.pass.user(), &create)?;
        }
        let (namespace, name) = call.place()?;
        let pod = self.registry().get(&call.pass, &call.resource, (namespace, name), "").await?.value();
        let mut shown = pod.clone();
        let request = Request {
            user: call.pass.user(),
            operation: Operation::Connect,
            resource: &call.resource,
            subresource: call.subresource(),
            namespace,
            name,
            dry_run: false,
            object: &mut shown,
            old: Some(&pod),
        };
        self.registry().admit_connect(&request).await?;
        let path_and_query = kubelet_path(&pod, (namespace, name), kind, parameters)?;
        match pod["spec"]["nodeName"].as_str().filter(|node| !node.is_empty()) {
            Some(node) => Ok(Some(KubeletEndpoint { kubelet: self.kubelet(node)?, path_and_query })),
            None if kind == StreamKind::Log => Ok(None),
            None => Err(Error::bad_request(format!("pod {name} does not have a host assigned"))),
        }
    }

    /// Where a node's kubelet listens: its internal address, and the port that it registered.
    pub(super) fn kubelet(&self, node: &str) -> Result<Kubelet, Error> {
        let nodes = self.registry().resources().builtin("", "v1", "nodes");
        let node_object = nodes.cache()?.get("", node).ok_or_else(|| nodes.not_found(node))?.value();
        let addresses = node_object["status"]["addresses"].as_array();
        let of_type = |wanted: &str| {
            addresses
                .into_iter()
                .flatten()
                .filter(|address| address["type"] == wanted)
                .find_map(|address| address["address"].as_str()?.parse::<IpAddr>().ok())
        };
        let address = of_type("InternalIP").or_else(|| of_type("ExternalIP")).ok_or_else(|| {
            Error::internal(format!(
                "no preferred addresses found; known addresses: {:?}",
                addresses.cloned().unwrap_or_default()
            ))
        })?;
        let port = node_object["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"]
            .as_u64()
            .unwrap_or(KUBELET_PORT);
        let port = u16::try_from(port).unwrap_or(KUBELET_PORT as u16);
        Ok(Kubelet { node: node.to_owned(), address: SocketAddr::new(address, port) })
    }
}

/// The kubelet's path for a stream: the API's parameters under the kubelet's names.
fn kubelet_path(
    pod: &Value,
    (namespace, name): (&str, &str),
    kind: StreamKind,
    parameters: &Parameters,
) -> Result<String, Error> {
    let container = || container_of(pod, parameters);
    let (path, rename): (String, &[(&str, &str)]) = match kind {
        StreamKind::Log => (
            format!("/containerLogs/{namespace}/{name}/{}", container()?),
            &[
                ("follow", "follow"),
                ("previous", "previous"),
                ("sinceSeconds", "sinceSeconds"),
                ("sinceTime", "sinceTime"),
                ("timestamps", "timestamps"),
                ("tailLines", "tailLines"),
                ("limitBytes", "limitBytes"),
                ("stream", "stream"),
            ],
        ),
        StreamKind::Exec => (
            format!("/exec/{namespace}/{name}/{}", container()?),
            &[
                ("command", "command"),
                ("stdin", "input"),
                ("stdout", "output"),
                ("stderr", "error"),
                ("tty", "tty"),
            ],
        ),
        StreamKind::Attach => (
            format!("/attach/{namespace}/{name}/{}", container()?),
            &[("stdin", "input"), ("stdout", "output"), ("stderr", "error"), ("tty", "tty")],
        ),
        StreamKind::PortForward => (format!("/portForward/{namespace}/{name}"), &[("ports", "port")]),
    };
    let mut query = form_urlencoded::Serializer::new(String::new());
    for (parameter, value) in parameters {
        let Some((_, kubelets)) = rename.iter().find(|(ours, _)| ours == parameter) else { continue };
        match *kubelets {
            "input" | "output" | "error" | "tty" if !is_true(value) => {}
            "input" | "output" | "error" | "tty" => drop(query.append_pair(kubelets, "1")),
            "port" => {
                for port in value.split(',') {
                    query.append_pair(kubelets, port);
                }
            }
            _ => drop(query.append_pair(kubelets, value)),
        }
    }
    let query = query.finish();
    Ok(if query.is_empty() { path } else { format!("{path}?{query}") })
}

pub fn is_true(value: &str) -> bool {
    // `?watch` without a value counts as true, as upstream's conversion of query parameters has it.
    value != "0" && !value.eq_ignore_ascii_case("false")
}

/// The container that the request names, or the only one, or the one that the pod says is its main one.
fn container_of(pod: &Value, parameters: &Parameters) -> Result<String, Error> {
    let name = pod["metadata"]["name"].as_str().unwrap_or_default();
    let names = |field: &str| {
        let containers = pod["spec"][field].as_array().into_iter().flatten();
        containers.filter_map(|container| container["name"].as_str()).map(str::to_owned).collect::<Vec<_>>()
    };
    let (main, init, ephemeral) =
        (names("containers"), names("initContainers"), names("ephemeralContainers"));
    let named =
        parameters.iter().find(|(parameter, _)| parameter == "container").map(|(_, value)| value.as_str());
    if let Some(named) = named.filter(|named| !named.is_empty()) {
        if [&main, &init, &ephemeral].iter().any(|names| names.iter().any(|known| known == named)) {
            return Ok(named.to_owned());
        }
        return Err(Error::bad_request(format!("container {named} is not valid for pod {name}")));
    }
    match main.as_slice() {
        [only] => Ok(only.clone()),
        _ => {
            let default = pod["metadata"]["annotations"]["kubectl.kubernetes.io/default-container"].as_str();
            if let Some(default) = default.filter(|default| main.iter().any(|known| known == default)) {
                return Ok(default.to_owned());
            }
            let mut text = format!(
                "a container name must be specified for pod {name}, choose one of: [{}]",
                main.join(" ")
            );
            if !init.is_empty() {
                text += &format!(" or one of the init containers: [{}]", init.join(" "));
            }
            Err(Error::new(Reason::BadRequest, text))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(kind: StreamKind, parameters: &[(&str, &str)], expected: &str) {
        let pod = json!({ "metadata": { "name": "web" }, "spec": { "containers": [{ "name": "app" }] } });
        let parameters: Vec<_> =
            parameters.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        let path = kubelet_path(&pod, ("shop", "web"), kind, &parameters);
        assert_eq!(path.unwrap_or_else(|error| error.to_string()), expected);
    }

    #[test]
    fn parameters_get_the_kubelets_names() {
        check(
            StreamKind::Log,
            &[("follow", "true"), ("tailLines", "5"), ("insecureSkipTLSVerifyBackend", "true")],
            "/containerLogs/shop/web/app?follow=true&tailLines=5",
        );
        check(
            StreamKind::Exec,
            &[
                ("command", "sh"),
                ("command", "-c"),
                ("container", "app"),
                ("stdin", "true"),
                ("stderr", "false"),
                ("tty", "1"),
            ],
            "/exec/shop/web/app?command=sh&command=-c&input=1&tty=1",
        );
        check(StreamKind::Attach, &[("stdout", "true")], "/attach/shop/web/app?output=1");
        check(StreamKind::PortForward, &[("ports", "80,81")], "/portForward/shop/web?port=80&port=81");
        check(StreamKind::Log, &[("container", "db")], "container db is not valid for pod web");
    }
}
