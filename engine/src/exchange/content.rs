//! What a record holds of a call's content, where a policy asks for it (`audit.include_message_content`): its begin, as it went out and came back.

use alloc::{string::String, vec::Vec};
use serde::Serialize;

/// Bytes of a request, and as many of its answer, that a record holds. A tool's arguments and a question have room in it; a record stays small
/// enough to travel in a batch with many others.
pub const MAX_CONTENT_BYTES: usize = 4 << 10;

/// The content of one call.
#[derive(Debug)]
pub(super) struct Content {
    request: Kept,
    /// `None` where it is nothing to read.
    answer: Option<Kept>,
}

/// The begin of something, and how long it is.
#[derive(Debug, Default)]
struct Kept {
    begin: Vec<u8>,
    bytes: u64,
}

impl Kept {
    fn add(&mut self, bytes: &[u8]) {
        let room = MAX_CONTENT_BYTES.saturating_sub(self.begin.len());
        let kept = bytes.get(..room.min(bytes.len())).unwrap_or_default();
        self.begin.extend_from_slice(kept);
        let more = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        self.bytes = self.bytes.saturating_add(more);
    }

    /// What is whole of it; a character that the end cuts is left out, and what is no text is replaced.
    fn text(&self) -> String {
        let whole = match core::str::from_utf8(&self.begin) {
            Err(cut) if cut.error_len().is_none() => cut.valid_up_to(),
            Ok(_) | Err(_) => self.begin.len(),
        };
        String::from_utf8_lossy(self.begin.get(..whole).unwrap_or_default()).into_owned()
    }
}

impl Content {
    /// That of a request.
    pub(super) fn of(request: &[u8]) -> Content {
        let mut kept = Kept::default();
        kept.add(request);
        Content {
            request: kept,
            answer: None,
        }
    }

    /// An answer comes that can be read.
    pub(super) fn answers(&mut self) {
        self.answer = Some(Kept::default());
    }

    /// Whether what comes of the answer is to be added.
    pub(super) fn reads(&self) -> bool {
        self.answer.is_some()
    }

    /// A piece of the answer has gone to the caller.
    pub(super) fn add(&mut self, piece: &[u8]) {
        if let Some(answer) = &mut self.answer {
            answer.add(piece);
        }
    }

    /// As a record has it.
    pub(super) fn recorded(&self) -> RecordedContent {
        RecordedContent {
            request: self.request.text(),
            request_bytes: self.request.bytes,
            answer: self.answer.as_ref().map(Kept::text),
            answer_bytes: self.answer.as_ref().map(|answer| answer.bytes),
        }
    }
}

#[derive(Serialize)]
pub(super) struct RecordedContent {
    request: String,
    request_bytes: u64,
    answer: Option<String>,
    answer_bytes: Option<u64>,
}
