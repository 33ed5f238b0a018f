//! The paths that the API server serves, and what each accepts and returns: the common model of v2 and v3.

use hawser_api::{
    kinds::{Kind, Subresource},
    schema::{self, Type},
};

/// One path with its operations.
pub(super) struct PathItem {
    pub(super) path: String,
    pub(super) parameters: Vec<Parameter>,
    pub(super) operations: Vec<Operation>,
}

pub(super) struct Operation {
    pub(super) method: &'static str,
    pub(super) id: String,
    pub(super) tag: String,
    /// `x-kubernetes-action`; `None` for discovery.
    pub(super) action: Option<&'static str>,
    pub(super) gvk: Option<Gvk>,
    pub(super) parameters: Vec<Parameter>,
    pub(super) body: Option<Body>,
    pub(super) answers: Vec<(u16, Answer)>,
    pub(super) produces: Produces,
}

#[derive(Clone)]
pub(super) struct Gvk {
    pub(super) group: String,
    pub(super) version: String,
    pub(super) kind: String,
}

pub(super) struct Body {
    pub(super) ty: &'static Type,
    pub(super) required: bool,
    /// The content types of patches; any other body is `*/*`.
    pub(super) is_patch: bool,
}

#[derive(Clone, Copy)]
pub(super) enum Answer {
    Object(&'static Type),
    Text,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Produces {
    Objects,
    /// Objects, or a stream of changes.
    Watchable,
    /// A stream of bytes.
    Anything,
    /// Logs: text, and objects as upstream publishes it.
    Text,
}

impl Produces {
    pub(super) fn media_types(self) -> &'static [&'static str] {
        const WATCHABLE: [&str; 5] = [
            "application/json",
            "application/yaml",
            "application/vnd.kubernetes.protobuf",
            "application/json;stream=watch",
            "application/vnd.kubernetes.protobuf;stream=watch",
        ];
        match self {
            Self::Objects => &WATCHABLE[..3],
            Self::Watchable => &WATCHABLE,
            Self::Anything => &["*/*"],
            Self::Text => {
                &["text/plain", "application/json", "application/yaml", "application/vnd.kubernetes.protobuf"]
            }
        }
    }
}

pub(super) const PATCH_TYPES: [&str; 4] = [
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
];

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Parameter {
    pub(super) name: &'static str,
    pub(super) in_path: bool,
}

impl Parameter {
    pub(super) fn ty(self) -> &'static str {
        match self.name {
            "gracePeriodSeconds" | "limit" | "limitBytes" | "ports" | "sinceSeconds" | "tailLines"
            | "timeoutSeconds" => "integer",
            "allowWatchBookmarks"
            | "follow"
            | "force"
            | "ignoreStoreReadErrorWithClusterBreakingPotential"
            | "insecureSkipTLSVerifyBackend"
            | "orphanDependents"
            | "previous"
            | "sendInitialEvents"
            | "stderr"
            | "stdin"
            | "stdout"
            | "timestamps"
            | "tty"
            | "watch" => "boolean",
            _ => "string",
        }
    }
}

fn query(names: &[&'static str]) -> Vec<Parameter> {
    names.iter().map(|name| Parameter { name, in_path: false }).collect()
}

const LIST: [&str; 11] = [
    "allowWatchBookmarks",
    "continue",
    "fieldSelector",
    "labelSelector",
    "limit",
    "resourceVersion",
    "resourceVersionMatch",
    "sendInitialEvents",
    "shardSelector",
    "timeoutSeconds",
    "watch",
];
const DELETE: [&str; 5] = [
    "dryRun",
    "gracePeriodSeconds",
    "ignoreStoreReadErrorWithClusterBreakingPotential",
    "orphanDependents",
    "propagationPolicy",
];
const DELETE_COLLECTION: [&str; 14] = [
    "continue",
    "dryRun",
    "fieldSelector",
    "gracePeriodSeconds",
    "ignoreStoreReadErrorWithClusterBreakingPotential",
    "labelSelector",
    "limit",
    "orphanDependents",
    "propagationPolicy",
    "resourceVersion",
    "resourceVersionMatch",
    "sendInitialEvents",
    "shardSelector",
    "timeoutSeconds",
];
const WRITE: [&str; 3] = ["dryRun", "fieldManager", "fieldValidation"];
const PATCH: [&str; 4] = ["dryRun", "fieldManager", "fieldValidation", "force"];

/// Kinds whose deletion answers with the object rather than with a Status.
const RETURNED_WHEN_DELETED: [&str; 17] = [
    "CSIDriver",
    "CSINode",
    "DeviceClass",
    "DeviceTaintRule",
    "PersistentVolume",
    "PersistentVolumeClaim",
    "Pod",
    "PodTemplate",
    "ResourceClaim",
    "ResourceClaimTemplate",
    "ResourceQuota",
    "ResourceSlice",
    "Service",
    "ServiceAccount",
    "StorageClass",
    "VolumeAttachment",
    "VolumeAttributesClass",
];

const METHODS: [&str; 7] = ["delete", "get", "head", "options", "patch", "post", "put"];

/// The documents of v3, by path: each group, each version of it.
pub(super) fn documents(kinds: &[Kind]) -> Vec<String> {
    let mut documents = vec!["api".to_owned(), "apis".to_owned()];
    for kind in kinds {
        if !kind.group.is_empty() {
            documents.push(format!("apis/{}", kind.group));
        }
        for version in kind.versions.iter().filter(|version| version.served) {
            documents.push(root(kind.group, version.name));
        }
    }
    documents.sort();
    documents.dedup();
    documents
}

/// `api/v1`, `apis/apps/v1`.
fn root(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}

/// The paths of one document.
pub(super) fn items(kinds: &[Kind], document: &str) -> Vec<PathItem> {
    let parts: Vec<&str> = document.split('/').collect();
    let meta = |kind| schema::type_of("", "v1", kind).or_else(|| named_meta(kind));
    let discovery = match parts.as_slice() {
        ["api"] => Some(("getCoreAPIVersions".to_owned(), "core".to_owned(), meta("APIVersions"))),
        ["apis"] => Some(("getAPIVersions".to_owned(), "apis".to_owned(), meta("APIGroupList"))),
        ["apis", group] => {
            Some((format!("get{}APIGroup", group_id(group)), lower(&group_id(group)), meta("APIGroup")))
        }
        _ => None,
    };
    if let Some((id, tag, Some(ty))) = discovery {
        return vec![discovery_item(document, id, tag, ty)];
    }
    let (group, version) = match parts.as_slice() {
        ["api", version] => ("", *version),
        ["apis", group, version] => (*group, *version),
        _ => return Vec::new(),
    };
    let scope = Scope { group, version, id: format!("{}{}", group_id(group), capital(version)) };
    let mut items = Vec::new();
    if let Some(ty) = meta("APIResourceList") {
        items.push(discovery_item(document, format!("get{}APIResources", scope.id), scope.tag(), ty));
    }
    for kind in kinds.iter().filter(|kind| kind.group == group && kind.serves(version)) {
        scope.kind_items(kind, &mut items);
    }
    items
}

fn named_meta(kind: &str) -> Option<&'static Type> {
    schema::type_named(&format!("k8s.io.apimachinery.pkg.apis.meta.v1.{kind}"))
}

fn discovery_item(document: &str, id: String, tag: String, ty: &'static Type) -> PathItem {
    let get = Operation {
        method: "get",
        id,
        tag,
        action: None,
        gvk: None,
        parameters: Vec::new(),
        body: None,
        answers: vec![(200, Answer::Object(ty))],
        produces: Produces::Objects,
    };
    PathItem { path: format!("/{document}/"), parameters: Vec::new(), operations: vec![get] }
}

/// `Apps`, `RbacAuthorization`; `Core` for the group without a name.
fn group_id(group: &str) -> String {
    let name = group.strip_suffix(".k8s.io").unwrap_or(group);
    if name.is_empty() { "Core".to_owned() } else { name.split('.').map(capital).collect() }
}

fn capital(word: &str) -> String {
    let mut chars = word.chars();
    chars.next().map(|first| first.to_ascii_uppercase()).into_iter().chain(chars).collect()
}

fn lower(word: &str) -> String {
    let mut chars = word.chars();
    chars.next().map(|first| first.to_ascii_lowercase()).into_iter().chain(chars).collect()
}

/// A group and version, whose kinds are written down.
struct Scope<'a> {
    group: &'a str,
    version: &'a str,
    /// `AppsV1`
    id: String,
}

impl Scope<'_> {
    /// `apps_v1`
    fn tag(&self) -> String {
        format!("{}_{}", lower(&group_id(self.group)), self.version)
    }

    fn gvk(&self, kind: &str) -> Gvk {
        Gvk { group: self.group.to_owned(), version: self.version.to_owned(), kind: kind.to_owned() }
    }

    fn kind_items(&self, kind: &Kind, items: &mut Vec<PathItem>) {
        let Some(ty) = schema::type_of(self.group, self.version, kind.kind) else { return };
        let scoped = if kind.namespaced { "Namespaced" } else { "" };
        let name = format!("{scoped}{}", kind.kind);
        let base = format!("/{}", root(self.group, self.version));
        let collection = match kind.namespaced {
            true => format!("{base}/namespaces/{{namespace}}/{}", kind.plural),
            false => format!("{base}/{}", kind.plural),
        };
        let namespace = kind.namespaced.then_some("namespace");
        let mut operations = self.collection_operations(kind, ty, &name);
        let mut parameters = vec!["pretty"];
        // What all operations of a path share stands on the path: of a single one, everything.
        if let [only] = operations.as_mut_slice() {
            parameters.extend(only.parameters.drain(..).map(|parameter| parameter.name));
        }
        items.push(item(collection.clone(), &[namespace], &parameters, operations));
        if kind.namespaced && kind.has_verb("list") {
            let mut list = self.list(kind, format!("list{}{}ForAllNamespaces", self.id, kind.kind));
            let mut parameters: Vec<&'static str> =
                list.parameters.drain(..).map(|parameter| parameter.name).collect();
            parameters.push("pretty");
            items.push(item(format!("{base}/{}", kind.plural), &[], &parameters, vec![list]));
        }
        let object = format!("{collection}/{{name}}");
        let operations = self.object_operations(kind, ty, &name);
        if !operations.is_empty() {
            items.push(item(object.clone(), &[Some("name"), namespace], &["pretty"], operations));
        }
        for subresource in kind.subresources {
            self.subresource_items(kind, subresource, &object, &name, items);
        }
    }

    fn operation(
        &self,
        method: &'static str,
        action: &'static str,
        id: String,
        gvk: Gvk,
        answer: Answer,
    ) -> Operation {
        Operation {
            method,
            id,
            tag: self.tag(),
            action: Some(action),
            gvk: Some(gvk),
            parameters: Vec::new(),
            body: None,
            answers: vec![(200, answer)],
            produces: Produces::Objects,
        }
    }

    fn list(&self, kind: &Kind, id: String) -> Operation {
        let list = schema::type_of(self.group, self.version, kind.list_kind);
        let answer = list.map_or(Answer::Text, Answer::Object);
        let list = self.operation("get", "list", id, self.gvk(kind.kind), answer);
        Operation { parameters: query(&LIST), produces: Produces::Watchable, ..list }
    }

    fn collection_operations(&self, kind: &Kind, ty: &'static Type, name: &str) -> Vec<Operation> {
        let mut operations = Vec::new();
        if kind.has_verb("deletecollection") {
            let id = format!("delete{}Collection{name}", self.id);
            let delete = self.operation("delete", "deletecollection", id, self.gvk(kind.kind), status());
            operations.push(Operation {
                parameters: query(&DELETE_COLLECTION),
                body: delete_body(),
                ..delete
            });
        }
        if kind.has_verb("list") {
            operations.push(self.list(kind, format!("list{}{name}", self.id)));
        }
        if kind.has_verb("create") {
            let id = format!("create{}{name}", self.id);
            operations.push(self.create(id, self.gvk(kind.kind), ty, query(&WRITE)));
        }
        operations
    }

    fn create(&self, id: String, gvk: Gvk, ty: &'static Type, parameters: Vec<Parameter>) -> Operation {
        let answer = Answer::Object(ty);
        let create = self.operation("post", "post", id, gvk, answer);
        let body = Some(Body { ty, required: true, is_patch: false });
        Operation { parameters, body, answers: vec![(200, answer), (201, answer), (202, answer)], ..create }
    }

    fn object_operations(&self, kind: &Kind, ty: &'static Type, name: &str) -> Vec<Operation> {
        let gvk = self.gvk(kind.kind);
        let mut operations = Vec::new();
        if kind.has_verb("delete") {
            let returned = RETURNED_WHEN_DELETED.contains(&kind.kind);
            let answer = if returned { Answer::Object(ty) } else { status() };
            let delete =
                self.operation("delete", "delete", format!("delete{}{name}", self.id), gvk.clone(), answer);
            let answers = vec![(200, answer), (202, answer)];
            operations.push(Operation { parameters: query(&DELETE), body: delete_body(), answers, ..delete });
        }
        operations.extend(self.part_operations(kind.verbs, name, &gvk, ty));
        operations
    }

    /// Read, replace and patch: of an object, or of a part of it.
    fn part_operations(&self, verbs: &[&str], name: &str, gvk: &Gvk, ty: &'static Type) -> Vec<Operation> {
        let answer = Answer::Object(ty);
        let mut operations = Vec::new();
        if verbs.contains(&"get") {
            operations.push(self.operation(
                "get",
                "get",
                format!("read{}{name}", self.id),
                gvk.clone(),
                answer,
            ));
        }
        if let (true, Some(patch_ty)) = (verbs.contains(&"patch"), named_meta("Patch")) {
            let patch =
                self.operation("patch", "patch", format!("patch{}{name}", self.id), gvk.clone(), answer);
            let body = Some(Body { ty: patch_ty, required: true, is_patch: true });
            let answers = vec![(200, answer), (201, answer)];
            operations.push(Operation { parameters: query(&PATCH), body, answers, ..patch });
        }
        if verbs.contains(&"update") {
            let put = self.operation("put", "put", format!("replace{}{name}", self.id), gvk.clone(), answer);
            let body = Some(Body { ty, required: true, is_patch: false });
            let answers = vec![(200, answer), (201, answer)];
            operations.push(Operation { parameters: query(&WRITE), body, answers, ..put });
        }
        operations
    }

    fn subresource_items(
        &self,
        kind: &Kind,
        subresource: &Subresource,
        object: &str,
        name: &str,
        items: &mut Vec<PathItem>,
    ) {
        let (group, version) = subresource.group_version.unwrap_or((self.group, self.version));
        let gvk =
            Gvk { group: group.to_owned(), version: version.to_owned(), kind: subresource.kind.to_owned() };
        let part = format!("{name}{}", capital(subresource.name));
        let path = format!("{object}/{}", subresource.name);
        let in_path = [Some("name"), kind.namespaced.then_some("namespace")];
        if let Some(parameters) = connect_parameters(subresource.name) {
            self.connect_items(
                subresource,
                connect_kind(kind, subresource),
                path,
                &part,
                &in_path,
                parameters,
                items,
            );
            return;
        }
        let Some(ty) = schema::type_of(group, version, subresource.kind) else { return };
        if subresource.name == "log" {
            let mut read = self.operation(
                "get",
                "get",
                format!("read{}{part}", self.id),
                self.gvk(kind.kind),
                Answer::Text,
            );
            read.produces = Produces::Text;
            items.push(item(path, &in_path, &LOG, vec![read]));
        } else if subresource.verbs == ["create"] {
            let create = self.create(format!("create{}{part}", self.id), gvk, ty, Vec::new());
            items.push(item(path, &in_path, &[&WRITE[..], &["pretty"]].concat(), vec![create]));
        } else if subresource.verbs == ["update"] {
            let mut operations = self.part_operations(subresource.verbs, &part, &gvk, ty);
            operations.iter_mut().for_each(|operation| operation.parameters.clear());
            items.push(item(path, &in_path, &[&WRITE[..], &["pretty"]].concat(), operations));
        } else {
            let operations = self.part_operations(subresource.verbs, &part, &gvk, ty);
            items.push(item(path, &in_path, &["pretty"], operations));
        }
    }

    #[expect(clippy::too_many_arguments, reason = "one call; a struct would only repeat the names")]
    fn connect_items(
        &self,
        subresource: &Subresource,
        kind: String,
        path: String,
        part: &str,
        in_path: &[Option<&'static str>],
        parameters: &[&'static str],
        items: &mut Vec<PathItem>,
    ) {
        let is_proxy = subresource.name == "proxy";
        let methods: &[&'static str] = if is_proxy { &METHODS } else { &["get", "post"] };
        let operations = |suffix: &str| -> Vec<Operation> {
            let operation = |method: &&'static str| {
                let id = format!("connect{}{}{part}{suffix}", self.id, capital(method));
                let connect = self.operation(method, "connect", id, self.gvk(&kind), Answer::Text);
                Operation { produces: Produces::Anything, ..connect }
            };
            methods.iter().map(operation).collect()
        };
        items.push(item(path.clone(), in_path, parameters, operations("")));
        if is_proxy {
            let in_path = [in_path, &[Some("path")]].concat();
            items.push(item(format!("{path}/{{path}}"), &in_path, parameters, operations("WithPath")));
        }
    }
}

const LOG: [&str; 10] = [
    "container",
    "follow",
    "insecureSkipTLSVerifyBackend",
    "limitBytes",
    "pretty",
    "previous",
    "sinceSeconds",
    "stream",
    "tailLines",
    "timestamps",
];

fn connect_parameters(subresource: &str) -> Option<&'static [&'static str]> {
    match subresource {
        "attach" => Some(&["container", "stderr", "stdin", "stdout", "tty"]),
        "exec" => Some(&["command", "container", "stderr", "stdin", "stdout", "tty"]),
        "portforward" => Some(&["ports"]),
        "proxy" => Some(&["path"]),
        _ => None,
    }
}

/// `PodExecOptions`: the parameters of a connection are a kind too.
fn connect_kind(kind: &Kind, subresource: &Subresource) -> String {
    match subresource.name {
        "portforward" => format!("{}PortForwardOptions", kind.kind),
        name => format!("{}{}Options", kind.kind, capital(name)),
    }
}

fn status() -> Answer {
    schema::type_of("", "v1", "Status").map_or(Answer::Text, Answer::Object)
}

fn delete_body() -> Option<Body> {
    schema::type_of("", "v1", "DeleteOptions").map(|ty| Body { ty, required: false, is_patch: false })
}

fn item(
    path: String,
    in_path: &[Option<&'static str>],
    names: &[&'static str],
    operations: Vec<Operation>,
) -> PathItem {
    let in_path = in_path.iter().flatten().map(|name| Parameter { name, in_path: true });
    PathItem { path, parameters: in_path.chain(query(names)).collect(), operations }
}
