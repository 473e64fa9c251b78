//! What a gate does between calls: fetch bundles, keep leases alive, deliver its journal.
//!
//! The same shape as an exchange: [`Upkeep::next`] names the errands that are due, the host runs them as plain HTTP requests to the control
//! plane (several at once if it likes), and hands each answer to the matching `…_answered` function. Nothing here waits: errands carry their
//! time limit, back-off is a due time.
//!
//! Two small values outlive a host's crashed instance and are kept in its store: [`Holder`] and [`Journal`].

use crate::{
    bundle::CLOCK_SKEW_SECS,
    bytes::Digest,
    envelope,
    exchange::CellOp,
    gate::Gate,
    journal::{
        self, Batch, BatchHeader, MAX_BATCH_BYTES, MAX_BATCH_RECORDS, MAX_RECORD_BYTES, Position,
        Receipt, SealKey,
    },
    json,
    lease::{Answer, Ask, MAX_ASKS, Request},
    ledger::{Account, Cell, Op, Slot, Span},
    time::Time,
};
use alloc::{
    format,
    string::{String, ToString},
    vec::Vec,
};
use core::fmt;
use serde::{Deserialize, Serialize};

/// Longest a bundle request is held open by the control plane. Below the 30 s at which common proxies give up on an idle request.
const BUNDLE_WAIT_SECS: i64 = 25;
/// …and how much longer the gate waits for the answer.
const BUNDLE_TIMEOUT_MS: i64 = (BUNDLE_WAIT_SECS + 5) * 1_000;
/// The status with which it is answered when there is no other bundle, and what gates do not need is wanted back.
pub const RECALL: u16 = 204;
/// Time limit of every other errand.
const TIMEOUT_MS: i64 = 5_000;
/// First pause after a failure; doubles up to [`MAX_BACKOFF_MS`].
const MIN_BACKOFF_MS: i64 = 200;
/// Longest pause after failures. Short, because leases and policy wait for the control plane's return.
const MAX_BACKOFF_MS: i64 = 5_000;
/// How often spending is reported and leases are renewed while anything is spent.
const REPORT_EVERY_MS: i64 = 1_000;
/// How often it is told of what calls have left over beyond what may stay, so that others can have it: at most.
const GIVE_BACK_EVERY_MS: i64 = 50;
/// A lease with less than this left is renewed even when nothing was spent under it since the last report.
const RENEW_BEFORE_MS: i64 = 15_000;

/// Who this gate is towards the control plane.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Holder {
    /// `h-` and 32 hex digits, made once per life of the host's store.
    pub id: String,
    /// Given by the control plane; 0 until greeted.
    pub epoch: u64,
}

impl Holder {
    /// A holder not yet greeted; `entropy` must not repeat.
    pub fn new(entropy: u128) -> Holder {
        Holder {
            id: format!("h-{entropy:032x}"),
            epoch: 0,
        }
    }

    /// The stored form.
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Reads the stored form.
    pub fn decode(stored: &[u8]) -> Option<Holder> {
        json::read(stored).ok()
    }
}

/// Where the journal stands, and the batch that is on its way. Sealed bytes are kept until acknowledged and sent again unchanged:
/// other bytes for the same sequence would be a fork.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Journal {
    /// Epoch it belongs to.
    pub epoch: u64,
    /// Behind the last sealed batch.
    pub position: Position,
    /// The sealed batch that is not acknowledged yet; empty when there is none.
    pub pending: Vec<u8>,
}

/// Version of the journal's byte form: this, epoch and next sequence (eight bytes each, little-endian), head, pending batch. Not JSON: it is
/// written and read for every batch, which may have a megabyte.
const JOURNAL_FORMAT: u8 = 1;

impl Journal {
    /// The empty journal of a greeted holder.
    pub fn start(workspace: &str, holder: &Holder) -> Journal {
        Journal {
            epoch: holder.epoch,
            position: Position::start(workspace, &holder.id, holder.epoch),
            pending: Vec::new(),
        }
    }

    /// The stored form.
    pub fn encode(&self) -> Vec<u8> {
        [
            &[JOURNAL_FORMAT][..],
            &self.epoch.to_le_bytes(),
            &self.position.next_seq.to_le_bytes(),
            &self.position.head.0,
            &self.pending,
        ]
        .concat()
    }

    /// Reads the stored form.
    pub fn decode(stored: &[u8]) -> Option<Journal> {
        let (&[JOURNAL_FORMAT], rest) = stored.split_first_chunk()? else {
            return None;
        };
        let (epoch, rest) = rest.split_first_chunk()?;
        let (next_seq, rest) = rest.split_first_chunk()?;
        let (head, pending) = rest.split_first_chunk()?;
        Some(Journal {
            epoch: u64::from_le_bytes(*epoch),
            position: Position {
                next_seq: u64::from_le_bytes(*next_seq),
                head: Digest(*head),
            },
            pending: pending.to_vec(),
        })
    }

    /// Whether a new batch may be sealed.
    pub fn is_idle(&self) -> bool {
        self.pending.is_empty()
    }

    /// Seals the next batch; `records` are taken as they were enqueued. Store the journal before sending.
    pub fn seal(
        &mut self,
        gate: &Gate,
        holder: &Holder,
        records: &[Vec<u8>],
        dropped: u64,
        now: Time,
    ) {
        let root = SealKey::root(gate.config.enrolment_key.expose());
        let key = SealKey::derive(&root, &holder.id);
        self.pending = journal::seal(
            &key,
            &gate.config.workspace,
            &holder.id,
            holder.epoch,
            &mut self.position,
            records,
            dropped,
            now,
        );
    }

    /// Goes on in the epoch of `holder`. What is pending moves along only under a new name: then the control plane has refused it where it
    /// stood (it was restored from a backup, or somebody else used this holder's name), and the old place stays on record as a fork. Under the
    /// same name it may have been stored and its acknowledgement lost, so it goes out once more as it is, and this changes nothing until then.
    pub fn move_to(&mut self, gate: &Gate, holder: &Holder, now: Time) {
        if BatchHeader::read(&self.pending).is_some_and(|header| header.holder == holder.id) {
            return;
        }
        let pending = core::mem::take(&mut self.pending);
        *self = Journal::start(&gate.config.workspace, holder);
        if let Ok(batch) = Batch::read(&pending) {
            let records: Vec<Vec<u8>> =
                batch.records.iter().map(|record| record.to_vec()).collect();
            self.seal(gate, holder, &records, batch.header.dropped, now);
        }
    }
}

/// Whether a batch of so many records and bytes can take one more, however long that is, and stay below [`MAX_BATCH_BYTES`]. A batch over
/// it would be refused for ever.
pub fn batch_has_room(records: usize, bytes: usize) -> bool {
    // Header and seal lines take less than 1 KiB, a newline for each record half of one.
    const FRAME_BYTES: usize = 2 << 10;
    records < MAX_BATCH_RECORDS && bytes <= MAX_BATCH_BYTES - MAX_RECORD_BYTES - FRAME_BYTES
}

/// The record of a worker that ended without a word: its VM crashed. What it had gathered or had under way since `heard` is in no journal; what
/// those calls had reserved stays reserved until their windows end. One line of JSON, without a newline.
pub fn worker_lost(worker: u64, heard: Time, gate: &Gate, now: Time) -> Vec<u8> {
    #[derive(Serialize)]
    struct Record {
        id: String,
        at_ms: i64,
        kind: &'static str,
        revision: u64,
        heard_ms: i64,
    }
    let record = Record {
        id: format!("w-{worker:016x}"),
        at_ms: now.millis(),
        kind: "worker_lost",
        revision: gate.bundle().revision(),
        heard_ms: heard.millis(),
    };
    serde_json::to_vec(&record).unwrap_or_default()
}

/// What an errand is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The next bundle.
    Bundle,
    /// Leases, or the greeting.
    Leases,
    /// A batch of records.
    Journal,
}

/// A request to the control plane.
#[derive(Clone, PartialEq, Eq)]
pub struct Errand {
    /// What it is for.
    pub kind: Kind,
    /// `GET` or `POST`.
    pub method: &'static str,
    /// Path and query.
    pub path: String,
    /// Headers, lower case; the credential is among them.
    pub headers: Vec<(&'static str, String)>,
    /// Body; empty for `GET`.
    pub body: Vec<u8>,
    /// Give up after.
    pub timeout_ms: i64,
}

impl fmt::Debug for Errand {
    /// Without the values of headers: one of them is the credential.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Errand")
            .field("kind", &self.kind)
            .field("method", &self.method)
            .field("path", &self.path)
            .field("body_bytes", &self.body.len())
            .finish_non_exhaustive()
    }
}

/// One kind of errand: when it is due, and whether it is under way.
#[derive(Clone, Copy, Debug, Default)]
struct Lane {
    due: Time,
    /// Under way until then at the latest.
    busy_until: Option<Time>,
    failures: u32,
    /// When all that was noted.
    since: Time,
}

/// A clock that is further back than this from when a lane was noted was set back; milliseconds. A worker's clock is read a little earlier or
/// later than another's.
const BACK_MS: i64 = 1_000;

impl Lane {
    fn is_due(&self, now: Time) -> bool {
        self.reached(self.due, now) && self.is_free(now)
    }

    fn is_free(&self, now: Time) -> bool {
        self.busy_until.is_none_or(|until| self.reached(until, now))
    }

    /// Whether `at` has come. What was noted before the clock was set back is not waited for, however near it comes again.
    fn reached(&self, at: Time, now: Time) -> bool {
        at <= now || now.plus_millis(BACK_MS) < self.since
    }

    fn start(&mut self, timeout_ms: i64, now: Time) {
        // One second more than the errand itself has, so that the host's own answer comes first.
        self.busy_until = Some(now.plus_millis(timeout_ms.saturating_add(1_000)));
        self.since = now;
    }

    fn succeeded(&mut self, pause_ms: i64, now: Time) {
        *self = Lane {
            due: now.plus_millis(pause_ms),
            since: now,
            ..Lane::default()
        };
    }

    /// Doubling back-off, spread over its upper half so that gates do not come back in step.
    fn failed(&mut self, now: Time, entropy: u64) {
        let pause = MIN_BACKOFF_MS
            .saturating_mul(1_i64 << self.failures.min(8))
            .min(MAX_BACKOFF_MS);
        let spread =
            i64::try_from(entropy % u64::try_from(pause / 2 + 1).unwrap_or(1)).unwrap_or(0);
        *self = Lane {
            due: now.plus_millis(pause / 2 + spread),
            busy_until: None,
            failures: self.failures.saturating_add(1),
            since: now,
        };
    }
}

/// The control plane wants back what no call here needs: somebody's waits for it elsewhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Recall {
    #[default]
    None,
    /// It has said so. All that is held is to be reported, so that it can say how much may stay.
    Heard,
    /// It is being told.
    Reporting,
}

/// The errands of one gate. Lives in memory; losing it costs nothing but a repeated request.
#[derive(Clone, Debug, Default)]
pub struct Upkeep {
    bundle: Lane,
    /// Bundles refused one after the other: an answer that came is no success when the gate could not use it.
    bundles_refused: u32,
    /// The control plane wants to be told of every account.
    recounts: bool,
    leases: Lane,
    recall: Recall,
    /// Windows in which too much is left over.
    overfull: Vec<(Account, Span)>,
    gave_back: Option<Time>,
    journal: Lane,
}

/// What the control plane said to an errand.
#[derive(Clone, Copy, Debug)]
pub struct Response<'a> {
    /// HTTP status; 0 when none came.
    pub status: u16,
    /// The body.
    pub body: &'a [u8],
}

/// What became of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// Stored; forget it (the journal given has done so; store it).
    Acknowledged,
    /// Not now; the same bytes go again later.
    Later,
    /// Never in this epoch: greet afresh under a new holder name and call [`Journal::move_to`].
    Refused,
}

impl Upkeep {
    /// The bundle request, when due. `etag` is of the running bundle.
    pub fn next_bundle(&mut self, gate: &Gate, now: Time) -> Option<Errand> {
        self.ask_for_bundle(gate, BUNDLE_WAIT_SECS, BUNDLE_TIMEOUT_MS, now)
    }

    /// The same for a host that cannot keep a request open: the control plane answers at once, and how often it is asked is the host's affair.
    pub fn check_bundle(&mut self, gate: &Gate, now: Time) -> Option<Errand> {
        self.ask_for_bundle(gate, 0, TIMEOUT_MS, now)
    }

    fn ask_for_bundle(
        &mut self,
        gate: &Gate,
        wait_secs: i64,
        timeout_ms: i64,
        now: Time,
    ) -> Option<Errand> {
        if !self.bundle.is_due(now) {
            return None;
        }
        self.bundle.start(timeout_ms, now);
        let config = &gate.config;
        let mut headers = credentials(gate);
        if let Some(etag) = gate.bundle().etag() {
            headers.push(("if-none-match", etag));
        }
        Some(Errand {
            kind: Kind::Bundle,
            method: "GET",
            path: format!(
                "/v1/workspaces/{}/gate/bundle?channel={}&wait={wait_secs}",
                config.workspace, config.channel
            ),
            headers,
            body: Vec::new(),
            timeout_ms,
        })
    }

    /// The answer to a bundle request. `Some` is an envelope to give to [`Gate::install`]; if that refuses it, call [`Upkeep::bundle_refused`].
    pub fn bundle_answered<'a>(
        &mut self,
        response: Response<'a>,
        now: Time,
        entropy: u64,
    ) -> Option<&'a [u8]> {
        match response.status {
            200 => {
                self.bundle.succeeded(0, now);
                Some(response.body)
            }
            304 => {
                self.bundle.succeeded(0, now);
                self.bundles_refused = 0;
                None
            }
            RECALL => {
                self.bundle.succeeded(0, now);
                self.recall = Recall::Heard;
                None
            }
            _ => {
                self.bundle.failed(now, entropy);
                None
            }
        }
    }

    /// The gate did not install what came: do not ask for it again at once, and ever less often while that goes on.
    pub fn bundle_refused(&mut self, now: Time, entropy: u64) {
        self.bundle.failures = self.bundles_refused;
        self.bundle.failed(now, entropy);
        self.bundles_refused = self.bundle.failures;
    }

    /// Whether leases should be looked after now: for the greeting, or to report and renew. The host then collects asks with [`Upkeep::plan`] over
    /// its cells and sends [`lease_request`]. `urgent` while calls wait.
    pub fn leases_due(&self, urgent: bool, now: Time) -> bool {
        if (urgent || self.recall != Recall::None) && self.leases.failures == 0 {
            return self.leases.is_free(now);
        }
        self.leases.is_due(now)
    }

    /// A lease request is on its way.
    pub fn leases_sent(&mut self, now: Time) {
        if self.recall == Recall::Heard {
            self.recall = Recall::Reporting;
        }
        self.leases.start(TIMEOUT_MS, now);
    }

    /// There was nothing to ask.
    pub fn leases_idle(&mut self, now: Time) {
        self.recall = Recall::None;
        self.leases.succeeded(REPORT_EVERY_MS, now);
    }

    /// The answer to a lease request: refills to apply, and the holder's epoch if it is new; 0 when it has to greet again.
    pub fn leases_answered(
        &mut self,
        gate: &Gate,
        holder: &Holder,
        response: Response<'_>,
        now: Time,
        entropy: u64,
    ) -> Option<(Vec<CellOp>, Option<u64>)> {
        let answer = (response.status == 200)
            .then(|| read_answer(gate, holder, response.body, now))
            .flatten();
        let Some(answer) = answer else {
            if self.recall == Recall::Reporting {
                self.recall = Recall::Heard;
            }
            self.leases.failed(now, entropy);
            let refused = response.status == 409 && is_refusal(response.body);
            // Somebody greeted in this holder's name: a greeting of its own that came twice, say. It has to greet again, or is never answered.
            return (refused && holder.epoch > 0).then(|| (Vec::new(), Some(0)));
        };
        // Now it is known how much may stay, and what is more goes back at once.
        let pause_ms = match self.recall {
            Recall::Reporting => {
                self.recall = Recall::None;
                0
            }
            Recall::None | Recall::Heard => REPORT_EVERY_MS,
        };
        self.leases.succeeded(pause_ms, now);
        self.recounts = answer.learning;
        let epoch = (answer.epoch > holder.epoch).then_some(answer.epoch);
        // The two clocks may differ by more than a lease lasts; how long it lasts is what was meant.
        let shift_ms = now.millis().saturating_sub(answer.issued_ms);
        let refills = answer
            .grants
            .into_iter()
            .map(|grant| CellOp {
                account: grant.account.clone(),
                op: Op::Refill {
                    grant: grant.shifted(shift_ms),
                    epoch: answer.epoch,
                },
            })
            .collect();
        Some((refills, epoch))
    }

    /// The windows of `cell` that should be reported or renewed at `now`, each as the span for an [`Op::Ask`] and what to want:
    /// a running one that is running low or about to expire while in use; any whose spending was not reported, or of which something should
    /// go back (a finished one may still run by another gate's clock); one that is suspended; all, while the control plane wants to hear
    /// of all, or wants something back.
    pub fn plan(&self, cell: &Cell, now: Time) -> Vec<(Span, u64)> {
        cell.slots()
            .iter()
            .filter_map(|slot| {
                let span = Span {
                    start: slot.start,
                    end: slot.end,
                };
                let running = slot.start <= now.secs() && now.secs() < slot.end;
                // The answer may be lost, and in it a grant that nobody here knows of.
                let unanswered = slot.asked_ms != 0 && !slot.is_asking(now);
                let unreported =
                    slot.settled != slot.reported || slot.returned != slot.told || unanswered;
                let excess = slot.excess(now) > 0;
                let in_use = unreported || slot.reserved > 0;
                let expiring = slot.expires_ms.saturating_sub(now.millis()) < RENEW_BEFORE_MS;
                let low = slot.available() < slot.chunk / 2 && !slot.is_exhausted(now);
                let recount = (self.recounts || self.recall != Recall::None) && slot.granted > 0;
                // An operator may have lifted it.
                let closed = running && slot.is_suspended();
                match running {
                    true if low && in_use && !slot.is_idle(now) => Some((span, slot.chunk.max(1))),
                    true if in_use && expiring => Some((span, 0)),
                    _ if unreported || excess || recount || closed => {
                        (running || is_remembered(span, now)).then_some((span, 0))
                    }
                    _ => None,
                }
            })
            .collect()
    }

    /// A call has changed an account's cell to this. When too much is left over, it goes back before the next report.
    pub fn settled(&mut self, account: &Account, cell: &Cell) {
        for slot in cell.slots().iter().filter(|slot| slot.is_overfull()) {
            let span = Span {
                start: slot.start,
                end: slot.end,
            };
            let window = (account.clone(), span);
            if !self.overfull.contains(&window) {
                self.overfull.push(window);
            }
        }
    }

    /// Whether something is to go back before the next report.
    pub fn is_overfull(&self) -> bool {
        !self.overfull.is_empty()
    }

    /// The windows of which something is to go back now, each for an [`Op::Ask`]; they are forgotten here. What is not told after all is told with
    /// the next report.
    pub fn take_overfull(&mut self, now: Time) -> Vec<(Account, Span)> {
        let rested = self
            .gave_back
            .is_none_or(|at| now.millis_since(at).saturating_abs() >= GIVE_BACK_EVERY_MS);
        if !self.is_overfull() || !rested || !self.leases_due(true, now) {
            return Vec::new();
        }
        self.gave_back = Some(now);
        core::mem::take(&mut self.overfull)
    }

    /// The pending batch, when due.
    pub fn next_journal(&mut self, gate: &Gate, journal: &Journal, now: Time) -> Option<Errand> {
        if journal.is_idle() || !self.journal.is_due(now) {
            return None;
        }
        self.journal.start(TIMEOUT_MS, now);
        let mut headers = credentials(gate);
        headers.push(("content-type", "application/x-ndjson".to_string()));
        Some(Errand {
            kind: Kind::Journal,
            method: "POST",
            path: format!("/v1/workspaces/{}/gate/audit", gate.config.workspace),
            headers,
            body: journal.pending.clone(),
            timeout_ms: TIMEOUT_MS,
        })
    }

    /// The answer to a batch. Only the control plane's own is one: its receipt, or its refusal.
    pub fn journal_answered(
        &mut self,
        gate: &Gate,
        journal: &mut Journal,
        response: Response<'_>,
        now: Time,
        entropy: u64,
    ) -> Delivery {
        match response.status {
            200 if is_receipt(gate, journal, response.body) => {
                self.journal.succeeded(0, now);
                journal.pending = Vec::new();
                Delivery::Acknowledged
            }
            // The bytes themselves are refused; sending them again changes nothing. (401 and 404 are about the key: an operator may mend them.)
            400 | 403 | 409 | 413 | 422 if is_refusal(response.body) => {
                self.journal.failed(now, entropy);
                Delivery::Refused
            }
            _ => {
                self.journal.failed(now, entropy);
                Delivery::Later
            }
        }
    }
}

/// What the control plane's problems are called before their own name (RFC 9457 `type`).
pub const PROBLEM_TYPE: &str = "urn:tollgate:problem:";

/// Whether the control plane itself refuses, and not something that stands in its place.
fn is_refusal(body: &[u8]) -> bool {
    json::read_member::<String>(body, "type").is_ok_and(|kind| kind.starts_with(PROBLEM_TYPE))
}

fn is_receipt(gate: &Gate, journal: &Journal, body: &[u8]) -> bool {
    let root = SealKey::root(gate.config.enrolment_key.expose());
    match (
        BatchHeader::read(&journal.pending),
        json::read::<Receipt>(body),
    ) {
        // The journal stands behind the batch that is pending.
        (Some(header), Ok(receipt)) => receipt.is_for(
            journal.position.head,
            &SealKey::derive(&root, &header.holder),
        ),
        _ => false,
    }
}

fn credentials(gate: &Gate) -> Vec<(&'static str, String)> {
    Vec::from([(
        "authorization",
        format!("Bearer {}", gate.config.enrolment_key.expose()),
    )])
}

/// The lease request that carries `asks` (at most [`MAX_ASKS`] of them; none of them is the greeting or a sign of life).
pub fn lease_request(gate: &Gate, holder: &Holder, mut asks: Vec<Ask>) -> Errand {
    asks.truncate(MAX_ASKS);
    let request = Request {
        holder: holder.id.clone(),
        epoch: holder.epoch,
        revision: gate.bundle().revision(),
        asks,
    };
    let mut headers = credentials(gate);
    headers.push(("content-type", "application/json".to_string()));
    Errand {
        kind: Kind::Leases,
        method: "POST",
        path: format!("/v1/workspaces/{}/gate/leases", gate.config.workspace),
        headers,
        body: serde_json::to_vec(&request).unwrap_or_default(),
        timeout_ms: TIMEOUT_MS,
    }
}

/// Verifies an answer to a lease request.
fn read_answer(gate: &Gate, holder: &Holder, body: &[u8], now: Time) -> Option<Answer> {
    let payload = envelope::open(body, envelope::LEASES_TYPE, &gate.config.trust).ok()?;
    let answer: Answer = json::read(&payload).ok()?;
    (answer.is_for(&gate.config.workspace, &holder.id, now) && answer.epoch >= holder.epoch)
        .then_some(answer)
}

/// Whether the control plane still looks at this finished window: the one before its running one, by clocks that differ.
fn is_remembered(span: Span, now: Time) -> bool {
    let length = span.end.saturating_sub(span.start);
    now.secs().saturating_sub(span.end) < length.saturating_add(CLOCK_SKEW_SECS)
}

/// When [`Upkeep::plan`] has what is left in `cell` go back, if no call comes before; `None` where nothing is left. A host that sleeps between
/// calls wakes for that: others may need what nobody uses here.
pub fn rests_until(cell: &Cell, now: Time) -> Option<Time> {
    let goes_back = |slot: &&Slot| {
        let (start, end) = (slot.start, slot.end);
        slot.available() > 0 && is_remembered(Span { start, end }, now)
    };
    let slots = cell.slots().iter().filter(goes_back);
    slots.map(Slot::idle_from).min()
}

/// The ask for one window of a cell, from what an [`Op::Ask`] left in it. `needed` is the total that calls wait for; 0 when none do.
pub fn ask_for(account: &Account, slot: &Slot, wanted: u64, needed: u64) -> Ask {
    Ask {
        account: account.clone(),
        window_start: slot.start,
        seq: slot.seq,
        epoch: slot.epoch,
        granted: slot.granted,
        returned: slot.returned,
        settled: slot.settled,
        reserved: slot.reserved,
        want: match needed {
            0 => wanted,
            _ => wanted.max(slot.lacks(needed)),
        },
        ahead: needed == 0 && wanted > 0,
    }
}
