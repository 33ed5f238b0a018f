//! The files that the kubelet writes for a pod: `/etc/hosts`, `/etc/resolv.conf`, `/etc/hostname`.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::Path;

use k8s_openapi::api::core::v1::HostAlias;

use super::ConfigError;
use crate::config::Config;
use crate::pod::DesiredPod;

/// Limits of the resolver (glibc), which upstream applies too.
const MAX_NAMESERVERS: usize = 3;
const MAX_SEARCHES: usize = 32;
const MAX_HOSTNAME: usize = 63;

/// Writes the pod's files; existing ones are replaced only when they differ.
pub fn write_pod_files(config: &Config, pod: &DesiredPod, ips: &[IpAddr]) -> Result<(), ConfigError> {
    let dir = config.pod_dir(pod.uid());
    let failed = |source: io::Error| ConfigError::Io { path: dir.clone(), source };
    fs::create_dir_all(&dir).map_err(failed)?;
    let host_resolv_conf = fs::read_to_string(&config.resolv_conf).unwrap_or_default();
    let hosts = match pod.host_network() {
        true => {
            fs::read_to_string("/etc/hosts").unwrap_or_default()
                + &aliases(pod.spec().host_aliases.as_deref())
        }
        false => hosts_file(pod, ips, &config.cluster_domain),
    };
    let files = [
        ("etc-hosts", hosts),
        ("hostname", format!("{}\n", hostname(pod, config))),
        ("resolv.conf", resolv_conf(pod, config, &host_resolv_conf)),
    ];
    for (name, content) in files {
        write_if_changed(&dir.join(name), &content).map_err(failed)?;
    }
    Ok(())
}

/// In place, not by rename: running containers have the file itself mounted.
fn write_if_changed(path: &Path, content: &str) -> io::Result<()> {
    if fs::read_to_string(path).is_ok_and(|known| known == content) {
        return Ok(());
    }
    fs::write(path, content)
}

/// The name in the pod's UTS namespace.
pub fn hostname(pod: &DesiredPod, config: &Config) -> String {
    if pod.host_network() {
        return config.hostname.clone();
    }
    let spec = pod.spec();
    if let Some(name) = spec.hostname_override.as_deref().filter(|n| !n.is_empty()) {
        return name.to_owned();
    }
    let name = spec.hostname.as_deref().filter(|n| !n.is_empty()).unwrap_or(pod.name());
    let short = name.get(..MAX_HOSTNAME).unwrap_or(name).trim_end_matches(['-', '.']);
    match domain(pod, &config.cluster_domain) {
        Some(domain) if spec.set_hostname_as_fqdn == Some(true) => format!("{short}.{domain}"),
        _ => short.to_owned(),
    }
}

fn domain(pod: &DesiredPod, cluster_domain: &str) -> Option<String> {
    let subdomain = pod.spec().subdomain.as_deref().filter(|s| !s.is_empty())?;
    Some(format!("{subdomain}.{}.svc.{cluster_domain}", pod.namespace()))
}

fn hosts_file(pod: &DesiredPod, ips: &[IpAddr], cluster_domain: &str) -> String {
    let mut out = String::from("# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n");
    out.push_str("::1\tlocalhost ip6-localhost ip6-loopback\n");
    out.push_str(
        "fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n",
    );
    let spec = pod.spec();
    let name = spec.hostname.as_deref().filter(|n| !n.is_empty()).unwrap_or(pod.name());
    for ip in ips {
        match domain(pod, cluster_domain) {
            Some(domain) => out.push_str(&format!("{ip}\t{name}.{domain}\t{name}\n")),
            None => out.push_str(&format!("{ip}\t{name}\n")),
        }
    }
    out + &aliases(spec.host_aliases.as_deref())
}

fn aliases(list: Option<&[HostAlias]>) -> String {
    let list = list.unwrap_or_default();
    if list.is_empty() {
        return String::new();
    }
    let lines = list.iter().map(|a| {
        format!("{}\t{}\n", a.ip, a.hostnames.iter().flatten().cloned().collect::<Vec<_>>().join("\t"))
    });
    format!("\n# Entries added by HostAliases.\n{}", lines.collect::<String>())
}

#[derive(Default)]
struct Resolver {
    nameservers: Vec<String>,
    searches: Vec<String>,
    options: Vec<String>,
}

fn resolv_conf(pod: &DesiredPod, config: &Config, host: &str) -> String {
    let spec = pod.spec();
    let policy = spec.dns_policy.as_deref().unwrap_or("ClusterFirst");
    // ClusterFirst on the host's network means the host's resolver; ClusterFirstWithHostNet the cluster's.
    let cluster = match policy {
        "ClusterFirst" => !pod.host_network(),
        "ClusterFirstWithHostNet" => true,
        _ => false,
    };
    let host = parse(host);
    let mut resolver = match (policy, cluster && !config.cluster_dns.is_empty()) {
        ("None", _) => Resolver::default(),
        (_, true) => cluster_resolver(pod, config, host.searches),
        (_, false) => host,
    };
    if let Some(own) = &spec.dns_config {
        append_new(&mut resolver.nameservers, own.nameservers.iter().flatten());
        append_new(&mut resolver.searches, own.searches.iter().flatten());
        for option in own.options.iter().flatten() {
            let Some(name) = &option.name else { continue };
            let is_same = |known: &String| known.split(':').next() == Some(name.as_str());
            resolver.options.retain(|known| !is_same(known));
            resolver.options.push(match &option.value {
                Some(value) => format!("{name}:{value}"),
                None => name.clone(),
            });
        }
    }
    render(resolver)
}

fn cluster_resolver(pod: &DesiredPod, config: &Config, host_searches: Vec<String>) -> Resolver {
    let domain = &config.cluster_domain;
    let mut searches =
        vec![format!("{}.svc.{domain}", pod.namespace()), format!("svc.{domain}"), domain.clone()];
    append_new(&mut searches, host_searches.iter());
    Resolver {
        nameservers: config.cluster_dns.iter().map(ToString::to_string).collect(),
        searches,
        options: vec!["ndots:5".into()],
    }
}

fn append_new<'a>(list: &mut Vec<String>, more: impl Iterator<Item = &'a String>) {
    for item in more {
        if !list.contains(item) {
            list.push(item.clone());
        }
    }
}

fn parse(text: &str) -> Resolver {
    let mut resolver = Resolver::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => resolver.nameservers.extend(words.next().map(str::to_owned)),
            // The last search line counts.
            Some("search") => resolver.searches = words.map(str::to_owned).collect(),
            Some("options") => resolver.options.extend(words.map(str::to_owned)),
            _ => {}
        }
    }
    resolver
}

fn render(resolver: Resolver) -> String {
    let mut out = String::new();
    if !resolver.searches.is_empty() {
        let searches: Vec<_> = resolver.searches.into_iter().take(MAX_SEARCHES).collect();
        out.push_str(&format!("search {}\n", searches.join(" ")));
    }
    for server in resolver.nameservers.iter().take(MAX_NAMESERVERS) {
        out.push_str(&format!("nameserver {server}\n"));
    }
    if !resolver.options.is_empty() {
        out.push_str(&format!("options {}\n", resolver.options.join(" ")));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::testing::{container, pod, spec};
    use k8s_openapi::api::core::v1::{PodDNSConfig, PodDNSConfigOption, PodSpec};

    const HOST: &str = "nameserver 192.0.2.53\nsearch example.test\noptions edns0\n";

    fn rendered(change: impl FnOnce(&mut PodSpec)) -> String {
        let mut config = Config::new("n1", "10.0.0.1".parse().expect("address"), "/tmp");
        config.cluster_dns = vec!["10.96.0.10".parse().expect("address")];
        let mut spec = spec("Always", vec![], vec![container("c")]);
        change(&mut spec);
        resolv_conf(&pod(spec), &config, HOST)
    }

    #[test]
    fn dns_policy_chooses_the_resolver() {
        let cluster = "search default.svc.cluster.local svc.cluster.local cluster.local example.test\n\
                       nameserver 10.96.0.10\noptions ndots:5\n";
        let host = "search example.test\nnameserver 192.0.2.53\noptions edns0\n";
        assert_eq!(rendered(|_| {}), cluster);
        assert_eq!(rendered(|s| s.dns_policy = Some("Default".into())), host);
        assert_eq!(rendered(|s| s.host_network = Some(true)), host);
        let with_host_net = rendered(|s| {
            s.host_network = Some(true);
            s.dns_policy = Some("ClusterFirstWithHostNet".into());
        });
        assert_eq!(with_host_net, cluster);
        let own = rendered(|s| {
            s.dns_policy = Some("None".into());
            s.dns_config = Some(PodDNSConfig {
                nameservers: Some(vec!["1.1.1.1".into()]),
                searches: Some(vec!["a.test".into()]),
                options: Some(vec![PodDNSConfigOption {
                    name: Some("ndots".into()),
                    value: Some("2".into()),
                }]),
            });
        });
        assert_eq!(own, "search a.test\nnameserver 1.1.1.1\noptions ndots:2\n");
    }

    #[test]
    fn hosts_file_names_the_pod_and_its_aliases() {
        let mut spec = spec("Always", vec![], vec![container("c")]);
        spec.subdomain = Some("sub".into());
        spec.host_aliases = Some(vec![HostAlias {
            ip: "10.9.9.9".into(),
            hostnames: Some(vec!["db".into(), "db.test".into()]),
        }]);
        let text = hosts_file(&pod(spec), &["10.1.0.7".parse().expect("address")], "cluster.local");
        assert!(text.contains("10.1.0.7\tweb.sub.default.svc.cluster.local\tweb\n"), "{text}");
        assert!(text.ends_with("10.9.9.9\tdb\tdb.test\n"), "{text}");
    }
}
