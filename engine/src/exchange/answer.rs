//! The answer on its way: metered, searched, and ended early where it must not go on.

use super::{Content, Exchange, Output, ResponseHead, Stream, vec_of};
use crate::{
    decide::{Alert, Cause, Charge, Decision, Outcome, Reason},
    facts::{Headers, Route, Said},
    gate::{Gate, Watches},
    halt,
    ledger::{Account, Unit},
    meter::{Fed, Framing, Meter},
    quota,
    reply::{
        self, APPROVAL_HEADER, DECISION_HEADER, LOWERED_HEADER, REASON_HEADER, REDACTED_HEADER,
        WARNING_HEADER,
    },
    rpc,
    sift::{Form, Sift, Stop},
    sse,
};
use alloc::{
    format,
    string::{String, ToString},
    vec::Vec,
};

impl Exchange {
    /// The alerts whose limit was used up before this call.
    pub(super) fn exceeded(&self) -> impl Iterator<Item = &Alert> {
        let taken = |account: &Account| {
            let charges = self.decision.charges.iter().zip(&self.taken);
            charges
                .filter(|(charge, _)| charge.account == *account)
                .map(|(charge, taken)| taken.saturating_sub(charge.reserved()))
                .max()
        };
        let alerts = self.decision.alerts.iter();
        alerts.filter(move |alert| taken(&alert.account).is_some_and(|taken| taken >= alert.limit))
    }

    /// Whether the response still has to pass through this exchange. False once the gate has answered itself: a host whose own answers come
    /// back as responses must not hand them in.
    pub fn wants_response(&self) -> bool {
        self.sent && self.answered.is_none()
    }

    /// Whether [`Exchange::response_chunk`] reads what it is given; if not, a host need not copy the bytes out. Known after
    /// [`Exchange::response_head`].
    pub fn meters(&self) -> bool {
        let searched = self.sift.is_some() || self.observer.is_some();
        let kept = self.content.as_ref().is_some_and(Content::reads);
        self.meter.is_some() || self.rpc.is_some() || self.stream.is_some() || searched || kept
    }

    /// Whether nothing of the response may pass but through [`Exchange::response_chunk`]. Known after [`Exchange::response_head`].
    pub fn searches_answer(&self) -> bool {
        self.sift.is_some() || self.answer_refused.is_some()
    }

    /// Whether the response may be ended early. Known after [`Exchange::response_head`].
    pub fn streams(&self) -> bool {
        self.stream.is_some()
    }

    /// The head of the upstream's response.
    pub fn response_head(&mut self, headers: Headers<'_, '_>) -> ResponseHead {
        let status = headers
            .first(":status")
            .and_then(|status| status.parse::<u16>().ok());
        self.upstream_status = status;
        let mut head = ResponseHead {
            remove: Vec::new(),
            set: Vec::from([(DECISION_HEADER, self.id.clone())]),
            hold: None,
        };
        let taken = self.decision.charges.iter().zip(self.taken.iter().copied());
        head.set.extend(quota::headers(taken, self.decided));
        if self.redacted > 0 {
            head.set.push((REDACTED_HEADER, self.redacted.to_string()));
        }
        if let Some(most) = self.lowered {
            head.set.push((LOWERED_HEADER, most.to_string()));
        }
        if let Some(warning) = quota::warning(self.exceeded()) {
            head.set.push((WARNING_HEADER, warning));
        }
        // Nobody but the gate says these.
        let ours = [
            REDACTED_HEADER,
            LOWERED_HEADER,
            WARNING_HEADER,
            REASON_HEADER,
            APPROVAL_HEADER,
        ];
        let said = |name: &&str| headers.has(name) && !head.set.iter().any(|(set, _)| set == name);
        head.remove = ours.into_iter().filter(said).collect();
        let encoded = headers
            .first("content-encoding")
            .is_some_and(|encoding| !encoding.eq_ignore_ascii_case("identity"));
        let content_type = headers.first("content-type").unwrap_or_default();
        let essence = content_type.split(';').next().unwrap_or_default();
        let essence = essence.trim().to_ascii_lowercase();
        if essence == "text/event-stream" {
            self.stream = Some(match encoded {
                true => Stream::Encoded,
                false => Stream::Events(sse::Place::default()),
            });
        }
        if let (false, "text/event-stream" | "application/json", Some(content)) =
            (encoded, essence.as_str(), &mut self.content)
        {
            content.answers();
        }
        self.watch_answer((&essence, charset(content_type)), encoded, &mut head);
        let framing = match essence.as_str() {
            _ if encoded => return head,
            "text/event-stream" => Framing::Sse,
            "application/json" => Framing::Json,
            _ => return head,
        };
        let Some(facts) = &self.facts else {
            return head;
        };
        let mut charges = self.decision.charges.iter();
        if facts.route == Route::Mcp && charges.any(|charge| charge.account.unit == Unit::Errors) {
            self.rpc = Some(rpc::Answer::new(framing, facts.said.mcp_id.clone()));
        }
        let Route::Llm(provider) = facts.route else {
            return head;
        };
        let hide = self.hide_usage && framing == Framing::Sse;
        if hide {
            head.remove.push("content-length");
        }
        let meter = Meter::new(provider, framing, hide);
        self.meter = Some(match self.most_reserved() {
            Some((_, most)) => meter.at_most(most),
            None => meter,
        });
        head
    }

    /// Sets up the search of an answer of this media type.
    fn watch_answer(
        &mut self,
        (essence, charset): (&str, Charset),
        encoded: bool,
        head: &mut ResponseHead,
    ) {
        let method = self.head.as_ref().map(|head| head.method.as_str());
        // RFC 9110 §6.4.1: these have no content.
        let empty = method == Some("HEAD") || matches!(self.upstream_status, Some(204 | 304));
        let Watches { enforced, shadow } = core::mem::take(&mut self.watches);
        if empty || (enforced.is_none() && shadow.is_none()) {
            return;
        }
        // Clients of these read JSON and events whatever the answer says it is.
        let read = self.facts.as_ref().is_some_and(|facts| {
            matches!(facts.route, Route::Llm(_) | Route::CountTokens | Route::Mcp)
        });
        if !read && is_binary(essence) {
            self.answer_uninspected = enforced.is_some();
            return;
        }
        // Those are in UTF-8, whatever else they say (WHATWG HTML §9.2.6).
        let events = essence == "text/event-stream";
        let refused = match (encoded, charset) {
            (true, _) => Some((
                "response.body_encoded",
                "the answer is compressed although it was asked for plain, and the policy has content rules for answers",
            )),
            (false, Charset::Other) if !events => Some((
                "response.unreadable",
                "the answer is in another character encoding than UTF-8, and the policy has content rules for answers",
            )),
            (false, _) => None,
        };
        match refused {
            None => {
                let form = Form {
                    json: read || essence == "application/json" || essence.ends_with("+json"),
                    only_ascii: charset == Charset::BeyondAscii,
                };
                let sift = |watch| match events {
                    true => Sift::events(watch),
                    false => Sift::whole(watch, form),
                };
                self.sift = enforced.map(sift);
                self.observer = shadow.map(sift);
            }
            Some((rule, message)) if enforced.is_some() => {
                // Stopped at its first byte.
                self.answer_refused = Some(Reason::of_gate(Cause::Policy, rule, message));
                self.stream = None;
                head.hold = Some(0);
            }
            Some(_) => {}
        }
        if self.sift.is_some() {
            head.remove.push("content-length");
            head.hold = (!events).then_some(self.answer_cap);
        }
    }

    /// The body of a response whose head is held has more bytes than [`ResponseHead::hold`] says. Nothing of it may go out.
    pub fn response_over_cap(&mut self) -> Output {
        let reason = self.answer_refused.clone().unwrap_or_else(|| {
            Reason::of_gate(
                Cause::Policy,
                "response.body_too_large",
                format!(
                    "the answer is larger than the {} bytes this gate inspects, and the policy has content rules for answers",
                    self.answer_cap
                ),
            )
        });
        self.stop(Stop {
            sent: Vec::new(),
            reasons: vec_of(reason),
        })
    }

    /// Ends an answer that must not go on.
    fn stop(&mut self, stop: Stop) -> Output {
        let Stop { mut sent, reasons } = stop;
        self.decision.outcome = Outcome::Deny;
        (self.sift, self.observer) = (None, None);
        if self.stream.is_some() {
            if let Some(reason) = reasons.first() {
                sent.extend_from_slice(self.final_event(reason).as_bytes());
            }
            return self.cut_off(sent, reasons);
        }
        let facts = self.facts.as_ref();
        let mcp_id = facts.and_then(|facts| facts.said.mcp_id.as_deref());
        let reply = reply::denial(self.dialect, &reasons, &self.id, mcp_id, None, None);
        self.answered = Some(reply.status);
        self.decision.reasons.extend(reasons);
        Output::Answer(reply)
    }

    /// What may go out of a piece of the answer. An error is what to end it with.
    fn sift_chunk(&mut self, output: Output, chunk: &[u8], end: bool) -> Result<Output, Output> {
        let bytes = match &output {
            Output::Pass => chunk,
            Output::Replace(bytes) => bytes,
            Output::Cut(_) | Output::Answer(_) => return Ok(output),
        };
        if let Some(mut observer) = self.observer.take() {
            match observer.feed(bytes, end) {
                Ok(_) => self.observer = Some(observer),
                Err(stop) => self.shadowed(stop.reasons),
            }
        }
        let Some(sift) = &mut self.sift else {
            return Ok(output);
        };
        match sift.feed(bytes, end) {
            Ok(left) if left == *bytes => Ok(output),
            Ok(left) => Ok(Output::Replace(left)),
            Err(stop) => Err(self.stop(stop)),
        }
    }

    /// Puts down what documents in shadow would have said to the answer.
    pub(super) fn shadowed(&mut self, reasons: Vec<Reason>) {
        let known = self.shadow.take().unwrap_or_default();
        self.shadow = Some(Decision::of([known.reasons, reasons].concat()));
    }

    /// One chunk of the upstream's response, cut anywhere; `end` with the last one (which may be empty). What comes back is to be sent on.
    pub fn response_chunk(&mut self, gate: &Gate, chunk: &[u8], end: bool) -> Output {
        let output = self.pass_on(gate, chunk, end);
        if let Some(content) = &mut self.content {
            match &output {
                Output::Pass => content.add(chunk),
                Output::Replace(bytes) | Output::Cut(bytes) => content.add(bytes),
                // Nothing of it has gone out.
                Output::Answer(_) => self.content = None,
            }
        }
        output
    }

    fn pass_on(&mut self, gate: &Gate, chunk: &[u8], end: bool) -> Output {
        if self.ended() {
            return Output::Cut(Vec::new());
        }
        if let Some(answer) = &mut self.rpc {
            answer.feed(chunk);
        }
        let (metered, outruns) = self.meter_chunk(chunk, end);
        let output = match self.sift_chunk(metered, chunk, end || outruns) {
            Ok(output) => output,
            Err(last) => return last,
        };
        if outruns && let Some(why) = self.outrun() {
            let mut last = match output {
                Output::Pass => chunk.to_vec(),
                Output::Replace(bytes) | Output::Cut(bytes) => bytes,
                Output::Answer(_) => return output,
            };
            last.extend_from_slice(self.final_event(&why).as_bytes());
            return self.cut_off(last, [why]);
        }
        let Some(mut stream) = self.stream.filter(|_| !end) else {
            return output;
        };
        let sent = match &output {
            Output::Pass => chunk,
            Output::Replace(bytes) | Output::Cut(bytes) => bytes,
            Output::Answer(_) => return output,
        };
        if self.wants_response()
            && let Some(why) = self.killed(gate)
            && let Some(last) = self.last_bytes(stream, sent, &why)
        {
            return self.cut_off(last, [why]);
        }
        if let Stream::Events(place) = &mut stream {
            place.pass(sent);
            self.stream = Some(stream);
        }
        output
    }

    /// Whether the gate itself has ended the upstream's answer. What comes of it after that is no matter: not every host still hears it.
    pub(super) fn ended(&self) -> bool {
        self.cut || (self.sent && self.answered.is_some())
    }

    /// Ends the response with these bytes.
    fn cut_off(&mut self, last: Vec<u8>, why: impl IntoIterator<Item = Reason>) -> Output {
        self.cut = true;
        self.decision.reasons.extend(why);
        Output::Cut(last)
    }

    /// Why the response must not go on.
    fn killed(&self, gate: &Gate) -> Option<Reason> {
        let (kind, refusal) = self.halt(gate)?;
        (kind == halt::Kind::Killed).then_some(refusal)
    }

    /// The charge that a response takes from as it is written, and the output tokens that were reserved for it.
    fn most_reserved(&self) -> Option<(&Charge, u64)> {
        let mut charges = self.decision.charges.iter();
        let charge = charges.find(|charge| {
            !charge.alert && matches!(charge.account.unit, Unit::Tokens | Unit::NanoUsd)
        })?;
        Some((charge, self.most_output(&self.facts.as_ref()?.said)?))
    }

    /// Why the response must not go on: the model has surely written more than was reserved, whatever it was told.
    fn outrun(&self) -> Option<Reason> {
        let (charge, reserved) = self.most_reserved()?;
        Some(Reason {
            rule: charge.rule.clone().into(),
            document: Some(charge.document.clone()),
            message: format!(
                "the answer goes on beyond the {reserved} tokens that were reserved for it"
            )
            .into(),
            cause: Cause::Budget,
        })
    }

    /// Most tokens that the model may put out, all answers together; `None` where nothing says so.
    pub(super) fn most_output(&self, said: &Said) -> Option<u64> {
        let price = self.decision.price.as_ref();
        said.max_output_tokens
            .or(price.and_then(|price| price.max_output_tokens))
            .map(|max| max.saturating_mul(said.answers))
    }

    /// What to end the response with in place of `next`; `None` while an event is under way that does not end there.
    fn last_bytes(&self, stream: Stream, next: &[u8], reason: &Reason) -> Option<Vec<u8>> {
        let Stream::Events(place) = stream else {
            return Some(Vec::new());
        };
        let whole = next.get(..place.rest_of_event(next)?)?;
        Some([whole, self.final_event(reason).as_bytes()].concat())
    }

    /// The event that says why there are no more.
    fn final_event(&self, reason: &Reason) -> String {
        let facts = self.facts.as_ref();
        let mcp_id = facts.and_then(|facts| facts.said.mcp_id.as_deref());
        reply::final_event(self.dialect, reason, mcp_id)
    }

    /// What the meter lets through of a chunk, and whether the response goes beyond what was reserved with it.
    fn meter_chunk(&mut self, chunk: &[u8], end: bool) -> (Output, bool) {
        let Some(meter) = &mut self.meter else {
            return (Output::Pass, false);
        };
        let fed = match chunk {
            [] => Fed::All,
            _ => meter.feed(chunk),
        };
        let mut passed = match fed {
            Fed::All => None,
            Fed::Instead(bytes) => Some(bytes),
            Fed::Until(bytes) => return (Output::Replace(bytes), true),
        };
        if end && let Some(metered) = self.meter.take().map(Meter::finish) {
            if !metered.rest.is_empty() {
                let passed = passed.get_or_insert_with(|| chunk.to_vec());
                passed.extend_from_slice(&metered.rest);
            }
            self.metered = Some(metered);
        }
        (passed.map_or(Output::Pass, Output::Replace), false)
    }
}

/// Whether content of this media type is no text in any sense that a pattern knows.
fn is_binary(essence: &str) -> bool {
    const KINDS: [&str; 5] = ["image/", "audio/", "video/", "font/", "application/grpc"];
    const TYPES: [&str; 5] = [
        "application/octet-stream",
        "application/pdf",
        "application/zip",
        "application/gzip",
        "application/wasm",
    ];
    TYPES.contains(&essence) || KINDS.iter().any(|kind| essence.starts_with(kind))
}

/// How a text's bytes are to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Charset {
    /// UTF-8, of which ASCII is a part.
    Utf8,
    /// As ASCII, but for bytes beyond it.
    BeyondAscii,
    /// In a way that is not known here.
    Other,
}

/// That of a content type; by the names of the WHATWG Encoding Standard, §4.2.
fn charset(content_type: &str) -> Charset {
    const ASCII_BASED: [&str; 11] = [
        "iso-8859-",
        "iso8859",
        "latin",
        "windows-125",
        "cp125",
        "gb",
        "big5",
        "shift_jis",
        "euc-",
        "koi8-",
        "macintosh",
    ];
    let parameters = content_type.split(';').skip(1);
    let named = parameters.filter_map(|parameter| parameter.split_once('='));
    let mut charsets = named.filter(|(name, _)| name.trim().eq_ignore_ascii_case("charset"));
    let Some((_, name)) = charsets.next() else {
        return Charset::Utf8;
    };
    let name = name.trim().trim_matches('"').to_ascii_lowercase();
    match name.as_str() {
        _ if charsets.next().is_some() => Charset::Other,
        "utf-8" | "utf8" | "us-ascii" | "ascii" => Charset::Utf8,
        name if ASCII_BASED.iter().any(|known| name.starts_with(known)) => Charset::BeyondAscii,
        _ => Charset::Other,
    }
}
