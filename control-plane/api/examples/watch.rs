//! Lists a kind of objects over gRPC, then prints each change:
//! `cargo run --package hawser-api --example watch -- --kubeconfig <file> pods [--namespace <namespace>]`.
//!
//! Goes on where it was after the server was away, and lists again only where the history is gone.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use futures::StreamExt;
use hawser_api::{
    Client, Error,
    client::{ListOptions, WatchEvent, WatchOptions},
    grpc::{Remote, RemoteOptions},
    kinds,
    resource::{GroupVersionResource, Target},
};
use serde_json::Value;

const RETRY: Duration = Duration::from_secs(1);

struct Arguments {
    kubeconfig: PathBuf,
    resource: String,
    namespace: Option<String>,
}

fn arguments() -> Option<Arguments> {
    let (mut kubeconfig, mut resource, mut namespace) = (None, None, None);
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--kubeconfig" => kubeconfig = Some(words.next()?.into()),
            "--namespace" | "-n" => namespace = Some(words.next()?),
            flag if flag.starts_with('-') => return None,
            _ => resource = Some(word),
        }
    }
    Some(Arguments { kubeconfig: kubeconfig?, resource: resource?, namespace })
}

#[tokio::main]
async fn main() -> ExitCode {
    let Some(arguments) = arguments() else {
        eprintln!("usage: watch --kubeconfig <file> <resource> [--namespace <namespace>]");
        return ExitCode::from(2);
    };
    let outcome = async {
        let remote = Remote::new(&RemoteOptions::from_kubeconfig(&arguments.kubeconfig)?)?;
        follow(&remote, &target(&arguments)?).await
    };
    match outcome.await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Lists, then watches; returns with the first error that another try cannot mend.
async fn follow(client: &dyn Client, target: &Target) -> Result<(), Error> {
    loop {
        let list = client.list(target, &ListOptions::default()).await?;
        for object in &list.items {
            println!("{:9} {}", "LISTED", name(object));
        }
        let mut version = list.resource_version;
        while let Err(error) = watch(client, target, &mut version).await {
            if error.is_expired() {
                break;
            }
            if error.code() < 500 {
                return Err(error);
            }
            eprintln!("{error}");
            tokio::time::sleep(RETRY).await;
        }
    }
}

/// Prints changes after `version`, and keeps it at the last one seen, until the watch breaks.
async fn watch(client: &dyn Client, target: &Target, version: &mut String) -> Result<(), Error> {
    loop {
        let options = WatchOptions { resource_version: version.clone(), ..WatchOptions::default() };
        let mut events = client.watch(target, &options).await?;
        while let Some(event) = events.next().await {
            let seen = match event? {
                WatchEvent::Added { object, resource_version } => {
                    println!("{:9} {}", "ADDED", name(&object));
                    resource_version
                }
                WatchEvent::Modified { object, resource_version } => {
                    println!("{:9} {}", "MODIFIED", name(&object));
                    resource_version
                }
                WatchEvent::Deleted { object, resource_version } => {
                    println!("{:9} {}", "DELETED", name(&object));
                    resource_version
                }
                WatchEvent::Bookmark { resource_version } => resource_version,
            };
            *version = seen;
        }
    }
}

/// `namespace/name`, or the name of what has no namespace.
fn name(object: &[u8]) -> String {
    let object: Value = serde_json::from_slice(object).unwrap_or_default();
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
    if text("namespace").is_empty() {
        text("name")
    } else {
        format!("{}/{}", text("namespace"), text("name"))
    }
}

/// The kind that the resource's plural names: `pods`, or `events.events.k8s.io` where two have one name.
fn target(arguments: &Arguments) -> Result<Target, Error> {
    let (plural, group) = arguments.resource.split_once('.').unwrap_or((&arguments.resource, ""));
    let row = kinds::KINDS
        .iter()
        .find(|row| row.plural == plural && (group.is_empty() || row.group == group))
        .ok_or_else(|| Error::bad_request(format!("there is no resource {:?}", arguments.resource)))?;
    let version = row.versions.first().map_or("v1", |version| version.name);
    let resource = GroupVersionResource {
        group: row.group.into(),
        version: version.into(),
        resource: row.plural.into(),
    };
    Ok(Target::collection(resource, arguments.namespace.as_deref()))
}
