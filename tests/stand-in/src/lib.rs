//! An LLM provider on the loopback.
//!
//! It speaks the wire formats of OpenAI chat completions (`/v1/chat/completions`) and Anthropic messages (`/v1/messages`), whole
//! and streamed, and is an MCP server (`/mcp`). What it answers follows from the request alone: no clock, no randomness, so a
//! test works out the usage and the cost by hand. See [`usage`] for how tokens are counted and [`knobs`] for the headers that make it slow,
//! broken or long-winded. It wants its own API key, which proves that a gate put it there, and it remembers what it was sent:
//! `GET /__requests` tells and `DELETE /__requests` forgets.
//!
//! It is not a model and not a validator: a request that a provider would refuse for its content may well be answered here.

mod answer;
mod anthropic;
pub mod knobs;
mod mcp;
mod openai;
pub mod requests;
pub mod usage;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::thread::JoinHandle;

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::json;
use tokio::sync::oneshot;

use answer::Answer;
use knobs::Knobs;
use requests::{Received, Requests};

/// Above any body that a gate lets through, so that the limit under test is the gate's.
const BODY_BYTES_MAX: usize = 64 << 20;

/// A running stand-in. Stops when dropped, cutting every connection.
#[derive(Debug)]
pub struct StandIn {
    address: SocketAddr,
    requests: Requests,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl StandIn {
    /// Listens on `listen` (port 0: a free one) and answers whoever holds `provider_key`, on a thread of its own.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub fn start(listen: SocketAddr, provider_key: &str) -> io::Result<Self> {
        let listener = TcpListener::bind(listen)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let requests = Requests::default();
        let router = router(provider_key, requests.clone());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new()
            .name("stand-in".to_owned())
            .spawn(move || {
                runtime.block_on(async {
                    let Ok(listener) = tokio::net::TcpListener::from_std(listener) else {
                        return;
                    };
                    // Not a graceful shutdown: that would wait for the peers' idle connections.
                    tokio::select! {
                        _ = axum::serve(listener, router) => {}
                        _ = stopped => {}
                    }
                });
            })?;
        Ok(Self {
            address,
            requests,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What it was sent, oldest first.
    #[must_use]
    pub fn requests(&self) -> Vec<Received> {
        self.requests.all()
    }

    /// Forgets what it was sent.
    pub fn forget_requests(&self) {
        self.requests.forget();
    }

    /// Serves until the process ends.
    pub fn wait(mut self) {
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[derive(Clone)]
struct Provider {
    key: String,
    requests: Requests,
}

impl Provider {
    /// Whether the key is there, in either of the two headers that the SDKs use (Anthropic's uses both, by version). No other
    /// credential may stand beside it: that one would be the agent's own, which a gate must not let through.
    fn is_paid_by(&self, headers: &HeaderMap) -> bool {
        let bearer = format!("Bearer {}", self.key);
        let mut presented = headers
            .get_all("x-api-key")
            .iter()
            .map(|value| value == self.key.as_str())
            .chain(
                headers
                    .get_all("authorization")
                    .iter()
                    .map(|value| value == bearer.as_str()),
            )
            .peekable();
        presented.peek().is_some() && presented.all(|right| right)
    }
}

/// The routes, for a caller that has a runtime of its own.
pub fn router(provider_key: &str, requests: Requests) -> Router {
    let provider = Provider {
        key: provider_key.to_owned(),
        requests,
    };
    let recorded = Router::new()
        .route("/v1/chat/completions", post(chat_completions))
        .route("/v1/messages", post(messages))
        .route("/mcp", post(mcp_message))
        .route("/healthz", get(healthy))
        .fallback(unknown)
        .method_not_allowed_fallback(unknown)
        .layer(middleware::from_fn_with_state(provider.clone(), record));
    Router::new()
        .route("/__requests", get(list_requests).delete(forget_requests))
        .fallback_service(recorded.with_state(provider.clone()))
        .with_state(provider)
}

/// Reads the body whole, remembers the request and hands it on; after a while, if that was asked for.
async fn record(State(provider): State<Provider>, request: Request, next: Next) -> Response {
    let (head, body) = request.into_parts();
    let Ok(body) = axum::body::to_bytes(body, BODY_BYTES_MAX).await else {
        provider.requests.add(Received::new(&head, None));
        return StatusCode::BAD_REQUEST.into_response();
    };
    provider.requests.add(Received::new(&head, Some(&body)));
    tokio::time::sleep(Knobs::from_headers(&head.headers).head_delay).await;
    next.run(Request::from_parts(head, Body::from(body))).await
}

async fn chat_completions(
    State(provider): State<Provider>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let knobs = Knobs::from_headers(&headers);
    let answer = if provider.is_paid_by(&headers) {
        openai::answer(&body, &knobs)
    } else {
        openai::wrong_key()
    };
    answer.into_response(&knobs)
}

async fn messages(State(provider): State<Provider>, headers: HeaderMap, body: Bytes) -> Response {
    let knobs = Knobs::from_headers(&headers);
    let answer = if !provider.is_paid_by(&headers) {
        anthropic::wrong_key()
    } else if !headers.contains_key("anthropic-version") {
        anthropic::refusal(
            400,
            "invalid_request_error",
            "anthropic-version: header is required",
        )
    } else {
        anthropic::answer(&body, &knobs)
    };
    answer.into_response(&knobs)
}

async fn mcp_message(headers: HeaderMap, body: Bytes) -> Response {
    mcp::answer(&body).into_response(&Knobs::from_headers(&headers))
}

/// No provider's: something that wants no key and no body, as most of what agents call.
async fn healthy() -> Response {
    Json(json!({"status": "ok"})).into_response()
}

async fn unknown(uri: Uri, headers: HeaderMap) -> Response {
    let answer = match headers.contains_key("anthropic-version") {
        true => anthropic::refusal(404, "not_found_error", "Not Found"),
        false => openai::refusal(
            404,
            "invalid_request_error",
            None,
            &format!("Invalid URL ({})", uri.path()),
        ),
    };
    Answer::into_response(answer, &Knobs::from_headers(&headers))
}

async fn list_requests(State(provider): State<Provider>) -> Response {
    Json(json!({"requests": provider.requests.all(), "total": provider.requests.total()}))
        .into_response()
}

async fn forget_requests(State(provider): State<Provider>) -> StatusCode {
    provider.requests.forget();
    StatusCode::NO_CONTENT
}
