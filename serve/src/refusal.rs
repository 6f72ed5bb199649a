//! Refused and failed requests, as JSON: `{"problems": [{"what": .., "at": [..], "accepts": .., ..}]}`.

use axum::body::Body;
use axum::http::{HeaderValue, Response, StatusCode, header};
use axum::response::IntoResponse;
use framework::error::{Error, MOST_SHOWN, Problem};
use schemars::JsonSchema;
use serde::Serialize;

/// The body of every response that is an error.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Refused {
    /// The problems, at least one.
    pub problems: Vec<Said>,
}

/// One problem, in the words of the command line.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Said {
    /// What is wrong, in one sentence.
    pub what: String,
    /// JSON pointers into the request or into the document of the run.
    pub at: Vec<String>,
    /// The accepted values.
    pub accepts: Option<String>,
    /// The nearest accepted name.
    pub nearest: Option<String>,
    /// A change that helps.
    pub fix: Option<String>,
    /// All of it as the command line prints it.
    pub text: String,
}

impl From<Problem> for Said {
    fn from(problem: Problem) -> Self {
        let text = problem.to_string();
        let Problem { what, at, accepts, nearest, fix, .. } = problem;
        Self { what, at, accepts, nearest, fix, text }
    }
}

/// A refused or failed request.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// Status of the response.
    pub status: StatusCode,
    /// Body of the response.
    pub body: Refused,
}

impl Refusal {
    /// Creates a refusal with one problem.
    pub fn new(status: StatusCode, problem: Problem) -> Self {
        Self { status, body: Refused { problems: vec![problem.into()] } }
    }

    /// Creates a refusal that is one sentence.
    pub fn plain(status: StatusCode, what: &str) -> Self {
        Self::new(status, Problem::new("", what))
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        match error {
            Error::Input(problems) => {
                let problems = problems.into_iter().take(MOST_SHOWN).map(Said::from).collect();
                Self { status: StatusCode::UNPROCESSABLE_ENTITY, body: Refused { problems } }
            }
            Error::Failed(problem) => Self::new(StatusCode::INTERNAL_SERVER_ERROR, *problem),
            other => Self::plain(StatusCode::INTERNAL_SERVER_ERROR, &other.to_string()),
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response<Body> {
        let mut response = json(&self.body);
        *response.status_mut() = self.status;
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("2"));
        }
        response
    }
}

/// Returns a response with a value as JSON.
pub fn json(value: &impl Serialize) -> Response<Body> {
    let text = serde_json::to_vec(value).expect("the types of the interface have string keys only");
    let mut response = Response::new(Body::from(text));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
