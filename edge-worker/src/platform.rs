//! What the driver needs of a platform.

use futures_util::{
    Stream,
    future::{Either, select},
};
use std::{fmt, pin::pin};
use tollgate_engine::time::Time;

/// Header names in lower case, and their values; a name may come more than once.
pub type Headers = Vec<(String, Vec<u8>)>;

/// A clock, entropy, an HTTP client, a pause, a log.
pub trait Platform {
    /// A body as it comes in, in the chunks it comes in.
    type Body: Stream<Item = Result<Vec<u8>, Broken>> + Unpin + 'static;

    /// The wall clock.
    fn now(&self) -> Time;

    /// 128 random bits that will not repeat; `None` when there is no randomness to be had.
    fn entropy(&self) -> Option<u128>;

    /// Sends a request and gives the head of the answer, whatever its status; redirects are answers. Bodies come and go as they are: what is
    /// compressed stays so.
    async fn fetch(
        &self,
        request: Request<Self::Body>,
    ) -> Result<Response<Self::Body>, Unreachable>;

    /// Comes back after so many milliseconds.
    async fn pause(&self, millis: u32);

    /// Writes a line for the operator.
    fn log(&self, line: &str);
}

/// A request to somebody else.
pub struct Request<B> {
    /// `GET`, `POST`, …
    pub method: String,
    /// Absolute.
    pub url: String,
    /// Without those of the connection (`host`, `content-length`, …): the platform's client sets them.
    pub headers: Headers,
    /// What goes along.
    pub body: RequestBody<B>,
    /// After so many milliseconds nobody waits for it any more, head or body. `None`: as long as it takes.
    pub limit_ms: Option<u32>,
}

impl<B> fmt::Debug for Request<B> {
    /// Without values of headers: credentials are among them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request")
            .field("method", &self.method)
            .field("url", &self.url)
            .finish_non_exhaustive()
    }
}

/// A request's body.
#[derive(Debug)]
pub enum RequestBody<B> {
    /// None.
    Empty,
    /// These bytes.
    Bytes(Vec<u8>),
    /// The caller's, passed on as it comes.
    Stream(B),
}

/// The head of an answer, and its body to come.
#[derive(Debug)]
pub struct Response<B> {
    /// Status.
    pub status: u16,
    /// Headers.
    pub headers: Headers,
    /// Body.
    pub body: B,
}

/// A body ended before its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken;

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the connection broke off")
    }
}

impl std::error::Error for Broken {}

/// Nobody answered. Whether what was sent had arrived is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unreachable;

impl fmt::Display for Unreachable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no answer")
    }
}

impl std::error::Error for Unreachable {}

/// What `work` comes to, `None` when it takes longer than `millis`.
pub(crate) async fn within<T>(
    platform: &impl Platform,
    millis: i64,
    work: impl Future<Output = T>,
) -> Option<T> {
    let limit = platform.pause(u32::try_from(millis).unwrap_or(0));
    match select(pin!(work), pin!(limit)).await {
        Either::Left((done, _)) => Some(done),
        Either::Right(_) => None,
    }
}
