//! Expressions, by tables; and what hostile ones cost.

use serde_json::json;

use super::*;

fn device() -> Device {
    serde_json::from_value(json!({
        "name": "gpu-0",
        "attributes": {
            "model": { "string": "a100" }, "other.example.com/index": { "int": 3 }, "healthy": { "bool": true },
            "driverVersion": { "version": "1.12.0" },
        },
        "capacity": { "memory": { "value": "40Gi" }, "other.example.com/slots": { "value": "7" } },
    }))
    .unwrap()
}

fn answer(expression: &str) -> Result<bool, String> {
    let program = Program::new(expression).map_err(|error| error.to_string())?;
    let mut budget = 10 * MOST_COST;
    program.matches("gpu.example.com", &device(), &mut budget).map_err(|failure| failure.to_string())
}

#[track_caller]
fn check(expression: &str, expected: bool) {
    assert_eq!(answer(expression), Ok(expected), "{expression}");
}

#[track_caller]
fn fails(expression: &str, message: &str) {
    let error = answer(expression).unwrap_err();
    assert!(error.contains(message), "{expression}: {error}");
}

#[test]
fn devices_are_told_by_driver_attributes_and_capacity() {
    check(r#"device.driver == "gpu.example.com""#, true);
    check(r#"device.attributes["gpu.example.com"].model == "a100""#, true);
    check(r#"device.attributes["gpu.example.com"]["model"] in ["h100", "a100"]"#, true);
    check(r#"device.attributes["other.example.com"].index > 2"#, true);
    check(r#"device.attributes["gpu.example.com"].healthy"#, true);
    check(r#"device.capacity["gpu.example.com"].memory.isGreaterThan(quantity("20Gi"))"#, true);
    check(r#"device.capacity["gpu.example.com"].memory.compareTo(quantity("40Gi")) == 0"#, true);
    check(r#"device.capacity["other.example.com"].slots.asInteger() == 7"#, true);
    check(r#"device.capacity["gpu.example.com"].memory.sub(quantity("39Gi")) == quantity("1024Mi")"#, true);
    let version = r#"device.attributes["gpu.example.com"].driverVersion"#;
    check(&format!(r#"{version}.isGreaterThan(semver("1.9.3"))"#), true);
    check(&format!(r#"{version}.isLessThan(semver("v1.12", true))"#), false);
    check(&format!("{version}.major() == 1 && {version}.minor() == 12"), true);
    check("device.allowMultipleAllocations", false);
}

#[test]
fn what_is_not_there_can_be_asked_for() {
    check(r#"has(device.attributes["gpu.example.com"].model)"#, true);
    check(r#"has(device.attributes["gpu.example.com"].speed)"#, false);
    // A domain that the device has nothing of is empty.
    check(r#"has(device.attributes["nobody.example.com"].model)"#, false);
    check(r#""model" in device.attributes["gpu.example.com"]"#, true);
    check(r#""gpu.example.com" in device.attributes"#, true);
    check(r#"size(device.attributes["gpu.example.com"]) == 3"#, true);
    check(r#"device.attributes["gpu.example.com"].?speed.orValue("slow") == "slow""#, true);
    check(r#"device.attributes["gpu.example.com"][?"model"].hasValue()"#, true);
    fails(r#"device.attributes["gpu.example.com"].speed == 1"#, "no such key: speed");
    fails(
        r#"device.attributes["gpu.example.com"].model"#,
        "CEL result of type string could not be converted",
    );
    fails(r#"device.attributes["gpu.example.com"].model > 3"#, "no such overload");
    // A failure does not count where the other side decides.
    check(r#"device.attributes["gpu.example.com"].speed == 1 || true"#, true);
    check(r#"device.attributes["gpu.example.com"].speed == 1 && false"#, false);
    check(r#"["a", "b"].exists(x, device.attributes["gpu.example.com"][x] == 1 || x == "b")"#, true);
}

#[test]
fn the_language_is_that_of_cel() {
    check("1 + 2 * 3 == 7 && 7 / 2 == 3 && 7 % 2 == 1 && -(2) < 1u && 1.5 > 1", true);
    check("[1, 2, 3].all(x, x > 0) && [1, 2].exists_one(x, x == 2) && [1, 2].map(x, x * 2) == [2, 4]", true);
    check("[1, 2, 3].filter(x, x > 1).size() == 2 && {'a': 1}['a'] == 1 && 'a' in {'a': 1}", true);
    check(
        "cel.bind(x, device.driver, x.startsWith('gpu') && x.endsWith('.com') && x.contains('example'))",
        true,
    );
    check("device.driver.matches('^gpu[.]')", true);
    check("'a,b'.split(',')[1] == 'b' && 'Ab'.lowerAscii() == 'ab' && 'abc'.substring(1, 2) == 'b'", true);
    check("true ? false : true", false);
    check("device.attributes.exists(d, d == 'other.example.com')", true);
    check("[[1, 2], [3]].all(l, l.exists(x, x == 1 || x == 3))", true);
    fails("device.drivr == 'x'", "compilation failed: undefined field 'drivr'");
    fails("nobody == 1", "undeclared reference to 'nobody'");
    fails("device.driver.nothing()", "undeclared reference to 'nothing'");
    fails("device.", "compilation failed");
    fails("9223372036854775807 + 1 == 0", "integer overflow");
    fails("1 / 0 == 1", "division by zero");
}

/// The examples are those of the functions' documentation.
#[test]
fn texts_have_the_functions_of_their_extension() {
    check("'hello'.charAt(4) == 'o' && 'hello'.charAt(5) == ''", true);
    fails("'hello'.charAt(-1) == ''", "index out of range: -1");
    check("'hello mellow'.indexOf('') == 0 && 'hello mellow'.indexOf('ello') == 1", true);
    check("'hello mellow'.indexOf('ello', 2) == 7 && 'hello mellow'.indexOf('jello') == -1", true);
    fails("'hello mellow'.indexOf('ello', 20) == 0", "index out of range: 20");
    check("'hello mellow'.lastIndexOf('') == 12 && 'hello mellow'.lastIndexOf('ello') == 7", true);
    check("'hello mellow'.lastIndexOf('ello', 6) == 1 && 'hello mellow'.lastIndexOf('jello') == -1", true);
    fails("'hello mellow'.lastIndexOf('ello', -1) == 0", "index out of range: -1");
    check(
        "['hello', 'mellow'].join() == 'hellomellow' && ['hello', 'mellow'].join(' ') == 'hello mellow'",
        true,
    );
    check("[].join('/') == ''", true);
    check("'hello hello'.replace('he', 'we') == 'wello wello'", true);
    check("'hello hello'.replace('he', 'we', 1) == 'wello hello'", true);
    check("'hello hello'.replace('he', 'we', 0) == 'hello hello'", true);
    check("'hello hello'.replace('', '_') == '_h_e_l_l_o_ _h_e_l_l_o_'", true);
    check("'a b c'.split(' ') == ['a', 'b', 'c'] && 'a b c'.split(' ', 0) == []", true);
    check("'a b c'.split(' ', 1) == ['a b c'] && 'a b c'.split(' ', 2) == ['a', 'b c']", true);
    check("'aéc'.split('') == ['a', 'é', 'c'] && 'aéc'.split('', 2) == ['a', 'éc']", true);
    check("'tacocat'.substring(4) == 'cat' && 'tacocat'.substring(0, 4) == 'taco'", true);
    fails("'tacocat'.substring(3, 2) == ''", "invalid substring range");
    check("'  hi '.trim() == 'hi' && 'TacoCat'.lowerAscii() == 'tacocat' && 'é'.upperAscii() == 'é'", true);
}

#[test]
fn patterns_find() {
    check("'abc 123'.find('[0-9]+') == '123' && 'abc 123'.find('xyz') == ''", true);
    check("'123 abc 456'.findAll('[0-9]+') == ['123', '456']", true);
    check("'123 abc 456'.findAll('[0-9]+', 1) == ['123'] && 'x'.findAll('xyz') == []", true);
    check("'123 abc 456'.findAll('[0-9]+', -1).size() == 2", true);
    check("'éab'.findAll('a*') == ['', 'a', ''] && 'ab'.findAll('') == ['', '', '']", true);
    // A pattern that is computed.
    check("device.driver.matches('^' + 'gpu[.]') && matches('abc', 'b')", true);
    check("['a+', 'b+'].exists(p, 'xbb'.find(p) == 'bb')", true);
    fails("'a'.matches('(' + '')", "error parsing regexp");
    fails("'a'.matches('[^a]{200}' + '')", "error parsing regexp: larger than");
    let all = "[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]";
    let loops =
        format!("{all}.all(x, {all}.all(y, {all}.all(z, !'a'.matches('[^a]{{30}}' + string(x * y)))))");
    fails(&loops, "cost limit exceeded");
}

#[test]
fn lists_have_the_functions_of_kubernetes() {
    check("[1, 3].isSorted() && ['a', 'b', 'b'].isSorted() && [].isSorted() && ![2.0, 1.0].isSorted()", true);
    check("[1, 3].sum() == 4 && [1.0, 3.0].sum() == 4.0 && [].sum() == 0", true);
    fails("['a'].sum() == 'a'", "no such overload");
    check("[1, 3].min() == 1 && ['a', 'c', 'b'].max() == 'c'", true);
    fails("[].min() == 1", "min called on empty list");
    check("[1, 2, 2, 3].indexOf(2) == 1 && ['a', 'b', 'b', 'c'].lastIndexOf('b') == 2", true);
    check("[1.0].indexOf(1.1) == -1 && [1.0].lastIndexOf('x') == -1", true);
}

#[test]
fn lists_are_sets_too() {
    check("sets.contains([], []) && !sets.contains([], [1]) && sets.contains([1, 2, 3, 4], [2, 3])", true);
    check("sets.equivalent([], []) && sets.equivalent([1], [1, 1]) && sets.equivalent([1], [1u, 1.0])", true);
    check("sets.equivalent([1, 2, 3], [3u, 2.0, 1]) && !sets.equivalent([1, 2], [1])", true);
    check(
        "!sets.intersects([1], []) && sets.intersects([1], [1, 2]) && sets.intersects([[1], [2, 3]], [[1, 2], [2, 3]])",
        true,
    );
}

#[test]
fn values_have_types() {
    check(
        "type(1) == int && type('a') == string && type([]) == list && type(device.attributes) == map",
        true,
    );
    check("type(1) != uint && type(type(1)) == type && type(null) == null_type && type(1.5) == double", true);
}

#[test]
fn what_is_not_there_is_named_when_it_is_compiled() {
    for (expression, name) in [
        ("ip('10.0.0.1').family() == 4", "ip"),
        ("duration('1h') > duration('1m')", "duration"),
        ("url('https://a').getHost() == 'a'", "url"),
        ("sets.union([1], [2]).size() == 2", "sets.union"),
        ("'a'.format([]) == 'a'", "format"),
    ] {
        let error = Program::new(expression).unwrap_err();
        let expected = format!("compilation failed: undeclared reference to '{name}' (in container '')");
        assert_eq!(*error, *expected);
    }
}

#[test]
fn hostile_expressions_come_to_an_end() {
    fails(&"a".repeat(LONGEST + 1), "no longer than");
    fails(&("(".repeat(5000) + "1" + &")".repeat(5000)), "compilation failed");
    fails(&("1".to_owned() + &"+1".repeat(5000)), "levels deep");
    fails(&"!".repeat(10_000), "compilation failed");
    fails(&("device".to_owned() + &".a".repeat(5000)), "levels deep");
    fails(&"[".repeat(10_000), "compilation failed");
    // Loops in loops.
    let ten = "[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]";
    let mut loops = "false".to_owned();
    for depth in 0..12 {
        loops = format!("{ten}.exists(x{depth}, {loops})");
    }
    fails(&loops, "cost limit exceeded");
    // A text that doubles.
    let mut doubling = "x40.size() > 0".to_owned();
    for depth in (1..=40).rev() {
        doubling = format!("cel.bind(x{depth}, x{0} + x{0}, {doubling})", depth - 1);
    }
    fails(&format!("cel.bind(x0, 'abcdefghij', {doubling})"), "cost limit exceeded");
    // Values that are much larger than what they are made of.
    let mut nested = "x30 == y30".to_owned();
    for depth in (1..=30).rev() {
        nested = format!(
            "cel.bind(x{depth}, [x{0}, x{0}], cel.bind(y{depth}, [y{0}, y{0}], {nested}))",
            depth - 1
        );
    }
    fails(&format!("cel.bind(x0, 1, cel.bind(y0, 1, {nested}))"), "cost limit exceeded");
}

/// A pattern that takes about half of what those of an expression may.
fn large(number: usize) -> String {
    format!(r#""".matches("[^a]{{200}}{number}")"#)
}

#[test]
fn patterns_are_those_of_go() {
    check(r"'a1_ é'.matches('^\\w+\\s\\W$') && !'é'.matches('\\w') && 'é'.matches('^.$')", true);
    check(r"'a-7'.matches('^[\\w-]+$') && !'x'.matches('[\\d\\s]') && 'é'.matches('[^\\w]')", true);
    fails("''.matches('a{1001}')", "error parsing regexp: invalid repeat count: 1001");
    fails("''.matches('(a{100}b){11}')", "error parsing regexp: invalid repeat count: 1100");
    fails("''.matches('[a&&b]')", "error parsing regexp");
    fails("''.matches('(')", "error parsing regexp");
}

#[test]
fn patterns_take_little_one_by_one_and_together() {
    fails(&[large(1), large(2), large(3)].join(" || "), "error parsing regexp: larger than");
    fails(&format!("''.matches('{}')", "[^a]".repeat(300)), "more than 200 classes");
    let mut room = PatternRoom::default();
    let taken = (0..10).take_while(|number| room.take(&Program::new(&large(*number)).unwrap()).is_ok());
    assert!((4..10).contains(&taken.count()));
    let programs = Programs::default();
    for number in 0..300 {
        programs.get(&large(number)).unwrap();
        assert!(programs.0.lock().bytes <= MOST_KEPT_BYTES);
    }
}

#[test]
fn a_search_costs_as_much_as_the_pattern_is_large() {
    let text = |doublings: usize| {
        (0..doublings).fold("'abcdefghij'".to_owned(), |text, _| format!("cel.bind(x, {text}, x + x)"))
    };
    check(&format!("{}.matches('ja')", text(10)), true);
    // A little longer in the expression, and hundreds of times as large.
    fails(&format!("{}.matches('(ja|jb|jc|jd){{300}}')", text(10)), "cost limit exceeded");
    fails(&format!("{}.matches('ja')", text(13)), "cost limit exceeded");
}

#[test]
fn messages_quote_only_the_beginning_of_what_is_wrong() {
    let long = "é".repeat(3000);
    for expression in [
        format!("{{'a': 1}}['{long}'] == 1"),
        format!("int('{long}') == 1"),
        format!("'{long}' +"),
        format!("device.{}()", "x".repeat(3000)),
    ] {
        let error = answer(&expression).unwrap_err();
        assert!(error.len() <= LONGEST_MESSAGE, "{error}");
    }
}

#[test]
fn what_may_be_spent_is_shared() {
    let program = Program::new("[1, 2, 3].all(x, x > 0)").unwrap();
    let mut budget = 100;
    assert_eq!(program.matches("d", &device(), &mut budget), Ok(true));
    let spent = 100 - budget;
    assert!(spent > 10 && spent < 50, "{spent}");
    budget = spent - 1;
    assert_eq!(program.matches("d", &device(), &mut budget), Err(Failure::Budget));
    assert_eq!(budget, 0);
}

#[test]
fn programs_are_kept() {
    let programs = Programs::default();
    let one = programs.get("true").unwrap();
    assert_eq!(programs.get("true").unwrap().id, one.id);
    assert_ne!(programs.get("false").unwrap().id, one.id);
    assert_eq!(programs.get("nobody").unwrap_err(), programs.get("nobody").unwrap_err());
}
