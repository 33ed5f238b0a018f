//! Mutated bodies: always an answer, never a panic, and memory that input cannot blow up.
//!
//! A short run over seeds, the same each time; `cargo fuzz run` in `/fuzz` looks for more. Seeds are few here and many
//! where upstream's test data is beside the repository.

#[path = "fuzz/targets.rs"]
mod targets;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    fs,
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
};

/// Inputs for each target.
const RUNS: usize = 4_000;
/// No input is longer.
const MAX_INPUT: usize = 64 << 10;
/// What an input may take while it is looked at, whatever it says.
const MAX_MEMORY: usize = 192 << 20;

/// Counts what is allocated, and the most there was.
struct Counting;

static ALLOCATED: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: all of it is the system's allocator's; the counters beside it are atomic.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = ALLOCATED.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(now, Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        ALLOCATED.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// A small generator of numbers (xorshift64), so that each run is the same.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    fn of<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len())]
    }
}

/// What breaks parsers.
const TOKENS: [&str; 24] = [
    "{",
    "}",
    "[",
    "]",
    "\"",
    ":",
    ",",
    "null",
    "true",
    "-1",
    "0",
    "9223372036854775808",
    "1e999",
    "\\u0000",
    "\\ud800",
    "$patch",
    "$retainKeys",
    "$setElementOrder/containers",
    "[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[",
    "&a [*a,*a]",
    "!!binary",
    "~1",
    "f:",
    "\u{feff}",
];

fn mutate(numbers: &mut Numbers, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut input = numbers.of(seeds).clone();
    for _ in 0..=numbers.below(6) {
        let at = numbers.below(input.len() + 1);
        let end = (at + numbers.below(40)).min(input.len());
        match numbers.below(7) {
            0 if at < input.len() => input[at] ^= 1 << numbers.below(8),
            1 => drop(input.drain(at..end)),
            2 => input.insert(at, numbers.next() as u8),
            3 => {
                let copy = input[at..end].to_vec();
                input.splice(at..at, copy);
            }
            4 => {
                let other = numbers.of(seeds);
                let from = numbers.below(other.len());
                let piece = &other[from..(from + numbers.below(200)).min(other.len())];
                input.splice(at..end, piece.iter().copied());
            }
            _ => drop(input.splice(at..at, numbers.of(&TOKENS).bytes())),
        }
    }
    input.truncate(MAX_INPUT);
    input
}

/// Upstream's objects in one encoding; nothing where they are not beside the repository.
fn testdata(extension: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/kubernetes-v1.36/api-testdata");
    let Ok(files) = fs::read_dir(&folder) else {
        println!("skipped: {} is absent, so there are few seeds", folder.display());
        return Vec::new();
    };
    let mut paths: Vec<_> = files.flatten().map(|file| file.path()).collect();
    paths.sort();
    let chosen = paths.iter().filter(|path| path.extension().is_some_and(|name| name == extension));
    chosen.step_by(7).filter_map(|path| fs::read(path).ok()).filter(|seed| seed.len() < MAX_INPUT).collect()
}

#[track_caller]
fn run(name: &str, mut seeds: Vec<Vec<u8>>, own: &[&str]) {
    let (_, target) = targets::ALL.iter().find(|(known, _)| *known == name).expect("a target");
    seeds.extend(own.iter().map(|seed| seed.as_bytes().to_vec()));
    let mut numbers = Numbers(0x9E37_79B9_7F4A_7C15);
    for seed in &seeds {
        target(seed);
    }
    for _ in 0..RUNS {
        let input = mutate(&mut numbers, &seeds);
        let before = ALLOCATED.load(Ordering::Relaxed);
        PEAK.store(before, Ordering::Relaxed);
        target(&input);
        let taken = PEAK.load(Ordering::Relaxed).saturating_sub(before);
        assert!(taken < MAX_MEMORY, "{taken} bytes for {:?}", String::from_utf8_lossy(&input));
    }
}

#[test]
fn json() {
    run("json", testdata("json"), &[targets::DEPLOYMENT, r#"{"kind":"Pod","apiVersion":"v1"}"#]);
}

#[test]
fn yaml() {
    let bomb = "a: &a [x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b]\n\
                d: &d [*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d]\nf: [*e,*e,*e,*e,*e,*e,*e,*e]\n";
    let map = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata: {a: |\n  text\n, b: 'x'}\n";
    run("yaml", testdata("yaml"), &[bomb, map, targets::DEPLOYMENT]);
}

#[test]
fn protobuf() {
    // A Pod without fields in its envelope.
    let empty = b"k8s\0\n\t\n\x02v1\x12\x03Pod\x12\0\x1a\0\"\0".to_vec();
    let mut seeds = testdata("pb");
    seeds.push(empty);
    run("protobuf", seeds, &[]);
}

#[test]
fn label_selectors() {
    run(
        "label_selector",
        Vec::new(),
        &["a=b,c!=d", "e in (f, g),h notin (i)", "!j,k", "app==web,tier", "x>1,y<2", ""],
    );
}

#[test]
fn field_selectors() {
    run("field_selector", Vec::new(), &["metadata.name=a,status.phase!=Running", "a==b\\,c\\=d", ""]);
}

#[test]
fn patches() {
    let json = "\0[{\"op\":\"add\",\"path\":\"/spec/template/spec/containers/0\",\"value\":{\"name\":\"c\"}},{\"op\":\
                \"move\",\"from\":\"/spec/replicas\",\"path\":\"/metadata/labels/n\"},{\"op\":\"test\",\"path\":\"\",\
                \"value\":1},{\"op\":\"remove\",\"path\":\"/metadata/finalizers/-\"}]";
    let merge = "\u{1}{\"spec\":{\"replicas\":null,\"template\":{\"spec\":{\"containers\":[]}}}}";
    let strategic = "\u{2}{\"metadata\":{\"$deleteFromPrimitiveList/finalizers\":[\"a.example.com/x\"]},\"spec\":{\
                     \"template\":{\"spec\":{\"$setElementOrder/containers\":[{\"name\":\"b\"},{\"name\":\"a\"}],\
                     \"containers\":[{\"name\":\"a\",\"$patch\":\"delete\"},{\"name\":\"b\",\"ports\":[{\"$patch\":\
                     \"replace\"},{\"containerPort\":1}]}],\"tolerations\":[{\"$patch\":\"replace\"}]}},\"strategy\":\
                     {\"$retainKeys\":[\"type\"],\"type\":\"Recreate\"}}}";
    run("patch", Vec::new(), &[json, merge, strategic]);
}

#[test]
fn applies() {
    let small = "\u{1}{\"metadata\":{\"name\":\"web\",\"labels\":{\"new\":\"l\"}},\"spec\":{\"replicas\":3,\"template\":{\
                 \"spec\":{\"containers\":[{\"name\":\"a\",\"ports\":[{\"containerPort\":80,\"name\":\"http\"}]}]}}}}";
    let whole = format!("\0{}", targets::DEPLOYMENT);
    run("apply", Vec::new(), &[small, &whole]);
}

#[test]
fn managed_fields() {
    let entry = |fields: &str| {
        format!(
            r#"[{{"manager":"m","operation":"Apply","apiVersion":"apps/v1","time":"2026-01-01T00:00:00Z","fieldsType":"FieldsV1","fieldsV1":{fields}}}]"#
        )
    };
    let map = entry(
        r#"{"f:spec":{"f:containers":{"k:{\"name\":\"a\"}":{".":{},"f:image":{}}},"f:x":{"v:1":{},"i:2":{}}}}"#,
    );
    run("managed_fields", Vec::new(), &[&map, &entry("{}")]);
}

#[test]
fn quantities() {
    run(
        "quantity",
        Vec::new(),
        &["1", "100m", "1.5Gi", "-3e6", "0.1n", "12345678901234567890", "1E", "+2Ki", "1e-9"],
    );
}
