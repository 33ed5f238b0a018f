//! Lists in chunks, and answers as tables.

use anyhow::bail;
use hawser_tests::api_server::ApiServer;
use k8s_openapi::api::core::v1::{Namespace, PodTemplate};
use kube::{Api, ResourceExt, api::ListParams, core::ObjectList};
use serde_json::json;

use crate::{
    coverage::texts,
    support::{Bed, create, eventually, patch, test, test_on, unique},
};

texts! {
    "API Chunking, server should return chunks of results for list calls" =>
        should_return_chunks_of_results_for_list_calls,
    "API Chunking, server should support continue listing from the last key even if the original version has been compacted away" =>
        should_support_continue_listing_from_the_last_key_if_the_original_version_has_been_compacted_away_though_the_list_is_inconsistent,
    "API metadata HTTP return" => should_return_a_406_for_a_backend_which_does_not_implement_metadata,
}

const TEMPLATES: usize = 60;
const CHUNK: usize = 17;

async fn create_templates(bed: &Bed) -> Api<PodTemplate> {
    let templates = bed.api::<PodTemplate>();
    for number in 0..TEMPLATES {
        let template = json!({
            "metadata": { "name": format!("template-{number:04}") },
            "template": { "spec": { "containers": [{ "name": "c", "image": "registry.test/c:1" }] } },
        });
        create(&templates, template).await;
    }
    templates
}

/// What a chunk says of itself: its names, its version, and how many are left.
fn checked(chunk: &ObjectList<PodTemplate>, seen: &mut Vec<String>, version: &str) {
    assert!(chunk.items.len() <= CHUNK, "{} objects", chunk.items.len());
    assert_eq!(chunk.metadata.resource_version.as_deref(), Some(version), "all chunks are of one version");
    seen.extend(chunk.iter().map(ResourceExt::name_any));
    let remaining = chunk.metadata.remaining_item_count.unwrap_or_default();
    assert_eq!(usize::try_from(remaining).expect("a count"), TEMPLATES - seen.len());
    let has_more = chunk.metadata.continue_.as_deref().is_some_and(|token| !token.is_empty());
    assert_eq!(has_more, seen.len() < TEMPLATES);
}

/// Reads the chunks that follow, to the last.
async fn read_on(
    templates: &Api<PodTemplate>,
    mut chunk: ObjectList<PodTemplate>,
    seen: &mut Vec<String>,
    version: &str,
) {
    while let Some(token) = chunk.metadata.continue_.clone().filter(|token| !token.is_empty()) {
        chunk = templates.list(&chunked().continue_token(&token)).await.expect("the next chunk");
        checked(&chunk, seen, version);
    }
    let expected: Vec<_> = (0..TEMPLATES).map(|number| format!("template-{number:04}")).collect();
    assert_eq!(*seen, expected, "each object once, in order");
}

fn chunked() -> ListParams {
    ListParams::default().limit(u32::try_from(CHUNK).expect("a small number"))
}

/// API Chunking, server should return chunks of results for list calls
#[test]
fn should_return_chunks_of_results_for_list_calls() {
    test(async |bed| {
        let templates = create_templates(bed).await;
        let first = templates.list(&chunked()).await.expect("the first chunk");
        assert_eq!(first.items.len(), CHUNK);
        let version = first.metadata.resource_version.clone().expect("a version");
        let mut seen = Vec::new();
        checked(&first, &mut seen, &version);
        read_on(&templates, first, &mut seen, &version).await;

        let all = templates.list(&ListParams::default()).await.expect("all");
        assert_eq!(all.items.len(), TEMPLATES);
        assert_eq!(all.metadata.continue_.unwrap_or_default(), "");
    });
}

/// API Chunking, server should support continue listing from the last key even if the original version has been
/// compacted away
///
/// On a server of its own, which forgets soon.
#[test]
fn should_support_continue_listing_from_the_last_key_if_the_original_version_has_been_compacted_away_though_the_list_is_inconsistent()
 {
    let server = ApiServer::start_with(&["--etcd-compaction-interval=1"]);
    test_on(server.into(), async |bed| {
        let templates = create_templates(bed).await;
        let first = templates.list(&chunked()).await.expect("the first chunk");
        let version = first.metadata.resource_version.clone().expect("a version");
        let mut seen = Vec::new();
        checked(&first, &mut seen, &version);
        let token = first.metadata.continue_.clone().expect("there is more");

        let namespaces = bed.all::<Namespace>();
        let status = eventually("the token expires", async || {
            // Only what was written since can be compacted away.
            let note = json!({ "metadata": { "annotations": { "note": unique("n") } } });
            patch(&namespaces, &bed.namespace, note).await;
            match templates.list(&chunked().continue_token(&token)).await {
                Err(kube::Error::Api(status)) => Ok(status),
                Ok(_) => bail!("the first chunk's version is known still"),
                Err(error) => Err(error.into()),
            }
        })
        .await;
        assert_eq!((status.code, &*status.reason), (410, "Expired"), "{status:?}");
        let token = status.metadata.and_then(|metadata| metadata.continue_).expect("a token to go on with");

        let second = templates.list(&chunked().continue_token(&token)).await.expect("the list goes on");
        let newer = second.metadata.resource_version.clone().expect("a version");
        assert_ne!(newer, version, "the rest is of another version");
        checked(&second, &mut seen, &newer);
        read_on(&templates, second, &mut seen, &newer).await;
    });
}

/// API metadata HTTP return
#[test]
fn should_return_a_406_for_a_backend_which_does_not_implement_metadata() {
    test(async |bed| {
        let review = json!({
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": { "resourceAttributes": { "verb": "get", "resource": "pods" } },
        });
        let headers = [
            ("content-type", "application/json"),
            ("accept", "application/json;as=Table;v=v1;g=meta.k8s.io"),
        ];
        let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
        let answer = bed.send("POST", path, &headers, review.to_string()).await;
        assert_eq!(answer.code, 406, "{}", answer.text());
        assert_eq!(answer.json()["reason"], "NotAcceptable");
    });
}
