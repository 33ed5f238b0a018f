use std::fs;

use super::*;

struct Log {
    dir: tempfile::TempDir,
    path: PathBuf,
}

impl Log {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { path: dir.path().join("0.log"), dir }
    }

    /// Line n is written at second n of a minute.
    fn write(&self, file: &str, lines: &[(u32, &str, &str, &str)]) {
        let text: String = lines
            .iter()
            .map(|(second, stream, tag, text)| {
                format!("2024-01-01T00:00:{second:02}.000000000Z {stream} {tag} {text}\n")
            })
            .collect();
        let path = self.dir.path().join(file);
        let old = fs::read_to_string(&path).unwrap_or_default();
        fs::write(path, old + &text).unwrap();
    }

    async fn read(&self, options: LogOptions) -> String {
        let reader = LogReader::open(self.path.clone(), options, already_ended()).await.unwrap();
        read_all(reader).await
    }
}

async fn read_all(mut reader: LogReader) -> String {
    let mut out = String::new();
    while let Some(chunk) = reader.next_chunk().await.unwrap() {
        out.push_str(std::str::from_utf8(&chunk).unwrap());
    }
    out
}

fn three_files() -> Log {
    let log = Log::new();
    log.write("0.log.20240101-000000.000000001", &[(1, "stdout", "F", "one"), (2, "stderr", "F", "two")]);
    log.write("0.log.20240101-000000.000000002", &[(3, "stdout", "P", "thr"), (4, "stdout", "F", "ee")]);
    log.write("0.log", &[(5, "stdout", "F", "four"), (6, "stdout", "F", "five six")]);
    log
}

#[tokio::test]
async fn rotated_files_read_as_one_log() {
    let log = three_files();
    assert_eq!(log.read(LogOptions::default()).await, "one\ntwo\nthree\nfour\nfive six\n");
}

#[tokio::test]
async fn options_choose_lines() {
    let log = three_files();
    let check = async |what: &str, options: LogOptions, expected: &str| {
        assert_eq!(log.read(options).await, expected, "{what}");
    };
    let all = LogOptions::default();
    let tail = |lines| LogOptions { tail_lines: Some(lines), ..Default::default() };
    check("tail 0", tail(0), "").await;
    check("tail 1", tail(1), "five six\n").await;
    check("tail over files", tail(3), "ee\nfour\nfive six\n").await;
    check("tail of more than there is", tail(100), "one\ntwo\nthree\nfour\nfive six\n").await;
    let since = Some("2024-01-01T00:00:05Z".parse().unwrap());
    check("since", LogOptions { since, ..all.clone() }, "four\nfive six\n").await;
    let stream = Some(Stream::Stderr);
    check("stream", LogOptions { stream, ..all.clone() }, "two\n").await;
    check("limit", LogOptions { limit_bytes: Some(6), ..all.clone() }, "one\ntw").await;
    let timestamps = LogOptions { timestamps: true, tail_lines: Some(1), ..all };
    check("timestamps", timestamps, "2024-01-01T00:00:06.000000000Z five six\n").await;
}

#[tokio::test]
async fn absent_log_is_empty() {
    let log = Log::new();
    assert_eq!(log.read(LogOptions::default()).await, "");
}

#[tokio::test(start_paused = true)]
async fn following_sees_rotation_and_ends_with_the_container() {
    let log = Log::new();
    log.write("0.log", &[(1, "stdout", "F", "one")]);
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    let options = LogOptions { follow: true, ..Default::default() };
    let mut reader = LogReader::open(log.path.clone(), options, ended.map(|_| ()).boxed()).await.unwrap();
    assert_eq!(reader.next_chunk().await.unwrap().unwrap(), "one\n");

    log.write("0.log", &[(2, "stdout", "F", "two")]);
    fs::rename(&log.path, log.dir.path().join("0.log.20240101-000000.000000001")).unwrap();
    log.write("0.log", &[(3, "stdout", "F", "three")]);
    assert_eq!(reader.next_chunk().await.unwrap().unwrap(), "two\n");
    assert_eq!(reader.next_chunk().await.unwrap().unwrap(), "three\n");

    end.send(()).unwrap();
    log.write("0.log", &[(4, "stdout", "F", "last words")]);
    assert_eq!(read_all(reader).await, "last words\n");
}

/// The container writes, and its log is rotated, just after the reader has looked at the file's end.
#[tokio::test]
async fn lines_between_the_last_look_and_the_rotation_are_kept() {
    let log = Log::new();
    log.write("0.log", &[(1, "stdout", "F", "one")]);
    let mut reader = LogReader::open(log.path.clone(), LogOptions::default(), already_ended()).await.unwrap();
    assert_eq!(reader.next_chunk().await.unwrap().unwrap(), "one\n");
    assert!(!reader.fill().await.unwrap(), "at the end of the file");

    log.write("0.log", &[(2, "stdout", "F", "two")]);
    fs::rename(&log.path, log.dir.path().join("0.log.20240101-000000.000000001")).unwrap();
    log.write("0.log", &[(3, "stdout", "F", "three")]);
    assert!(reader.advance().await.unwrap());
    assert_eq!(read_all(reader).await, "two\nthree\n");
}
