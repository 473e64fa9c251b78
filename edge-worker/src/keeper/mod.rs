//! The holder: what a gate may spend, what it has decided, and who it is towards the control plane.

mod rounds;
#[cfg(test)]
mod tests;

pub use rounds::{GATHER_MS, ROUND_MS, Rounds};

use crate::{
    message::{Change, Heard, Line, Message, Refused},
    platform::{Platform, Unreachable},
    store::{
        self, BUNDLE, DROPPED, HOLDER, OPEN, RECORDS, Store, UNNOTED, Unchanged, cell_key, update,
    },
};
use serde::{Deserialize, Serialize};
use std::{
    cell::{Cell as Slot, RefCell},
    collections::VecDeque,
};
use tollgate_engine::{
    gate::{Config, Gate},
    json,
    ledger::{Account, Cell, Op, Refusal},
    sorted::Map,
    time::Time,
    upkeep::{self, Holder, Upkeep},
};

/// How long after its reservation a call counts as lost: 15 minutes. The vendors' SDKs give up after ten.
pub const OPEN_LIMIT_MS: i64 = 15 * 60 * 1_000;
/// So long after its reservation the note of a call is made durable ([`Keeper::note`]), unless it is over by then: while its upstream thinks.
pub const NOTE_MS: u32 = 10;
/// For so long a call that was closed is not closed again: longer than anybody says so who is not heard ([`crate::Edge`]).
const CLOSED_MS: i64 = 10_000;
/// Of the records that wait for the journal so many bytes, or fewer, count as one.
const PIECE_BYTES: usize = 2 * 1024;
/// So many pieces may wait, 16 MiB: an object that has them all in memory twice while it reads its storage has 128 MB at Cloudflare's. Beyond it records are
/// dropped and counted.
const MAX_BACKLOG: usize = 8_192;

/// The holder. What it keeps in memory may be lost at any time.
pub struct Keeper<P, S> {
    platform: P,
    store: S,
    control_plane: String,
    gate: RefCell<Gate>,
    upkeep: RefCell<Upkeep>,
    /// The calls that wait for a lease, by a number of their own.
    waiting: RefCell<Map<u64, rounds::Waiting>>,
    waited: Slot<u64>,
    /// When the control plane last said which bundle is to be run.
    confirmed: Slot<Option<Time>>,
    checking: Slot<bool>,
    /// When the last question for it began.
    checked: Slot<Option<Time>>,
    /// It was not answered.
    unanswered: Slot<bool>,
    delivering: Slot<bool>,
    spoke: Slot<Option<Time>>,
    reported: Slot<Option<Time>>,
    /// The last message.
    heard: Slot<Option<Time>>,
    backlog: Slot<usize>,
    /// The calls that were closed in the last [`CLOSED_MS`].
    closed: RefCell<VecDeque<(Time, String)>>,
}

/// What a call has reserved.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Open {
    holder: String,
    at: Time,
    /// What gives it back.
    undo: Vec<Change>,
}

impl<P: Platform, S: Store> Keeper<P, S> {
    /// A keeper on what is in `store`. `control_plane` is the URL under which the control plane's paths are.
    pub async fn open(platform: P, store: S, config: Config, control_plane: &str) -> Keeper<P, S> {
        let mut gate = Gate::new(config);
        if let Ok(Some(envelope)) = store.get(BUNDLE).await
            && let Err(why) = gate.install(&envelope, platform.now())
        {
            platform.log(&format!("the stored bundle is not run: {why}"));
        }
        let backlog = store.keys(RECORDS).await.map_or(0, |keys| pieces(&keys));
        let keeper = Keeper {
            platform,
            store,
            control_plane: control_plane.trim_end_matches('/').to_owned(),
            gate: RefCell::new(gate),
            upkeep: RefCell::default(),
            waiting: RefCell::default(),
            waited: Slot::default(),
            confirmed: Slot::default(),
            checking: Slot::default(),
            checked: Slot::default(),
            unanswered: Slot::default(),
            delivering: Slot::default(),
            spoke: Slot::default(),
            reported: Slot::default(),
            heard: Slot::default(),
            backlog: Slot::new(backlog),
            closed: RefCell::default(),
        };
        keeper.own_up().await;
        keeper
    }

    /// Puts on record that the keeper before ended without a word, where calls may have been under way that it had not noted.
    async fn own_up(&self) {
        let Ok(Some(since)) = self.store.get(UNNOTED).await else {
            return;
        };
        let (now, number) = (self.platform.now(), self.jitter());
        let heard = store::milliseconds(&since).map_or(now, Time::from_millis);
        let record = upkeep::worker_lost(number, heard, &self.gate.borrow(), now);
        self.record(&record).await;
        if self.store.swap(UNNOTED, Some(&since), None).await != Ok(true) {
            self.platform.log("cannot store that a keeper was lost");
        }
    }

    /// Makes the notes of the calls under way durable.
    pub async fn note(&self) {
        let now = self.platform.now();
        if self.store.note(now).await.is_err() {
            self.platform.log("cannot note the calls under way");
        }
    }

    /// Does what a message asks for. Many may be under way at once.
    pub async fn handle(&self, message: Message) -> Heard {
        self.heard.set(Some(self.platform.now()));
        let mut heard = Heard::default();
        match message {
            Message::Follow { etag, lost } => {
                if lost > 0 {
                    self.dropped(lost).await;
                }
                self.confirm_bundle().await;
                heard.envelope = self.other_bundle(etag).await;
            }
            Message::Reserve { call, changes } => {
                heard.reserved(self.reserve(&call, changes).await);
            }
            Message::Lease {
                call,
                wants,
                changes,
                wait_ms,
            } => {
                self.release(&call).await;
                self.await_lease(&wants, wait_ms).await;
                heard.reserved(self.reserve(&call, changes).await);
            }
            Message::Close {
                call,
                changes,
                record,
            } => {
                if !self.has_closed(&call) {
                    self.close(&call, &changes).await;
                    self.record(record.as_bytes()).await;
                    let now = self.platform.now();
                    self.closed.borrow_mut().push_back((now, call));
                }
            }
        }
        heard.etag = self.gate.borrow().bundle().etag();
        heard
    }

    /// Whether this call was closed not long ago: somebody who did not hear that it was says so again.
    fn has_closed(&self, call: &str) -> bool {
        let now = self.platform.now();
        let mut closed = self.closed.borrow_mut();
        let is_old = |at: Time| now.millis_since(at).saturating_abs() >= CLOSED_MS;
        while closed.front().is_some_and(|(at, _)| is_old(*at)) {
            closed.pop_front();
        }
        closed.iter().any(|(_, known)| known == call)
    }

    /// The stored bundle, when it is another than that of `etag`.
    async fn other_bundle(&self, etag: Option<String>) -> Option<String> {
        let current = self.gate.borrow().bundle().etag()?;
        if etag.as_ref() == Some(&current) {
            return None;
        }
        String::from_utf8(self.store.get(BUNDLE).await.ok()??).ok()
    }

    /// Reservations first, the note of them after: what goes wrong between the two leaves a reservation that nobody gives back, never one
    /// that is given back twice.
    async fn reserve(&self, call: &str, changes: Vec<Change>) -> Result<Vec<u64>, Refused> {
        let refused = |place, why| Refused { place, why };
        let key = format!("{OPEN}{call}");
        if matches!(self.store.get(&key).await, Ok(Some(_))) {
            return Ok(Vec::new());
        }
        let now = self.platform.now();
        let holder = self.holder().await.ok_or(refused(0, Refusal::NoLease))?;
        let mut open = Open {
            holder: holder.id,
            at: now,
            undo: Vec::new(),
        };
        let mut taken = Vec::with_capacity(changes.len());
        let mut result = Ok(());
        for (place, change) in changes.into_iter().enumerate() {
            match self.apply(&open.holder, &change, now).await {
                Ok(cell) => taken.push(change.op.taken(&Cell::decode(&cell))),
                Err(why) => {
                    result = Err(refused(place, why));
                    break;
                }
            }
            if let Op::Reserve { span, amount } = change.op {
                open.undo.push(Change {
                    account: change.account,
                    op: Op::Void {
                        start: span.start,
                        reserved: amount,
                    },
                });
            }
        }
        if let Err(refused) = result {
            self.apply_all(&open.holder, &open.undo).await;
            return Err(refused);
        }
        let note = serde_json::to_vec(&open).unwrap_or_default();
        match self.store.swap(&key, None, Some(&note)).await {
            Ok(true) => Ok(taken),
            // The same message twice at the same time: one of them holds.
            Ok(false) | Err(_) => {
                self.apply_all(&open.holder, &open.undo).await;
                Err(refused(0, Refusal::NoLease))
            }
        }
    }

    /// Takes a call's note away. Whoever gets it is the one that settles.
    async fn take_open(&self, call: &str) -> Option<Open> {
        let key = format!("{OPEN}{call}");
        let stored = self.store.get(&key).await.ok()??;
        let taken = self.store.swap(&key, Some(&stored), None).await;
        (taken == Ok(true))
            .then(|| json::read(&stored).ok())
            .flatten()
    }

    async fn release(&self, call: &str) {
        if let Some(open) = self.take_open(call).await {
            self.apply_all(&open.holder, &open.undo).await;
        }
    }

    async fn close(&self, call: &str, changes: &[Change]) {
        if let Some(open) = self.take_open(call).await {
            let settlement = if changes.is_empty() {
                &open.undo
            } else {
                changes
            };
            self.apply_all(&open.holder, settlement).await;
            return;
        }
        // Nothing is left to settle. What a refused call suspends stays so, however often it is said.
        let suspends = |change: &&Change| matches!(change.op, Op::Suspend { .. });
        let suspended: Vec<Change> = changes.iter().filter(suspends).cloned().collect();
        if !suspended.is_empty()
            && let Some(holder) = self.holder().await
        {
            self.apply_all(&holder.id, &suspended).await;
        }
    }

    /// Puts a record where the next batch is made of.
    async fn record(&self, record: &[u8]) {
        let (key, _) = record_keys(record);
        let with_it = || self.backlog.get().saturating_add(pieces_at(&key));
        if with_it() <= MAX_BACKLOG {
            match self.store.swap(&key, None, Some(record)).await {
                Ok(true) => return self.backlog.set(with_it()),
                // It is there already.
                Ok(false) => return,
                Err(_) => {}
            }
        }
        self.dropped(1).await;
    }

    /// Counts records that are lost.
    async fn dropped(&self, count: u64) {
        let counted = update(&self.store, DROPPED, |old| {
            Ok::<_, ()>(Some(
                number(old).saturating_add(count).to_string().into_bytes(),
            ))
        });
        if counted.await.is_err() {
            self.platform
                .log("records are lost, and the store does not work");
        }
    }

    /// Who this is towards the control plane; made by whoever asks first.
    async fn holder(&self) -> Option<Holder> {
        if let Ok(Some(stored)) = self.store.get(HOLDER).await
            && let Some(holder) = Holder::decode(&stored)
        {
            return Some(holder);
        }
        let fresh = Holder::new(self.platform.entropy()?);
        let stored = update(&self.store, HOLDER, |old| {
            match old.and_then(Holder::decode) {
                Some(holder) => Err(holder),
                None => Ok(Some(fresh.encode())),
            }
        });
        match stored.await {
            Ok(_) => Some(fresh),
            Err(Unchanged::Refused(holder)) => Some(holder),
            Err(Unchanged::Store) => None,
        }
    }

    /// A holder's cell.
    async fn cell(&self, holder: &str, account: &Account) -> Cell {
        let stored = self.store.get(&cell_key(holder, account)).await;
        stored
            .ok()
            .flatten()
            .map(|stored| Cell::decode(&stored))
            .unwrap_or_default()
    }

    /// Applies one change to one cell. A cell that cannot be written counts as one that somebody else is busy with.
    /// The cell as it is then, in byte form.
    async fn apply(&self, holder: &str, change: &Change, now: Time) -> Result<Vec<u8>, Refusal> {
        let key = cell_key(holder, &change.account);
        update(&self.store, &key, |old| change.op.apply(old, now).map(Some))
            .await
            .map(Option::unwrap_or_default)
            .map_err(|unchanged| match unchanged {
                Unchanged::Refused(refusal) => refusal,
                Unchanged::Store => Refusal::AlreadyAsked,
            })
    }

    /// Applies changes that cannot be refused. Should the store fail, the reservation stays until its window ends: too little is spent then, never
    /// too much.
    async fn apply_all(&self, holder: &str, changes: &[Change]) {
        let now = self.platform.now();
        for change in changes {
            if self.apply(holder, change, now).await.is_err() {
                self.platform
                    .log(&format!("could not settle on {}", change.account));
            }
        }
    }
}

impl<P: Platform, S: Store> Line for &Keeper<P, S> {
    async fn ask(&self, message: Message) -> Result<Heard, Unreachable> {
        Ok(self.handle(message).await)
    }
}

impl<P: Platform, S: Store> Line for std::rc::Rc<Keeper<P, S>> {
    async fn ask(&self, message: Message) -> Result<Heard, Unreachable> {
        Ok(self.handle(message).await)
    }
}

/// Sorts by time, and is the same for the same record. Says in how many pieces a long one counts: behind that is the key without it, as earlier versions
/// stored long ones.
fn record_keys(record: &[u8]) -> (String, Option<String>) {
    let document = json::parse(record).ok();
    let member = |name| document.as_ref().and_then(|record| record.root().get(name));
    let id = member("id").and_then(json::Value::as_str);
    let at_ms = member("at_ms").and_then(json::Value::as_number);
    let at_ms: i64 = at_ms.and_then(|at_ms| at_ms.parse().ok()).unwrap_or(0);
    let short = format!(
        "{}{at_ms:020} {}",
        store::RECORDS,
        id.as_deref().unwrap_or_default()
    );
    match record.len().div_ceil(PIECE_BYTES) {
        0 | 1 => (short, None),
        pieces => (format!("{short} {pieces}"), Some(short)),
    }
}

/// In how many pieces the record at this key counts.
fn pieces_at(key: &str) -> usize {
    let pieces = key.rsplit(' ').next().and_then(|last| last.parse().ok());
    pieces.unwrap_or(1)
}

fn pieces(keys: &[String]) -> usize {
    keys.iter().map(|key| pieces_at(key)).sum()
}

fn number(stored: Option<&[u8]>) -> u64 {
    stored
        .and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok())
        .unwrap_or(0)
}
