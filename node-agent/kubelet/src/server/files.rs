//! `/logs/`: the node's folder of logs, to look around in.

use std::path::{Component, Path, PathBuf};

use http::{HeaderValue, Response, StatusCode, header};
use tokio::fs::{self, File};
use tokio_util::io::ReaderStream;

use super::Refusal;
use super::body::{self, Body};

/// A file, or a page with the names in a folder. `path` is below `root`, and says of a folder that it is one by its last
/// slash.
pub(super) async fn answer(root: &Path, path: &str) -> Result<Response<Body>, Refusal> {
    let missing = || Refusal::not_found("404 page not found");
    let found = find(root, path).await.ok_or_else(missing)?;
    let is_folder = fs::metadata(&found).await.map_err(|_| missing())?.is_dir();
    match (is_folder, path.is_empty() || path.ends_with('/')) {
        (true, true) => Ok(body::text(StatusCode::OK, "text/html; charset=utf-8", page(&found).await)),
        (true, false) => Ok(moved(path)),
        (false, true) => Err(missing()),
        (false, false) => {
            let file = File::open(&found).await.map_err(|_| missing())?;
            Ok(body::stream(ReaderStream::new(file)))
        }
    }
}

/// The real place of `path`, which is below `root` whatever links lead to.
async fn find(root: &Path, path: &str) -> Option<PathBuf> {
    let path = Path::new(path);
    if !path.components().all(|component| matches!(component, Component::Normal(_))) {
        return None;
    }
    let root = fs::canonicalize(root).await.ok()?;
    let found = fs::canonicalize(root.join(path)).await.ok()?;
    found.starts_with(&root).then_some(found)
}

/// To the same folder's address, from which the links of its page lead into it.
fn moved(path: &str) -> Response<Body> {
    let name = path.rsplit('/').next().unwrap_or_default();
    let mut response = body::empty(StatusCode::MOVED_PERMANENTLY);
    if let Ok(location) = HeaderValue::from_str(&format!("{name}/")) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}

async fn page(folder: &Path) -> String {
    let mut names = Vec::new();
    if let Ok(mut entries) = fs::read_dir(folder).await {
        while let Ok(Some(entry)) = entries.next_entry().await {
            let slash = if entry.file_type().await.is_ok_and(|kind| kind.is_dir()) { "/" } else { "" };
            names.push(format!("{}{slash}", entry.file_name().to_string_lossy()));
        }
    }
    names.sort();
    let links = names.iter().map(|name| format!("<a href=\"{0}\">{0}</a>\n", escape(name)));
    format!("<pre>\n{}</pre>\n", links.collect::<String>())
}

fn escape(name: &str) -> String {
    name.replace('&', "&amp;").replace('<', "&lt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    async fn said(root: &Path, path: &str) -> (u16, String) {
        match answer(root, path).await {
            Ok(response) => {
                let status = response.status().as_u16();
                let location = response.headers().get(header::LOCATION).cloned();
                let text = response.into_body().collect().await.expect("read").to_bytes();
                let text = location.map_or_else(
                    || String::from_utf8_lossy(&text).into_owned(),
                    |location| location.to_str().expect("text").to_owned(),
                );
                (status, text)
            }
            Err(refusal) => (refusal.status.as_u16(), refusal.message),
        }
    }

    #[tokio::test]
    async fn files_and_folders_are_shown_and_nothing_else() {
        let dir = tempfile::tempdir().expect("a directory");
        let root = dir.path().join("logs");
        std::fs::create_dir_all(root.join("a_web_uid/main")).expect("made");
        std::fs::write(root.join("a_web_uid/main/0.log"), "text\n").expect("written");
        std::fs::write(dir.path().join("secret"), "key").expect("written");
        std::os::unix::fs::symlink("../secret", root.join("link")).expect("linked");
        let folder = "<pre>\n<a href=\"a_web_uid/\">a_web_uid/</a>\n<a href=\"link\">link</a>\n</pre>\n";
        assert_eq!(said(&root, "").await, (200, folder.to_owned()));
        assert_eq!(said(&root, "a_web_uid/main").await, (301, "main/".to_owned()));
        let (status, page) = said(&root, "a_web_uid/main/").await;
        assert!(status == 200 && page.contains("<a href=\"0.log\">"), "{page}");
        assert_eq!(said(&root, "a_web_uid/main/0.log").await, (200, "text\n".to_owned()));
        for path in
            ["link", "../secret", "/etc/passwd", "a_web_uid/../../secret", "none", "a_web_uid/main/0.log/"]
        {
            assert_eq!(said(&root, path).await.0, 404, "{path}");
        }
    }
}
