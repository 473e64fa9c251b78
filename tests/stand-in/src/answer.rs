//! An answer, and how it goes out: whole, in pieces, slowly, compressed, cut.

use std::io::Write as _;

use axum::body::{Body, Bytes};
use axum::http::{Response, StatusCode, header};
use flate2::Compression;
use flate2::write::GzEncoder;
use futures_util::stream;
use serde_json::Value;

use crate::knobs::Knobs;

/// Neither JSON nor an event nor UTF-8.
const GARBAGE: [u8; 64] = [0xfe; 64];

/// What a provider says, before the knobs.
pub(crate) enum Answer {
    /// One JSON document.
    Document { status: u16, body: Value },
    /// A stream of server-sent events, each with its blank line.
    Events(Vec<String>),
    /// A status and nothing else.
    Empty(u16),
}

impl Answer {
    pub(crate) fn into_response(self, knobs: &Knobs) -> axum::response::Response {
        let (status, content_type, mut pieces) = match self {
            Answer::Document { status, body } => (
                status,
                "application/json",
                vec![Bytes::from(body.to_string())],
            ),
            Answer::Events(events) => (
                200,
                "text/event-stream; charset=utf-8",
                events.into_iter().map(Bytes::from).collect(),
            ),
            Answer::Empty(status) => {
                return respond(Response::builder().status(status), Body::empty());
            }
        };
        if knobs.garbage {
            pieces = vec![Bytes::from_static(&GARBAGE)];
        }
        if knobs.gzip {
            pieces = vec![gzip(&pieces.concat())];
        }
        if let Some(bytes) = knobs.split {
            pieces = pieces
                .concat()
                .chunks(bytes)
                .map(Bytes::copy_from_slice)
                .collect();
        }
        let mut head = Response::builder()
            .status(status)
            .header(header::CONTENT_TYPE, content_type)
            .header("x-request-id", "req_stand_in");
        if knobs.gzip {
            head = head.header(header::CONTENT_ENCODING, "gzip");
        }
        if status == 429 {
            head = head.header(header::RETRY_AFTER, "1");
        }
        respond(head, body(pieces, knobs))
    }
}

/// One piece needs no stream, and then has a `content-length` as a provider's documents do.
fn body(mut pieces: Vec<Bytes>, knobs: &Knobs) -> Body {
    if pieces.len() == 1 && knobs.delay.is_zero() && knobs.cut_after.is_none() {
        return Body::from(pieces.remove(0));
    }
    let delay = knobs.delay;
    let cut_after = knobs.cut_after.unwrap_or(usize::MAX);
    let whole = pieces.len() <= cut_after;
    let sent = pieces.into_iter().take(cut_after).map(Ok);
    let end = (!whole).then(|| Err("the stand-in was asked to break the connection"));
    Body::from_stream(stream::unfold(
        sent.chain(end),
        move |mut left| async move {
            let piece = left.next()?;
            if !delay.is_zero() {
                tokio::time::sleep(delay).await;
            }
            Some((piece, left))
        },
    ))
}

fn gzip(bytes: &[u8]) -> Bytes {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder
        .write_all(bytes)
        .and_then(|()| encoder.finish())
        .map(Bytes::from)
        .unwrap_or_default()
}

fn respond(head: axum::http::response::Builder, body: Body) -> axum::response::Response {
    // Only a status that is none can fail here, and it comes from a header of the caller's.
    head.body(body).unwrap_or_else(|_| {
        let mut response = axum::response::Response::new(Body::empty());
        *response.status_mut() = StatusCode::BAD_REQUEST;
        response
    })
}
