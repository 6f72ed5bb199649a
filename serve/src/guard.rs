//! Which requests are answered at all: those that name this server as their host and come from its own page.
//!
//! A page of another site may send requests to this server: directly, or through a name of its own that it later points
//! to this machine (DNS rebinding). In the first case the browser names the other origin. In the second one, the name in
//! `Host` is neither an address nor a name of this server.

use crate::refusal::Refusal;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use framework::error::Problem;
use std::net::IpAddr;
use std::sync::Arc;

/// Headers of every response. The page loads nothing from elsewhere, and no other page may contain it or read it.
const HEADERS: [(&str, &str); 5] = [
    (
        "content-security-policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-resource-policy", "same-origin"),
    ("cross-origin-opener-policy", "same-origin"),
];

/// Names in `Host`, apart from addresses and `localhost`, that the server answers to.
#[derive(Clone, Debug, Default)]
pub struct Names(pub Arc<[String]>);

impl Names {
    /// Returns whether `Host` names this server: an address, `localhost`, or one of the given names. A rebound name is
    /// none of these.
    fn include(&self, host: &str) -> bool {
        let name = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((address, port)) if port.is_empty() || port.starts_with(':') => address,
            Some(_) => return false,
            None => host.rsplit_once(':').map_or(host, |(name, _)| name),
        };
        name.parse::<IpAddr>().is_ok()
            || name.eq_ignore_ascii_case("localhost")
            || self.0.iter().any(|known| known.eq_ignore_ascii_case(name))
    }

    /// Checks the headers of a request.
    fn check(&self, method: &Method, path: &str, headers: &HeaderMap) -> Result<(), Refusal> {
        let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or("\u{fffd}"));
        let refuse = |problem: Problem| Err(Refusal::new(StatusCode::FORBIDDEN, problem));
        if headers.get_all(header::HOST).iter().count() != 1 {
            return Err(Refusal::plain(StatusCode::BAD_REQUEST, "a request needs one Host header"));
        }
        let host = text("host").unwrap_or_default();
        if !self.include(host) {
            return refuse(
                Problem::new("Host", "the server does not answer to this host name")
                    .accepts("localhost, an address, or a name given by --allow-host")
                    .fix("start the server with --allow-host NAME, or open the address that it printed"),
            );
        }
        if text("origin").is_some_and(|origin| origin.split_once("://").map(|(_, host)| host) != Some(host)) {
            return refuse(Problem::new("Origin", "requests from pages of other sites are refused"));
        }
        // A link to the page itself may be on any site.
        let is_link = *method == Method::GET && path == "/" && text("sec-fetch-mode") == Some("navigate");
        if text("sec-fetch-site").is_some_and(|site| !["same-origin", "none"].contains(&site)) && !is_link {
            return refuse(Problem::new("Sec-Fetch-Site", "requests from pages of other sites are refused"));
        }
        Ok(())
    }
}

/// Refuses foreign requests, and adds the headers of every response.
pub async fn guard(State(names): State<Names>, request: Request, next: Next) -> Response {
    let checked = names.check(request.method(), request.uri().path(), request.headers());
    let mut response = match checked {
        Ok(()) => next.run(request).await,
        Err(refusal) => refusal.into_response(),
    };
    for (name, value) in HEADERS {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rebound_name_is_not_the_servers() {
        let names = Names(Arc::from(["lab.example".to_string()]));
        for host in
            ["localhost", "LOCALHOST:80", "127.0.0.1:7878", "[::1]:7878", "[::1]", "10.0.0.7:1", "lab.example:9"]
        {
            assert!(names.include(host), "{host}");
        }
        for host in
            ["evil.example", "localhost.evil.example:7878", "127.0.0.1.evil.example", "", "[::1]x", "[evil]", ":80"]
        {
            assert!(!names.include(host), "{host}");
        }
    }

    #[test]
    fn pages_of_other_sites_are_refused_but_a_link_to_the_page_is_not() {
        let status = |method: Method, path: &str, pairs: &[(&'static str, &'static str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in [("host", "localhost:1")].iter().chain(pairs) {
                headers.append(*name, HeaderValue::from_static(value));
            }
            Names::default().check(&method, path, &headers).err().map(|refusal| refusal.status.as_u16())
        };
        let post = |pairs| status(Method::POST, "/api/samples", pairs);
        assert_eq!(post(&[]), None);
        assert_eq!(post(&[("origin", "http://localhost:1"), ("sec-fetch-site", "same-origin")]), None);
        assert_eq!(post(&[("origin", "http://localhost:2")]), Some(403));
        assert_eq!(post(&[("origin", "null")]), Some(403));
        assert_eq!(post(&[("sec-fetch-site", "cross-site")]), Some(403));
        assert_eq!(post(&[("host", "localhost:1")]), Some(400));
        let link = [("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate")];
        assert_eq!(status(Method::GET, "/", &link), None);
        assert_eq!(status(Method::GET, "/api/runs", &link), Some(403));
        assert_eq!(status(Method::GET, "/", &link[..1]), Some(403));
    }
}
