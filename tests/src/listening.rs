//! A program that runs beside a test and listens: `kubectl port-forward`, `kubectl proxy`.

use std::{
    io::{BufRead, BufReader},
    process::{Child, ChildStdout, Command, Stdio},
};

const LOOPBACK: &str = "127.0.0.1:";

/// The running program; ends with the value.
pub struct Listening {
    process: Child,
    /// Kept, because whoever writes to a closed pipe ends.
    _output: BufReader<ChildStdout>,
    /// On 127.0.0.1.
    pub port: u16,
}

impl Listening {
    /// Starts the program and waits until it says where it listens.
    ///
    /// # Panics
    /// Where it says something else first, or ends.
    #[track_caller]
    pub fn start(command: &mut Command) -> Self {
        let mut process = command.stdout(Stdio::piped()).spawn().expect("the program runs");
        let mut line = String::new();
        let mut output = BufReader::new(process.stdout.take().expect("the output is a pipe"));
        output.read_line(&mut line).expect("its output can be read");
        let mut program = Self { process, _output: output, port: 0 };
        program.port = port_of(&line).unwrap_or_else(|| panic!("{command:?} says {line:?}"));
        program
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        // Asked, not killed: a `timeout` around the program passes that on. Both fail only where it is gone already.
        let _ = Command::new("kill").arg(self.process.id().to_string()).status();
        let _ = self.process.wait();
    }
}

fn port_of(line: &str) -> Option<u16> {
    let (_, after) = line.split_once(LOOPBACK)?;
    after.split(|letter: char| !letter.is_ascii_digit()).next()?.parse().ok()
}
