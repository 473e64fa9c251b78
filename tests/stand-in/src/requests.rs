//! What the stand-in was sent, so that a test sees the call as the provider did.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::http::request::Parts;
use serde::{Deserialize, Serialize};

/// How many are remembered. A demonstration may run for days; a test looks at the last few.
const REMEMBERED_MAX: usize = 1000;

/// One request as it arrived.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Received {
    /// The method.
    pub method: String,
    /// Path and query.
    pub path: String,
    /// Names in lower case, in order, repeated ones repeated. Bytes that are not UTF-8 are replaced.
    pub headers: Vec<(String, String)>,
    /// The body. Bytes that are not UTF-8 are replaced.
    pub body: String,
    /// False when the connection ended before the body did.
    pub complete: bool,
}

impl Received {
    pub(crate) fn new(head: &Parts, body: Option<&[u8]>) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self {
            method: head.method.to_string(),
            path: head
                .uri
                .path_and_query()
                .map_or_else(String::new, ToString::to_string),
            headers: head
                .headers
                .iter()
                .map(|(name, value)| (name.to_string(), text(value.as_bytes())))
                .collect(),
            body: text(body.unwrap_or_default()),
            complete: body.is_some(),
        }
    }

    /// The values of a header, by its name in lower case.
    pub fn header<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.headers
            .iter()
            .filter(move |(found, _)| found == name)
            .map(|(_, value)| value.as_str())
    }
}

/// The memory, shared by every connection.
#[derive(Clone, Debug, Default)]
pub struct Requests(Arc<Mutex<Memory>>);

#[derive(Debug, Default)]
struct Memory {
    last: VecDeque<Received>,
    total: u64,
}

impl Requests {
    pub(crate) fn add(&self, request: Received) {
        let mut memory = self.lock();
        if memory.last.len() == REMEMBERED_MAX {
            memory.last.pop_front();
        }
        memory.last.push_back(request);
        memory.total += 1;
    }

    /// The remembered ones, oldest first.
    #[must_use]
    pub fn all(&self) -> Vec<Received> {
        self.lock().last.iter().cloned().collect()
    }

    /// How many there were since the last [`Requests::forget`], remembered or not.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.lock().total
    }

    /// Starts anew.
    pub fn forget(&self) {
        *self.lock() = Memory::default();
    }

    fn lock(&self) -> MutexGuard<'_, Memory> {
        // A panic elsewhere leaves a list that is still a list.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
