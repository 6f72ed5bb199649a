//! The queue of requests, and the one thread that samples. One request at a time uses all cores, so requests that run
//! at the same time would only slow each other down and hold more memory.

use crate::limits::{MOST_NETWORKS, MOST_WAITING, SAMPLING};
use crate::refusal::Refusal;
use crate::request::Prepared;
use axum::http::StatusCode;
use framework::burn::tensor::Device;
use framework::checkpoint::Checkpoint;
use framework::error::{Error, Problem, Result};
use framework::network::backbone::BoxBackbone;
use framework::nn::precision::MatmulPrecision;
use framework::pipeline::Pipeline;
use framework::pipeline::images::{self, Request, Step};
use run_folder::{picture, sampling};
use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::{oneshot, watch};

/// Least time between two estimates of one request.
const BETWEEN_ESTIMATES: Duration = Duration::from_millis(40);

/// A state of a request in progress. A client that reads slowly misses states, but never the result.
#[derive(Clone, Debug, Default)]
pub struct Update {
    /// Completed and total sampler steps.
    pub steps: [usize; 2],
    /// Time since sampling began.
    pub elapsed: Duration,
    /// The newest estimate of the grid as PNG. It is kept until there is a newer one.
    pub picture: Option<Arc<Vec<u8>>>,
}

/// The result of a request.
#[derive(Clone, Debug)]
pub struct Drawn {
    /// The grid as PNG: the bytes that `unguided sample` writes.
    pub png: Vec<u8>,
    /// Network evaluations per sample.
    pub nfe: usize,
    /// Duration of sampling in seconds.
    pub seconds: f64,
}

/// A request in the queue.
struct Job {
    number: u64,
    prepared: Prepared,
    is_left: Arc<AtomicBool>,
    updates: watch::Sender<Update>,
    end: oneshot::Sender<Result<Drawn, Refusal>>,
}

/// The client's side of a request. Dropping it cancels the request.
pub struct Ticket {
    /// Number of requests that were before this one.
    pub before: usize,
    /// States of the request.
    pub updates: watch::Receiver<Update>,
    /// The result.
    pub end: oneshot::Receiver<Result<Drawn, Refusal>>,
    number: u64,
    is_left: Arc<AtomicBool>,
    shared: Arc<Shared>,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.is_left.store(true, Relaxed);
        self.shared.lock().retain(|job| job.number != self.number);
    }
}

struct Shared {
    jobs: Mutex<VecDeque<Job>>,
    arrived: Condvar,
    /// Number of requests that the thread has begun or that wait.
    numbers: AtomicU64,
    is_busy: AtomicBool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, VecDeque<Job>> {
        self.jobs.lock().expect("no code panics while it holds the queue")
    }
}

/// The queue.
#[derive(Clone)]
pub struct Queue(Arc<Shared>);

impl Queue {
    /// Starts the sampling thread.
    ///
    /// # Errors
    /// If the system starts no thread.
    pub fn start(device: Device) -> Result<Self> {
        let shared = Arc::new(Shared {
            jobs: Mutex::default(),
            arrived: Condvar::new(),
            numbers: AtomicU64::new(0),
            is_busy: AtomicBool::new(false),
        });
        let queue = Self(shared.clone());
        let work = move || {
            let mut networks = Networks { device, loaded: Vec::new() };
            loop {
                let mut jobs = shared.lock();
                let job = loop {
                    match jobs.pop_front() {
                        Some(job) => break job,
                        None => {
                            shared.is_busy.store(false, Relaxed);
                            jobs = shared.arrived.wait(jobs).expect("no code panics while it holds the queue");
                        }
                    }
                };
                shared.is_busy.store(true, Relaxed);
                drop(jobs);
                let Job { prepared, is_left, updates, end, .. } = job;
                let drawn = catch_unwind(AssertUnwindSafe(|| networks.sample(prepared, &is_left, &updates)));
                // The client may have left: then nobody waits for the result.
                let _ = end.send(drawn.unwrap_or_else(|_| {
                    let what = "the server failed on this request; its log has the reason";
                    Err(Refusal::plain(StatusCode::INTERNAL_SERVER_ERROR, what))
                }));
            }
        };
        // As large as the stack of the main thread, on which the command `sample` runs.
        let builder = thread::Builder::new().name("sampling".to_string()).stack_size(8 << 20);
        builder.spawn(work).map_err(|e| Error::Run(format!("the sampling thread does not start: {e}")))?;
        Ok(queue)
    }

    /// Adds a request.
    ///
    /// # Errors
    /// If too many requests wait.
    pub fn push(&self, prepared: Prepared) -> Result<Ticket, Refusal> {
        let shared = &self.0;
        let mut jobs = shared.lock();
        if jobs.len() >= MOST_WAITING {
            let problem = Problem::new("", format!("{MOST_WAITING} requests are waiting already"));
            return Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, problem.fix("try again in a few seconds")));
        }
        let (updates, seen) = watch::channel(Update::default());
        let (end, result) = oneshot::channel();
        let number = shared.numbers.fetch_add(1, Relaxed);
        let is_left = Arc::new(AtomicBool::new(false));
        let before = jobs.len() + usize::from(shared.is_busy.load(Relaxed));
        jobs.push_back(Job { number, prepared, is_left: is_left.clone(), updates, end });
        drop(jobs);
        shared.arrived.notify_one();
        Ok(Ticket { before, updates: seen, end: result, number, is_left, shared: shared.clone() })
    }
}

/// A network in memory.
struct Loaded {
    path: PathBuf,
    /// Time of the file's last change: a training replaces its best checkpoint.
    changed: Option<SystemTime>,
    pipeline: Pipeline,
    network: BoxBackbone,
    /// Names of the classes, if they have names.
    class_names: Option<Vec<String>>,
}

/// The networks in memory, the most recently used one last.
struct Networks {
    device: Device,
    loaded: Vec<Loaded>,
}

impl Networks {
    /// Returns the network of a request's checkpoint, and loads it if necessary.
    fn get(&mut self, prepared: &Prepared) -> Result<&Loaded> {
        let path = &prepared.checkpoint.path;
        let changed = path.metadata().and_then(|metadata| metadata.modified()).ok();
        let known = self.loaded.iter().position(|loaded| loaded.path == *path && loaded.changed == changed);
        let loaded = match known {
            Some(index) => self.loaded.remove(index),
            None => {
                self.loaded.retain(|loaded| loaded.path != *path);
                while self.loaded.len() >= MOST_NETWORKS {
                    self.loaded.remove(0);
                }
                let checkpoint = Checkpoint::load_for_sampling(path)?;
                let class_names = checkpoint.dataset.as_ref().and_then(|facts| facts.class_names.clone());
                let from = if prepared.run.is_dir() { &prepared.run } else { path };
                let (pipeline, network) = sampling::load(from, checkpoint, &[], &prepared.name, &self.device)?;
                allocator::keep_pages();
                Loaded { path: path.clone(), changed, pipeline, network, class_names }
            }
        };
        self.loaded.push(loaded);
        Ok(self.loaded.last().expect("the network was just added"))
    }

    /// Samples a request. Ends early if the client has left, or after the time that a request may take.
    fn sample(
        &mut self,
        prepared: Prepared,
        is_left: &AtomicBool,
        updates: &watch::Sender<Update>,
    ) -> Result<Drawn, Refusal> {
        if is_left.load(Relaxed) {
            return Err(Error::Interrupted.into());
        }
        let device = self.device.clone();
        let loaded = self.get(&prepared)?;
        let names = loaded.class_names.as_deref();
        let Prepared { pipeline, labels, columns, seed, .. } = prepared;
        let request = Request {
            labels,
            seed,
            // The default of the command, whose bytes the server returns.
            batch_size: 100,
            sampler: &*pipeline.sampler,
            guidance: &*pipeline.guidance,
            matmul_precision: MatmulPrecision::Highest,
        };
        let begin = Instant::now();
        let (mut next, mut is_late) = (Duration::ZERO, false);
        let mut report = |step: &Step<'_>| {
            let elapsed = begin.elapsed();
            is_late = elapsed > SAMPLING;
            if is_late || is_left.load(Relaxed) {
                return ControlFlow::Break(());
            }
            let mut picture = updates.borrow().picture.clone();
            // The result follows the last step at once.
            if elapsed >= next && step.done < step.all {
                let estimate = step.estimate().ok().flatten();
                let encoded = estimate.and_then(|images| picture::png(&picture::grid(&images, columns, names)).ok());
                picture = encoded.map(Arc::new).or(picture);
                // Estimates take at most a quarter of the time, however slow the tokenizer is.
                let cost = begin.elapsed() - elapsed;
                next = begin.elapsed() + BETWEEN_ESTIMATES.max(3 * cost);
            }
            updates.send_replace(Update { steps: [step.done, step.all], elapsed, picture });
            ControlFlow::Continue(())
        };
        let sampled = images::stream(&loaded.pipeline, &loaded.network, &request, &device, &mut report);
        if is_late {
            let problem = Problem::new("", format!("the request took more than {} s", SAMPLING.as_secs()));
            let problem = problem.fix("ask for fewer images or steps, or use `unguided sample`");
            return Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, problem));
        }
        let sampled = sampled?;
        let png = picture::png(&picture::grid(&sampled.images, columns, names))?;
        Ok(Drawn { png, nfe: sampled.nfe, seconds: sampled.seconds })
    }
}
