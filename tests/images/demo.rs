//! The program of the demo image: a small server over TCP (HTTP/1.1) and UDP, and a client for it.
//!
//!     demo serve [port]             answers /, /hostname, /version, /clientip, /healthz, /readyz, /megabyte,
//!                                   /silent (how many connections asked nothing), /show/... (says method and path) and
//!                                   /echo?msg=... (says it, and writes it to its log); echoes UDP
//!                                   /set?value=... keeps a value, which /get says
//!     demo relay <writes> <reads>   a server on port 8080 that asks others, by address and port: one for /set, one for
//!                                   all else
//!     demo grpc <port>              answers every gRPC call as a health service that is well, and writes to its log
//!     demo uid                      says whom it runs as
//!     demo get <address:port>[/path] [n]   n requests, one connection each; prints how many came from whom
//!     demo ask <address:port> [n]   the same over UDP, from one unconnected socket
//!
//! On SIGTERM the server goes on for a second, as programs behind a load balancer should, and ends.
//! Compiled alone, with the standard library only, into a static binary.

use std::{
    collections::BTreeMap,
    env, fs,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs, UdpSocket},
    process::ExitCode,
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread,
    time::Duration,
};

const TIMEOUT: Duration = Duration::from_secs(2);

static STOPPING: AtomicBool = AtomicBool::new(false);
static SILENT: AtomicU32 = AtomicU32::new(0);
/// What was set last.
static VALUE: Mutex<String> = Mutex::new(String::new());
/// Who is asked instead, for writes and for reads.
static RELAY: OnceLock<[String; 2]> = OnceLock::new();

fn main() -> ExitCode {
    let words: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let outcome = match words.as_slice() {
        [] | ["serve"] => serve(8080),
        ["serve", port] => port.parse().map_err(|_| format!("{port:?} is not a port")).and_then(serve),
        ["relay", writes, reads] => {
            // The program runs once for all.
            let _ = RELAY.set([(*writes).to_owned(), (*reads).to_owned()]);
            serve(8080)
        }
        ["grpc", port] => port.parse().map_err(|_| format!("{port:?} is not a port")).and_then(grpc),
        ["uid"] => {
            println!("effective uid: {}", effective_uid());
            Ok(())
        }
        ["get", to] => ask_many(to, "1", get),
        ["get", to, count] => ask_many(to, count, get),
        ["ask", to] => ask_many(to, "1", ask),
        ["ask", to, count] => ask_many(to, count, ask),
        _ => Err("usage: demo serve [port] | relay <writes> <reads> | grpc <port> | uid | get <address:port> [n] | ask <address:port> [n]".into()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn hostname() -> String {
    fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned()
}

fn effective_uid() -> u32 {
    unsafe extern "C" {
        safe fn geteuid() -> u32;
    }
    geteuid()
}

fn version() -> String {
    env::var("VERSION").unwrap_or_else(|_| "unknown".into())
}

fn serve(port: u16) -> Result<(), String> {
    end_on_sigterm();
    let listener = TcpListener::bind(("0.0.0.0", port)).map_err(|error| format!("port {port}: {error}"))?;
    let udp = UdpSocket::bind(("0.0.0.0", port)).map_err(|error| format!("port {port}/udp: {error}"))?;
    println!("{} version {} listens on port {port}", hostname(), version());
    thread::spawn(move || echo(&udp));
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || {
                // The client is told by the broken connection; there is nobody else to tell.
                let _ = answer(stream);
            });
        }
    });
    while !STOPPING.load(Ordering::Relaxed) {
        thread::sleep(Duration::from_millis(50));
    }
    println!("asked to stop");
    thread::sleep(Duration::from_secs(1));
    Ok(())
}

fn end_on_sigterm() {
    extern "C" fn on_signal(_: i32) {
        STOPPING.store(true, Ordering::Relaxed);
    }
    unsafe extern "C" {
        fn signal(number: i32, handler: extern "C" fn(i32)) -> usize;
    }
    const SIGTERM: i32 = 15;
    const SIGINT: i32 = 2;
    for number in [SIGTERM, SIGINT] {
        // SAFETY: the handler only stores to an atomic, which is allowed in a signal handler.
        unsafe { signal(number, on_signal) };
    }
}

fn echo(udp: &UdpSocket) {
    let mut buffer = [0; 2048];
    while let Ok((length, from)) = udp.recv_from(&mut buffer) {
        let mut reply = format!("{} {} ", hostname(), version()).into_bytes();
        reply.extend_from_slice(&buffer[..length]);
        // A lost answer is what UDP clients expect now and then.
        let _ = udp.send_to(&reply, from);
    }
}

/// Serves requests of one connection until the client closes it or asks to.
fn answer(stream: TcpStream) -> std::io::Result<()> {
    let client = stream.peer_addr()?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut stream = stream;
    let mut is_first = true;
    loop {
        let mut request = String::new();
        if reader.read_line(&mut request)? == 0 {
            SILENT.fetch_add(u32::from(is_first), Ordering::Relaxed);
            return Ok(());
        }
        is_first = false;
        let mut keep_alive = request.contains("HTTP/1.1");
        let mut body_length = 0;
        loop {
            let mut header = String::new();
            if reader.read_line(&mut header)? == 0 || header.trim().is_empty() {
                break;
            }
            let header = header.to_ascii_lowercase();
            keep_alive &= !(header.starts_with("connection:") && header.contains("close"));
            if let Some(length) = header.strip_prefix("content-length:") {
                body_length = length.trim().parse().unwrap_or(0);
            }
        }
        std::io::copy(&mut (&mut reader).take(body_length), &mut std::io::sink())?;
        let (method, rest) = request.split_once(' ').unwrap_or(("GET", "/"));
        let path = rest.split_whitespace().next().unwrap_or("/");
        let (status, text) = match path.strip_prefix("/show") {
            Some(shown) => ("200 OK", format!("{method} {shown}")),
            None => page(path, client),
        };
        let connection = if keep_alive { "keep-alive" } else { "close" };
        write!(
            stream,
            "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: {connection}\r\n\r\n{}",
            text.len(),
            if method == "HEAD" { "" } else { &text }
        )?;
        if !keep_alive {
            return Ok(());
        }
    }
}

fn page(path: &str, client: SocketAddr) -> (&'static str, String) {
    if let Some([writes, reads]) = RELAY.get() {
        let to = if path.starts_with("/set") { writes } else { reads };
        return match get(&format!("{to}{path}")) {
            Ok(text) => ("200 OK", text),
            Err(error) => ("502 Bad Gateway", error),
        };
    }
    if let Some(value) = path.strip_prefix("/set?value=") {
        value.clone_into(&mut VALUE.lock().unwrap_or_else(PoisonError::into_inner));
        return ("200 OK", "kept".to_owned());
    }
    if let Some(message) = path.strip_prefix("/echo?msg=") {
        println!("echo {message}");
        return ("200 OK", message.to_owned());
    }
    let text = match path {
        "/" => format!("{} {}\n", hostname(), version()),
        "/hostname" => hostname(),
        "/version" => version(),
        "/clientip" => client.ip().to_string(),
        "/healthz" => "ok".to_owned(),
        "/get" => VALUE.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        "/silent" => SILENT.load(Ordering::Relaxed).to_string(),
        "/megabyte" => "x".repeat(1_000_000),
        // A file in the pod's own file system decides, so that a test can turn readiness off.
        "/readyz" if fs::exists("/tmp/unready").unwrap_or(false) => {
            return ("503 Service Unavailable", "not ready".to_owned());
        }
        "/readyz" => "ok".to_owned(),
        _ => return ("404 Not Found", "not found".to_owned()),
    };
    ("200 OK", text)
}

/// HTTP/2 as far as a health check needs it (RFC 9113): whatever is called, the answer is `SERVING`.
fn grpc(port: u16) -> Result<(), String> {
    let listener = TcpListener::bind(("0.0.0.0", port)).map_err(|error| format!("port {port}: {error}"))?;
    println!("answers gRPC on port {port}");
    for stream in listener.incoming().flatten() {
        thread::spawn(move || {
            // The client is told by the broken connection.
            let _ = answer_calls(stream);
        });
    }
    Ok(())
}

fn answer_calls(mut stream: TcpStream) -> std::io::Result<()> {
    const PREFACE: usize = 24;
    const DATA: u8 = 0;
    const HEADERS: u8 = 1;
    const SETTINGS: u8 = 4;
    const PING: u8 = 6;
    const END_STREAM: u8 = 1;
    const ACK: u8 = 1;
    const END_HEADERS: u8 = 4;
    stream.read_exact(&mut [0; PREFACE])?;
    let mut writer = stream.try_clone()?;
    let mut send = |kind: u8, flags: u8, stream: u32, payload: &[u8]| {
        let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
        frame.extend([kind, flags]);
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        writer.write_all(&frame)
    };
    send(SETTINGS, 0, 0, &[])?;
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head)?;
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        stream.read_exact(&mut payload)?;
        let (kind, flags) = (head[3], head[4]);
        let id = u32::from_be_bytes([head[5], head[6], head[7], head[8]]) & 0x7fff_ffff;
        match kind {
            SETTINGS if flags & ACK == 0 => send(SETTINGS, ACK, 0, &[])?,
            PING if flags & ACK == 0 => send(PING, ACK, 0, &payload)?,
            DATA if flags & END_STREAM != 0 => {
                println!("call");
                // HPACK without a table: `:status: 200` is static entry 8, others are literals that are not indexed.
                let mut headers = vec![0x88];
                headers.extend(literal("content-type", "application/grpc"));
                send(HEADERS, END_HEADERS, id, &headers)?;
                // Not compressed, two bytes: field 1 is 1, SERVING.
                send(DATA, 0, id, &[0, 0, 0, 0, 2, 0x08, 1])?;
                send(HEADERS, END_HEADERS | END_STREAM, id, &literal("grpc-status", "0"))?;
            }
            _ => {}
        }
    }
}

fn literal(name: &str, value: &str) -> Vec<u8> {
    [&[0, name.len() as u8], name.as_bytes(), &[value.len() as u8], value.as_bytes()].concat()
}

type Ask = fn(&str) -> Result<String, String>;

/// Asks `count` times and prints each distinct answer with its number; fails where one request failed.
fn ask_many(to: &str, count: &str, ask: Ask) -> Result<(), String> {
    let count: u32 = count.parse().map_err(|_| format!("{count:?} is not a number"))?;
    let mut answers: BTreeMap<String, u32> = BTreeMap::new();
    let mut failed = 0;
    for _ in 0..count {
        match ask(to) {
            Ok(answer) => *answers.entry(answer.trim().to_owned()).or_default() += 1,
            Err(error) => {
                failed += 1;
                eprintln!("{error}");
            }
        }
    }
    for (answer, times) in answers {
        println!("{times} {answer}");
    }
    if failed > 0 { Err(format!("{failed} of {count} failed")) } else { Ok(()) }
}

fn get(to: &str) -> Result<String, String> {
    let (host, path) = to.split_once('/').unwrap_or((to, ""));
    let exchange = || -> std::io::Result<String> {
        let address = host.to_socket_addrs()?.next().ok_or(std::io::ErrorKind::NotFound)?;
        let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        write!(stream, "GET /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    };
    let text = exchange().map_err(|error| format!("{to}: {error}"))?;
    match text.split_once("\r\n\r\n") {
        Some((head, body)) if head.starts_with("HTTP/1.1 200") => Ok(body.to_owned()),
        _ => Err(format!("{to}: {:?}", text.lines().next().unwrap_or_default())),
    }
}

fn ask(to: &str) -> Result<String, String> {
    let exchange = || -> std::io::Result<String> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.set_read_timeout(Some(TIMEOUT))?;
        socket.send_to(b"hello", to)?;
        let mut buffer = [0; 2048];
        let (length, _) = socket.recv_from(&mut buffer)?;
        Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
    };
    exchange().map_err(|error| format!("{to}: {error}"))
}
