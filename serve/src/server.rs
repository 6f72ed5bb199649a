//! The listening socket and its connections.

use crate::Options;
use crate::catalog::Catalog;
use crate::guard::Names;
use crate::limits::{MOST_CONNECTIONS, MOST_HEAD, RECEIVING, SENDING};
use crate::queue::Queue;
use crate::routes::{App, router};
use axum::Router;
use framework::error::{Error, Problem, Result};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_io_timeout::TimeoutStream;

/// Serves until the process ends. Calls `listening` with the address once clients can connect.
///
/// # Errors
/// If a path is no run, or the address cannot be used.
pub fn serve(options: &Options, listening: &mut dyn FnMut(SocketAddr)) -> Result<()> {
    let app = Arc::new(App {
        catalog: Catalog::new(&options.runs)?,
        queue: Queue::start(options.device.clone())?,
        metrics: Default::default(),
        choices: Default::default(),
    });
    let names = [&options.host].into_iter().chain(&options.names).cloned().collect();
    let router = router(app, Names(names));
    // One thread answers: the work is done by the sampling thread and by threads that read files.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(8)
        .build()
        .map_err(|e| Error::Run(format!("the server does not start: {e}")))?;
    runtime.block_on(async {
        let (host, port) = (options.host.as_str(), options.port);
        let failed = |error: std::io::Error| {
            let problem = Problem::new("--host and --port", format!("cannot listen on {host} port {port}: {error}"));
            Error::from(problem.fix("choose another port, or let the system choose one with --port 0"))
        };
        let listener = TcpListener::bind((host, port)).await.map_err(failed)?;
        listening(listener.local_addr().map_err(failed)?);
        accept(&listener, router).await
    })
}

/// Accepts connections for ever.
async fn accept(listener: &TcpListener, router: Router) -> ! {
    let places = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    loop {
        let place = places.clone().acquire_owned().await.expect("the semaphore is never closed");
        match listener.accept().await {
            Ok((stream, _)) => {
                let router = router.clone();
                tokio::spawn(async move {
                    connection(stream, router).await;
                    drop(place);
                });
            }
            // Too many open files, or a client that has already left.
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

async fn connection(stream: TcpStream, router: Router) {
    // An event must not wait for the acknowledgement of the previous one.
    let _ = stream.set_nodelay(true);
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(SENDING));
    let [bytes, lines] = MOST_HEAD;
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(RECEIVING)
        .max_buf_size(bytes)
        .max_headers(lines)
        .serve_connection(TokioIo::new(Box::pin(stream)), TowerToHyperService::new(router));
    // A connection ends with an error if its client leaves, is too slow, or sends no HTTP. None concerns the others.
    let _ = served.await;
}
