//! The server: the same samples as the command, cancelled and hostile requests, limits, many clients, and the page.

mod browser;
mod client;
#[cfg(unix)]
#[path = "../default_signals/mod.rs"]
mod default_signals;
mod page;

use client::{Answer, Server, run, unguided};
use serde_json::{Value, json};
use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};
use unguided as _;

/// Returns the PNG file that the command writes.
fn sampled(arguments: &[&str]) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("grid.png");
    let output = unguided().arg("sample").arg(run()).args(arguments).arg("--output").arg(&file).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    fs::read(file).unwrap()
}

fn decoded(picture: &Value) -> Vec<u8> {
    let bits = |c: u8| match c {
        b'A'..=b'Z' => c - b'A',
        b'a'..=b'z' => c - b'a' + 26,
        b'0'..=b'9' => c - b'0' + 52,
        b'+' => 62,
        _ => 63,
    };
    let text: Vec<u8> = picture.as_str().unwrap().bytes().filter(|c| *c != b'=').map(bits).collect();
    let bytes = |four: &[u8]| {
        let value = four.iter().fold(0, |all, six| all << 6 | u32::from(*six)) << (6 * (4 - four.len()));
        value.to_be_bytes()[1..four.len()].to_vec()
    };
    text.chunks(4).flat_map(bytes).collect()
}

/// Returns the pixels of a PNG file. The files of `sample` also contain texts.
fn pixels(png: &[u8]) -> image::RgbImage {
    image::load_from_memory(png).unwrap().into_rgb8()
}

fn png(answer: &Answer) -> &[u8] {
    assert_eq!(answer.status, 200, "{answer:?}");
    &answer.body
}

#[test]
fn a_request_returns_the_bytes_of_the_command() {
    let server = Server::start(&[run()]);
    assert!(server.address.starts_with("127.0.0.1:"), "{}", server.address);
    let request = json!({ "classes": [1, 3], "count": 3, "seed": 7, "scale": 2.5, "steps": 3 });
    let expected = sampled(&["--classes", "1,3", "--count", "3", "--seed", "7", "--scale", "2.5", "--steps", "3"]);
    assert!(pixels(png(&server.post("/api/samples.png", &request))) == pixels(&expected));
    let mut events = server.stream(&request);
    let queued = events.until("queued");
    let (mut steps, mut done) = (Vec::new(), None);
    while let Some((name, data)) = events.next() {
        match name.as_str() {
            "step" => steps.push(data),
            _ => done = Some((name, data)),
        }
    }
    let (name, done) = done.unwrap();
    assert_eq!((name.as_str(), &done["nfe"]), ("done", &json!(3)));
    assert!(pixels(&decoded(&done["picture"])) == pixels(&expected));
    // A slow client may miss states, but the estimates are pictures of the same size.
    let estimates = steps.iter().filter(|step| step["picture"].is_string()).map(|step| decoded(&step["picture"]));
    for estimate in estimates {
        let (estimate, expected) = (pixels(&estimate), pixels(&expected));
        assert!(estimate.dimensions() == expected.dimensions() && estimate != expected);
    }
    // The command that the server names draws the same grid.
    let command = queued["command"].as_str().unwrap();
    assert!(command.ends_with("--classes 1,3 --count 3 --seed 7 --steps 3 --scale 2.5"), "{command}");
    assert_eq!(queued["document"]["sampler"]["steps"], 3);
}

#[test]
fn the_named_command_draws_the_same_grid_with_another_sampler_and_rule() {
    let server = Server::start(&[run()]);
    let request = json!({
        "classes": [4], "count": 2, "checkpoint": "step-000000015",
        "sampler": { "type": "dpm_solver_pp", "steps": 3 },
        "guidance": { "type": "cfg", "scale": 2.0, "schedule": { "type": "linear" } }
    });
    let command = server.stream(&request).until("queued")["command"].as_str().unwrap().to_string();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("grid.png");
    let words = command.replacen("unguided", env!("CARGO_BIN_EXE_unguided"), 1);
    let output = Command::new("sh").arg("-c").arg(format!("{words} --output {}", file.display())).output().unwrap();
    assert!(output.status.success(), "{command}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(pixels(png(&server.post("/api/samples.png", &request))) == pixels(&fs::read(file).unwrap()));
}

#[test]
fn two_settings_start_from_the_same_noise() {
    let server = Server::start(&[run()]);
    let draw = |more: Value| {
        let mut request = json!({ "classes": [2], "count": 2, "seed": 5 });
        request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        png(&server.post("/api/samples.png", &request)).to_vec()
    };
    let one = draw(json!({ "scale": 1.0 }));
    // Guidance with scale 1 is the conditional prediction, so another rule draws the same images from the same noise.
    assert!(one == draw(json!({ "guidance": { "type": "cfg", "scale": 1.0 } })));
    // GFT reads beta = 1 / scale.
    assert!(draw(json!({ "scale": 2.0 })) == draw(json!({ "guidance_number": 0.5 })));
    assert!(one != draw(json!({ "scale": 2.0 })) && one != draw(json!({ "scale": 1.0, "seed": 6 })));
}

/// A request that takes long on a tiny network.
fn long() -> Value {
    json!({ "count": 10, "sampler": { "type": "ddim", "steps": 1000 } })
}

#[test]
fn a_request_ends_when_its_client_leaves() {
    let server = Server::start(&[run()]);
    let mut events = server.stream(&long());
    let step = loop {
        let step = events.until("step");
        if step["step"].as_u64() >= Some(10) {
            break step;
        }
    };
    let whole = step["seconds"].as_f64().unwrap() / step["step"].as_f64().unwrap() * 1000.0;
    drop(events);
    let begin = Instant::now();
    png(&server.post("/api/samples.png", &json!({ "classes": [0], "count": 1 })));
    let waited = begin.elapsed().as_secs_f64();
    assert!(waited < whole / 2.0, "waited {waited} s for a request of {whole} s whose client has left");
}

#[test]
fn requests_beyond_a_limit_are_refused_with_the_limit() {
    let server = Server::start(&[run()]);
    let refused = |request: Value, status: u16, what: &str| {
        let answer = server.post("/api/samples.png", &request);
        assert_eq!(answer.status, status, "{answer:?}");
        assert!(answer.json().to_string().contains(what), "{}", answer.json());
    };
    refused(json!({ "count": 101 }), 422, "1 to 100");
    refused(json!({ "count": 0 }), 422, "1 to 100");
    refused(json!({ "count": 11 }), 422, "at most 100 images");
    refused(json!({ "classes": vec![1; 101] }), 422, "at most 100");
    refused(json!({ "captions": ["x".repeat(1001)] }), 422, "at most 1000 characters");
    refused(json!({ "steps": 5000 }), 422, "1000");
    refused(json!({ "sampler": { "type": "euler_maruyama", "steps": 5000 } }), 422, "/sampler");
    refused(json!({ "classes": [10] }), 422, "classes 0 to 9");
    refused(json!({ "scale": 0.5 }), 422, "objective \\\"gft\\\" does not train it");
    refused(json!({ "scale": 2.0, "guidance_number": 0.5 }), 422, "one of them");
    refused(json!({ "guidance": { "type": "cgf" } }), 422, "\"nearest\":\"cfg\"");
    refused(json!({ "checkpoint": "../../../etc/passwd" }), 404, "unknown checkpoint");
    refused(json!({ "run": "tinny" }), 404, "\"nearest\":\"tiny\"");
    let weak = json!({ "type": "weak_model", "scale": 2.0, "weak": { "checkpoint": "/etc/passwd" } });
    refused(json!({ "guidance": weak }), 403, "weak network");
    let body = format!("{{\"run\": \"{}\"}}", "x".repeat(70_000));
    assert_eq!(server.raw(&server.request("/api/samples", &body, "")).status, 413);
}

#[test]
fn a_full_queue_refuses_further_requests_and_loses_none() {
    let server = Server::start(&[run()]);
    let mut held: Vec<_> = (0..65).map(|_| server.stream(&long())).collect();
    let before: Vec<u64> = held.iter_mut().map(|events| events.until("queued")["before"].as_u64().unwrap()).collect();
    assert!(before.iter().max().unwrap() >= &60, "{before:?}");
    let answer = server.post("/api/samples.png", &long());
    assert_eq!(answer.status, 503, "{answer:?}");
    assert!(answer.head.contains("retry-after: 2") && answer.what().contains("64 requests are waiting"));
    drop(held);
    png(&server.post("/api/samples.png", &json!({ "classes": [0], "count": 1 })));
}

#[test]
fn hostile_requests_are_refused_in_json_and_the_server_goes_on() {
    let server = Server::start(&[run()]);
    for path in [
        "/../../../../etc/passwd",
        "/..%2f..%2fetc%2fpasswd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "//etc/passwd",
        "/assets/../Cargo.toml",
        "/api/runs/..%2f..%2fetc/progress",
        "/api/runs/%2e%2e/choices",
        "/api/runs/%ff/choices",
        "/api/runs/tiny/samples/..%2F..%2Fdocument.json",
        "/api/runs/tiny/samples/-1",
        "/api/runs/tiny/samples/99999999999999999999999",
        "/api/runs/tiny/samples/7",
        "/document.json",
        "/style.css%00.png",
    ] {
        let answer = server.get(path);
        assert_eq!(answer.status, 404, "{path}: {answer:?}");
        answer.what();
    }
    let body = json!({ "classes": [0], "count": 1 }).to_string();
    let with = |lines: &str| server.raw(&server.request("/api/samples", &body, lines)).status;
    assert_eq!(with("Origin: http://evil.example\r\n"), 403);
    assert_eq!(with("Origin: null\r\n"), 403);
    assert_eq!(with("Sec-Fetch-Site: cross-site\r\n"), 403);
    assert_eq!(with(&format!("Origin: http://{}\r\nSec-Fetch-Site: same-origin\r\n", server.address)), 200);
    let host = |host: &str| {
        server.raw(format!("GET /api/runs HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").as_bytes())
    };
    assert_eq!(host("evil.example").status, 403, "DNS rebinding");
    assert_eq!(host("localhost:1").status, 200);
    let head = server.get("/").head;
    assert!(
        head.contains("content-security-policy: default-src 'none'") && !head.contains("access-control-allow"),
        "{head}"
    );
    let plain = server.request("/api/samples", &body, "").iter().map(|b| *b as char).collect::<String>();
    assert_eq!(server.raw(plain.replace("application/json", "text/plain").as_bytes()).status, 415);
    for malformed in
        ["{", "[]", "null", "{\"count\": -1}", "{\"count\": 1e99}", "{\"seed\": \"x\"}", "{\"paths\": 1}", "\u{0}"]
    {
        let answer = server.raw(&server.request("/api/samples", malformed, ""));
        assert_eq!(answer.status, 400, "{malformed}: {answer:?}");
        assert!(answer.what().starts_with("malformed request"), "{answer:?}");
    }
    let deep = format!("{{\"guidance\": {}1{}}}", "{\"a\":".repeat(3000), "}".repeat(3000));
    assert_eq!(server.raw(&server.request("/api/samples", &deep, "")).status, 400);
    assert_eq!(server.raw(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03nonsense\r\n\r\n").status, 400);
    let long = format!("GET / HTTP/1.1\r\nHost: {}\r\nX: {}\r\n\r\n", server.address, "x".repeat(100_000));
    assert_eq!(server.raw(long.as_bytes()).status, 431);
    let many = format!("GET / HTTP/1.1\r\nHost: {}\r\n{}\r\n", server.address, "X: x\r\n".repeat(500));
    assert_eq!(server.raw(many.as_bytes()).status, 431);
    let method = server
        .raw(format!("DELETE /api/runs HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", server.address).as_bytes());
    assert_eq!(method.status, 405);
    method.what();
    // A client that never reads must not hold up the others.
    let _deaf = server.stream(&long_without_reading());
    assert_eq!(server.get("/").status, 200);
    png(&server.post("/api/samples.png", &json!({ "classes": [0], "count": 1 })));
}

fn long_without_reading() -> Value {
    json!({ "count": 10, "sampler": { "type": "ddim", "steps": 50 } })
}

#[test]
fn slow_requests_are_cut_off() {
    let server = Server::start(&[run()]);
    let head = format!("POST /api/samples HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\n", server.address);
    let (mut slow_head, mut slow_body) = (server.connect(), server.connect());
    slow_head.write_all(head.as_bytes()).unwrap();
    slow_body.write_all(format!("{head}Content-Length: 50\r\n\r\n{{\"count\"").as_bytes()).unwrap();
    let begin = Instant::now();
    let mut received = Vec::new();
    let _ = slow_head.read_to_end(&mut received);
    assert!(begin.elapsed() < Duration::from_secs(60), "the server waits for ever for a head");
    let mut received = [0; 12];
    slow_body.read_exact(&mut received).unwrap();
    assert_eq!(&received, b"HTTP/1.1 408");
}

#[test]
fn fifty_clients_all_get_their_own_samples() {
    let server = Server::start(&[run()]);
    let request = |seed: u64| json!({ "classes": [3], "count": 2, "seed": seed });
    let expected: Vec<Vec<u8>> =
        (0..5).map(|seed| png(&server.post("/api/samples.png", &request(seed))).to_vec()).collect();
    assert!(expected[0] != expected[1]);
    thread::scope(|scope| {
        let clients: Vec<_> = (0..50)
            .map(|i| {
                let (server, request) = (&server, request(i % 5));
                scope.spawn(move || server.post("/api/samples.png", &request))
            })
            .collect();
        for (i, client) in clients.into_iter().enumerate() {
            assert!(png(&client.join().unwrap()) == expected[i % 5], "client {i}");
        }
    });
}

#[test]
fn the_interface_describes_the_run_and_follows_its_training() {
    let server = Server::start(&[run(), &run().join("checkpoints/step-000000015.safetensors")]);
    let runs = server.get("/api/runs").json();
    let ids: Vec<&str> = runs.as_array().unwrap().iter().map(|run| run["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["tiny", "step-000000015"]);
    let first = &runs[0];
    assert_eq!(first["checkpoints"][0]["name"], "step-000000020");
    assert_eq!((&first["num_classes"], &first["image"]), (&json!(10), &json!([1, 8, 8])));
    assert_eq!(first["trained_scales"], json!([1.0, null]));
    let numbers = first["guidance_numbers"].as_array().unwrap();
    assert_eq!((&numbers[0], &numbers[100]), (&json!(1.0), &json!(0.1)));
    let choices = server.get("/api/runs/tiny/choices").json();
    let choice = |list: &str, name: &str| {
        choices[list].as_array().unwrap().iter().find(|one| one["name"] == name).unwrap().clone()
    };
    assert_eq!(choice("samplers", "ddim")["refused"], Value::Null);
    assert_eq!(choice("guidance", "cfg")["entry"]["scale"], 2.0);
    let refused = choice("samplers", "autoregressive")["refused"].to_string();
    assert!(refused.contains("autoregressive") && refused.contains("dit"), "{refused}");
    // Every rule that is offered can be drawn with its entry as it stands.
    for one in choices["guidance"].as_array().unwrap().iter().filter(|one| one["refused"].is_null()) {
        let request = json!({ "classes": [0], "count": 1, "steps": 1, "guidance": one["entry"] });
        png(&server.post("/api/samples.png", &request));
    }
    let progress = server.get("/api/runs/tiny/progress").json();
    assert_eq!((&progress["state"], &progress["step"], &progress["steps"]), (&json!("done"), &json!(20), &json!(20)));
    assert_eq!(progress["lines"].as_array().unwrap().len(), 4);
    let step = progress["samples"][0].as_u64().expect("the training saved sample grids");
    let grid = server.get(&format!("/api/runs/tiny/samples/{step}"));
    assert!(png(&grid).starts_with(b"\x89PNG"));
    assert_eq!(server.get("/api/runs/step-000000015/progress").json()["state"], "none");
}

#[test]
fn every_described_call_exists() {
    let server = Server::start(&[run()]);
    let document = server.get("/openapi.json").json();
    assert_eq!(document["openapi"], "3.1.0");
    let paths = document["paths"].as_object().unwrap();
    assert_eq!(paths.len(), 7);
    for (path, methods) in paths {
        let path = path.replace("{run}", "tiny").replace("{step}", "10");
        for method in methods.as_object().unwrap().keys() {
            let answer = match method.as_str() {
                "get" => server.get(&path),
                _ => server.post(&path, &json!({ "classes": [0], "count": 1 })),
            };
            assert_eq!(answer.status, 200, "{method} {path}: {answer:?}");
        }
    }
}

#[cfg(unix)]
#[test]
fn ctrl_c_ends_the_server_at_once_with_exit_code_130() {
    let mut command = unguided();
    command.arg("serve").arg(run()).args(["--port", "0"]);
    let mut server = Server::spawn(default_signals::with_default_signals(&mut command));
    let mut events = server.stream(&long());
    events.until("step");
    assert!(Command::new("kill").args(["-INT", &server.child.id().to_string()]).status().unwrap().success());
    assert_eq!(server.child.wait().unwrap().code(), Some(130));
    while events.next().is_some() {}
}

#[test]
fn wrong_arguments_are_refused() {
    let refused = |path: &Path, port: &str, says: &str| {
        let output = unguided().arg("serve").arg(path).args(["--port", port]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).to_string();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(says), "{said}");
    };
    refused(Path::new("runs/absent"), "0", "runs/absent does not exist");
    refused(Path::new("docs"), "0", "docs is neither a run folder nor a checkpoint");
    let server = Server::start(&[run()]);
    let port = server.address.rsplit_once(':').unwrap().1;
    refused(run(), port, "choose another port");
}
