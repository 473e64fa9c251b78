//! Errors as callers see them: `application/problem+json` (RFC 9457), for our own refusals and for axum's alike.

use crate::store::{Trouble, trouble};
use axum::{
    Json,
    body::Bytes,
    extract::{FromRequest, FromRequestParts, Request},
    http::{HeaderValue, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use serde::{Serialize, de::DeserializeOwned};
use std::{borrow::Cow, collections::BTreeMap, time::Duration};
use tollgate_engine::upkeep::PROBLEM_TYPE;
use utoipa::{
    IntoResponses, ToSchema,
    openapi::{ContentBuilder, Ref, RefOr, ResponseBuilder, response},
};

/// How long a caller may take to send a body. Everything sent here is at most a few MiB.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// Why a request was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Malformed,
    Unauthenticated,
    Forbidden,
    NotFound,
    MethodNotAllowed,
    Conflict,
    StaleEpoch,
    Fork,
    TooLarge,
    MediaType,
    Invalid,
    PolicyRefused,
    Internal,
    Unavailable,
}

impl Kind {
    const fn parts(self) -> (StatusCode, &'static str, &'static str) {
        match self {
            Kind::Malformed => (StatusCode::BAD_REQUEST, "malformed", "Malformed request"),
            Kind::Unauthenticated => (
                StatusCode::UNAUTHORIZED,
                "unauthenticated",
                "A valid key is needed",
            ),
            Kind::Forbidden => (
                StatusCode::FORBIDDEN,
                "forbidden",
                "This key may not do that",
            ),
            Kind::NotFound => (StatusCode::NOT_FOUND, "not-found", "Not found"),
            Kind::MethodNotAllowed => (
                StatusCode::METHOD_NOT_ALLOWED,
                "method-not-allowed",
                "Method not allowed",
            ),
            Kind::Conflict => (StatusCode::CONFLICT, "conflict", "Conflict"),
            Kind::StaleEpoch => (StatusCode::CONFLICT, "stale-epoch", "Stale epoch"),
            Kind::Fork => (StatusCode::CONFLICT, "fork", "Fork in a journal"),
            Kind::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "too-large", "Too large"),
            Kind::MediaType => (
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "media-type",
                "Unsupported media type",
            ),
            Kind::Invalid => (
                StatusCode::UNPROCESSABLE_ENTITY,
                "invalid",
                "Invalid content",
            ),
            Kind::PolicyRefused => (
                StatusCode::UNPROCESSABLE_ENTITY,
                "policy-refused",
                "Policy refused",
            ),
            Kind::Internal => (
                StatusCode::INTERNAL_SERVER_ERROR,
                "internal",
                "Internal error",
            ),
            Kind::Unavailable => (
                StatusCode::SERVICE_UNAVAILABLE,
                "unavailable",
                "Not available now",
            ),
        }
    }
}

/// A refusal, ready to be sent.
#[derive(Debug)]
pub(crate) struct Problem {
    kind: Kind,
    detail: Cow<'static, str>,
    diagnostics: Vec<Diagnostic>,
}

impl Problem {
    pub(crate) fn new(kind: Kind, detail: impl Into<Cow<'static, str>>) -> Problem {
        Problem {
            kind,
            detail: detail.into(),
            diagnostics: Vec::new(),
        }
    }

    pub(crate) fn policy_refused(diagnostics: Vec<Diagnostic>) -> Problem {
        Problem {
            kind: Kind::PolicyRefused,
            detail: "nothing was applied; mend what is listed and apply again".into(),
            diagnostics,
        }
    }

    #[cfg(test)]
    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    #[cfg(test)]
    pub(crate) fn detail(&self) -> &str {
        &self.detail
    }

    /// Something broke here. The cause goes to the log, not to the caller.
    pub(crate) fn internal(what: &'static str, cause: &dyn std::fmt::Display) -> Problem {
        tracing::error!(what, %cause, "internal error");
        Problem::new(
            Kind::Internal,
            "the cause is in the control plane's log under this request id",
        )
    }
}

impl From<sqlx::Error> for Problem {
    fn from(error: sqlx::Error) -> Problem {
        let detail = match (&error, trouble(&error)) {
            (sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed, _) => {
                "the database is busy or shutting down; try again"
            }
            (_, Trouble::Full) => {
                "the control plane's disk is full and nothing was changed; make room there and try again"
            }
            (_, Trouble::Locked) => {
                "another program has locked the control plane's database; try again"
            }
            (_, Trouble::Other) => return Problem::internal("database", &error),
        };
        tracing::warn!(cause = %error, "database not available");
        Problem::new(Kind::Unavailable, detail)
    }
}

/// One finding about a policy, as `tollgate check` prints it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct Diagnostic {
    /// The file, where several were applied together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// `error` or `warning`.
    pub severity: &'static str,
    /// Stable name of the kind of finding.
    pub code: &'static str,
    /// The field, such as `spec.tools.bash.limit_per_hour`; empty when the whole text is meant.
    pub path: String,
    /// What is wrong and what to do.
    pub message: String,
    /// Line, from 1.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
    /// What the author may have meant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub suggestion: Option<String>,
}

/// What is wrong with a request (RFC 9457).
#[derive(Serialize, ToSchema)]
#[schema(as = Problem)]
pub(crate) struct ProblemBody<'a> {
    /// Names the kind of problem: `urn:tollgate:problem:<kind>`.
    #[serde(rename = "type")]
    kind: String,
    /// The kind in words.
    title: &'static str,
    /// The HTTP status.
    status: u16,
    /// What is wrong with this request and what to do.
    detail: &'a str,
    /// Findings about a refused policy.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    diagnostics: &'a [Diagnostic],
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let (status, name, title) = self.kind.parts();
        let body = ProblemBody {
            kind: format!("{PROBLEM_TYPE}{name}"),
            title,
            status: status.as_u16(),
            detail: &self.detail,
            diagnostics: &self.diagnostics,
        };
        let mut response = (status, Json(body)).into_response();
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        if status == StatusCode::UNAUTHORIZED {
            // RFC 9110 §11.6.1: a 401 names the scheme.
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// Sets of problems that many routes have in common: `responses((status = 200, …), WorkspaceProblems)`.
macro_rules! problems {
    ($($name:ident: $($status:literal)+;)+) => {$(
        pub(crate) struct $name;
        impl IntoResponses for $name {
            fn responses() -> BTreeMap<String, RefOr<response::Response>> {
                BTreeMap::from([$((stringify!($status).to_owned(), documented($status))),+])
            }
        }
    )+};
}

problems! {
    // Any route that needs a key. What a route has beyond its set stands at the route.
    KeyProblems: 401 403 500 503;
    // A route of a workspace.
    WorkspaceProblems: 400 401 403 404 500 503;
    // One that takes JSON.
    BodyProblems: 400 401 403 404 413 415 422 500 503;
}

/// A problem of `status` in the OpenAPI document.
fn documented(status: u16) -> RefOr<response::Response> {
    let words = StatusCode::from_u16(status)
        .ok()
        .and_then(|status| status.canonical_reason())
        .unwrap_or("Problem");
    let schema = Ref::from_schema_name(ProblemBody::name());
    RefOr::T(
        ResponseBuilder::new()
            .description(words)
            .content(
                "application/problem+json",
                ContentBuilder::new().schema(Some(schema)).build(),
            )
            .build(),
    )
}

/// A JSON body. Unknown and repeated fields are refused.
pub(crate) struct JsonBody<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for JsonBody<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let json = request
            .headers()
            .get(header::CONTENT_TYPE)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.split(';').next())
            .is_some_and(|value| value.trim().eq_ignore_ascii_case("application/json"));
        if !json {
            return Err(Problem::new(
                Kind::MediaType,
                "send JSON with `content-type: application/json`",
            ));
        }
        let RawBody(bytes) = RawBody::from_request(request, state).await?;
        serde_json::from_slice(&bytes)
            .map(JsonBody)
            .map_err(|error| {
                let kind = if error.is_data() {
                    Kind::Invalid
                } else {
                    Kind::Malformed
                };
                Problem::new(
                    kind,
                    format!("the body is not what this route takes: {error}"),
                )
            })
    }
}

/// A body as bytes, within the route's limit and in time.
pub(crate) struct RawBody(pub(crate) Bytes);

impl<S: Send + Sync> FromRequest<S> for RawBody {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        match tokio::time::timeout(BODY_TIMEOUT, Bytes::from_request(request, state)).await {
            Ok(Ok(bytes)) => Ok(RawBody(bytes)),
            Ok(Err(rejection)) if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE => Err(
                Problem::new(Kind::TooLarge, "the body is larger than this route takes"),
            ),
            Ok(Err(_)) => Err(Problem::new(
                Kind::Malformed,
                "the body did not arrive whole",
            )),
            Err(_) => Err(Problem::new(
                Kind::Malformed,
                "the body did not arrive in time",
            )),
        }
    }
}

/// Path parameters.
pub(crate) struct Path<T>(pub(crate) T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Path<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        axum::extract::Path::from_request_parts(parts, state)
            .await
            .map(|axum::extract::Path(value)| Path(value))
            .map_err(|_| Problem::new(Kind::NotFound, "nothing has this name"))
    }
}

/// Query parameters. Unknown ones are refused.
pub(crate) struct Query<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        axum::extract::Query::from_request_parts(parts, state)
            .await
            .map(|axum::extract::Query(value)| Query(value))
            .map_err(|rejection| Problem::new(Kind::Malformed, rejection.body_text()))
    }
}
