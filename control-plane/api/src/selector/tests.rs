use std::collections::BTreeMap;

use serde_json::json;

use super::{FieldSelector, LabelSelector, Operator, Requirement};

fn labels(text: &str) -> BTreeMap<String, String> {
    let pair = |pair: &str| pair.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned()));
    text.split(',').filter_map(pair).collect()
}

#[track_caller]
fn check(selector: &str, matching: &[&str], others: &[&str]) {
    let parsed = LabelSelector::parse(selector).unwrap();
    for text in matching {
        assert!(parsed.matches(&labels(text)), "{selector:?} should match {text:?}");
    }
    for text in others {
        assert!(!parsed.matches(&labels(text)), "{selector:?} should not match {text:?}");
    }
    let printed = parsed.to_string();
    assert_eq!(LabelSelector::parse(&printed).unwrap(), parsed, "{selector:?} prints as {printed:?}");
}

#[test]
fn label_selectors_match() {
    check("", &["", "a=1"], &[]);
    check("a=1", &["a=1", "a=1,b=2"], &["", "a=2", "b=1"]);
    check("a==1,b!=2", &["a=1", "a=1,b=3"], &["a=1,b=2", "b=3"]);
    check("a in (1, 2)", &["a=1", "a=2"], &["a=3", ""]);
    check("a notin (1,2)", &["a=3", ""], &["a=1", "a=2"]);
    check("a,!b", &["a=", "a=x"], &["a=1,b=1", ""]);
    check("! b , a", &["a=1"], &["b=1"]);
    check("a=", &["a="], &["a=1", ""]);
    check("a in (,1)", &["a=", "a=1"], &["a=2"]);
    check("a>5,a<9", &["a=6"], &["a=5", "a=9", "a=x", ""]);
    check("example.com/role=db", &["example.com/role=db"], &["role=db"]);
    check("in=1,notin in (2)", &["in=1,notin=2"], &["in=1"]);
}

#[test]
fn what_is_no_label_selector_is_refused_in_upstreams_words() {
    for (text, message) in [
        ("a b", "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt"),
        ("a=1,", "found '', expected: identifier after ','"),
        ("=1", "found '=', expected: !, identifier, or 'end of string'"),
        ("a in 1", "unable to parse requirement: found '1' expected: '('"),
        ("a in (1", "unable to parse requirement: found '', expected: ',' or ')'"),
        ("a=1 b", "found 'b', expected: ',' or 'end of string'"),
    ] {
        assert_eq!(LabelSelector::parse(text).unwrap_err().message(), message, "{text:?}");
    }
    for text in ["-a=1", "a=-", "a/b/c", "a>x", "!", "a in ()x", "x=a=b"] {
        assert!(LabelSelector::parse(text).is_err(), "{text:?}");
    }
}

#[test]
fn structured_selectors_mean_the_same_as_their_text() {
    let selector = json!({
        "matchLabels": { "app": "web" },
        "matchExpressions": [
            { "key": "tier", "operator": "In", "values": ["b", "a"] },
            { "key": "canary", "operator": "DoesNotExist" },
        ],
    });
    let parsed = LabelSelector::from_value(Some(&selector)).unwrap();
    assert_eq!(parsed, LabelSelector::parse("app=web,tier in (a,b),!canary").unwrap());
    assert!(LabelSelector::from_value(None).unwrap().is_nothing());
    assert!(LabelSelector::from_value(Some(&json!({}))).unwrap().is_everything());
    let object = json!({ "metadata": { "labels": { "app": "web", "tier": "a" } } });
    assert!(parsed.matches_object(&object));
    assert!(!parsed.matches_object(&json!({ "metadata": {} })));
    let unknown = json!({ "matchExpressions": [{ "key": "a", "operator": "Near", "values": ["b"] }] });
    assert_eq!(
        LabelSelector::from_value(Some(&unknown)).unwrap_err().message(),
        "\"Near\" is not a valid label selector operator"
    );
}

#[test]
fn matching_agrees_with_a_slow_twin() {
    let keys = ["a", "b"];
    let values = ["", "1", "2"];
    let mut all_labels = Vec::new();
    for a in [None, Some(""), Some("1"), Some("2")] {
        for b in [None, Some(""), Some("1"), Some("2")] {
            let pairs = [("a", a), ("b", b)];
            let pairs = pairs
                .iter()
                .filter_map(|(key, value)| value.map(|value| ((*key).to_owned(), value.to_owned())));
            all_labels.push(pairs.collect::<BTreeMap<_, _>>());
        }
    }
    for key in keys {
        for set in 1..8_u32 {
            let chosen: Vec<String> =
                (0..3).filter(|at| set >> at & 1 == 1).map(|at| values[at as usize].to_owned()).collect();
            for (operator, negated) in [(Operator::In, false), (Operator::NotIn, true)] {
                let requirement = Requirement::new(key, operator, chosen.clone()).unwrap();
                for labels in &all_labels {
                    let member = labels.iter().any(|(name, value)| name == key && chosen.contains(value));
                    assert_eq!(requirement.matches(labels), member != negated, "{requirement} on {labels:?}");
                }
            }
        }
    }
}

#[test]
fn field_selectors_match_and_escape() {
    let value_of = |field: &str| match field {
        "spec.nodeName" => Some("n1"),
        "odd" => Some("a,b=c\\"),
        _ => None,
    };
    for (text, expected) in [
        ("", true),
        ("spec.nodeName=n1", true),
        ("spec.nodeName==n1", true),
        ("spec.nodeName!=n1", false),
        ("spec.nodeName=n2", false),
        ("status.phase=", true),
        ("status.phase!=Running,spec.nodeName=n1", true),
        ("odd=a\\,b\\=c\\\\", true),
    ] {
        let selector = FieldSelector::parse(text).unwrap();
        assert_eq!(selector.matches(value_of), expected, "{text:?}");
        assert_eq!(FieldSelector::parse(&selector.to_string()).unwrap(), selector, "{text:?}");
    }
    assert_eq!(FieldSelector::parse("spec.nodeName=n1").unwrap().exact("spec.nodeName"), Some("n1"));
    let error = FieldSelector::parse("spec.nodeName").unwrap_err();
    assert_eq!(error.message(), "invalid selector: 'spec.nodeName'; can't understand 'spec.nodeName'");
    for text in ["a=b=c", "a=\\x", "a=b\\"] {
        assert!(FieldSelector::parse(text).is_err(), "{text:?}");
    }
}

#[test]
fn arbitrary_text_is_parsed_or_refused_and_prints_as_it_means() {
    let alphabet =
        ["a", "b/c", "=", "==", "!=", "!", "(", ")", ",", " in ", " notin ", ">", "<", "7", " ", "\\", "é"];
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move |bound: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % bound as u64) as usize
    };
    for _ in 0..20_000 {
        let text: String = (0..=next(8)).map(|_| alphabet[next(alphabet.len())]).collect();
        if let Ok(selector) = LabelSelector::parse(&text) {
            assert_eq!(LabelSelector::parse(&selector.to_string()).unwrap(), selector, "{text:?}");
        }
        if let Ok(selector) = FieldSelector::parse(&text) {
            assert_eq!(FieldSelector::parse(&selector.to_string()).unwrap(), selector, "{text:?}");
        }
    }
}
