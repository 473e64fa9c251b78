//! Proof of what was decided: records, and the sealed batches they travel in.
//!
//! A batch is lines of JSON, so that it can be read with the tools at hand, and its bytes are what is signed:
//!
//! ```text
//! {"format":1,"workspace":"ws-…","holder":"h-…","epoch":1,"first_seq":1,"count":2,"previous":"<hex>","dropped":0,"sealed_ms":…}
//! {"id":"…","outcome":"allow",…}
//! {"id":"…","outcome":"deny",…}
//! {"head":"<hex>","seal":"<hex>"}
//! ```
//!
//! - `head` = SHA-256("tollgate batch 1\n" ‖ previous ‖ all lines before the last, newlines included). The first batch of a holder's epoch has [`genesis`]
//!   as `previous`. So a batch fixes everything before it: nothing can be changed, dropped, reordered or inserted without the next head differing.
//! - `seal` = HMAC-SHA256 of `head` under the holder's seal key ([`SealKey`]): only the gate and the control plane can make one.
//!
//! The same bytes sent twice are one batch; other bytes for a sequence already taken are a fork.
//!
//! The control plane answers with a [`Receipt`] under the same key: what merely answers in its place, such as a proxy with a page of its own, does
//! not make a gate forget its records.

use crate::{
    bytes::{Digest, from_hex, sha256},
    json,
    time::Time,
};
use alloc::{string::String, vec::Vec};
use core::fmt;
use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

/// The batch format written here.
pub const FORMAT: u32 = 1;
/// Records in one batch.
pub const MAX_BATCH_RECORDS: usize = 512;
/// Bytes of one batch that a control plane accepts: 512 records of 2 KiB. Most have less than 1 KiB.
pub const MAX_BATCH_BYTES: usize = 1 << 20;
/// Longest record: 12 names (8 tools, model, MCP method, 2 for the path) of 128 bytes, each byte six when it has to be escaped (9 KiB); 16 reasons, 16 that were approved, 16
/// of documents in shadow and 16 warnings, each of a rule and a document of 256 bytes without control characters, which two are at most (64 KiB); 4 KiB from the
/// token; twice [`crate::exchange::MAX_CONTENT_BYTES`], each byte six (48 KiB); 2 KiB of the rest.
pub const MAX_RECORD_BYTES: usize = 128 << 10;

/// First line of a batch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BatchHeader {
    /// [`FORMAT`].
    pub format: u32,
    /// The tenant.
    pub workspace: String,
    /// Who sealed it.
    pub holder: String,
    /// The holder's epoch.
    pub epoch: u64,
    /// Number of the first record; the first of an epoch is 1.
    pub first_seq: u64,
    /// How many records follow.
    pub count: u64,
    /// `head` of the batch before, or [`genesis`].
    pub previous: Digest,
    /// Records lost at the gate since the batch before, because its journal was full.
    pub dropped: u64,
    /// Sealed at; milliseconds since the Unix epoch.
    pub sealed_ms: i64,
}

impl BatchHeader {
    /// The header of a batch, nothing else of which is looked at.
    pub fn read(batch: &[u8]) -> Option<BatchHeader> {
        json::read(batch.split(|byte| *byte == b'\n').next()?).ok()
    }
}

/// Last line of a batch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BatchSeal {
    /// Fixes this batch and everything before it.
    pub head: Digest,
    /// HMAC of `head`.
    pub seal: Digest,
}

/// The key that seals one holder's batches. Never leaves the gate; the control plane derives the same one.
#[derive(Clone)]
pub struct SealKey([u8; 32]);

impl SealKey {
    /// The root from which the seal keys of an enrolment key are derived. The control plane keeps this (and a hash of the key for
    /// authentication), so that it can check seals without holding the key itself.
    pub fn root(enrolment_key: &str) -> [u8; 32] {
        hmac(enrolment_key.as_bytes(), &[b"tollgate seal root 1"])
    }

    /// The seal key of `holder`.
    pub fn derive(root: &[u8; 32], holder: &str) -> SealKey {
        SealKey(hmac(root, &[b"tollgate seal key 1\n", holder.as_bytes()]))
    }

    /// The seal of `head`.
    pub fn seal(&self, head: Digest) -> Digest {
        Digest(hmac(&self.0, &[&head.0]))
    }

    /// Whether `seal` is this key's over `head`; takes the same time whatever differs.
    pub fn verifies(&self, head: Digest, seal: Digest) -> bool {
        keyed(&self.0, &[&head.0]).is_some_and(|mac| mac.verify_slice(&seal.0).is_ok())
    }
}

/// What the control plane answers once a batch is stored for good.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Receipt {
    /// Number of the record it expects next.
    pub next_seq: u64,
    /// Head of the batch.
    pub head: Digest,
    /// HMAC that only the two who know the seal key can make.
    pub receipt: Digest,
}

impl Receipt {
    /// The receipt for `batch`.
    pub fn of(batch: &Batch<'_>, key: &SealKey) -> Receipt {
        let Position { next_seq, head } = batch.position_after();
        Receipt {
            next_seq,
            head,
            receipt: Digest(hmac(&key.0, &[Receipt::CONTEXT, &head.0])),
        }
    }

    /// Whether this is the receipt for the batch with this head; takes the same time whatever differs.
    pub fn is_for(&self, head: Digest, key: &SealKey) -> bool {
        self.head == head
            && keyed(&key.0, &[Receipt::CONTEXT, &self.head.0])
                .is_some_and(|mac| mac.verify_slice(&self.receipt.0).is_ok())
    }

    /// A seal, which whoever sees the batch has, is no receipt.
    const CONTEXT: &[u8] = b"tollgate receipt 1\n";
}

impl fmt::Debug for SealKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SealKey(…)")
    }
}

fn keyed(key: &[u8], parts: &[&[u8]]) -> Option<Hmac<Sha256>> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).ok()?;
    for part in parts {
        mac.update(part);
    }
    Some(mac)
}

/// HMAC-SHA256 (RFC 2104), any key length.
pub fn hmac(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    keyed(key, parts).map_or([0; 32], |mac| mac.finalize().into_bytes().into())
}

/// What the first batch of a holder's epoch follows.
pub fn genesis(workspace: &str, holder: &str, epoch: u64) -> Digest {
    Digest(sha256(&[
        b"tollgate journal 1\n",
        workspace.as_bytes(),
        b"\n",
        holder.as_bytes(),
        b"\n",
        &epoch.to_be_bytes(),
    ]))
}

/// The head of a batch that follows `previous` and whose lines before the seal are `lines`.
pub fn head(previous: Digest, lines: &[u8]) -> Digest {
    Digest(sha256(&[b"tollgate batch 1\n", &previous.0, lines]))
}

/// Where a holder's journal stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Position {
    /// Number of the next record.
    pub next_seq: u64,
    /// Head so far.
    pub head: Digest,
}

impl Position {
    /// The start of an epoch.
    pub fn start(workspace: &str, holder: &str, epoch: u64) -> Position {
        Position {
            next_seq: 1,
            head: genesis(workspace, holder, epoch),
        }
    }
}

/// Seals `records` (each one line of JSON without a newline) and moves `position` behind them.
#[expect(clippy::too_many_arguments, reason = "each is a field of the header")]
pub fn seal(
    key: &SealKey,
    workspace: &str,
    holder: &str,
    epoch: u64,
    position: &mut Position,
    records: &[Vec<u8>],
    dropped: u64,
    now: Time,
) -> Vec<u8> {
    let header = BatchHeader {
        format: FORMAT,
        workspace: workspace.into(),
        holder: holder.into(),
        epoch,
        first_seq: position.next_seq,
        count: records.len() as u64,
        previous: position.head,
        dropped,
        sealed_ms: now.millis(),
    };
    let mut out = line(&header);
    for record in records {
        out.extend_from_slice(record);
        out.push(b'\n');
    }
    let head = head(position.head, &out);
    out.extend_from_slice(&line(&BatchSeal {
        head,
        seal: key.seal(head),
    }));
    position.next_seq = position.next_seq.saturating_add(header.count);
    position.head = head;
    out
}

fn line<T: Serialize>(value: &T) -> Vec<u8> {
    let mut out = serde_json::to_vec(value).unwrap_or_default();
    out.push(b'\n');
    out
}

/// A batch taken apart; its seal is not yet checked.
#[derive(Debug)]
pub struct Batch<'a> {
    /// First line.
    pub header: BatchHeader,
    /// The records, each without its newline.
    pub records: Vec<&'a [u8]>,
    /// Last line.
    pub seal: BatchSeal,
    /// Bytes this batch takes of the input.
    pub len: usize,
}

/// What is wrong with a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BatchFault {
    /// This line (counted from 0 within the batch) is not what belongs there.
    Malformed(usize),
    /// The input ends before the batch does.
    Truncated,
    /// `head` is not that of these lines.
    Head,
    /// `seal` is not the holder's.
    Seal,
}

impl fmt::Display for BatchFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BatchFault::Malformed(line) => {
                write!(f, "line {} of the batch is malformed", line + 1)
            }
            BatchFault::Truncated => f.write_str("the batch is cut short"),
            BatchFault::Head => f.write_str("the batch's content does not give its head"),
            BatchFault::Seal => f.write_str("the batch is not sealed by its holder"),
        }
    }
}

impl<'a> Batch<'a> {
    /// Takes the first batch of `input` apart and checks that its head follows from its lines.
    pub fn read(input: &'a [u8]) -> Result<Batch<'a>, BatchFault> {
        let mut at = 0;
        let mut next = |number: usize| -> Result<(usize, &'a [u8]), BatchFault> {
            let rest = input.get(at..).unwrap_or_default();
            let end = rest
                .iter()
                .position(|byte| *byte == b'\n')
                .ok_or(BatchFault::Truncated)?;
            let line = rest.get(..end).ok_or(BatchFault::Malformed(number))?;
            let start = at;
            at += end + 1;
            Ok((start, line))
        };
        let (_, first) = next(0)?;
        let header: BatchHeader = json::read(first).map_err(|_| BatchFault::Malformed(0))?;
        let count = usize::try_from(header.count).map_err(|_| BatchFault::Malformed(0))?;
        if header.format != FORMAT || count > MAX_BATCH_RECORDS {
            return Err(BatchFault::Malformed(0));
        }
        let mut records = Vec::with_capacity(count);
        for number in 1..=count {
            let (_, record) = next(number)?;
            if json::parse(record).is_err() {
                return Err(BatchFault::Malformed(number));
            }
            records.push(record);
        }
        let (lines_end, last) = next(count + 1)?;
        let seal: BatchSeal = json::read(last).map_err(|_| BatchFault::Malformed(count + 1))?;
        // The head covers all lines but this one. Held to one spelling, a batch has one form and none that merely looks like another.
        if line(&seal).strip_suffix(b"\n") != Some(last) {
            return Err(BatchFault::Malformed(count + 1));
        }
        let lines = input.get(..lines_end).unwrap_or_default();
        if head(header.previous, lines) != seal.head {
            return Err(BatchFault::Head);
        }
        Ok(Batch {
            header,
            records,
            seal,
            len: at,
        })
    }

    /// Where the journal stands after this batch.
    pub fn position_after(&self) -> Position {
        Position {
            next_seq: self.header.first_seq.saturating_add(self.header.count),
            head: self.seal.head,
        }
    }

    /// Checks the seal.
    pub fn verify(&self, key: &SealKey) -> Result<(), BatchFault> {
        if key.verifies(self.seal.head, self.seal.seal) {
            Ok(())
        } else {
            Err(BatchFault::Seal)
        }
    }
}

/// Reads a key of 64 hex digits, as the control plane stores a seal root.
pub fn root_from_hex(text: &str) -> Option<[u8; 32]> {
    from_hex(text)?.try_into().ok()
}
