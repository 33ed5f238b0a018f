//! FlowSchemas and PriorityLevelConfigurations (KEP-1040), as data: flow control here has fixed bounds.

use hawser_api::FieldError;
use serde_json::{Value, json};

use super::{
    AGE, Hooks, NAME, PLAIN,
    apps::age,
    column,
    meta::invalid_all,
    names::{dns_label, dns_subdomain},
    rules::{lone_wildcard, one_of, required, words},
    text,
    value::{Fields, Path},
};

const SPEC: Path<'static> = Path::Root("spec");
const EXEMPT: &str = "exempt";
const LEAST_PRECEDENCE: i64 = 10_000;
const DEFAULT_PRECEDENCE: i64 = 1_000;
const DEFAULT_SHARES: i64 = 30;
const MOST_QUEUES: i64 = 10_000_000;
/// Bits of the hash that deals a flow its queues.
const HASH_BITS: f64 = 60.0;
const VERBS: [&str; 9] =
    ["create", "delete", "deletecollection", "get", "list", "patch", "proxy", "update", "watch"];
/// Kinds of subjects: the word, and the member that goes with it.
const SUBJECTS: [(&str, &str); 3] =
    [("Group", "group"), ("ServiceAccount", "serviceAccount"), ("User", "user")];

pub(crate) static FLOW_SCHEMA: Hooks = Hooks {
    default: |schema| {
        let spec = schema.ensure("spec");
        if spec.int("matchingPrecedence").unwrap_or_default() == 0 {
            spec.set("matchingPrecedence", DEFAULT_PRECEDENCE);
        }
    },
    validate_create: validate_schema,
    validate_status: |new, _| conditions(new),
    columns: &[
        NAME,
        text("PriorityLevel"),
        column("MatchingPrecedence", "integer"),
        text("DistinguisherMethod"),
        AGE,
        text("MissingPL"),
    ],
    cells: |schema, now| {
        let dangling = schema.list("status.conditions").iter().find(|one| one.text("type") == "Dangling");
        let method = match schema.text("spec.distinguisherMethod.type") {
            "" => "<none>",
            method => method,
        };
        vec![
            schema.at("metadata.name").clone(),
            schema.text("spec.priorityLevelConfiguration.name").into(),
            schema.int("spec.matchingPrecedence").unwrap_or_default().into(),
            method.into(),
            age(schema, now),
            dangling.map_or("?", |condition| condition.text("status")).into(),
        ]
    },
    warning: Some(
        "the FlowSchema is stored, but flow control does not read it: requests keep their fixed bounds",
    ),
    ..PLAIN
};

pub(crate) static PRIORITY_LEVEL: Hooks = Hooks {
    default: |level| {
        if let Some(exempt) = level.part_mut("spec.exempt") {
            exempt.set_default("nominalConcurrencyShares", 0);
            exempt.set_default("lendablePercent", 0);
        }
        if let Some(limited) = level.part_mut("spec.limited") {
            limited.set_default("nominalConcurrencyShares", DEFAULT_SHARES);
            limited.set_default("lendablePercent", 0);
            if let Some(queuing) = limited.part_mut("limitResponse.queuing") {
                for (field, value) in [("handSize", 8), ("queues", 64), ("queueLengthLimit", 50)] {
                    if queuing.int(field).unwrap_or_default() == 0 {
                        queuing.set(field, value);
                    }
                }
            }
        }
    },
    // The level that nothing limits says what it is even where its author did not.
    prepare_create: |level| {
        if level.text("spec.type") == "Exempt" && !level.has("spec.exempt") {
            let exempt = json!({ "nominalConcurrencyShares": 0, "lendablePercent": 0 });
            level.ensure("spec").set("exempt", exempt);
        }
    },
    validate_create: validate_level,
    validate_status: |new, _| conditions(new),
    columns: &[
        NAME,
        text("Type"),
        text("NominalConcurrencyShares"),
        text("Queues"),
        text("HandSize"),
        text("QueueLengthLimit"),
        AGE,
    ],
    cells: |level, now| {
        let shown = |path: &str| match level.at("spec.limited").at(path) {
            Value::Null => Value::from("<none>"),
            number => number.clone(),
        };
        vec![
            level.at("metadata.name").clone(),
            level.text("spec.type").into(),
            shown("nominalConcurrencyShares"),
            shown("limitResponse.queuing.queues"),
            shown("limitResponse.queuing.handSize"),
            shown("limitResponse.queuing.queueLengthLimit"),
            age(level, now),
        ]
    },
    warning: Some(
        "the PriorityLevelConfiguration is stored, but flow control does not read it: requests keep their fixed bounds",
    ),
    ..PLAIN
};

fn conditions(object: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let path = Path::Root("status.conditions");
    let all = object.list("status.conditions");
    for (index, condition) in all.iter().enumerate() {
        let (path, kind) = (path.index(index), condition.text("type"));
        if all[..index].iter().any(|other| other.text("type") == kind) {
            errors.push(FieldError::duplicate(path.field("type"), kind));
        }
        if kind.is_empty() {
            errors.push(FieldError::required(path.field("type"), "must not be empty"));
        }
    }
    errors
}

fn validate_schema(schema: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let spec = schema.at("spec");
    let (path, precedence) =
        (SPEC.field("matchingPrecedence"), spec.int("matchingPrecedence").unwrap_or_default());
    let mut wrong = |detail: String| errors.push(FieldError::invalid(path, precedence, detail));
    if precedence <= 0 {
        wrong("must be a positive value".to_owned());
    }
    if precedence > LEAST_PRECEDENCE {
        wrong(format!("must not be greater than {LEAST_PRECEDENCE}"));
    }
    if precedence == 1 && schema.text("metadata.name") != EXEMPT {
        wrong("only the schema named 'exempt' may have matchingPrecedence 1".to_owned());
    }
    if spec.has("distinguisherMethod") {
        let path = SPEC.field("distinguisherMethod.type");
        one_of(&mut errors, &path, spec.text("distinguisherMethod.type"), &["ByNamespace", "ByUser"]);
    }
    let (path, level) =
        (SPEC.field("priorityLevelConfiguration.name"), spec.text("priorityLevelConfiguration.name"));
    if level.is_empty() {
        errors.push(FieldError::required(path, "must reference a priority level"));
    } else {
        invalid_all(&mut errors, &path, level, dns_subdomain(level));
    }
    let list = SPEC.field("rules");
    for (index, one) in spec.list("rules").iter().enumerate() {
        rule(&mut errors, &list.index(index), one);
    }
    errors
}

fn rule(errors: &mut Vec<FieldError>, path: &Path<'_>, rule: &Value) {
    let subjects = path.field("subjects");
    if rule.list("subjects").is_empty() {
        errors.push(FieldError::required(subjects, "subjects must contain at least one value"));
    }
    for (index, one) in rule.list("subjects").iter().enumerate() {
        subject(errors, &subjects.index(index), one);
    }
    let (resources, others) = (rule.list("resourceRules"), rule.list("nonResourceRules"));
    if resources.is_empty() && others.is_empty() {
        let detail = "at least one of resourceRules and nonResourceRules has to be non-empty";
        errors.push(FieldError::required(path, detail));
    }
    let list = path.field("resourceRules");
    for (index, one) in resources.iter().enumerate() {
        resource_rule(errors, &list.index(index), one);
    }
    let list = path.field("nonResourceRules");
    for (index, one) in others.iter().enumerate() {
        let path = list.index(index);
        verbs(errors, &path, one);
        let (path, urls) = (path.field("nonResourceURLs"), words(one, "nonResourceURLs"));
        if urls.is_empty() {
            errors.push(FieldError::required(path, "nonResourceURLs must contain at least one value"));
        } else if urls.contains(&"*") {
            lone_wildcard(errors, &path, &urls, "non-resource URLs");
        } else {
            for (index, address) in urls.iter().enumerate() {
                if let Some(wrong) = url(address) {
                    errors.push(FieldError::invalid(path.index(index), *address, wrong));
                }
            }
        }
    }
}

fn subject(errors: &mut Vec<FieldError>, path: &Path<'_>, subject: &Value) {
    let kind = subject.text("kind");
    let Some((_, own)) = SUBJECTS.iter().find(|(known, _)| *known == kind) else {
        let known = SUBJECTS.map(|(known, _)| known);
        errors.push(FieldError::not_supported(path.field("kind"), kind, &known));
        return;
    };
    for (other, member) in SUBJECTS.iter().filter(|(_, member)| member != own && subject.has(member)) {
        let detail = format!("{member} is forbidden when subject kind is not '{other}'");
        errors.push(FieldError::forbidden(path.field(member), detail));
    }
    let (path, named) = (path.field(own), subject.at(own));
    if !named.is_object() {
        let detail = format!("{own} is required when subject kind is '{kind}'");
        errors.push(FieldError::required(path, detail));
        return;
    }
    let name = named.text("name");
    required(errors, &path.field("name"), name);
    if kind != "ServiceAccount" {
        return;
    }
    if !matches!(name, "" | "*") {
        invalid_all(errors, &path.field("name"), name, dns_subdomain(name));
    }
    match named.text("namespace") {
        "" => errors.push(FieldError::required(
            path.field("namespace"),
            "must specify namespace for service account",
        )),
        namespace => invalid_all(errors, &path.field("namespace"), namespace, dns_label(namespace)),
    }
}

fn verbs(errors: &mut Vec<FieldError>, path: &Path<'_>, rule: &Value) {
    let (path, all) = (path.field("verbs"), words(rule, "verbs"));
    if all.is_empty() {
        errors.push(FieldError::required(path, "verbs must contain at least one value"));
    } else if all.contains(&"*") {
        lone_wildcard(errors, &path, &all, "verbs");
    } else if !all.iter().all(|verb| VERBS.contains(verb)) {
        errors.push(FieldError::not_supported(path, Value::from(all), &VERBS));
    }
}

fn resource_rule(errors: &mut Vec<FieldError>, path: &Path<'_>, rule: &Value) {
    verbs(errors, path, rule);
    for (field, one, others) in
        [("apiGroups", "api group", "api groups"), ("resources", "resource", "resources")]
    {
        let (path, all) = (path.field(field), words(rule, field));
        if all.is_empty() {
            let detail = format!("resource rules must supply at least one {one}");
            errors.push(FieldError::required(path, detail));
        }
        lone_wildcard(errors, &path, &all, others);
    }
    let (path, namespaces) = (path.field("namespaces"), words(rule, "namespaces"));
    if namespaces.is_empty() && !rule.flag("clusterScope") {
        let detail = "resource rules that are not cluster scoped must supply at least one namespace";
        errors.push(FieldError::required(path, detail));
    } else if namespaces.contains(&"*") {
        lone_wildcard(errors, &path, &namespaces, "namespaces");
    } else {
        for (index, namespace) in namespaces.iter().enumerate() {
            for wrong in dns_label(namespace) {
                let detail = format!("each member of this list must be '*' or a DNS-1123 label; {wrong}");
                errors.push(FieldError::invalid(path.index(index), *namespace, detail));
            }
        }
    }
}

/// What is wrong with a path that is no resource's; it may end in `/*`.
fn url(path: &str) -> Option<&'static str> {
    match path {
        "" => Some("must not be empty"),
        "/" => None,
        _ if !path.starts_with('/') => Some("must start with slash"),
        _ if path.contains(' ') => Some("must not contain white-space"),
        _ if path.contains("//") => Some("must not contain double slash"),
        _ if path.strip_suffix("/*").unwrap_or(path).contains('*') => {
            Some("wildcard can only do suffix matching")
        }
        _ => None,
    }
}

fn validate_level(level: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let spec = level.at("spec");
    let kind = spec.text("type");
    if (level.text("metadata.name") == EXEMPT) != (kind == "Exempt") {
        let detail = "type must be 'Exempt' if and only if name is 'exempt'";
        errors.push(FieldError::invalid(SPEC.field("type"), kind, detail));
    }
    let (exempt, limited) = (SPEC.field("exempt"), SPEC.field("limited"));
    match kind {
        "Exempt" => {
            if spec.has("limited") {
                errors.push(FieldError::forbidden(limited, "must be nil if the type is not Limited"));
            }
            if spec.has("exempt") {
                shares(&mut errors, &exempt, spec.at("exempt"));
            }
        }
        "Limited" => {
            if spec.has("exempt") {
                errors.push(FieldError::forbidden(exempt, "must be nil if the type is Limited"));
            }
            if spec.has("limited") {
                shares(&mut errors, &limited, spec.at("limited"));
                response(&mut errors, &limited.field("limitResponse"), spec.at("limited.limitResponse"));
            } else {
                errors.push(FieldError::required(limited, "must not be empty when type is Limited"));
            }
        }
        _ => errors.push(FieldError::not_supported(SPEC.field("type"), kind, &["Exempt", "Limited"])),
    }
    errors
}

fn shares(errors: &mut Vec<FieldError>, path: &Path<'_>, level: &Value) {
    if let Some(shares) = level.int("nominalConcurrencyShares").filter(|shares| *shares < 0) {
        let detail = "must be a non-negative integer";
        errors.push(FieldError::invalid(path.field("nominalConcurrencyShares"), shares, detail));
    }
    if let Some(percent) = level.int("lendablePercent").filter(|percent| !(0..=100).contains(percent)) {
        let detail = "must be between 0 and 100, inclusive";
        errors.push(FieldError::invalid(path.field("lendablePercent"), percent, detail));
    }
    if let Some(percent) = level.int("borrowingLimitPercent").filter(|percent| *percent < 0) {
        let detail = "if specified, must be a non-negative integer";
        errors.push(FieldError::invalid(path.field("borrowingLimitPercent"), percent, detail));
    }
}

fn response(errors: &mut Vec<FieldError>, path: &Path<'_>, response: &Value) {
    let (queuing, asked) = (path.field("queuing"), response.at("queuing"));
    match (response.text("type"), asked.is_object()) {
        ("Reject", true) => {
            let detail = "must be nil if limited.limitResponse.type is not Limited";
            errors.push(FieldError::forbidden(queuing, detail));
        }
        ("Reject", false) => (),
        ("Queue", false) => {
            let detail = "must not be empty if limited.limitResponse.type is Limited";
            errors.push(FieldError::required(queuing, detail));
        }
        ("Queue", true) => queues(errors, &queuing, asked),
        (kind, _) => {
            errors.push(FieldError::not_supported(path.field("type"), kind, &["Queue", "Reject"]));
        }
    }
}

fn queues(errors: &mut Vec<FieldError>, path: &Path<'_>, asked: &Value) {
    let number = |field: &str| asked.int(field).unwrap_or_default();
    let (limit, queues, hand) = (number("queueLengthLimit"), number("queues"), number("handSize"));
    let mut wrong = |field: &str, value: i64, detail: String| {
        errors.push(FieldError::invalid(path.field(field), value, detail));
    };
    if limit <= 0 {
        wrong("queueLengthLimit", limit, "must be positive".to_owned());
    }
    if queues <= 0 {
        wrong("queues", queues, "must be positive".to_owned());
    } else if queues > MOST_QUEUES {
        wrong("queues", queues, format!("must not be greater than {MOST_QUEUES}"));
    }
    if hand <= 0 {
        wrong("handSize", hand, "must be positive".to_owned());
    } else if hand > queues {
        wrong("handSize", hand, format!("should not be greater than queues ({queues})"));
    } else if entropy(queues, hand) > HASH_BITS {
        let detail = format!(
            "required entropy bits of deckSize {queues} and handSize {hand} should not be greater than {HASH_BITS}"
        );
        wrong("handSize", hand, detail);
    }
}

/// Bits that it takes to deal a hand; stops counting where there are too many.
fn entropy(queues: i64, hand: i64) -> f64 {
    let mut bits = 0.0;
    for dealt in 0..hand {
        bits += ((queues - dealt) as f64).log2();
        if bits > HASH_BITS {
            break;
        }
    }
    bits.ceil()
}

#[cfg(test)]
mod tests;
