//! The handlers: one per path of the interface.

use crate::catalog::Catalog;
use crate::describe::{self, Choices};
use crate::guard::{Names, guard};
use crate::limits::{MOST_BODY, RECEIVING};
use crate::progress::{self, Metrics};
use crate::queue::Queue;
use crate::refusal::{Refusal, json};
use crate::request::{Prepared, SampleRequest};
use crate::{assets, events, openapi};
use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderValue, Response, StatusCode, header};
use axum::middleware;
use axum::response::IntoResponse;
use axum::response::sse::{KeepAlive, Sse};
use axum::routing::{get, post};
use framework::error::{Error, Problem};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

/// The choices of a run, with the checkpoint that they were found for.
type Found = (Option<PathBuf>, Arc<Choices>);

/// What the handlers share.
pub struct App {
    /// The served runs.
    pub catalog: Catalog,
    /// The queue of the sampling thread.
    pub queue: Queue,
    /// The logged lines that were read.
    pub metrics: Metrics,
    /// The choices of each run, by its name.
    pub choices: Mutex<BTreeMap<String, Found>>,
}

type Answer = Result<Response<Body>, Refusal>;

/// Returns the service: the page and the interface, behind the guard.
pub fn router(app: Arc<App>, names: Names) -> Router {
    Router::new()
        .route("/api/runs", get(runs))
        .route("/api/runs/{run}/choices", get(choices))
        .route("/api/runs/{run}/progress", get(progress_of))
        .route("/api/runs/{run}/samples/{step}", get(sample_grid))
        .route("/api/samples", post(samples))
        .route("/api/samples.png", post(samples_png))
        .route("/openapi.json", get(|| async { json(&openapi::document()) }))
        .method_not_allowed_fallback(|| async {
            Refusal::plain(StatusCode::METHOD_NOT_ALLOWED, "the path has another method; /openapi.json lists them")
        })
        .fallback(page)
        .with_state(app)
        .layer(middleware::from_fn_with_state(names, guard))
}

/// Runs work that reads files or checks documents, away from the thread that answers.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Refusal> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| Refusal::plain(StatusCode::INTERNAL_SERVER_ERROR, "the server failed on this request"))
}

/// Returns the variable parts of a path, which may be malformed.
fn parts<T>(path: Result<Path<T>, PathRejection>) -> Result<T, Refusal> {
    let missing = |_| Refusal::plain(StatusCode::NOT_FOUND, "no such path; /openapi.json lists the interface");
    path.map(|Path(parts)| parts).map_err(missing)
}

type Parts<T> = Result<Path<T>, PathRejection>;

async fn page(request: Request) -> Answer {
    let missing = || Refusal::plain(StatusCode::NOT_FOUND, "no such path; /openapi.json lists the interface");
    if request.method() != "GET" && request.method() != "HEAD" {
        return Err(missing());
    }
    assets::file(request.uri().path()).ok_or_else(missing)
}

async fn runs(State(app): State<Arc<App>>) -> Answer {
    Ok(json(&blocking(move || describe::runs(&app.catalog)).await?))
}

async fn choices(State(app): State<Arc<App>>, path: Parts<String>) -> Answer {
    let run = parts(path)?;
    let find = move || {
        let run = app.catalog.run(&run)?;
        let newest = run.checkpoints()?.into_iter().next().map(|entry| entry.path);
        // Wait for another client's search instead of repeating it.
        let mut known = app.choices.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some((at, found)) = known.get(&run.id)
            && *at == newest
        {
            return Ok::<_, Refusal>(found.clone());
        }
        let found = Arc::new(describe::choices(run)?);
        known.insert(run.id.clone(), (newest, found.clone()));
        Ok(found)
    };
    Ok(json(&*blocking(find).await??))
}

async fn progress_of(State(app): State<Arc<App>>, path: Parts<String>) -> Answer {
    let run = parts(path)?;
    let read = move || Ok::<_, Refusal>(app.metrics.progress(app.catalog.run(&run)?)?);
    Ok(json(&blocking(read).await??))
}

async fn sample_grid(State(app): State<Arc<App>>, path: Parts<(String, String)>) -> Answer {
    let (run, step) = parts(path)?;
    let missing =
        |step: &str| Refusal::plain(StatusCode::NOT_FOUND, &format!("the run has no sample grid of step {step}"));
    let short: String = step.chars().take(20).collect();
    let number: usize = step.parse().map_err(|_| missing(&short))?;
    let read = move || Ok::<_, Refusal>(progress::sample_grid(app.catalog.run(&run)?, number));
    blocking(read).await??.map(png).ok_or_else(|| missing(&short))
}

fn png(bytes: Vec<u8>) -> Response<Body> {
    let mut response = Response::new(Body::from(bytes));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("image/png"));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// Reads and checks a request for samples.
async fn prepare(app: &Arc<App>, request: Request) -> Result<Prepared, Refusal> {
    let kind = request.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    // Pages of other sites can send other kinds without asking.
    if !kind.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("application/json") {
        let problem = Problem::new("Content-Type", "the body is not JSON").accepts("application/json");
        return Err(Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, problem));
    }
    let body = tokio::time::timeout(RECEIVING, to_bytes(request.into_body(), MOST_BODY)).await;
    let body = body.map_err(|_| Refusal::plain(StatusCode::REQUEST_TIMEOUT, "the body did not arrive in time"))?;
    let body = body.map_err(|_| {
        let problem =
            Problem::new("", "the body is too large, or did not arrive").accepts(format!("at most {MOST_BODY} bytes"));
        Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, problem)
    })?;
    // A struct could also be written as a list of its values, which nobody means.
    let members = serde_json::from_slice::<Map<String, Value>>(&body);
    let asked = members.and_then(|members| serde_json::from_value(Value::Object(members)));
    let asked: SampleRequest = asked.map_err(|error| {
        let fix = "see SampleRequest in /openapi.json";
        Refusal::new(StatusCode::BAD_REQUEST, Problem::new("", format!("malformed request: {error}")).fix(fix))
    })?;
    let app = app.clone();
    blocking(move || asked.prepare(&app.catalog)).await?
}

async fn samples(State(app): State<Arc<App>>, request: Request) -> Answer {
    let prepared = prepare(&app, request).await?;
    let first = events::queued(&prepared, 0);
    let ticket = app.queue.push(prepared)?;
    let first = events::Queued { before: ticket.before, ..first };
    let (client, stream) = mpsc::channel(2);
    tokio::spawn(events::forward(first, ticket, client));
    let stream = Sse::new(ReceiverStream::new(stream)).keep_alive(KeepAlive::default());
    Ok(stream.into_response())
}

async fn samples_png(State(app): State<Arc<App>>, request: Request) -> Answer {
    let prepared = prepare(&app, request).await?;
    let mut ticket = app.queue.push(prepared)?;
    let end = (&mut ticket.end).await.unwrap_or_else(|_| Err(Error::Interrupted.into()));
    Ok(png(end?.png))
}
