//! Standard streams of a container's own process: the log writer takes its output, a FIFO gives it input.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::fifo;
use crate::logger::{Source, WriterConfig};
use crate::paths::{io_error, write_atomically};
use crate::{ContainerConfig, LogWriter, Result};

pub(super) const STDIN_FIFO: &str = "stdin";
pub(super) const WRITER_CONFIG: &str = "log.json";

/// What the task is created with: paths of FIFOs or URIs, empty for none.
#[derive(Debug, Default, PartialEq)]
pub(super) struct TaskIo {
    pub(super) stdin: String,
    pub(super) stdout: String,
    pub(super) stderr: String,
}

/// Makes FIFOs and the log writer's configuration in `directory`, and the directory of the log.
pub(super) fn prepare(directory: &Path, container: &ContainerConfig, writer: &LogWriter) -> Result<TaskIo> {
    std::fs::create_dir_all(directory).map_err(io_error("create", directory))?;
    if let Some(parent) = container.log_path.parent() {
        std::fs::create_dir_all(parent).map_err(io_error("create", parent))?;
    }
    let stdin = match container.stdin {
        true => text(&fifo::make(directory.join(STDIN_FIFO))?),
        false => String::new(),
    };
    let source = match (container.tty, container.stdin) {
        (true, _) => Source::Terminal,
        (false, false) => Source::Pipes,
        (false, true) => Source::Fifos {
            stdout: fifo::make(directory.join("stdout"))?,
            stderr: fifo::make(directory.join("stderr"))?,
        },
    };
    let config = directory.join(WRITER_CONFIG);
    let writer_config = WriterConfig {
        log_path: container.log_path.clone(),
        max_size_bytes: writer.max_size_bytes,
        max_files: writer.max_files,
        source: source.clone(),
    };
    let json = serde_json::to_vec(&writer_config).expect("a writer's configuration is plain data");
    write_atomically(&config, &json)?;
    if let Source::Fifos { stdout, stderr } = source {
        start_writer(writer, &config, None)?;
        return Ok(TaskIo { stdin, stdout: text(&stdout), stderr: text(&stderr) });
    }
    let uri = format!(
        "binary://{}?{}={}",
        percent_encode(&text(&writer.program)),
        percent_encode(&writer.mode),
        percent_encode(&text(&config)),
    );
    // A terminal has one stream; the shim refuses a second one.
    let stderr = if container.tty { String::new() } else { uri.clone() };
    Ok(TaskIo { stdin, stdout: uri, stderr })
}

/// A writer that this process starts, not the shim. It ends with its FIFOs or the pipes that it is given (for
/// [`Source::Held`]), not with the agent.
pub(super) fn start_writer(writer: &LogWriter, config: &Path, held: Option<[File; 2]>) -> Result<()> {
    let [stdin, stdout] = held.map_or_else(|| [Stdio::null(), Stdio::null()], |pipes| pipes.map(Stdio::from));
    let mut child = Command::new(&writer.program)
        .arg(&writer.mode)
        .arg(config)
        .stdin(stdin)
        .stdout(stdout)
        .process_group(0)
        .spawn()
        .map_err(io_error("run", &writer.program))?;
    // Only to take note of its end; without this it would stay a zombie for as long as the agent runs.
    std::thread::Builder::new()
        .name("log-writer-wait".into())
        .stack_size(64 << 10)
        .spawn(move || child.wait())
        .map_err(io_error("wait for", &writer.program))?;
    Ok(())
}

fn text(path: &Path) -> String {
    PathBuf::from(path).to_string_lossy().into_owned()
}

/// All but the unreserved characters of RFC 3986 and the slash.
fn percent_encode(text: &str) -> String {
    let encode = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
            (byte as char).to_string()
        }
        other => format!("%{other:02X}"),
    };
    text.bytes().map(encode).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uri_survives_odd_paths() {
        assert_eq!(percent_encode("/a b/c&d=é"), "/a%20b/c%26d%3D%C3%A9");
    }
}
