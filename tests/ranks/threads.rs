//! Ranks that are threads of the test.

use framework::ranks::collective::Collective;
use framework::ranks::tree::add_parts;
use std::any::Any;
use std::fmt::{self, Debug, Formatter};
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

/// A message that waits for the other ranks.
type Message = Arc<dyn Any + Send + Sync>;

struct Shared {
    /// Messages of the exchange in progress, the number of ranks that arrived or left, and the number of waits so far.
    state: Mutex<(Vec<Option<Message>>, usize, usize)>,
    changed: Condvar,
}

/// One rank, on a thread of its own.
pub struct Thread {
    rank: usize,
    size: usize,
    shared: Arc<Shared>,
}

impl Debug for Thread {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "thread {} of {}", self.rank, self.size)
    }
}

/// Returns the ranks of a job.
pub fn ranks(size: usize) -> Vec<Thread> {
    let shared = Arc::new(Shared { state: Mutex::new((vec![None; size], 0, 0)), changed: Condvar::new() });
    (0..size).map(|rank| Thread { rank, size, shared: shared.clone() }).collect()
}

impl Thread {
    /// Waits for all ranks.
    fn wait(&self) {
        let mut state = self.shared.state.lock().unwrap();
        state.1 += 1;
        let waits = state.2;
        if state.1 == self.size {
            (state.1, state.2) = (0, waits + 1);
            self.shared.changed.notify_all();
            return;
        }
        let most = Duration::from_secs(120);
        let waited = self.shared.changed.wait_timeout_while(state, most, |state| state.2 == waits).unwrap().1;
        assert!(!waited.timed_out(), "{self:?} waits for a rank that failed");
    }

    /// Returns the messages of all ranks.
    fn exchange<T: Clone + Send + Sync + 'static>(&self, mine: T) -> Vec<T> {
        self.shared.state.lock().unwrap().0[self.rank] = Some(Arc::new(mine));
        self.wait();
        let of = |message: &Option<Message>| message.as_ref().unwrap().downcast_ref::<T>().unwrap().clone();
        let all = self.shared.state.lock().unwrap().0.iter().map(of).collect();
        self.wait();
        all
    }

    fn part(&self, counts: &[usize]) -> Range<usize> {
        let start = counts[..self.rank].iter().sum::<usize>();
        start..start + counts[self.rank]
    }
}

impl Collective for Thread {
    fn rank(&self) -> usize {
        self.rank
    }
    fn size(&self) -> usize {
        self.size
    }
    fn reduce_scatter(&self, values: Vec<f32>, counts: &[usize]) -> Vec<f32> {
        assert_eq!(values.len(), counts.iter().sum::<usize>());
        let part = self.part(counts);
        let mut parts: Vec<f32> = self.exchange(values).iter().flat_map(|all| all[part.clone()].to_vec()).collect();
        add_parts(&mut parts, self.size);
        parts.truncate(part.len());
        parts
    }
    fn all_gather(&self, part: Vec<f32>, counts: &[usize]) -> Vec<f32> {
        assert_eq!(part.len(), counts[self.rank]);
        self.exchange(part).concat()
    }
    fn gather(&self, values: &[f64]) -> Vec<f64> {
        self.exchange(values.to_vec()).concat()
    }
    fn collect(&self, bytes: Vec<u8>) -> Vec<Vec<u8>> {
        let all = self.exchange(bytes);
        if self.rank == 0 { all } else { Vec::new() }
    }
    fn broadcast(&self, bytes: Vec<u8>) -> Vec<u8> {
        self.exchange(bytes).swap_remove(0)
    }
    fn abort(&self, code: i32) -> ! {
        panic!("{self:?} ends the job with {code}")
    }
}
