//! Cloudflare's runtime: the one file that speaks to it, entry points apart.
//!
//! JavaScript's own `fetch` and streams are used where `worker`'s words for them lose something: a method that it does not know, a stream that
//! was aborted and is no shorter for it.

use futures_util::Stream;
use std::{
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};
use tollgate_edge_worker::{
    Ahead, Answer, AnswerBody, BUNDLE, Broken, Call, Disk, Headers, Heard, Line, Message, Platform,
    Request, RequestBody, Response, Unavailable, Unreachable, joined, parts,
};
use tollgate_engine::{gate::Config, json, time::Time};
use worker::{
    Date, Delay, EncodeBody, Env, ResponseBuilder, Result, Storage, console_log,
    js_sys::{
        self, Array, ArrayBuffer, JSON, Map, Promise, Reflect, Uint8Array, futures::JsFuture,
    },
    wasm_bindgen::{JsCast as _, JsValue},
    web_sys::{self, AbortSignal, ReadableStream, ReadableStreamDefaultReader, WorkerGlobalScope},
};

/// What the bindings say.
pub(crate) struct Setup {
    pub(crate) config: Config,
    pub(crate) upstream: String,
    pub(crate) control_plane: String,
}

impl Setup {
    /// The error is a sentence for the operator.
    pub(crate) fn read(env: &Env) -> std::result::Result<Setup, String> {
        let text = |name: &str| {
            let value = Reflect::get(env, &name.into()).ok()?;
            // A variable may be written as an object.
            let json = || JSON::stringify(&value).ok()?.as_string();
            value.as_string().or_else(json)
        };
        let required = |name: &str| text(name).ok_or(format!("the variable `{name}` is not set"));
        Ok(Setup {
            config: Config::read(required("GATE")?.as_bytes(), text)?,
            upstream: required("UPSTREAM")?,
            control_plane: required("CONTROL_PLANE")?,
        })
    }

    /// Of the keeper, and of the bundle in KV.
    pub(crate) fn name(&self) -> String {
        format!("{} {}", self.config.workspace, self.config.channel)
    }
}

/// The clock, entropy and HTTP client of an isolate, or of a Durable Object.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cloudflare;

impl Platform for Cloudflare {
    type Body = Body;

    fn now(&self) -> Time {
        Time::from_millis(i64::try_from(Date::now().as_millis()).unwrap_or(i64::MAX))
    }

    fn entropy(&self) -> Option<u128> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes).ok()?;
        Some(u128::from_le_bytes(bytes))
    }

    async fn fetch(
        &self,
        request: Request<Body>,
    ) -> std::result::Result<Response<Body>, Unreachable> {
        fetch(request).await.map_err(|why| {
            // The URL is not said: an agent chose its path.
            self.log(&format!("a request failed: {}", describe(&why)));
            Unreachable
        })
    }

    async fn pause(&self, millis: u32) {
        Delay::from(Duration::from_millis(millis.into())).await;
    }

    fn log(&self, line: &str) {
        console_log!("tollgate: {line}");
    }
}

async fn fetch(request: Request<Body>) -> std::result::Result<Response<Body>, JsValue> {
    let init = web_sys::RequestInit::new();
    init.set_method(&request.method);
    // A redirect is the caller's to follow: where it leads, nobody here has decided on.
    init.set_redirect(web_sys::RequestRedirect::Manual);
    // Neither decoded here nor, unless the caller wants it, encoded there: what is metered is what was sent.
    Reflect::set(&init, &"encodeResponseBody".into(), &"manual".into())?;
    let headers = web_sys::Headers::new()?;
    for (name, value) in &request.headers {
        headers.append(name, &text(value))?;
    }
    if !headers.has("accept-encoding")? {
        headers.set("accept-encoding", "identity")?;
    }
    init.set_headers(&headers);
    // To let go of a promise is not enough: what it waits for would stay open.
    if let Some(limit_ms) = request.limit_ms {
        init.set_signal(Some(&AbortSignal::timeout_with_u32(limit_ms)));
    }
    match request.body {
        RequestBody::Empty => {}
        RequestBody::Bytes(bytes) => init.set_body(&Uint8Array::from(bytes.as_slice())),
        RequestBody::Stream(body) => init.set_body(&body.stream),
    }
    let global: WorkerGlobalScope = js_sys::global().unchecked_into();
    let promise = global.fetch_with_str_and_init(&request.url, &init);
    let response: web_sys::Response = JsFuture::from(promise).await?.dyn_into()?;
    Ok(Response {
        status: response.status(),
        headers: pairs(&response.headers()),
        body: Body::new(
            response.body(),
            &response.headers(),
            Box::new(move || response.array_buffer()),
        ),
    })
}

/// A request as the driver wants it.
pub(crate) fn call(request: &worker::Request) -> Result<Call<Body>> {
    let request = Clone::clone(request.inner());
    // As `fetch` will read it: dots and backslashes in a path are resolved before it is sent on, so they are before it is decided on. What it
    // cannot read has a host that is none, which is for the engine to say.
    let url = request.url();
    let url = web_sys::Request::new_with_str(&url).map_or(url, |request| request.url());
    let (scheme, rest) = url.split_once("://").unwrap_or(("https", &url));
    let at = rest.find('/').unwrap_or(rest.len());
    let (authority, target) = rest.split_at(at);
    Ok(Call {
        method: request.method(),
        scheme: scheme.to_owned(),
        authority: authority.to_owned(),
        target: target.to_owned(),
        headers: pairs(&request.headers()),
        body: request.body().map(|body| {
            let headers = request.headers();
            Body::new(
                Some(body),
                &headers,
                Box::new(move || request.array_buffer()),
            )
        }),
    })
}

/// An answer as Cloudflare wants it.
pub(crate) fn response(answer: Answer) -> Result<worker::Response> {
    let headers = worker::Headers::new();
    // Without a body there is none to be measured or taken apart.
    let bodiless = matches!(answer.status, 204 | 205 | 304);
    for (name, value) in &answer.headers {
        if name != "content-length" {
            headers.append(name, &text(value))?;
        }
    }
    let builder = ResponseBuilder::new()
        .with_status(answer.status)
        .with_headers(headers)
        .with_encode_body(EncodeBody::Manual);
    match answer.body {
        _ if bodiless => Ok(builder.empty()),
        AnswerBody::Bytes(bytes) => Ok(builder.fixed(bytes)),
        AnswerBody::Stream(stream) => builder.from_stream(Reading(stream)),
    }
}

/// What is said when nothing can be: an operator has to look at the log.
pub(crate) fn unconfigured() -> Result<worker::Response> {
    worker::Response::error("this gate cannot work; its log says why", 503)
}

struct Reading(tollgate_edge_worker::ReplyStream);

impl Stream for Reading {
    type Item = Result<Vec<u8>>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Pin::new(&mut self.0)
            .poll_next(context)
            .map(|chunk| chunk.map(|chunk| chunk.map_err(|broken| broken.to_string().into())))
    }
}

/// A body that says it has no more bytes than this is read at once: one promise instead of one for each chunk, and one for the end.
const WHOLE_BYTES: u32 = 64 * 1024;

/// A body as it comes in.
pub(crate) struct Body {
    stream: JsValue,
    /// Begins to read all of it, where that is not much.
    whole: Option<ReadWhole>,
    reader: Option<ReadableStreamDefaultReader>,
    next: Option<JsFuture>,
}

type ReadWhole = Box<dyn FnOnce() -> std::result::Result<Promise, JsValue>>;

impl Body {
    fn new(stream: Option<ReadableStream>, headers: &web_sys::Headers, whole: ReadWhole) -> Body {
        let length = headers.get("content-length").ok().flatten();
        let length = length.and_then(|length| length.parse::<u32>().ok());
        let short = length.is_some_and(|length| length <= WHOLE_BYTES);
        Body {
            whole: (short && stream.is_some()).then_some(whole),
            stream: stream.map_or(JsValue::NULL, JsValue::from),
            reader: None,
            next: None,
        }
    }

    fn read(&mut self) -> std::result::Result<Option<Promise>, JsValue> {
        if self.stream.is_null() {
            return Ok(None);
        }
        if let Some(whole) = self.whole.take() {
            self.stream = JsValue::NULL;
            return whole().map(Some);
        }
        if self.reader.is_none() {
            self.reader = Some(ReadableStreamDefaultReader::new(
                self.stream.unchecked_ref(),
            )?);
        }
        Ok(self.reader.as_ref().map(ReadableStreamDefaultReader::read))
    }
}

impl Stream for Body {
    type Item = std::result::Result<Vec<u8>, Broken>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.next.is_none() {
            match self.read() {
                Ok(Some(promise)) => self.next = Some(promise.into()),
                Ok(None) => return Poll::Ready(None),
                Err(_) => return Poll::Ready(Some(Err(Broken))),
            }
        }
        let Some(next) = &mut self.next else {
            return Poll::Ready(None);
        };
        let Poll::Ready(read) = Pin::new(next).poll(context) else {
            return Poll::Pending;
        };
        self.next = None;
        if let Ok(bytes) = &read
            && bytes.is_instance_of::<ArrayBuffer>()
        {
            return Poll::Ready(Some(Ok(Uint8Array::new(bytes).to_vec())));
        }
        let field = |name: &str| {
            let read = read.as_ref().ok()?;
            Reflect::get(read, &name.into()).ok()
        };
        Poll::Ready(match field("done").map(|done| done.is_truthy()) {
            None => Some(Err(Broken)),
            Some(true) => {
                self.stream = JsValue::NULL;
                None
            }
            Some(false) => field("value")
                .map(|value| Ok(Uint8Array::new(&value).to_vec()))
                .or(Some(Err(Broken))),
        })
    }
}

impl Drop for Body {
    /// What nobody reads any more need not be sent.
    fn drop(&mut self) {
        if let (Some(reader), false) = (&self.reader, self.stream.is_null()) {
            let _ = reader.cancel();
        }
    }
}

/// What is said to the Durable Object and by it goes in this header where it is short: a body takes each of them a turn of the event loop more.
const MESSAGE: &str = "tollgate-message";

/// So that headers stay far below what platforms allow (128 KB at Cloudflare's).
const SHORT_BYTES: usize = 4 * 1024;

/// Whether JSON may go as a header.
fn is_short(json: &str) -> bool {
    json.len() <= SHORT_BYTES && json.bytes().all(|byte| matches!(byte, b' '..=b'~'))
}

/// What a request says to the Durable Object.
pub(crate) async fn said(mut request: worker::Request) -> Result<Message> {
    let message = match request.headers().get(MESSAGE)? {
        Some(message) => json::read(message.as_bytes()),
        None => json::read(&request.bytes().await?),
    };
    message.map_err(|why| why.to_string().into())
}

/// Whether whoever says this looks for the answer in headers. Where another version runs than here, while one takes the other's place, it may not.
pub(crate) fn reads_headers(request: &worker::Request) -> bool {
    let headers = request.headers();
    let accepted = headers.get("accept").ok().flatten();
    headers.has(MESSAGE).unwrap_or(false) || accepted.as_deref() == Some(MESSAGE)
}

/// What the Durable Object answers.
pub(crate) fn saying(heard: &Heard, in_header: bool) -> Result<worker::Response> {
    let text = serde_json::to_string(heard)?;
    if !(in_header && is_short(&text)) {
        return worker::Response::ok(text);
    }
    let headers = worker::Headers::new();
    headers.set(MESSAGE, &text)?;
    Ok(worker::Response::empty()?.with_headers(headers))
}

/// The Durable Object, from an isolate.
pub(crate) struct KeeperLine {
    env: Env,
    name: Rc<str>,
}

impl KeeperLine {
    pub(crate) fn new(env: Env, name: Rc<str>) -> KeeperLine {
        KeeperLine { env, name }
    }

    async fn send(&self, message: &Message) -> Result<Heard> {
        let init = web_sys::RequestInit::new();
        init.set_method("POST");
        let text = serde_json::to_string(message)?;
        // What an agent said may be in a record, and what is in headers is shown to whoever follows the worker's requests.
        let is_record = matches!(message, Message::Close { .. });
        let headers = web_sys::Headers::new()?;
        if is_short(&text) && !is_record {
            headers.set(MESSAGE, &text)?;
        } else {
            headers.set("accept", MESSAGE)?;
            init.set_body(&text.into());
        }
        init.set_headers(&headers);
        let request = web_sys::Request::new_with_str_and_init("http://keeper/", &init)?;
        let keeper = self.env.durable_object("KEEPER")?.get_by_name(&self.name)?;
        let mut response = keeper.fetch_with_request(request.into()).await?;
        let heard = match response.headers().get(MESSAGE)? {
            Some(heard) => json::read(heard.as_bytes()),
            None => json::read(&response.bytes().await?),
        };
        heard.map_err(|why| why.to_string().into())
    }
}

impl Line for KeeperLine {
    async fn ask(&self, message: Message) -> std::result::Result<Heard, Unreachable> {
        self.send(&message).await.map_err(|why| {
            Cloudflare.log(&format!("no answer from the keeper: {why}"));
            Unreachable
        })
    }
}

/// The envelope that the keeper has left for cold isolates, where there is a KV namespace.
pub(crate) async fn cached_bundle(env: &Env, name: &str) -> Option<Vec<u8>> {
    env.kv("BUNDLES").ok()?.get(name).bytes().await.ok()?
}

/// Longest value written at once: half of the 2 MB that one may have with its key in storage on SQLite (Cloudflare, "Limits" of Durable Objects).
const PART_BYTES: usize = 1 << 20;

/// A Durable Object's storage: read once, then only written.
pub(crate) struct Stored {
    storage: Storage,
    env: Env,
    name: String,
}

impl Stored {
    pub(crate) async fn load(storage: Storage, env: Env, name: String) -> Result<Ahead<Stored>> {
        let stored: Map = storage.list().await?;
        let entries = Array::from(&stored.entries());
        let values = entries
            .iter()
            .filter_map(|entry| {
                let entry: Array = entry.dyn_into().ok()?;
                Some((
                    entry.get(0).as_string()?,
                    Uint8Array::new(&entry.get(1)).to_vec(),
                ))
            })
            .collect();
        let disk = Stored { storage, env, name };
        Ok(Ahead::new(disk, joined(values, PART_BYTES)))
    }

    /// What is written here is durable before anything else leaves this object.
    async fn put(&self, key: &str, new: Option<&[u8]>) -> Result<()> {
        let Some(new) = new else {
            return self.storage.delete(key).await.map(|_| ());
        };
        for (key, part) in parts(key, new, PART_BYTES) {
            let part = Uint8Array::from(part);
            self.storage.put_raw(&key, part).await?;
        }
        Ok(())
    }

    async fn cache_bundle(&self, envelope: &[u8]) {
        let Ok(bundles) = self.env.kv("BUNDLES") else {
            return;
        };
        let written = match bundles.put_bytes(&self.name, envelope) {
            Ok(put) => put.execute().await,
            Err(why) => Err(why),
        };
        if let Err(why) = written {
            Cloudflare.log(&format!("cannot keep the bundle for cold isolates: {why}"));
        }
    }
}

impl Disk for Stored {
    async fn write(&self, key: &str, value: Option<&[u8]>) -> std::result::Result<(), Unavailable> {
        if let Err(why) = self.put(key, value).await {
            // Memory and storage differ now; the runtime resets an object whose storage fails, and then they are one again.
            Cloudflare.log(&format!("cannot write `{key}`: {why}"));
            return Err(Unavailable);
        }
        if let (BUNDLE, Some(envelope)) = (key, value) {
            self.cache_bundle(envelope).await;
        }
        Ok(())
    }
}

fn pairs(headers: &web_sys::Headers) -> Headers {
    Array::from(headers)
        .iter()
        .map(|pair| pair.unchecked_into::<Array>())
        .filter_map(|pair| Some((pair.get(0).as_string()?, pair.get(1).as_string()?)))
        .map(|(name, value)| (name.to_ascii_lowercase(), bytes(value)))
        .collect()
}

/// What is not UTF-8 comes with replacement characters; with a byte that is none in their place, the engine sees that.
fn bytes(value: String) -> Vec<u8> {
    if value.contains(char::REPLACEMENT_CHARACTER) {
        vec![0xff]
    } else {
        value.into_bytes()
    }
}

/// Header values are UTF-8 by the time they get here: the engine refuses others.
fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value).into_owned()
}

fn describe(error: &JsValue) -> String {
    let message = Reflect::get(error, &"message".into()).ok();
    message
        .and_then(|message| message.as_string())
        .unwrap_or_else(|| "no reason given".to_owned())
}
