//! Spin's HTTP, clock, entropy and variables: the one file that speaks to them.
//!
//! `wasi:http` is spoken as it is rather than by way of the `http` crate, which would refuse what the engine has to see.

use futures_util::{
    Stream, StreamExt as _,
    future::{Either, select},
    stream,
};
use spin_sdk::{
    variables,
    wasip3::{
        clocks::{monotonic_clock, system_clock},
        http::{
            client,
            types::{self, ErrorCode, Fields, HeaderError, Method, Scheme, Trailers},
        },
        random, spawn,
        wit_bindgen::{FutureReader, FutureWriter, StreamReader, StreamResult},
        wit_future, wit_stream,
    },
};
use std::{
    cell::RefCell,
    collections::BTreeMap,
    pin::{Pin, pin},
    task::{Context, Poll},
    time::Duration,
};
use tollgate_edge_worker::{
    Answer, AnswerBody, Broken, Call, Headers, Platform, Request, RequestBody, Response,
    Unreachable,
};
use tollgate_engine::{gate::Config, time::Time};

/// Bytes read at once. A chunk that is smaller is passed on as it is.
const READ_BYTES: usize = 64 * 1024;
/// While there is nothing to send, it is looked so often whether anybody is still there to read: a write of nothing tells, and nothing else does.
const LISTEN_NANOS: u64 = 1_000_000_000;
/// Time for what was passed on to leave the host before an answer is broken off.
const LEAVE_NANOS: u64 = 50_000_000;

/// What the variables say.
pub(crate) struct Setup {
    pub(crate) config: Config,
    pub(crate) upstream: String,
    pub(crate) control_plane: String,
    pub(crate) ledger: String,
}

impl Setup {
    /// The error is a sentence for the operator.
    pub(crate) async fn read() -> Result<Setup, String> {
        Ok(Setup {
            config: config(&required("gate").await?).await?,
            upstream: required("upstream").await?,
            control_plane: required("control_plane").await?,
            ledger: variable("ledger").await.unwrap_or_default(),
        })
    }
}

async fn variable(name: &str) -> Option<String> {
    variables::get(name).await.ok()
}

async fn required(name: &str) -> Result<String, String> {
    let value = variable(name).await;
    value.ok_or_else(|| format!("the variable `{name}` is not set"))
}

/// Spin gives variables to those who wait, the engine asks for secrets in passing: it is asked again until it asks for nothing new.
async fn config(settings: &str) -> Result<Config, String> {
    let mut known: BTreeMap<String, Option<String>> = BTreeMap::new();
    loop {
        let asked = RefCell::new(Vec::new());
        let config = Config::read(settings.as_bytes(), |name| match known.get(name) {
            Some(value) => value.clone(),
            None => {
                asked.borrow_mut().push(name.to_owned());
                None
            }
        });
        let asked = asked.into_inner();
        if asked.is_empty() {
            return config;
        }
        for name in asked {
            // Names of Spin's variables are in lower case.
            let value = variable(&name.to_ascii_lowercase()).await;
            known.insert(name, value);
        }
    }
}

/// The clock, entropy and HTTP client of an instance.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spin;

impl Platform for Spin {
    type Body = Body;

    fn now(&self) -> Time {
        let now = system_clock::now();
        let micros = i64::from(now.nanoseconds / 1_000);
        Time::from_micros(now.seconds.saturating_mul(1_000_000).saturating_add(micros))
    }

    fn entropy(&self) -> Option<u128> {
        let bytes = random::random::get_random_bytes(16);
        bytes.try_into().ok().map(u128::from_le_bytes)
    }

    async fn fetch(&self, request: Request<Body>) -> Result<Response<Body>, Unreachable> {
        let request = outgoing(request).ok_or_else(|| {
            self.log("a request cannot be sent on: Spin does not take its headers or its address");
            Unreachable
        })?;
        let response = client::send(request).await.map_err(|why| {
            // The URL is not said: an agent chose its path.
            self.log(&format!("a request failed: {why:?}"));
            Unreachable
        })?;
        let status = response.get_status_code();
        let headers = pairs(&response.get_headers());
        let (done, result) = wit_future::new(|| Ok(()));
        let (bytes, end) = types::Response::consume_body(response, result);
        Ok(Response {
            status,
            headers,
            body: Body::new(bytes, end, done),
        })
    }

    async fn pause(&self, millis: u32) {
        let nanos = Duration::from_millis(millis.into()).as_nanos();
        monotonic_clock::wait_for(u64::try_from(nanos).unwrap_or(u64::MAX)).await;
    }

    fn log(&self, line: &str) {
        eprintln!("tollgate: {line}");
    }
}

fn outgoing(request: Request<Body>) -> Option<types::Request> {
    let (scheme, rest) = request.url.split_once("://")?;
    let (authority, target) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let headers = fields(&request.headers)?;
    let (writer, trailers) = wit_future::new(|| Ok(None));
    let contents = match request.body {
        RequestBody::Empty => None,
        RequestBody::Bytes(bytes) => {
            let length = bytes.len().to_string();
            headers.append("content-length", length.as_bytes()).ok()?;
            let bytes = stream::once(async { Ok(bytes) });
            Some(sending(bytes.boxed_local(), writer))
        }
        RequestBody::Stream(body) => Some(sending(body, writer)),
    };
    let (outgoing, _sent) = types::Request::new(headers, contents, trailers, None);
    let method = match request.method.as_str() {
        "GET" => Method::Get,
        "HEAD" => Method::Head,
        "POST" => Method::Post,
        "PUT" => Method::Put,
        "DELETE" => Method::Delete,
        "CONNECT" => Method::Connect,
        "OPTIONS" => Method::Options,
        "TRACE" => Method::Trace,
        "PATCH" => Method::Patch,
        other => Method::Other(other.to_owned()),
    };
    let scheme = match scheme {
        "http" => Scheme::Http,
        "https" => Scheme::Https,
        _ => return None,
    };
    outgoing.set_method(&method).ok()?;
    outgoing.set_scheme(Some(&scheme)).ok()?;
    outgoing.set_authority(Some(authority)).ok()?;
    outgoing.set_path_with_query(Some(target)).ok()?;
    Some(outgoing)
}

/// Whether the answer to this will have no body, whatever its length says.
pub(crate) fn wants_no_body(request: &types::Request) -> bool {
    matches!(request.get_method(), Method::Head)
}

/// A request as the driver wants it.
pub(crate) async fn call(request: types::Request) -> Call<Body> {
    let headers = pairs(&request.get_headers());
    let method = match request.get_method() {
        Method::Get => "GET".to_owned(),
        Method::Head => "HEAD".to_owned(),
        Method::Post => "POST".to_owned(),
        Method::Put => "PUT".to_owned(),
        Method::Delete => "DELETE".to_owned(),
        Method::Connect => "CONNECT".to_owned(),
        Method::Options => "OPTIONS".to_owned(),
        Method::Trace => "TRACE".to_owned(),
        Method::Patch => "PATCH".to_owned(),
        Method::Other(method) => method,
    };
    let scheme = match request.get_scheme() {
        Some(Scheme::Https) => "https".to_owned(),
        Some(Scheme::Other(scheme)) => scheme,
        Some(Scheme::Http) | None => "http".to_owned(),
    };
    let authority = request.get_authority().unwrap_or_else(|| {
        let host = headers.iter().find(|(name, _)| name == "host");
        host.map(|(_, host)| String::from_utf8_lossy(host).into_owned())
            .unwrap_or_default()
    });
    let target = request.get_path_with_query().unwrap_or_default();
    let length = headers
        .iter()
        .find(|(name, _)| name == "content-length")
        .map(|(_, length)| length.clone());
    let (done, result) = wit_future::new(|| Ok(()));
    let (bytes, end) = types::Request::consume_body(request, result);
    let mut body = Body::new(bytes, end, done);
    // `wasi:http` does not say whether a body follows. Where the length does not either, its first bytes do.
    let body = match length.as_deref() {
        Some(b"0") => None,
        Some(_) => Some(body),
        None => body.peek().await.then_some(body),
    };
    Call {
        method,
        scheme,
        authority,
        target,
        headers,
        body,
    }
}

/// An answer as Spin wants it.
pub(crate) fn response(answer: Answer, bodiless: bool) -> Result<types::Response, ErrorCode> {
    let headers = fields(&answer.headers)
        .ok_or_else(|| ErrorCode::InternalError(Some("a header cannot be sent".to_owned())))?;
    let bodiless = bodiless || matches!(answer.status, 204 | 205 | 304);
    let (writer, trailers) = wit_future::new(|| Ok(None));
    let contents = match answer.body {
        AnswerBody::Stream(stream) if bodiless => {
            // To let go of it would say that the caller has left.
            spawn(stream.map(drop).collect::<()>());
            None
        }
        AnswerBody::Bytes(_) if bodiless => None,
        AnswerBody::Bytes(bytes) => {
            let bytes = stream::once(async { Ok(bytes) });
            Some(sending(bytes.boxed_local(), writer))
        }
        AnswerBody::Stream(stream) => Some(sending(stream, writer)),
    };
    let (response, _sent) = types::Response::new(headers, contents, trailers);
    response
        .set_status_code(answer.status)
        .map_err(|()| ErrorCode::HttpProtocolError)?;
    Ok(response)
}

/// What is said when nothing can be: an operator has to look at the log.
pub(crate) fn unconfigured() -> Result<types::Response, ErrorCode> {
    let body = AnswerBody::Bytes(b"this gate cannot work; its log says why".to_vec());
    let answer = Answer {
        status: 503,
        headers: vec![("content-type".to_owned(), b"text/plain".to_vec())],
        body,
    };
    response(answer, false)
}

type End = Result<Option<Trailers>, ErrorCode>;

/// Sends a stream chunk by chunk. Once nobody reads it is let go, so that whoever makes it knows; where it breaks, the other side sees it break.
fn sending(
    mut chunks: impl Stream<Item = Result<Vec<u8>, Broken>> + Unpin + 'static,
    end: FutureWriter<End>,
) -> StreamReader<u8> {
    let (mut writer, reader) = wit_stream::new();
    spawn(async move {
        let mut result = Ok(None);
        loop {
            let pause = pin!(monotonic_clock::wait_for(LISTEN_NANOS));
            let chunk = match select(chunks.next(), pause).await {
                Either::Left((chunk, _)) => chunk,
                Either::Right(((), _)) => match writer.write(Vec::new()).await {
                    (StreamResult::Dropped, _) => break,
                    (StreamResult::Complete(_) | StreamResult::Cancelled, _) => continue,
                },
            };
            match chunk {
                None => break,
                Some(Err(Broken)) => {
                    // Taken by the host is not sent by it: what it still has when it hears of an error, the answer's head included, it drops.
                    let _ = writer.write(Vec::new()).await;
                    monotonic_clock::wait_for(LEAVE_NANOS).await;
                    result = Err(ErrorCode::ConnectionTerminated);
                    break;
                }
                Some(Ok(bytes)) => {
                    let unread = writer.write_all(bytes).await;
                    if !unread.is_empty() {
                        break;
                    }
                }
            }
        }
        drop((writer, chunks));
        let _ = end.write(result).await;
    });
    reader
}

/// A body as it comes in.
pub(crate) struct Body {
    chunks: Pin<Box<dyn Stream<Item = Result<Vec<u8>, Broken>>>>,
    /// Looked at, and not yet given out.
    first: Option<Result<Vec<u8>, Broken>>,
}

impl Body {
    /// `done` tells the other side, when it is dropped, that all is well.
    fn new(
        bytes: StreamReader<u8>,
        end: FutureReader<End>,
        done: FutureWriter<Result<(), ErrorCode>>,
    ) -> Body {
        let chunks = stream::unfold(Some((bytes, end, done)), |state| async {
            let (mut bytes, end, done) = state?;
            loop {
                let (result, chunk) = bytes.read(Vec::with_capacity(READ_BYTES)).await;
                match result {
                    StreamResult::Complete(_) if chunk.is_empty() => {}
                    StreamResult::Complete(_) => {
                        return Some((Ok(chunk), Some((bytes, end, done))));
                    }
                    StreamResult::Dropped | StreamResult::Cancelled => break,
                }
            }
            match end.await {
                Ok(_) => None,
                Err(_) => Some((Err(Broken), None)),
            }
        });
        Body {
            chunks: chunks.boxed_local(),
            first: None,
        }
    }

    /// Whether there is anything to come.
    async fn peek(&mut self) -> bool {
        self.first = self.chunks.next().await;
        self.first.is_some()
    }
}

impl Stream for Body {
    type Item = Result<Vec<u8>, Broken>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match self.first.take() {
            Some(first) => Poll::Ready(Some(first)),
            None => self.chunks.poll_next_unpin(context),
        }
    }
}

/// `None` when there is one that cannot be sent. Those of the connection are the platform's own affair, and left out.
fn fields(headers: &Headers) -> Option<Fields> {
    let fields = Fields::new();
    for (name, value) in headers {
        match fields.append(name, value) {
            Ok(()) | Err(HeaderError::Forbidden) => {}
            Err(_) => return None,
        }
    }
    Some(fields)
}

fn pairs(fields: &Fields) -> Headers {
    let pairs = fields.copy_all().into_iter();
    pairs
        .map(|(name, value)| (name.to_ascii_lowercase(), value))
        .collect()
}
