//! The limits of the server. A request beyond one of them is refused with the limit in its message.

use std::time::Duration;

/// Bytes of a request's body.
pub const MOST_BODY: usize = 64 << 10;
/// Images per request. One batch holds them all, so each streamed estimate shows the whole grid.
pub const MOST_IMAGES: usize = 100;
/// Network evaluations per sample of a request.
pub const MOST_EVALUATIONS: usize = 4000;
/// Captions per request, and characters of one caption.
pub const MOST_CAPTIONS: [usize; 2] = [16, 1000];
/// Requests that wait for the sampling thread.
pub const MOST_WAITING: usize = 64;
/// Connections at the same time. Further ones wait in the system's queue.
pub const MOST_CONNECTIONS: usize = 256;
/// Bytes of a request's head, and its number of header lines.
pub const MOST_HEAD: [usize; 2] = [16 << 10, 64];
/// Networks in memory. The least recently used one is dropped.
pub const MOST_NETWORKS: usize = 3;
/// Points of a curve per response.
pub const MOST_POINTS: usize = 600;
/// Time in which a request's head, and then its body, must arrive. Also ends idle connections.
pub const RECEIVING: Duration = Duration::from_secs(10);
/// Time in which a client must take some of the bytes that are ready for it.
pub const SENDING: Duration = Duration::from_secs(20);
/// Time that one request may sample.
pub const SAMPLING: Duration = Duration::from_secs(120);
