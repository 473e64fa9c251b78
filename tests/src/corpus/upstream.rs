//! The upstream's side of a step, for hosts that speak HTTP: notes what came, and answers by the script.

use super::{
    case::{Answer, AnswerEnd, CREDENTIALS, SeenUpstream},
    wire::{self, Message, Server},
};
use anyhow::{Result, ensure};
use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::TcpStream,
    time::Duration,
};

/// What an upstream sends on whose caller is about to leave, until it has: a comment in a stream of events.
pub const STILL_HERE: &str = ": still here\n\n";

/// What came.
fn seen(request: &Message) -> SeenUpstream {
    SeenUpstream {
        method: request.word(0).to_string(),
        path: request.word(1).to_string(),
        credentials: CREDENTIALS
            .into_iter()
            .filter_map(|name| Some((name.to_string(), request.header(name)?)))
            .collect(),
        accept_encoding: request.header("accept-encoding"),
        body: String::from_utf8_lossy(&request.body).into_owned(),
    }
}

/// How a gate finds out that its caller has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notices {
    /// By itself.
    AtOnce,
    /// When it passes something on. So a stream goes on, with comments.
    OnWriting,
}

/// An upstream: is told what came, and answers with what that gives.
///
/// # Errors
/// When there is no port.
pub fn serve(
    notices: Notices,
    reached: impl Fn(SeenUpstream) -> Option<Answer> + Send + Sync + 'static,
) -> Result<Server> {
    Server::start(move |request, stream| {
        if let Some(script) = reached(seen(&request)) {
            // What the gate does not take any more was not to be taken.
            let _ = answer(&script, stream, notices);
        }
    })
}

/// Between two comments. Long enough that whoever wants to leave has left.
const COMMENT_EVERY: Duration = Duration::from_millis(300);

/// Sends `answer`, and ends as it says. An error when the other side takes no more.
fn answer(answer: &Answer, stream: &mut TcpStream, notices: Notices) -> Result<()> {
    let mut headers = vec![("content-type", answer.content_type.as_str())];
    headers.extend(
        answer
            .headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str())),
    );
    stream.write_all(&wire::chunked(answer.status, &headers))?;
    for chunk in answer.chunks()? {
        if !chunk.is_empty() {
            stream.write_all(&wire::chunk(&chunk))?;
        }
    }
    match answer.end {
        AnswerEnd::Whole => stream.write_all(&wire::chunk(b""))?,
        // Until the gate hangs up in its turn.
        AnswerEnd::ClientLeaves => match notices {
            Notices::AtOnce => {
                stream.read_to_end(&mut Vec::new())?;
            }
            Notices::OnWriting => {
                stream.set_read_timeout(Some(COMMENT_EVERY))?;
                while let Err(error) = stream.read(&mut [0]) {
                    ensure!(error.kind() == ErrorKind::WouldBlock, "{error}");
                    stream.write_all(&wire::chunk(STILL_HERE.as_bytes()))?;
                }
            }
        },
        AnswerEnd::UpstreamBreaks => {}
    }
    Ok(())
}
