//! The events of a streamed request.

use crate::queue::{Drawn, Ticket, Update};
use crate::refusal::Refusal;
use crate::request::Prepared;
use axum::response::sse::Event;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use framework::error::Error;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;
use std::convert::Infallible;
use tokio::sync::mpsc;

/// `queued`: the request was accepted.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Queued {
    /// Number of requests before this one.
    pub before: usize,
    /// Name of the checkpoint.
    pub checkpoint: String,
    /// Scale of the guidance rule, if it has one.
    pub scale: Option<f64>,
    /// Number that the network reads at this scale, if it reads one.
    pub guidance_number: Option<f64>,
    /// Number of rows of the grid.
    pub rows: usize,
    /// Images per row.
    pub columns: usize,
    /// Command that draws the same grid.
    pub command: String,
    /// The resolved document with the requested sampler and rule.
    pub document: Value,
}

/// `step`: a step of the sampler is done.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Stepped {
    /// Completed steps.
    pub step: usize,
    /// Total steps.
    pub steps: usize,
    /// Seconds since sampling began.
    pub seconds: f64,
    /// Estimate of the grid: PNG in base64; null if there is no newer one.
    pub picture: Option<String>,
}

/// `done`: the grid is complete.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Done {
    /// The grid: PNG in base64.
    pub picture: String,
    /// Network evaluations per image.
    pub nfe: usize,
    /// Duration of sampling in seconds.
    pub seconds: f64,
}

/// Returns the first event of a request.
pub fn queued(prepared: &Prepared, before: usize) -> Queued {
    Queued {
        before,
        checkpoint: prepared.checkpoint.name.clone(),
        scale: prepared.scale,
        guidance_number: prepared.guidance_number,
        rows: prepared.labels.len() / prepared.columns.max(1),
        columns: prepared.columns,
        command: prepared.command.clone(),
        document: serde_json::from_str(&prepared.pipeline.document).unwrap_or_default(),
    }
}

fn event(name: &str, value: &impl Serialize) -> Result<Event, Infallible> {
    let text = serde_json::to_string(value).expect("the types of the interface have string keys only");
    Ok(Event::default().event(name).data(text))
}

fn last(end: Result<Drawn, Refusal>) -> Result<Event, Infallible> {
    match end {
        Ok(Drawn { png, nfe, seconds }) => event("done", &Done { picture: STANDARD.encode(png), nfe, seconds }),
        Err(refusal) => event("error", &refusal.body),
    }
}

/// Forwards the states of a request to a client until the request ends or the client leaves. The client's speed limits
/// only this task.
pub async fn forward(first: Queued, mut ticket: Ticket, client: mpsc::Sender<Result<Event, Infallible>>) {
    if client.send(event("queued", &first)).await.is_err() {
        return;
    }
    let mut shown: Option<usize> = None;
    loop {
        tokio::select! {
            biased;
            () = client.closed() => return,
            end = &mut ticket.end => {
                let end = end.unwrap_or_else(|_| Err(Error::Interrupted.into()));
                // A client that has left needs no result.
                let _ = client.send(last(end)).await;
                return;
            }
            Ok(()) = ticket.updates.changed() => {
                let Update { steps: [step, steps], elapsed, picture } = ticket.updates.borrow_and_update().clone();
                let address = picture.as_ref().map(|picture| picture.as_ptr() as usize);
                let picture = picture.filter(|_| address != shown).map(|png| STANDARD.encode(&*png));
                shown = address;
                let stepped = Stepped { step, steps, seconds: elapsed.as_secs_f64(), picture };
                if client.send(event("step", &stepped)).await.is_err() {
                    return;
                }
            }
        }
    }
}
