//! Environment variables that name the services a pod can see (`enableServiceLinks`).

use hawser_services::Service;

/// Variables for `services`: those of the pod's namespace, or only the API server's.
///
/// Services without a cluster IP have none. Names are the service's, upper case, dashes as underscores.
pub fn service_variables<'a>(services: impl IntoIterator<Item = &'a Service>) -> Vec<(String, String)> {
    let mut sorted: Vec<&Service> = services.into_iter().collect();
    sorted.sort_by_key(|service| service.key.name.clone());
    sorted.into_iter().flat_map(variables_of).collect()
}

fn variables_of(service: &Service) -> Vec<(String, String)> {
    let Some(ip) = service.cluster_ips.first() else { return Vec::new() };
    let ports = &service.ports;
    let Some(first) = ports.first() else { return Vec::new() };
    let name = upper(&service.key.name);
    let mut out = vec![
        (format!("{name}_SERVICE_HOST"), ip.to_string()),
        (format!("{name}_SERVICE_PORT"), first.port.to_string()),
    ];
    for port in ports {
        if !port.name.is_empty() {
            out.push((format!("{name}_SERVICE_PORT_{}", upper(&port.name)), port.port.to_string()));
        }
    }
    let host = if ip.is_ipv6() { format!("[{ip}]") } else { ip.to_string() };
    for (index, port) in ports.iter().enumerate() {
        let protocol = port.protocol.as_str();
        let url = format!("{}://{host}:{}", protocol.to_lowercase(), port.port);
        if index == 0 {
            out.push((format!("{name}_PORT"), url.clone()));
        }
        let prefix = format!("{name}_PORT_{}_{}", port.port, protocol);
        out.push((prefix.clone(), url));
        out.push((format!("{prefix}_PROTO"), protocol.to_lowercase()));
        out.push((format!("{prefix}_PORT"), port.port.to_string()));
        out.push((format!("{prefix}_ADDR"), ip.to_string()));
    }
    out
}

fn upper(name: &str) -> String {
    name.to_uppercase().replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::{self, ServicePort, ServiceSpec};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

    #[test]
    fn service_is_spelled_as_docker_links_were() {
        let port = ServicePort { port: 6379, name: Some("redis".into()), ..ServicePort::default() };
        let service = v1::Service {
            metadata: ObjectMeta { name: Some("redis-primary".into()), ..ObjectMeta::default() },
            spec: Some(ServiceSpec {
                cluster_ip: Some("10.0.0.11".into()),
                ports: Some(vec![port]),
                ..ServiceSpec::default()
            }),
            status: None,
        };
        let expected = [
            ("REDIS_PRIMARY_SERVICE_HOST", "10.0.0.11"),
            ("REDIS_PRIMARY_SERVICE_PORT", "6379"),
            ("REDIS_PRIMARY_SERVICE_PORT_REDIS", "6379"),
            ("REDIS_PRIMARY_PORT", "tcp://10.0.0.11:6379"),
            ("REDIS_PRIMARY_PORT_6379_TCP", "tcp://10.0.0.11:6379"),
            ("REDIS_PRIMARY_PORT_6379_TCP_PROTO", "tcp"),
            ("REDIS_PRIMARY_PORT_6379_TCP_PORT", "6379"),
            ("REDIS_PRIMARY_PORT_6379_TCP_ADDR", "10.0.0.11"),
        ];
        let variables = service_variables([&Service::from(&service)]);
        let shown: Vec<(&str, &str)> = variables.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(shown, expected);
    }
}
