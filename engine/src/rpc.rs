//! Whether the answer to a JSON-RPC request, such as a call of an MCP tool, says that it failed. Such answers come with status 200.

use crate::{json, meter::Framing, sse};
use alloc::{string::String, vec::Vec};

/// The longest answer in one piece that is read; a longer one counts as no failure. Errors are short, and what a tool has put out may be anything.
const MAX_ANSWER_BYTES: usize = 1 << 20;

/// An answer on its way.
#[derive(Debug)]
pub(crate) struct Answer {
    /// The request's id, as JSON text.
    id: Option<String>,
    body: Body,
    failed: bool,
}

#[derive(Debug)]
enum Body {
    Whole(Vec<u8>),
    Events(sse::Reader),
    TooLong,
}

impl Answer {
    pub(crate) fn new(framing: Framing, id: Option<String>) -> Answer {
        Answer {
            id,
            body: match framing {
                Framing::Json => Body::Whole(Vec::new()),
                Framing::Sse => Body::Events(sse::Reader::default()),
            },
            failed: false,
        }
    }

    /// The next bytes, cut anywhere.
    pub(crate) fn feed(&mut self, chunk: &[u8]) {
        match &mut self.body {
            Body::Whole(body) if body.len().saturating_add(chunk.len()) > MAX_ANSWER_BYTES => {
                self.body = Body::TooLong;
            }
            Body::Whole(body) => body.extend_from_slice(chunk),
            Body::Events(reader) => {
                reader.push(chunk);
                self.failed |= any_failed(reader, self.id.as_deref());
            }
            Body::TooLong => {}
        }
    }

    /// Whether it said so by its end.
    pub(crate) fn failed(mut self) -> bool {
        match &mut self.body {
            Body::Whole(body) => is_failure(body, self.id.as_deref()),
            Body::Events(reader) => {
                reader.end();
                self.failed || any_failed(reader, self.id.as_deref())
            }
            Body::TooLong => false,
        }
    }
}

fn any_failed(reader: &mut sse::Reader, id: Option<&str>) -> bool {
    let mut failed = false;
    while let Some(block) = reader.next_block() {
        if let sse::Block::Event(event) = block {
            failed |= is_failure(&event.data, id);
        }
    }
    failed
}

/// Whether a message is the response to the request `id` and an error, or the result of a tool that says it has failed (`isError`; MCP
/// 2025-06-18, "Tools", Error Handling). An error without an id is that of a request that was not understood (JSON-RPC 2.0 §5).
fn is_failure(message: &[u8], id: Option<&str>) -> bool {
    let Ok(doc) = json::parse(message) else {
        return false;
    };
    let root = doc.root();
    let answers = root.get("id").filter(|id| !id.is_null());
    let is_ours = answers.is_none_or(|answers| Some(answers.raw()) == id);
    let tool_failed = root
        .get("result")
        .and_then(|result| result.get("isError"))
        .and_then(json::Value::as_bool);
    is_ours && (root.get("error").is_some() || (answers.is_some() && tool_failed == Some(true)))
}

#[cfg(test)]
mod tests {
    use super::{Answer, MAX_ANSWER_BYTES};
    use crate::meter::Framing;
    use alloc::string::ToString;

    fn failed(framing: Framing, text: &str) -> bool {
        // Cut everywhere it can be.
        let answers = [1, 7, text.len().max(1)].map(|size| {
            let mut answer = Answer::new(framing, Some("\"a\"".to_string()));
            text.as_bytes()
                .chunks(size)
                .for_each(|chunk| answer.feed(chunk));
            answer.failed()
        });
        assert!(answers.iter().all(|one| *one == answers[0]), "{text}");
        answers[0]
    }

    #[test]
    fn errors_and_failed_tools_are_failures_and_nothing_else() {
        for (message, expected) in [
            (
                r#"{"jsonrpc":"2.0","id":"a","result":{"content":[]}}"#,
                false,
            ),
            (
                r#"{"jsonrpc":"2.0","id":"a","result":{"isError":false}}"#,
                false,
            ),
            (
                r#"{"jsonrpc":"2.0","id":"a","result":{"isError":true}}"#,
                true,
            ),
            (
                r#"{"jsonrpc":"2.0","id":"a","error":{"code":-32602}}"#,
                true,
            ),
            (
                r#"{"jsonrpc":"2.0","id":null,"error":{"code":-32700}}"#,
                true,
            ),
            // Of another request, a notification, and what is no message.
            (
                r#"{"jsonrpc":"2.0","id":"b","error":{"code":-32602}}"#,
                false,
            ),
            (
                r#"{"jsonrpc":"2.0","method":"x","params":{"isError":true}}"#,
                false,
            ),
            ("{", false),
            ("", false),
        ] {
            assert_eq!(failed(Framing::Json, message), expected, "{message}");
            let event = alloc::format!(": hello\n\nevent: message\ndata: {message}\n\n");
            assert_eq!(failed(Framing::Sse, &event), expected, "{event}");
        }
    }

    #[test]
    fn a_long_answer_is_not_kept() {
        let mut answer = Answer::new(Framing::Json, None);
        answer.feed(&alloc::vec![b' '; MAX_ANSWER_BYTES]);
        answer.feed(br#"{"error":{}}"#);
        assert!(!answer.failed());
    }
}
