//! The files of the page, compiled into the program.

use axum::body::Body;
use axum::http::{HeaderValue, Response, header};

/// Path, media type and content of each file.
const FILES: [(&str, &str, &[u8]); 8] = [
    ("/", "text/html; charset=utf-8", include_bytes!("../assets/index.html")),
    ("/style.css", "text/css; charset=utf-8", include_bytes!("../assets/style.css")),
    ("/app.js", "text/javascript; charset=utf-8", include_bytes!("../assets/app.js")),
    ("/api.js", "text/javascript; charset=utf-8", include_bytes!("../assets/api.js")),
    ("/pane.js", "text/javascript; charset=utf-8", include_bytes!("../assets/pane.js")),
    ("/form.js", "text/javascript; charset=utf-8", include_bytes!("../assets/form.js")),
    ("/training.js", "text/javascript; charset=utf-8", include_bytes!("../assets/training.js")),
    ("/icon.svg", "image/svg+xml", include_bytes!("../assets/icon.svg")),
];

/// Returns the file at a path, or `None` if there is none. The path is compared, never opened.
pub fn file(path: &str) -> Option<Response<Body>> {
    let (_, kind, content) = FILES.iter().find(|(name, ..)| *name == path)?;
    let mut response = Response::new(Body::from(*content));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    // The files change with the program, which may restart at the same address.
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    Some(response)
}
