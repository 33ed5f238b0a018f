//! Objects for the table tests of the pure parts.

use k8s_openapi::{
    api::core::v1::{
        Container, ContainerPort, Pod, PodCondition, PodIP, PodSpec, PodStatus, Service, ServicePort,
        ServiceSpec,
    },
    apimachinery::pkg::util::intstr::IntOrString,
};

/// A service on port 80 that names its target port.
pub(crate) fn service(name: &str, target: &str) -> Service {
    let mut service = Service::default();
    service.metadata.name = Some(name.into());
    service.metadata.namespace = Some("default".into());
    service.metadata.uid = Some(format!("uid-{name}"));
    service.spec = Some(ServiceSpec {
        cluster_ip: Some("10.96.0.10".into()),
        ip_families: Some(vec!["IPv4".into()]),
        selector: Some([("app".to_owned(), name.to_owned())].into()),
        ports: Some(vec![ServicePort {
            port: 80,
            target_port: Some(IntOrString::String(target.into())),
            ..ServicePort::default()
        }]),
        ..ServiceSpec::default()
    });
    service
}

/// A ready pod with a port `http`.
pub(crate) fn pod(name: &str, address: &str, port: i32) -> Pod {
    let mut pod = Pod::default();
    pod.metadata.name = Some(name.into());
    pod.metadata.namespace = Some("default".into());
    pod.metadata.uid = Some(format!("uid-{name}"));
    pod.spec = Some(PodSpec {
        node_name: Some("n1".into()),
        containers: vec![Container {
            ports: Some(vec![ContainerPort {
                name: Some("http".into()),
                container_port: port,
                ..ContainerPort::default()
            }]),
            ..Container::default()
        }],
        ..PodSpec::default()
    });
    pod.status = Some(PodStatus {
        phase: Some("Running".into()),
        pod_ips: Some(vec![PodIP { ip: address.into() }]),
        conditions: Some(vec![PodCondition {
            type_: "Ready".into(),
            status: "True".into(),
            ..PodCondition::default()
        }]),
        ..PodStatus::default()
    });
    pod
}
