//! Ends a job whose step takes far longer than the steps before it: a rank hangs, or the network is cut.
//!
//! A launcher that lost a rank asks the others to stop. They wait for the lost rank and cannot, so the limit is shorter
//! after such a request.

use crate::interrupt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Limit of the first step. A GPU compiles its kernels during it.
const FIRST: Duration = Duration::from_secs(1800);

/// Shortest limit of the other steps.
const SHORTEST: Duration = Duration::from_secs(300);

/// Time that a step may take after a request to stop, in addition to [`MEDIANS`].
const STOPPING: Duration = Duration::from_secs(10);

/// Number of median steps that a step may take.
const MEDIANS: u32 = 20;

/// Number of steps whose median counts.
const REMEMBERED: usize = 101;

/// Called with a message when a step takes too long. It ends the process.
pub type Hanging = Arc<dyn Fn(&str) + Send + Sync>;

#[derive(Default)]
struct State {
    /// Number and start of the step in progress.
    step: Option<(usize, Instant)>,
    /// Durations of the last steps.
    last: Vec<Duration>,
    steps: usize,
    ended: bool,
}

/// Watches the steps of one rank from a thread of its own.
pub struct Watchdog(Arc<Mutex<State>>);

/// Returns the time that a step may take after steps of these durations, and the time that it may take after a request
/// to stop.
fn limits(last: &[Duration]) -> [Duration; 2] {
    let mut sorted = last.to_vec();
    sorted.sort();
    let median = sorted.get(sorted.len() / 2);
    median.map_or([FIRST; 2], |median| [SHORTEST.max(*median * MEDIANS), STOPPING + *median * MEDIANS])
}

impl Watchdog {
    /// Starts the thread. `fixed` is the limit of a step; `None` = half an hour for the first
    /// step, then the larger of five minutes and 20 median steps.
    pub fn start(fixed: Option<Duration>, hanging: Hanging) -> Self {
        let state = Arc::new(Mutex::new(State::default()));
        let watched = state.clone();
        let watch = move || {
            let mut asked = None;
            loop {
                std::thread::sleep(Duration::from_millis(200));
                if asked.is_none() && interrupt::STOP.load(Ordering::SeqCst) {
                    asked = Some(Instant::now());
                }
                let state = watched.lock().unwrap_or_else(PoisonError::into_inner);
                if state.ended {
                    return;
                }
                let Some((step, start)) = state.step else { continue };
                let [limit, after_request] = limits(&state.last);
                let limit = fixed.unwrap_or(limit);
                let is_late = start.elapsed() > limit;
                let stays = asked.is_some_and(|asked: Instant| start.max(asked).elapsed() > after_request.min(limit));
                if is_late || stays {
                    let within = if is_late { limit } else { after_request.min(limit) };
                    hanging(&format!(
                        "step {step} did not end within {} s: a rank hangs or has ended, or the network is cut",
                        within.as_secs()
                    ));
                    return;
                }
            }
        };
        // Without the thread, a hanging job is not ended. Training itself works.
        let _ = std::thread::Builder::new().name("watchdog".to_string()).spawn(watch);
        Self(state)
    }

    /// Begins to watch a step.
    pub fn begin(&self, step: usize) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).step = Some((step, Instant::now()));
    }

    /// Ends the watch: work that only rank 0 does has no limit.
    pub fn end(&self) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, start)) = state.step.take() {
            let at = state.steps % REMEMBERED;
            match state.last.get_mut(at) {
                Some(oldest) => *oldest = start.elapsed(),
                None => state.last.push(start.elapsed()),
            }
            state.steps += 1;
        }
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).ended = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    #[test]
    fn a_step_may_take_five_minutes_or_twenty_medians() {
        let seconds = |all: &[u64]| all.iter().map(|s| Duration::from_secs(*s)).collect::<Vec<_>>();
        assert_eq!(limits(&[]).to_vec(), seconds(&[1800, 1800]));
        assert_eq!(limits(&seconds(&[1, 2, 9])).to_vec(), seconds(&[300, 50]));
        assert_eq!(limits(&seconds(&[900, 20, 60])).to_vec(), seconds(&[1200, 1210]));
    }

    #[test]
    fn a_step_that_hangs_is_named_and_one_that_ended_is_not() {
        let (sender, said) = channel();
        let hanging: Hanging = Arc::new(move |what| sender.send(what.to_string()).unwrap());
        let watchdog = Watchdog::start(Some(Duration::from_millis(300)), hanging);
        watchdog.begin(1);
        watchdog.end();
        assert!(said.recv_timeout(Duration::from_millis(900)).is_err());
        watchdog.begin(2);
        assert!(said.recv_timeout(Duration::from_secs(30)).unwrap().starts_with("step 2 did not end"));
    }
}
