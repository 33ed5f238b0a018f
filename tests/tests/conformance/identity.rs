//! Who somebody is and what they may: certificate requests, reviews of access, and the issuer of tokens.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use k8s_openapi::api::{
    authorization::v1::{LocalSubjectAccessReview, SubjectAccessReview},
    certificates::v1::CertificateSigningRequest,
    core::v1::ServiceAccount,
    rbac::v1::RoleBinding,
};
use kube::{
    ResourceExt,
    api::{ListParams, Patch, PatchParams, PostParams},
    discovery::Scope,
};
use rcgen::{CertificateParams, KeyPair};
use ring::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use serde_json::{Value, json};

use crate::{
    coverage::texts,
    operations::Operations,
    service_accounts::token,
    support::{Bed, create, delete, object, test, unique},
};

texts! {
    "CertificateSigningRequest API" => should_support_csr_api_operations,
    "SubjectReview, API Operations" => should_support_subjectreview_api_operations,
    "OIDC Discovery (ServiceAccountIssuerDiscovery)" =>
        should_support_oidc_discovery_of_service_account_issuer,
}

/// CertificateSigningRequest API
#[test]
fn should_support_csr_api_operations() {
    let signer = format!("conformance.example.com/{}", unique("signer"));
    let key = KeyPair::generate().expect("a key is made");
    let params = CertificateParams::new(["conformance.example.com".to_owned()]).expect("a name");
    let request = params.serialize_request(&key).expect("a request").pem().expect("the request as text");
    let certificate = params.self_signed(&key).expect("a certificate").pem();
    let base64 = |text: String| base64::engine::general_purpose::STANDARD.encode(text);
    let requests = Operations {
        group: "certificates.k8s.io",
        version: "v1",
        kind: "CertificateSigningRequest",
        plural: "certificatesigningrequests",
        scope: Scope::Cluster,
        subresources: &["approval", "status"],
        object: json!({ "spec": {
            "request": base64(request),
            "signerName": signer,
            "expirationSeconds": 3600,
            "usages": ["digital signature", "key encipherment", "server auth"],
        } }),
    };
    test(async |bed| {
        requests.check(bed).await;
        let name = unique("request");
        let made = requests.api(bed).create(&PostParams::default(), &requests.named(&name, &name)).await;
        assert_eq!(made.expect("created").data["spec"]["expirationSeconds"], 3600);
        let of_signer = ListParams::default().fields(&format!("spec.signerName={signer}"));
        let found = bed.all::<CertificateSigningRequest>().list(&of_signer).await.expect("listed");
        assert_eq!(found.iter().map(ResourceExt::name_any).collect::<Vec<_>>(), [&*name]);
        approval(bed, &name).await;
        status(bed, &name, &base64(certificate)).await;
        delete(&bed.all::<CertificateSigningRequest>(), &name).await;
    });
}

fn condition(kind: &str) -> Value {
    json!({ "type": kind, "status": "True", "reason": "Conformance", "message": "by a test" })
}

fn conditions(request: &CertificateSigningRequest) -> Vec<&str> {
    let conditions = request.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().map(|condition| condition.type_.as_str()).collect()
}

/// Reads, patches and updates what says whether the request is approved.
async fn approval(bed: &Bed, name: &str) {
    let requests = bed.all::<CertificateSigningRequest>();
    let read = requests.get_subresource("approval", name).await.expect("the approval is read");
    assert_eq!(read.name_any(), name);
    let change = Patch::Merge(json!({ "status": { "conditions": [condition("ApprovalPatch")] } }));
    let patched = requests.patch_subresource("approval", name, &PatchParams::default(), &change).await;
    let mut patched = patched.expect("patched");
    assert_eq!(conditions(&patched), ["ApprovalPatch"]);

    let list = patched.status.get_or_insert_default().conditions.get_or_insert_default();
    list.push(object(condition("Approved")));
    let updated = requests.replace_subresource("approval", name, &PostParams::default(), &patched).await;
    assert_eq!(conditions(&updated.expect("approved")), ["ApprovalPatch", "Approved"]);
}

/// Reads, patches and updates what the signer writes.
async fn status(bed: &Bed, name: &str, certificate: &str) {
    let requests = bed.all::<CertificateSigningRequest>();
    let read = requests.get_status(name).await.expect("the status is read");
    assert_eq!(conditions(&read), ["ApprovalPatch", "Approved"]);
    let change = Patch::Merge(json!({ "status": { "certificate": certificate } }));
    let mut patched = requests.patch_status(name, &PatchParams::default(), &change).await.expect("patched");
    assert_eq!(json!(patched)["status"]["certificate"], certificate);

    let list = patched.status.get_or_insert_default().conditions.get_or_insert_default();
    list.push(object(condition("StatusUpdate")));
    let updated = requests.replace_status(name, &PostParams::default(), &patched).await.expect("updated");
    assert_eq!(conditions(&updated), ["ApprovalPatch", "Approved", "StatusUpdate"]);
    assert_eq!(json!(updated)["status"]["certificate"], certificate);
}

/// SubjectReview, API Operations
#[test]
fn should_support_subjectreview_api_operations() {
    test(async |bed| {
        create(&bed.api::<ServiceAccount>(), json!({ "metadata": { "name": "account" } })).await;
        assert!(!reviews_agree(bed, "account").await, "an account may nothing at first");
        let binding = json!({
            "metadata": { "name": "view" },
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view" },
            "subjects": [{ "kind": "ServiceAccount", "name": "account" }],
        });
        create(&bed.api::<RoleBinding>(), binding).await;
        assert!(reviews_agree(bed, "account").await, "the role lets it read");
    });
}

/// Whether both reviews and a request in the account's name say that it may list ConfigMaps.
async fn reviews_agree(bed: &Bed, account: &str) -> bool {
    let namespace = &bed.namespace;
    let user = format!("system:serviceaccount:{namespace}:{account}");
    let groups = [
        "system:authenticated".to_owned(),
        "system:serviceaccounts".to_owned(),
        format!("system:serviceaccounts:{namespace}"),
    ];
    let spec = json!({
        "user": user,
        "groups": groups,
        "resourceAttributes": { "verb": "list", "resource": "configmaps", "version": "v1", "namespace": namespace },
    });
    let review = create(&bed.all::<SubjectAccessReview>(), json!({ "spec": spec })).await;
    let local = json!({ "metadata": { "namespace": namespace }, "spec": spec });
    let local = create(&bed.api::<LocalSubjectAccessReview>(), local).await;

    let mut headers = vec![("impersonate-user", user.as_str())];
    headers.extend(groups.iter().map(|group| ("impersonate-group", group.as_str())));
    let path = format!("/api/v1/namespaces/{namespace}/configmaps");
    let answer = bed.send("GET", &path, &headers, "").await;
    let allowed = answer.code == 200;
    assert!(allowed || answer.code == 403, "{}", answer.text());
    assert_eq!(review.status.map(|status| status.allowed), Some(allowed));
    assert_eq!(local.status.map(|status| status.allowed), Some(allowed));
    allowed
}

/// OIDC Discovery (ServiceAccountIssuerDiscovery)
///
/// The test does what the text has a pod do: it finds the issuer's keys, and verifies an account's token with them.
#[test]
fn should_support_oidc_discovery_of_service_account_issuer() {
    test(async |bed| {
        let token = token(bed, "default").await;
        let user = format!("system:serviceaccount:{}:default", bed.namespace);
        // Every account may read these.
        let headers = [("impersonate-user", user.as_str()), ("impersonate-group", "system:serviceaccounts")];
        let answer = bed.send("GET", "/.well-known/openid-configuration", &headers, "").await;
        assert_eq!(answer.code, 200, "{}", answer.text());
        let configuration = answer.json();
        let keys = configuration["jwks_uri"].as_str().expect("where the keys are");
        assert!(keys.ends_with("/openid/v1/jwks"), "{configuration}");
        let answer = bed.send("GET", "/openid/v1/jwks", &headers, "").await;
        assert_eq!(answer.code, 200, "{}", answer.text());

        let (signed, signature) = token.rsplit_once('.').expect("a signature");
        let (header, claims) = signed.split_once('.').expect("a header and claims");
        let (header, claims) = (decoded(header), decoded(claims));
        assert_eq!((&claims["iss"], &claims["sub"]), (&configuration["issuer"], &json!(user)));
        let algorithms =
            configuration["id_token_signing_alg_values_supported"].as_array().expect("algorithms");
        assert!(algorithms.contains(&header["alg"]), "{algorithms:?} lack {header}");
        let point = point(&answer.json(), &header["kid"]);
        let signature = URL_SAFE_NO_PAD.decode(signature).expect("base64");
        let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point);
        key.verify(signed.as_bytes(), &signature).expect("the key that is published signed the token");
    });
}

/// A part of a token.
fn decoded(part: &str) -> Value {
    let text = URL_SAFE_NO_PAD.decode(part).expect("base64");
    serde_json::from_slice(&text).expect("JSON")
}

/// The key of that name as an uncompressed point of the curve.
fn point(keys: &Value, id: &Value) -> Vec<u8> {
    let keys = keys["keys"].as_array().expect("keys");
    let key = keys.iter().find(|key| key["kid"] == *id).expect("the token's key is published");
    assert_eq!((&key["kty"], &key["crv"]), (&json!("EC"), &json!("P-256")));
    let coordinate = |name: &str| {
        let text = key[name].as_str().expect("a coordinate");
        URL_SAFE_NO_PAD.decode(text).expect("base64")
    };
    [vec![4], coordinate("x"), coordinate("y")].concat()
}
