//! One HTTP stream: an exchange, driven by Envoy's callbacks.

use crate::{
    host::{self, Status},
    profile::timed,
    worker::Worker,
};
use proxy_wasm::{
    traits::{Context, HttpContext},
    types::{Action, BufferType, MapType},
};
use std::{cell::RefCell, rc::Rc};
use tollgate_engine::{
    exchange::{End, Exchange, Forward, Output, Step, Want},
    facts::Headers,
    reply::Reply,
    time::Time,
};

/// Where a call's request is.
enum Stage {
    /// Its body is coming in.
    Body { cap: usize },
    /// It waits for these.
    Waiting(Vec<Want>),
    /// On its way to the upstream.
    Sent,
    /// Answered here.
    Answered,
}

/// A call, also reachable for its worker while it waits for a lease.
pub(crate) struct Call {
    /// Of its stream.
    context: u32,
    worker: Rc<Worker>,
    /// `None` before the first header, and once it is over.
    exchange: Option<Exchange>,
    stage: Stage,
    body_size: usize,
    /// The response is held until it is whole, up to so many bytes of body.
    held: Option<usize>,
    /// What of it has come.
    response_size: usize,
    /// The whole of the upstream's response has passed.
    whole: bool,
    /// The response is Envoy's own, in place of one that did not come.
    broken: bool,
}

impl Call {
    fn request_head(&mut self, last: bool) {
        let now = host::now();
        self.worker.follow_bundle(now);
        let begun = host::header_map(MapType::HttpRequestHeaders).and_then(|map| {
            let headers = host::pairs(&map)?;
            let entropy = host::random()?;
            Ok(self
                .worker
                .with_gate(|gate| Exchange::begin(gate, Headers(&headers), !last, now, entropy)))
        });
        match begun {
            Ok((exchange, step)) => self.carry_out(exchange, step, now),
            Err(_) => self.fail(),
        }
    }

    /// `size` is all that has come so far, as long as the call is paused.
    fn request_body(&mut self, size: usize, last: bool) {
        let Stage::Body { cap } = self.stage else {
            return;
        };
        self.body_size = size;
        if size <= cap && !last {
            return;
        }
        let Some(mut exchange) = self.exchange.take() else {
            return;
        };
        let now = host::now();
        let step = self.worker.with_gate(|gate| {
            if size > cap {
                return Ok(exchange.body_over_cap(gate, now));
            }
            let body = host::buffer(BufferType::HttpRequestBody, size)?;
            Ok::<_, Status>(exchange.body(gate, &body, now))
        });
        match step {
            Ok(step) => self.carry_out(exchange, step, now),
            Err(_) => {
                self.exchange = Some(exchange);
                self.fail();
            }
        }
    }

    /// Tries again to reserve what the call waits for. Whether it still waits.
    pub(crate) fn resume(&mut self, now: Time) -> bool {
        let Some(mut exchange) = self.exchange.take() else {
            return false;
        };
        let step = exchange.retry();
        self.carry_out(exchange, step, now);
        match self.stage {
            Stage::Waiting(_) => return true,
            Stage::Sent => {
                if host::continue_request().is_err() {
                    self.fail();
                }
            }
            Stage::Body { .. } | Stage::Answered => {}
        }
        false
    }

    /// What the call waits for.
    pub(crate) fn wants(&self) -> &[Want] {
        match &self.stage {
            Stage::Waiting(wants) => wants,
            Stage::Body { .. } | Stage::Sent | Stage::Answered => &[],
        }
    }

    fn carry_out(&mut self, mut exchange: Exchange, mut step: Step, now: Time) {
        let worker = Rc::clone(&self.worker);
        let done = loop {
            match step {
                Step::Swap(changes) => {
                    let result = worker.swap(&changes, now);
                    step = worker.with_gate(|gate| exchange.swapped(gate, result, now));
                }
                Step::NeedBody { cap } => {
                    self.stage = Stage::Body { cap };
                    break Ok(());
                }
                Step::AwaitLease {
                    undo,
                    wants,
                    // The exchange looks at it itself at every try, and there is one at every tick.
                    deadline: _,
                } => {
                    worker.settle(&undo, now);
                    self.stage = Stage::Waiting(wants);
                    break Ok(());
                }
                Step::Forward(forward) => {
                    self.stage = Stage::Sent;
                    break show(&exchange).and_then(|()| self.edit_request(&forward));
                }
                Step::Reply { reply, undo } => {
                    worker.settle(&undo, now);
                    self.stage = Stage::Answered;
                    break show(&exchange).and_then(|()| answer(&reply));
                }
            }
        };
        self.exchange = Some(exchange);
        match (done, &self.stage) {
            (Err(_), _) => self.fail(),
            // Nothing more comes of it, however slowly its caller reads the answer: who never does would have it kept here for ever.
            (Ok(()), Stage::Answered) => self.finish(),
            (Ok(()), _) => {}
        }
    }

    /// Possible only while the request is held.
    fn edit_request(&self, forward: &Forward) -> Result<(), Status> {
        for name in &forward.remove {
            host::remove_header(MapType::HttpRequestHeaders, name)?;
        }
        for (name, value) in &forward.set {
            host::set_header(MapType::HttpRequestHeaders, name, value)?;
        }
        match &forward.body {
            Some(body) => host::set_buffer(BufferType::HttpRequestBody, self.body_size, body),
            None => Ok(()),
        }
    }

    /// Envoy did not do what it was asked. A call that cannot be governed does not pass.
    fn fail(&mut self) {
        self.stage = Stage::Answered;
        self.worker.metrics.host_errors.add(1);
        // If even this fails, the call stays paused until Envoy's own time limit ends it.
        let _ = host::reply(
            503,
            &[("content-type", "application/problem+json".to_owned())],
            br#"{"type":"about:blank","title":"the gate cannot decide now","status":503,"rule":"gate.host"}"#,
        );
    }

    /// The exchange, as long as an upstream's response may come. What the gate answers itself passes the response callbacks too.
    fn answered_upstream(&mut self) -> Option<&mut Exchange> {
        match self.stage {
            Stage::Sent => self
                .exchange
                .as_mut()
                .filter(|exchange| exchange.wants_response()),
            Stage::Body { .. } | Stage::Waiting(_) | Stage::Answered => None,
        }
    }

    fn response_head(&mut self, last: bool) {
        let Some(exchange) = self.answered_upstream() else {
            return;
        };
        let mut broken = false;
        let mut held = None;
        let edited = host::header_map(MapType::HttpResponseHeaders).and_then(|map| {
            let mut headers = host::pairs(&map)?;
            let details = why_envoy_answered(Headers(&headers));
            broken = details.is_some();
            // Its status is no refusal of the provider's then: that may have worked, and its answer was lost.
            if details.is_some_and(|details| may_have_arrived(&details)) {
                headers.retain(|(name, _)| *name != b":status");
            }
            let head = exchange.response_head(Headers(&headers));
            held = head.hold;
            for name in &head.remove {
                host::remove_header(MapType::HttpResponseHeaders, name)?;
            }
            for (name, value) in &head.set {
                host::set_header(MapType::HttpResponseHeaders, name, value)?;
            }
            Ok(())
        });
        self.broken = broken;
        self.held = held;
        if edited.is_err() {
            // It would pass without anybody having looked at it.
            self.held = Some(0);
            return self.fail();
        }
        if last {
            self.response_body(0, true);
        }
    }

    /// `size` is of the chunk, or, as long as the response is held, of all that has come.
    fn response_body(&mut self, size: usize, last: bool) {
        let worker = Rc::clone(&self.worker);
        let context = self.context;
        self.response_size = size;
        let held = self.held;
        if held.is_some_and(|cap| size <= cap) && !last {
            return;
        }
        let mut answered = false;
        let Some(exchange) = self.answered_upstream() else {
            return;
        };
        if exchange.streams() {
            // Its caller may have been stopped since it began.
            worker.follow_bundle(host::now());
        }
        let searched = exchange.searches_answer();
        let over = held.is_some_and(|cap| size > cap);
        let chunk = if exchange.meters() && size > 0 && !over {
            host::buffer(BufferType::HttpResponseBody, size)
        } else {
            Ok(Vec::new())
        };
        let passed = chunk.and_then(|chunk| {
            let output = match over {
                true => exchange.response_over_cap(),
                false => worker.with_gate(|gate| exchange.response_chunk(gate, &chunk, last)),
            };
            match output {
                Output::Pass => Ok(()),
                Output::Replace(bytes) => {
                    host::set_buffer(BufferType::HttpResponseBody, size, &bytes)
                }
                Output::Cut(bytes) => {
                    worker.end_soon(context);
                    host::set_buffer(BufferType::HttpResponseBody, size, &bytes)
                }
                Output::Answer(reply) => {
                    answered = true;
                    answer(&reply)
                }
            }
        });
        // What was not read is settled on an estimate. What had to be searched and was not does not pass.
        if passed.is_err() {
            if searched && !answered {
                return self.fail();
            }
            self.worker.metrics.host_errors.add(1);
        }
        self.whole |= last;
        if answered {
            self.stage = Stage::Answered;
            self.finish();
        } else {
            self.held = None;
        }
    }

    /// Trailers stand for the end of the body, and nothing can be appended to it any more. Only the bytes of an event that was begun and not
    /// ended are lost, and those a client must throw away (WHATWG HTML §9.2.6: at the end of the stream an incomplete event is discarded).
    fn response_trailers(&mut self) {
        if self.held.is_some() {
            return self.response_body(self.response_size, true);
        }
        let worker = Rc::clone(&self.worker);
        if let Some(exchange) = self.answered_upstream() {
            let _ = worker.with_gate(|gate| exchange.response_chunk(gate, &[], true));
        }
        self.whole = true;
    }

    /// Settles and records. Only the first time does anything.
    fn finish(&mut self) {
        let Some(exchange) = self.exchange.take() else {
            return;
        };
        let end = match self.stage {
            Stage::Answered => End::Complete,
            Stage::Sent if self.broken => End::UpstreamBroken,
            Stage::Sent if self.whole => End::Complete,
            Stage::Sent if !client_left() => End::UpstreamBroken,
            Stage::Sent | Stage::Body { .. } | Stage::Waiting(_) => End::ClientLeft,
        };
        let now = host::now();
        let finished = exchange.finish(end, now);
        self.worker.settle(&finished.ops, now);
        self.worker.record(&finished.record);
        self.worker.metrics.observe(&finished.observed);
        self.worker.give_back_soon();
    }
}

/// Answers in place of the upstream.
fn answer(reply: &Reply) -> Result<(), Status> {
    host::reply(reply.status, &reply.headers, reply.body.as_bytes())
}

/// Puts the decision, and the path as it is on record, where an access log finds them: `%FILTER_STATE(wasm.tollgate_decision:PLAIN)%` and
/// `%FILTER_STATE(wasm.tollgate_path:PLAIN)%`.
fn show(exchange: &Exchange) -> Result<(), Status> {
    let decision = exchange.decision();
    let rule = decision.reasons.first().map_or("-", |reason| &reason.rule);
    let shown = format!("{}:{rule}:{}", decision.outcome.name(), exchange.id());
    host::set_property("tollgate_decision", shown.as_bytes())?;
    host::set_property(
        "tollgate_path",
        exchange.recorded_path().unwrap_or("-").as_bytes(),
    )
}

/// Why Envoy itself wrote this response, when it did.
fn why_envoy_answered(headers: Headers<'_, '_>) -> Option<String> {
    // A look at the details costs a host call, and Envoy has only server errors to give in an upstream's place.
    let status = headers.first(":status")?;
    let details = status.starts_with('5').then(code_details)??;
    (details != "via_upstream").then_some(details)
}

/// Whether the request may have reached the upstream before the connection broke. It has not where there was no connection, no room for one
/// more call, or an upstream that took no more (RFC 9113 §8.7: a refused stream was not processed).
fn may_have_arrived(details: &str) -> bool {
    const NOT_SENT: [&str; 4] = [
        "connection_failure",
        "connection_timeout",
        "overflow",
        "refused_stream",
    ];
    details.starts_with("upstream_reset") && !NOT_SENT.iter().any(|why| details.contains(why))
}

/// Whether the client, not the upstream, ended a response early.
fn client_left() -> bool {
    code_details().is_some_and(|details| {
        details.starts_with("downstream") || details.starts_with("http2.remote")
    })
}

fn code_details() -> Option<String> {
    let details = host::property("response\0code_details").ok()??;
    String::from_utf8(details).ok()
}

/// A stream's context in the SDK's dispatcher.
pub(crate) struct Stream {
    context: u32,
    worker: Rc<Worker>,
    call: Rc<RefCell<Call>>,
}

impl Stream {
    pub(crate) fn new(worker: Rc<Worker>, context: u32) -> Stream {
        Stream {
            context,
            call: Rc::new(RefCell::new(Call {
                context,
                worker: Rc::clone(&worker),
                exchange: None,
                stage: Stage::Answered,
                body_size: 0,
                held: None,
                response_size: 0,
                whole: false,
                broken: false,
            })),
            worker,
        }
    }

    /// One callback of the request's way.
    fn request(&self, advance: impl FnOnce(&mut Call)) -> Action {
        let mut call = self.call.borrow_mut();
        advance(&mut call);
        match call.stage {
            Stage::Sent => Action::Continue,
            Stage::Waiting(_) => {
                self.worker
                    .wait_for_lease(self.context, Rc::clone(&self.call));
                Action::Pause
            }
            Stage::Body { .. } | Stage::Answered => Action::Pause,
        }
    }

    /// One callback of the response's way.
    fn response(&self, advance: impl FnOnce(&mut Call)) -> Action {
        let mut call = self.call.borrow_mut();
        advance(&mut call);
        match call.held {
            Some(_) => Action::Pause,
            None => Action::Continue,
        }
    }

    fn over(&self) {
        self.worker.forget(self.context);
        self.call.borrow_mut().finish();
    }
}

impl Context for Stream {
    /// After [`HttpContext::on_log`], and also where Envoy should ever leave that out.
    fn on_done(&mut self) -> bool {
        self.over();
        true
    }
}

impl HttpContext for Stream {
    fn on_http_request_headers(&mut self, _: usize, last: bool) -> Action {
        timed("request headers", || {
            self.request(|call| call.request_head(last))
        })
    }

    fn on_http_request_body(&mut self, size: usize, last: bool) -> Action {
        timed("request body", || {
            self.request(|call| call.request_body(size, last))
        })
    }

    fn on_http_request_trailers(&mut self, _: usize) -> Action {
        // With trailers no callback says that the body is whole.
        self.request(|call| call.request_body(call.body_size, true))
    }

    fn on_http_response_headers(&mut self, _: usize, last: bool) -> Action {
        timed("response headers", || {
            self.response(|call| call.response_head(last))
        })
    }

    fn on_http_response_body(&mut self, size: usize, last: bool) -> Action {
        timed("response body", || {
            self.response(|call| call.response_body(size, last))
        })
    }

    fn on_http_response_trailers(&mut self, _: usize) -> Action {
        self.response(Call::response_trailers)
    }

    fn on_log(&mut self) {
        timed("end", || self.over());
    }
}
