//! Measures the server: the time from a move of a slider to the first streamed picture, and how much a training next to
//! fifty clients slows down.
//!
//!   cargo bench --workspace --bench serve
//!
//! The run is the digits example, trained for 300 steps. A slider sends its next value while the previous request is
//! still in progress, which ends that request.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};
use unguided as _;

/// Moves of the slider.
const MOVES: usize = 200;
/// Time between two moves.
const BETWEEN: Duration = Duration::from_millis(250);
/// Clients next to the training.
const CLIENTS: usize = 50;
/// Steps of the training that is slowed down.
const STEPS: usize = 400;

fn unguided() -> Command {
    Command::new(env!("CARGO_BIN_EXE_unguided"))
}

/// Trains the digits example and returns the duration.
fn train(run: &Path, steps: usize) -> Duration {
    let begin = Instant::now();
    let trained = unguided()
        .args(["train", "examples/pipelines/digits-dit-gft.json", "--set", "/metrics=[]", "--run"])
        .arg(run)
        .args(["--set", &format!("/train/steps={steps}"), "--set", "/train/save_every=10000"])
        .output()
        .expect("the command starts");
    assert!(trained.status.success(), "{}", String::from_utf8_lossy(&trained.stderr));
    begin.elapsed()
}

fn start(run: &Path) -> (Child, String) {
    let mut child =
        unguided().arg("serve").arg(run).args(["--port", "0"]).stdout(Stdio::piped()).spawn().expect("it starts");
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("a pipe")).read_line(&mut line).expect("it prints its address");
    (child, line.trim().trim_start_matches("http://").to_string())
}

/// Sends a request for samples.
fn send(address: &str, path: &str, body: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).expect("the server accepts");
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(head.as_bytes()).expect("the server reads");
    stream
}

/// Returns the time until the first picture arrives.
fn first_picture(stream: &TcpStream, begin: Instant) -> Duration {
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    lines.find(|line| line.contains("\"picture\":\"")).expect("a picture");
    begin.elapsed()
}

fn slider(address: &str) {
    let mut times = Vec::new();
    let mut before: Option<TcpStream> = None;
    for i in 0..MOVES {
        let scale = 1.0 + 0.02 * i as f64;
        let begin = Instant::now();
        let stream = send(address, "/api/samples", &format!("{{\"count\": 8, \"scale\": {scale}}}"));
        // The page ends the previous request when it sends the next one.
        drop(before.take());
        times.push(first_picture(&stream, begin).as_secs_f64() * 1e3);
        before = Some(stream);
        thread::sleep(BETWEEN.saturating_sub(begin.elapsed()).min(Duration::from_millis(60)));
    }
    times.remove(0);
    times.sort_by(f64::total_cmp);
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
    println!("slider to first picture: p50 {:.0} ms, p95 {:.0} ms, most {:.0} ms", at(0.5), at(0.95), at(1.0));
}

fn main() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let run = folder.path().join("digits");
    train(&run, 300);
    let (mut server, address) = start(&run);
    slider(&address);
    let alone = train(&folder.path().join("alone"), STEPS);
    let (is_over, answers) = (AtomicBool::new(false), AtomicUsize::new(0));
    let next_to_clients = thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (address, is_over, answers) = (&address, &is_over, &answers);
            scope.spawn(move || {
                while !is_over.load(Relaxed) {
                    let body = format!("{{\"classes\": [{}], \"count\": 8, \"seed\": {client}}}", client % 10);
                    let mut received = Vec::new();
                    let read = send(address, "/api/samples.png", &body).read_to_end(&mut received);
                    if read.is_ok() && received.starts_with(b"HTTP/1.1 200") {
                        answers.fetch_add(1, Relaxed);
                    }
                }
            });
        }
        let time = train(&folder.path().join("next"), STEPS);
        is_over.store(true, Relaxed);
        time
    });
    println!(
        "training of {STEPS} steps: {:.1} s alone, {:.1} s next to {CLIENTS} clients ({:.0} % longer; {} grids drawn)",
        alone.as_secs_f64(),
        next_to_clients.as_secs_f64(),
        100.0 * (next_to_clients.as_secs_f64() / alone.as_secs_f64() - 1.0),
        answers.load(Relaxed)
    );
    server.kill().expect("the server runs");
    server.wait().expect("the server ends");
}
