//! One call, from its first header to its settlement.

use crate::{
    message::{Change, Heard, Line, Message, Want},
    platform::{Broken, Headers, Platform, Request, RequestBody, Response},
};
use futures_channel::{mpsc, oneshot};
use futures_util::{
    SinkExt as _, Stream, StreamExt as _,
    future::{Either, select},
};
use std::{
    cell::{Cell, RefCell},
    fmt,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
};
use tollgate_engine::{
    bundle::InstallError,
    exchange::{End, Exchange, Forward, Output, Step},
    facts,
    gate::{Config, Gate},
    ledger::Refusal,
    reply::{DECISION_HEADER, Reply},
    time::Time,
};

/// How old the keeper's word may be about which bundle to run; milliseconds.
pub const FRESH_MS: i64 = 1_000;
/// How often a call that is over is told to the keeper, and the pause between.
const CLOSE_TRIES: u32 = 5;
const CLOSE_PAUSE_MS: u32 = 200;
/// An answer that says it has no more bytes than this, and is no stream of events, is passed on in one piece: for the few packets that it comes in, a
/// stream of chunks costs more time than it saves.
const WHOLE_ANSWER_BYTES: usize = 64 * 1024;
/// Pause before a keeper that did not answer is asked for a lease again.
const LEASE_PAUSE_MS: u32 = 50;
/// Headers of a connection, not of a message (RFC 9110 §7.6.1), and those that a client sets by itself. They are not passed on.
const OF_THE_CONNECTION: [&str; 9] = [
    "connection",
    "content-length",
    "host",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// What the calls of one instance share.
pub struct Edge {
    gate: RefCell<Gate>,
    upstream: String,
    /// When the keeper last said which bundle is to be run.
    followed: Cell<Option<Time>>,
    /// Calls that have ended and of which the keeper could not be told. It counts them when it is heard of again.
    lost: Cell<u64>,
}

/// A request that came in.
pub struct Call<B> {
    /// `GET`, `POST`, …
    pub method: String,
    /// `http` or `https`.
    pub scheme: String,
    /// Host and port as the caller named them.
    pub authority: String,
    /// Path and query as the caller sent them.
    pub target: String,
    /// All headers.
    pub headers: Headers,
    /// The body, `None` when nothing follows the headers.
    pub body: Option<B>,
}

/// What to send back.
pub struct Answer {
    /// Status.
    pub status: u16,
    /// Headers, none of the connection's.
    pub headers: Headers,
    /// Body.
    pub body: AnswerBody,
}

/// What to send back as a body.
pub enum AnswerBody {
    /// These bytes.
    Bytes(Vec<u8>),
    /// What passes through [`Served::rest`].
    Stream(ReplyStream),
}

/// A call that is decided.
pub struct Served<'a> {
    /// What to send back, at once.
    pub answer: Answer,
    /// What is left to do meanwhile and afterwards, to its end.
    pub rest: Pin<Box<dyn Future<Output = ()> + 'a>>,
}

/// An upstream's answer on its way to the caller. An error in it has to break the connection off: what came is not the whole.
pub struct ReplyStream {
    chunks: mpsc::Receiver<Result<Vec<u8>, Broken>>,
    /// Its end tells the other side that nobody reads any more.
    _reader: oneshot::Sender<()>,
}

impl fmt::Debug for Edge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Edge")
            .field("upstream", &self.upstream)
            .finish_non_exhaustive()
    }
}

impl Stream for ReplyStream {
    type Item = Result<Vec<u8>, Broken>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.chunks.poll_next_unpin(context)
    }
}

impl Edge {
    /// Closed: denies everything until a bundle is installed. `upstream` is the URL under which the upstream's paths are.
    pub fn new(config: Config, upstream: &str) -> Edge {
        Edge {
            gate: RefCell::new(Gate::new(config)),
            upstream: upstream.trim_end_matches('/').to_owned(),
            followed: Cell::default(),
            lost: Cell::default(),
        }
    }

    fn lose(&self, records: u64) {
        self.lost.set(self.lost.get().saturating_add(records));
    }

    /// Verifies a bundle and runs it; on any error the one that ran before still runs.
    pub fn install(&self, envelope: &[u8], now: Time) -> Result<(), InstallError> {
        self.gate.borrow_mut().install(envelope, now)
    }

    /// Whether there is a bundle.
    pub fn is_open(&self) -> bool {
        self.gate.borrow().bundle().payload().is_some()
    }

    /// Decides a call and sends it on, or answers it.
    pub async fn serve<'a, P: Platform + 'a, L: Line + 'a>(
        self: Rc<Edge>,
        platform: P,
        line: L,
        call: Call<P::Body>,
    ) -> Served<'a> {
        let service = Service {
            edge: self,
            platform,
            line,
        };
        service.follow().await;
        service.decide(call).await
    }
}

/// What one call needs.
struct Service<P, L> {
    edge: Rc<Edge>,
    platform: P,
    line: L,
}

/// How a call was decided.
enum Verdict {
    Forward(Forward),
    Reply(Answer),
    /// The caller left before there was one.
    Left,
}

impl<'a, P: Platform + 'a, L: Line + 'a> Service<P, L> {
    /// Runs the bundle that the keeper runs, unless it was asked just now. When it does not answer, the one that is there still runs.
    async fn follow(&self) {
        let edge = &self.edge;
        let now = self.platform.now();
        let fresh = edge
            .followed
            .get()
            .is_some_and(|at| now.millis_since(at).saturating_abs() < FRESH_MS);
        if fresh {
            return;
        }
        let etag = edge.gate.borrow().bundle().etag();
        let lost = edge.lost.take();
        let Ok(heard) = self.line.ask(Message::Follow { etag, lost }).await else {
            edge.lose(lost);
            return self.platform.log("no answer from the keeper");
        };
        let now = self.platform.now();
        if let Some(envelope) = heard.envelope
            && let Err(why) = edge.install(envelope.as_bytes(), now)
        {
            self.platform.log(&format!("a bundle is not run: {why}"));
        }
        edge.followed.set(Some(now));
    }

    /// Whatever the keeper says, it says which bundle it runs.
    async fn ask(&self, message: Message) -> Option<Heard> {
        let heard = self.line.ask(message).await.ok()?;
        if heard.etag != self.edge.gate.borrow().bundle().etag() {
            self.edge.followed.set(None);
        }
        Some(heard)
    }

    async fn decide(self, mut call: Call<P::Body>) -> Served<'a> {
        let mut body = call.body.take();
        let Some(entropy) = self.platform.entropy() else {
            return Served {
                answer: problem(503, "the gate cannot decide now", Vec::new()),
                rest: Box::pin(async {}),
            };
        };
        let (mut exchange, step) = {
            let pseudo = [
                (":method", &call.method),
                (":scheme", &call.scheme),
                (":authority", &call.authority),
                (":path", &call.target),
            ];
            let pairs: Vec<(&[u8], &[u8])> = pseudo
                .iter()
                .map(|(name, value)| (name.as_bytes(), value.as_bytes()))
                .chain(borrowed(&call.headers))
                .collect();
            Exchange::begin(
                &mut self.edge.gate.borrow_mut(),
                facts::Headers(&pairs),
                body.is_some(),
                self.platform.now(),
                entropy,
            )
        };
        let mut held = None;
        match self
            .carry_out(&mut exchange, step, &mut body, &mut held)
            .await
        {
            Verdict::Forward(forward) => {
                let body = match (forward.body, held, body) {
                    (Some(bytes), _, _) | (None, Some(bytes), _) => RequestBody::Bytes(bytes),
                    (None, None, Some(stream)) => RequestBody::Stream(stream),
                    (None, None, None) => RequestBody::Empty,
                };
                let mut headers = call.headers;
                headers.retain(|(name, _)| {
                    !OF_THE_CONNECTION.contains(&name.as_str())
                        && !forward.remove.contains(&name.as_str())
                });
                set(&mut headers, forward.set);
                let request = Request {
                    method: call.method,
                    url: format!("{}{}", self.edge.upstream, call.target),
                    headers,
                    body,
                    limit_ms: None,
                };
                self.pass_on(exchange, request).await
            }
            Verdict::Reply(answer) => Served {
                answer,
                rest: Box::pin(self.close(exchange, End::Complete)),
            },
            Verdict::Left => Served {
                answer: unanswered(400, "the request broke off", &exchange),
                rest: Box::pin(self.close(exchange, End::ClientLeft)),
            },
        }
    }

    /// Until there is a verdict. `held` is the body, where it had to be looked at.
    async fn carry_out(
        &self,
        exchange: &mut Exchange,
        mut step: Step,
        body: &mut Option<P::Body>,
        held: &mut Option<Vec<u8>>,
    ) -> Verdict {
        let gate = &self.edge.gate;
        loop {
            step = match step {
                Step::NeedBody { cap } => {
                    let read = read_up_to(cap, body.take()).await;
                    let now = self.platform.now();
                    match read {
                        Ok(bytes) => {
                            let step = exchange.body(&mut gate.borrow_mut(), &bytes, now);
                            *held = Some(bytes);
                            step
                        }
                        Err(Unread::TooLong) => exchange.body_over_cap(&gate.borrow(), now),
                        Err(Unread::Broken) => return Verdict::Left,
                    }
                }
                Step::Swap(changes) if changes.is_empty() => {
                    let taken = Ok(Vec::new());
                    exchange.swapped(&mut gate.borrow_mut(), taken, self.platform.now())
                }
                Step::Swap(changes) => {
                    let message = Message::Reserve {
                        call: exchange.id().to_owned(),
                        changes: changes.into_iter().map(Change::from).collect(),
                    };
                    let result = self.reserve(message, 0).await;
                    exchange.swapped(&mut gate.borrow_mut(), result, self.platform.now())
                }
                // The keeper knows what to undo, and reserves as soon as it can: of many that wait each hears at once whether there was enough for it.
                Step::AwaitLease {
                    undo: _,
                    wants,
                    deadline,
                } => match exchange.retry() {
                    Step::Swap(changes) => {
                        let message = Message::Lease {
                            call: exchange.id().to_owned(),
                            wants: wants.into_iter().map(Want::from).collect(),
                            changes: changes.into_iter().map(Change::from).collect(),
                            wait_ms: deadline.millis_since(self.platform.now()),
                        };
                        let result = self.reserve(message, LEASE_PAUSE_MS).await;
                        exchange.swapped(&mut gate.borrow_mut(), result, self.platform.now())
                    }
                    other => other,
                },
                Step::Forward(forward) => return Verdict::Forward(forward),
                Step::Reply { reply, undo: _ } => return Verdict::Reply(written(reply)),
            };
        }
    }

    /// What came of a reservation. A keeper that does not answer grants nothing; then this takes `pause_ms` more.
    async fn reserve(&self, message: Message, pause_ms: u32) -> Result<Vec<u64>, (usize, Refusal)> {
        let Some(heard) = self.ask(message).await else {
            if pause_ms > 0 {
                self.platform.pause(pause_ms).await;
            }
            return Err((0, Refusal::NoLease));
        };
        match heard.refused {
            Some(refused) => Err((refused.place, refused.why)),
            None => Ok(heard.taken),
        }
    }

    async fn pass_on(self, exchange: Exchange, request: Request<P::Body>) -> Served<'a> {
        let fetched = self.platform.fetch(request).await;
        // No answer has another status, and platforms break down when they are to pass one on.
        let fetched = fetched.map(|response| {
            let is_answer = (200..=599).contains(&response.status);
            is_answer.then_some(response)
        });
        let title = match fetched {
            Ok(Some(response)) => return self.answered(exchange, response).await,
            Ok(None) => "the upstream's answer is none",
            Err(_) => "the upstream does not answer",
        };
        // Whether it had arrived is not known, so it is settled as a call whose answer was lost.
        Served {
            answer: unanswered(502, title, &exchange),
            rest: Box::pin(self.close(exchange, End::UpstreamBroken)),
        }
    }

    async fn answered(self, mut exchange: Exchange, response: Response<P::Body>) -> Served<'a> {
        let Response {
            status,
            mut headers,
            body,
        } = response;
        let head = {
            let status = status.to_string();
            let mut pairs: Vec<(&[u8], &[u8])> = vec![(b":status", status.as_bytes())];
            pairs.extend(borrowed(&headers));
            exchange.response_head(facts::Headers(&pairs))
        };
        let length = headers.iter().find(|(name, _)| name == "content-length");
        let length = length.and_then(|(_, length)| std::str::from_utf8(length).ok()?.parse().ok());
        let whole = length.is_some_and(|length: usize| length <= WHOLE_ANSWER_BYTES);
        headers.retain(|(name, _)| {
            let name = name.as_str();
            // A length is kept for those who read none of it, such as the answer to a HEAD.
            let passes = name == "content-length" || !OF_THE_CONNECTION.contains(&name);
            passes && !head.remove.contains(&name)
        });
        set(&mut headers, head.set);
        if let Some(cap) = head.hold {
            return self.hold(exchange, status, headers, body, cap).await;
        }
        let (mut sender, chunks) = mpsc::channel(0);
        let (reader, gone) = oneshot::channel();
        let stream = ReplyStream {
            chunks,
            _reader: reader,
        };
        let answer = |body| Answer {
            status,
            headers,
            body,
        };
        if whole && !exchange.streams() {
            return match self.read_whole(&mut exchange, body).await {
                (bytes, true) => Served {
                    answer: answer(AnswerBody::Bytes(bytes)),
                    rest: Box::pin(self.close(exchange, End::Complete)),
                },
                (bytes, false) => Served {
                    answer: answer(AnswerBody::Stream(stream)),
                    rest: Box::pin(async move {
                        // What came, and that it is not the whole.
                        for part in [Ok(bytes), Err(Broken)] {
                            let _ = sender.send(part).await;
                        }
                        self.close(exchange, End::UpstreamBroken).await;
                    }),
                },
            };
        }
        Served {
            answer: answer(AnswerBody::Stream(stream)),
            rest: Box::pin(async move {
                let end = self.pump(&mut exchange, body, sender, gone).await;
                self.close(exchange, end).await;
            }),
        }
    }

    /// Passes on an answer that has to be read whole before any of it goes out.
    async fn hold(
        self,
        mut exchange: Exchange,
        status: u16,
        headers: Headers,
        body: P::Body,
        cap: usize,
    ) -> Served<'a> {
        let (bytes, output) = match read_up_to(cap, Some(body)).await {
            Ok(bytes) => {
                let gate = self.edge.gate.borrow();
                let output = exchange.response_chunk(&gate, &bytes, true);
                (bytes, output)
            }
            Err(Unread::TooLong) => (Vec::new(), exchange.response_over_cap()),
            Err(Unread::Broken) => {
                return Served {
                    answer: unanswered(502, "the upstream's answer broke off", &exchange),
                    rest: Box::pin(self.close(exchange, End::UpstreamBroken)),
                };
            }
        };
        let answer = |bytes| Answer {
            status,
            headers,
            body: AnswerBody::Bytes(bytes),
        };
        let answer = match output {
            Output::Pass => answer(bytes),
            Output::Replace(bytes) | Output::Cut(bytes) => answer(bytes),
            Output::Answer(reply) => written(reply),
        };
        Served {
            answer,
            rest: Box::pin(self.close(exchange, End::Complete)),
        }
    }

    /// What there is of an answer that is not long, and whether it is all.
    async fn read_whole(&self, exchange: &mut Exchange, mut upstream: P::Body) -> (Vec<u8>, bool) {
        let mut whole = Vec::new();
        loop {
            let Ok(chunk) = upstream.next().await.transpose() else {
                return (whole, false);
            };
            let (bytes, last) = self.metered(exchange, chunk);
            whole.extend(bytes);
            if last {
                return (whole, true);
            }
        }
    }

    /// What to pass on of a chunk, `None` being the end; and whether it is the last.
    fn metered(&self, exchange: &mut Exchange, chunk: Option<Vec<u8>>) -> (Vec<u8>, bool) {
        let last = chunk.is_none();
        let chunk = chunk.unwrap_or_default();
        match exchange.response_chunk(&self.edge.gate.borrow(), &chunk, last) {
            Output::Pass => (chunk, last),
            Output::Replace(bytes) => (bytes, last),
            Output::Cut(bytes) => (bytes, true),
            // Only of what is held, and that is not read here.
            Output::Answer(_) => (Vec::new(), true),
        }
    }

    /// Passes an answer on, chunk by chunk, as fast as the caller takes it.
    async fn pump(
        &self,
        exchange: &mut Exchange,
        mut upstream: P::Body,
        mut caller: mpsc::Sender<Result<Vec<u8>, Broken>>,
        mut gone: oneshot::Receiver<()>,
    ) -> End {
        loop {
            let chunk = match select(upstream.next(), &mut gone).await {
                Either::Left((chunk, _)) => chunk,
                Either::Right(_) => return End::ClientLeft,
            };
            if exchange.streams() {
                // Its caller may have been stopped since it began.
                self.follow().await;
            }
            let (bytes, last) = match chunk.transpose() {
                Ok(chunk) => self.metered(exchange, chunk),
                Err(broken) => {
                    // If the caller does not hear of it, it has left.
                    let _ = caller.send(Err(broken)).await;
                    return End::UpstreamBroken;
                }
            };
            if !bytes.is_empty() && caller.send(Ok(bytes)).await.is_err() {
                return End::ClientLeft;
            }
            if last {
                return End::Complete;
            }
        }
    }

    /// Settles and records.
    async fn close(self, exchange: Exchange, end: End) {
        let call = exchange.id().to_owned();
        let now = self.platform.now();
        // One thread does it all: what is done here before the answer is on its way holds it up.
        self.platform.pause(0).await;
        let finished = exchange.finish(end, now);
        let message = Message::Close {
            call,
            changes: finished.ops.into_iter().map(Change::from).collect(),
            record: String::from_utf8(finished.record).unwrap_or_default(),
        };
        for _ in 0..CLOSE_TRIES {
            if self.ask(message.clone()).await.is_some() {
                return;
            }
            self.platform.pause(CLOSE_PAUSE_MS).await;
        }
        self.edge.lose(1);
        self.platform
            .log("a call could not be settled: the keeper does not answer");
    }
}

/// Why there is no body.
enum Unread {
    TooLong,
    Broken,
}

/// The whole body, or as soon as it is known that it has more than `cap` bytes, the fact.
async fn read_up_to<B: Stream<Item = Result<Vec<u8>, Broken>> + Unpin>(
    cap: usize,
    body: Option<B>,
) -> Result<Vec<u8>, Unread> {
    let mut bytes = Vec::new();
    let Some(mut body) = body else {
        return Ok(bytes);
    };
    while let Some(chunk) = body.next().await {
        bytes.extend(chunk.map_err(|Broken| Unread::Broken)?);
        if bytes.len() > cap {
            return Err(Unread::TooLong);
        }
    }
    Ok(bytes)
}

/// An answer of the gate's own.
fn written(reply: Reply) -> Answer {
    let mut headers = Vec::new();
    set(&mut headers, reply.headers);
    Answer {
        status: reply.status,
        headers,
        body: AnswerBody::Bytes(reply.body.into_bytes()),
    }
}

/// What the caller is told when there is nothing of the upstream's to tell.
fn unanswered(status: u16, title: &str, exchange: &Exchange) -> Answer {
    let decision = (DECISION_HEADER, exchange.id().to_owned());
    problem(status, title, vec![decision])
}

/// RFC 9457.
fn problem(status: u16, title: &str, values: Vec<(&'static str, String)>) -> Answer {
    let body = format!(r#"{{"type":"about:blank","title":"{title}","status":{status}}}"#);
    let content_type = "application/problem+json".to_owned();
    let mut headers = Vec::new();
    set(&mut headers, vec![("content-type", content_type)]);
    set(&mut headers, values);
    Answer {
        status,
        headers,
        body: AnswerBody::Bytes(body.into_bytes()),
    }
}

fn borrowed(headers: &Headers) -> impl Iterator<Item = (&[u8], &[u8])> {
    headers
        .iter()
        .map(|(name, value)| (name.as_bytes(), value.as_slice()))
}

/// Sets headers, each in the place of what was there. A length is the platform's own affair.
fn set(headers: &mut Headers, values: Vec<(&'static str, String)>) {
    for (name, value) in values {
        headers.retain(|(known, _)| known != name);
        if name != "content-length" {
            headers.push((name.to_owned(), value.into_bytes()));
        }
    }
}
