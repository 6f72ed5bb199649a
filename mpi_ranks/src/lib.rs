//! The ranks of an MPI job: messages in host memory, with Open MPI or MPICH.
//!
//! The program is bound to the MPI library it was built against. Messages are cut into pieces, because MPI counts
//! elements in an `int`.

use framework::ranks::collective::Collective;
use framework::ranks::tree::add_parts;
use mpi::Threading;
use mpi::datatype::{Partition, PartitionMut};
use mpi::environment::Universe;
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator, CommunicatorCollectives, Destination, Root, Source};

/// Number of elements per message: 64 MiB of f32.
const PIECE: usize = 1 << 24;

/// All processes of an MPI job. MPI ends when the value is dropped.
pub struct Mpi {
    rank: usize,
    size: usize,
    /// Finalizes MPI in its destructor.
    _universe: Universe,
}

impl std::fmt::Debug for Mpi {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "rank {} of {}", self.rank, self.size)
    }
}

/// Returns the start of every part, and the total.
fn starts(counts: &[usize]) -> Vec<usize> {
    let mut starts = vec![0];
    for count in counts {
        starts.push(starts[starts.len() - 1] + count);
    }
    starts
}

/// Converts a number of elements of one message.
fn int(count: usize) -> i32 {
    i32::try_from(count).expect("a message is cut into pieces")
}

/// Returns the `round`-th piece of a part with `count` elements.
fn piece(round: usize, length: usize, count: usize) -> std::ops::Range<usize> {
    (round * length).min(count)..((round + 1) * length).min(count)
}

impl Mpi {
    /// Joins the job that started this process; `None` if MPI was already initialized.
    pub fn join() -> Option<Self> {
        // Only the thread that trains sends messages.
        let (universe, _) = mpi::initialize_with_threading(Threading::Funneled)?;
        let world = universe.world();
        let (rank, size) = (world.rank() as usize, world.size() as usize);
        Some(Self { rank, size, _universe: universe })
    }

    fn world(&self) -> SimpleCommunicator {
        SimpleCommunicator::world()
    }

    /// Ends all ranks at once with this exit code. MPI must be initialized. For a panic hook: unwinding would finalize
    /// MPI, which waits for ranks that wait for this one.
    pub fn abort_all(code: i32) -> ! {
        SimpleCommunicator::world().abort(code)
    }
}

impl Collective for Mpi {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn reduce_scatter(&self, values: Vec<f32>, counts: &[usize]) -> Vec<f32> {
        let starts = starts(counts);
        let length = (PIECE / self.size).max(1);
        let rounds = counts.iter().copied().max().unwrap_or_default().div_ceil(length);
        let mut sum = Vec::with_capacity(counts[self.rank]);
        let (mut sent, mut received) = (Vec::new(), Vec::new());
        for round in 0..rounds {
            sent.clear();
            let mut sizes = Vec::new();
            for (start, count) in starts.iter().zip(counts) {
                let piece = piece(round, length, *count);
                sizes.push(int(piece.len()));
                sent.extend_from_slice(&values[start + piece.start..start + piece.end]);
            }
            let own = piece(round, length, counts[self.rank]).len();
            received.clear();
            received.resize(own * self.size, 0.0_f32);
            let places = |sizes: &[i32]| -> Vec<i32> {
                let starts = sizes.iter().scan(0, |start, size| {
                    *start += size;
                    Some(*start - size)
                });
                starts.collect()
            };
            let own_sizes = vec![int(own); self.size];
            let from = Partition::new(&sent[..], &sizes[..], places(&sizes));
            let mut into = PartitionMut::new(&mut received[..], &own_sizes[..], places(&own_sizes));
            self.world().all_to_all_varcount_into(&from, &mut into);
            add_parts(&mut received, self.size);
            sum.extend_from_slice(&received[..own]);
        }
        sum
    }

    fn all_gather(&self, part: Vec<f32>, counts: &[usize]) -> Vec<f32> {
        let starts = starts(counts);
        let length = (PIECE / self.size).max(1);
        let rounds = counts.iter().copied().max().unwrap_or_default().div_ceil(length);
        let mut all = vec![0.0_f32; starts[starts.len() - 1]];
        let mut received = Vec::new();
        for round in 0..rounds {
            let pieces: Vec<_> = counts.iter().map(|count| piece(round, length, *count)).collect();
            let sizes: Vec<i32> = pieces.iter().map(|piece| int(piece.len())).collect();
            let places: Vec<i32> = sizes
                .iter()
                .scan(0, |start, size| {
                    *start += size;
                    Some(*start - size)
                })
                .collect();
            received.clear();
            received.resize(pieces.iter().map(|piece| piece.len()).sum(), 0.0_f32);
            let mut into = PartitionMut::new(&mut received[..], &sizes[..], &places[..]);
            self.world().all_gather_varcount_into(&part[pieces[self.rank].clone()], &mut into);
            let mut rest = &received[..];
            for (start, piece) in starts.iter().zip(pieces) {
                let (found, others) = rest.split_at(piece.len());
                all[start + piece.start..start + piece.end].copy_from_slice(found);
                rest = others;
            }
        }
        all
    }

    fn gather(&self, values: &[f64]) -> Vec<f64> {
        if values.is_empty() {
            self.world().barrier();
            return Vec::new();
        }
        let mut all = vec![0.0; values.len() * self.size];
        self.world().all_gather_into(values, &mut all[..]);
        all
    }

    fn collect(&self, bytes: Vec<u8>) -> Vec<Vec<u8>> {
        let lengths = self.gather(&[bytes.len() as f64]);
        let world = self.world();
        if self.rank > 0 {
            bytes.chunks(PIECE).for_each(|piece| world.process_at_rank(0).send(piece));
            return Vec::new();
        }
        let mut all = vec![bytes];
        for (rank, length) in lengths.iter().enumerate().skip(1) {
            let mut bytes = vec![0_u8; *length as usize];
            for piece in bytes.chunks_mut(PIECE) {
                world.process_at_rank(int(rank)).receive_into(piece);
            }
            all.push(bytes);
        }
        all
    }

    fn broadcast(&self, mut bytes: Vec<u8>) -> Vec<u8> {
        let root = self.world();
        let root = root.process_at_rank(0);
        let mut length = bytes.len() as u64;
        root.broadcast_into(&mut length);
        bytes.resize(length as usize, 0);
        bytes.chunks_mut(PIECE).for_each(|piece| root.broadcast_into(piece));
        bytes
    }

    fn abort(&self, code: i32) -> ! {
        Self::abort_all(code)
    }
}
