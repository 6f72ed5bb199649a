//! A server in a process of its own, and a client that writes every byte of a request itself.

use serde_json::Value;
use std::fmt;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

/// Returns the folder of a tiny trained run, which all tests share.
pub fn run() -> &'static Path {
    static RUN: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = RUN.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tiny");
        let trained = unguided()
            .args(["train", "examples/pipelines/digits-dit-gft-tiny.json", "--set", "/metrics=[]", "--run"])
            .arg(&path)
            .args(["--set", "/train/sample_every=10"])
            .output()
            .unwrap();
        assert!(trained.status.success(), "{}", String::from_utf8_lossy(&trained.stderr));
        (folder, path)
    });
    path
}

/// Returns the command, in the folder of the examples.
pub fn unguided() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_unguided"));
    command.current_dir(env!("CARGO_MANIFEST_DIR"));
    command
}

/// A running server. It ends when the value is dropped.
pub struct Server {
    pub child: Child,
    /// Host and port.
    pub address: String,
}

impl Server {
    /// Starts a server for these runs and waits until it listens.
    pub fn start(runs: &[&Path]) -> Self {
        let mut command = unguided();
        command.arg("serve").args(runs).args(["--port", "0"]);
        Self::spawn(&mut command)
    }

    /// Starts a server with a prepared command.
    pub fn spawn(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("http://").expect("the command prints its address").to_string();
        Self { child, address }
    }

    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
        stream
    }

    /// Sends bytes and reads the response until the server closes the connection.
    pub fn raw(&self, bytes: &[u8]) -> Answer {
        let mut stream = self.connect();
        // A server that refuses a request may close the connection before it has read all of it.
        let _ = stream.write_all(bytes);
        let mut received = Vec::new();
        let _ = stream.read_to_end(&mut received);
        Answer::new(&received)
    }

    pub fn get(&self, path: &str) -> Answer {
        self.raw(format!("GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.address).as_bytes())
    }

    /// Returns the head and the body of a request for samples, with further header lines.
    pub fn request(&self, path: &str, body: &str, lines: &str) -> Vec<u8> {
        format!(
            "POST {path} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\n{lines}Content-Length: {}\r\n\
             Connection: close\r\n\r\n{body}",
            self.address,
            body.len()
        )
        .into_bytes()
    }

    pub fn post(&self, path: &str, body: &Value) -> Answer {
        self.raw(&self.request(path, &body.to_string(), ""))
    }

    /// Starts a streamed request.
    pub fn stream(&self, body: &Value) -> Events {
        let mut stream = self.connect();
        stream.write_all(&self.request("/api/samples", &body.to_string(), "")).unwrap();
        Events(BufReader::new(stream))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The events of a streamed request. Dropping it closes the connection.
pub struct Events(BufReader<TcpStream>);

impl Events {
    /// Returns the name and the data of the next event, or `None` at the end of the stream.
    pub fn next(&mut self) -> Option<(String, Value)> {
        let mut name = String::new();
        loop {
            let mut line = String::new();
            if self.0.read_line(&mut line).ok()? == 0 {
                return None;
            }
            if let Some(event) = line.strip_prefix("event: ") {
                name = event.trim().to_string();
            } else if let Some(data) = line.strip_prefix("data: ") {
                return Some((name, serde_json::from_str(data).unwrap()));
            }
        }
    }

    /// Returns the data of the next event of this name.
    pub fn until(&mut self, wanted: &str) -> Value {
        loop {
            match self.next() {
                Some((name, data)) if name == wanted => return data,
                Some(_) => {}
                None => panic!("the stream ended before `{wanted}`"),
            }
        }
    }
}

/// A response.
pub struct Answer {
    /// Status; 0 if there was no response.
    pub status: u16,
    /// Head, in lower case.
    pub head: String,
    pub body: Vec<u8>,
}

/// Shows the beginning of the body as text.
impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let body = String::from_utf8_lossy(&self.body[..self.body.len().min(500)]);
        write!(f, "{}\n\n{body}", self.head)
    }
}

impl Answer {
    fn new(received: &[u8]) -> Self {
        let end = received.windows(4).position(|four| four == b"\r\n\r\n").unwrap_or(received.len());
        let head = String::from_utf8_lossy(&received[..end]).to_lowercase();
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        let mut body = received.get(end + 4..).unwrap_or_default().to_vec();
        if head.contains("transfer-encoding: chunked") {
            body = whole(&body);
        }
        Self { status, head, body }
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&self.body)))
    }

    /// Returns the first problem of a refusal.
    pub fn what(&self) -> String {
        self.json()["problems"][0]["what"].as_str().expect("a refusal names a problem").to_string()
    }
}

/// Joins the chunks of a body.
fn whole(mut chunked: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(end) = chunked.windows(2).position(|two| two == b"\r\n") {
        let size = usize::from_str_radix(std::str::from_utf8(&chunked[..end]).unwrap(), 16).unwrap();
        body.extend_from_slice(&chunked[end + 2..end + 2 + size]);
        chunked = &chunked[(end + 2 + size + 2).min(chunked.len())..];
    }
    body
}
