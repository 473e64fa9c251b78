//! What a worker does between calls: bundles, leases, the journal.
//!
//! One VM of the process leads, elected in shared data; it fetches bundles, reports and renews leases, and seals and delivers the journal. Any
//! VM asks for leases that its own calls wait for. Two leaders for a moment do no harm: what they share changes by compare-and-swap, and what
//! they send twice is sent unchanged.

use crate::{
    host,
    metrics::errand_name,
    store::{self, Beat},
    worker::{GATHERED_BYTES, GATHERED_RECORDS, Worker},
};
use proxy_wasm::types::{BufferType, LogLevel, MapType};
use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
    time::{Duration, Instant},
};
use tollgate_engine::{
    exchange::{CellOp, Want},
    facts::Headers,
    gate::Gate,
    journal::MAX_BATCH_RECORDS,
    lease::{Ask, MAX_ASKS},
    ledger::{self, Account, Op, Span},
    time::Time,
    upkeep::{self, Delivery, Errand, Holder, Journal, Kind, RECALL, Response, Upkeep},
};

/// How long records are gathered before they are sealed.
const GATHER: Duration = Duration::from_millis(200);
/// How often spending is reported even while calls keep asking for leases.
const REPORT_EVERY: Duration = Duration::from_secs(1);
/// After so long without a lease request the control plane gets an empty one, to know that this holder lives.
const SIGN_OF_LIFE_EVERY: Duration = Duration::from_secs(15);

/// A VM that was not heard of for so long has crashed. A hundred ticks: a thread that merely had no processor for a while is back before.
const LOST_AFTER: Duration = Duration::from_secs(10);

/// The errands of one VM. Lost with it, at no cost but a repeated request.
pub(crate) struct Errands {
    /// Names this VM in the election.
    id: u64,
    cluster: String,
    authority: String,
    upkeep: RefCell<Upkeep>,
    in_flight: RefCell<BTreeMap<u32, Sent>>,
    leads: Cell<bool>,
    /// The last sign of life of each VM, and when it was first seen here; of a leader.
    beats: RefCell<BTreeMap<u64, (Beat, Instant)>>,
    /// The batch that is to be delivered, when one is.
    batch: RefCell<Option<Rc<Batch>>>,
    sealed: Cell<Option<Instant>>,
    reported: Cell<Option<Instant>>,
    spoke: Cell<Option<Instant>>,
    /// Which account was reported last; where there are more than fit into a request, the next goes on from there.
    account: Cell<usize>,
}

/// An errand that is out, with what its answer is about.
enum Sent {
    Bundle,
    Leases(Rc<Holder>),
    Journal(Rc<Holder>, Rc<Batch>),
}

/// A journal with a sealed batch in it, and its stored form.
struct Batch {
    journal: Journal,
    stored: Vec<u8>,
}

impl Errands {
    pub(crate) fn new(id: u128, cluster: String, authority: String) -> Errands {
        Errands {
            id: half(id),
            cluster,
            authority,
            upkeep: RefCell::default(),
            in_flight: RefCell::default(),
            leads: Cell::default(),
            beats: RefCell::default(),
            batch: RefCell::default(),
            sealed: Cell::default(),
            reported: Cell::default(),
            spoke: Cell::default(),
            account: Cell::default(),
        }
    }

    /// A call has changed an account's cell to this.
    pub(crate) fn settled(&self, account: &Account, cell: &ledger::Cell) {
        self.upkeep.borrow_mut().settled(account, cell);
    }

    /// Whether something is to go back before the next report.
    pub(crate) fn is_overfull(&self) -> bool {
        self.upkeep.borrow().is_overfull()
    }
}

impl Worker {
    /// Everything that is due.
    pub(crate) fn tick(&self) {
        let now = host::now();
        self.end_streams();
        self.hand_over_records();
        self.follow_bundle(now);
        let holder = self.look_up_holder();
        let leads = self.store.lead(self.errands.id, now);
        let beats = self.store.beat(self.errands.id, now);
        if self.errands.leads.replace(leads) != leads {
            *self.errands.batch.borrow_mut() = None;
            self.errands.beats.borrow_mut().clear();
            self.metrics.leader_changes.add(i64::from(leads));
        }
        if leads {
            self.miss_workers(&beats, now);
            self.fetch_bundle(now);
            self.deliver_journal(now);
        }
        if let Some(holder) = holder {
            self.ask_for_leases(&holder, now);
        }
        self.resume_waiting(now);
    }

    /// Puts on record which VMs have fallen silent: what such a one had under way is in no journal, and that is said.
    fn miss_workers(&self, beats: &[Beat], now: Time) {
        let mut known = self.errands.beats.borrow_mut();
        known.retain(|worker, _| beats.iter().any(|beat| beat.worker == *worker));
        for beat in beats {
            let (last, since) = known
                .entry(beat.worker)
                .or_insert_with(|| (*beat, Instant::now()));
            if *last != *beat {
                (*last, *since) = (*beat, Instant::now());
            } else if since.elapsed() >= LOST_AFTER && self.store.strike_off(*beat) {
                let record =
                    self.with_gate(|gate| upkeep::worker_lost(beat.worker, beat.at, gate, now));
                self.record(&record);
                self.metrics.workers_lost.add(1);
                let line = format!("worker {:016x} was lost", beat.worker);
                host::log(LogLevel::Error, &line);
            }
        }
    }

    /// This VM ends in good order.
    pub(crate) fn leave(&self) {
        self.hand_over_records();
        self.store.leave(self.errands.id);
    }

    /// An answer has come, or the errand's time is over.
    pub(crate) fn answered(&self, token: u32, body_size: usize) {
        let Some(sent) = self.errands.in_flight.borrow_mut().remove(&token) else {
            return;
        };
        let status = host::header_map(MapType::HttpCallResponseHeaders)
            .and_then(|map| {
                let headers = host::pairs(&map)?;
                Ok(Headers(&headers)
                    .first(":status")
                    .and_then(|status| status.parse().ok()))
            })
            .ok()
            .flatten()
            .unwrap_or(0);
        let body = host::buffer(BufferType::HttpCallResponseBody, body_size).unwrap_or_default();
        self.take_answer(
            sent,
            Response {
                status,
                body: &body,
            },
        );
    }

    fn send(&self, errand: &Errand, sent: Sent) {
        let mut headers = vec![
            (":method", errand.method),
            (":path", errand.path.as_str()),
            (":authority", self.errands.authority.as_str()),
        ];
        headers.extend(
            errand
                .headers
                .iter()
                .map(|(name, value)| (*name, value.as_str())),
        );
        let cluster = &self.errands.cluster;
        match host::http_call(cluster, headers, &errand.body, errand.timeout_ms) {
            Ok(token) => {
                self.errands.in_flight.borrow_mut().insert(token, sent);
            }
            Err(_) => self.take_answer(
                sent,
                Response {
                    status: 0,
                    body: &[],
                },
            ),
        }
    }

    fn take_answer(&self, sent: Sent, response: Response<'_>) {
        let now = host::now();
        // Only spreads the pause after a failure.
        let entropy = host::random().map_or(0, half);
        match sent {
            Sent::Bundle => self.take_bundle(response, now, entropy),
            Sent::Leases(holder) => self.take_leases(&holder, response, now, entropy),
            Sent::Journal(holder, batch) => {
                self.take_receipt(&holder, &batch, response, now, entropy);
            }
        }
    }

    fn failed(&self, kind: Kind, status: u16) {
        self.metrics.control_plane_error(kind);
        let errand = errand_name(kind);
        let line = match status {
            0 => format!("no answer from the control plane ({errand})"),
            200 => format!("the control plane's answer is not one to act on ({errand})"),
            status => format!("the control plane answered with status {status} ({errand})"),
        };
        host::log(LogLevel::Warn, &line);
    }

    fn fetch_bundle(&self, now: Time) {
        let errand = self.with_gate(|gate| {
            if let Some(payload) = gate.bundle().payload() {
                let age = now.secs().saturating_sub(payload.issued_at);
                self.metrics.bundle_age_seconds.record(age);
            }
            self.errands.upkeep.borrow_mut().next_bundle(gate, now)
        });
        if let Some(errand) = errand {
            self.send(&errand, Sent::Bundle);
        }
    }

    fn take_bundle(&self, response: Response<'_>, now: Time, entropy: u64) {
        let upkeep = &self.errands.upkeep;
        let envelope = upkeep.borrow_mut().bundle_answered(response, now, entropy);
        let Some(envelope) = envelope else {
            if !matches!(response.status, 304 | RECALL) {
                self.failed(Kind::Bundle, response.status);
            }
            return;
        };
        // A leader of meanwhile may have stored a newer one, which this must not replace.
        self.follow_bundle(now);
        if !self
            .install(envelope, now)
            .is_ok_and(|()| self.share_bundle(envelope))
        {
            upkeep.borrow_mut().bundle_refused(now, entropy);
        }
    }

    fn ask_for_leases(&self, holder: &Rc<Holder>, now: Time) {
        let errands = &self.errands;
        let passed = |since: &Cell<Option<Instant>>, limit| {
            since.get().is_none_or(|since| since.elapsed() >= limit)
        };
        let leads = errands.leads.get();
        let waiting = self.wanted();
        let (urgent, due) = {
            let upkeep = errands.upkeep.borrow();
            let urgent = !waiting.is_empty() && upkeep.leases_due(true, now);
            (urgent, upkeep.leases_due(false, now))
        };
        let overfull = errands.upkeep.borrow_mut().take_overfull(now);
        let routine = leads && (due || (urgent && passed(&errands.reported, REPORT_EVERY)));
        if !urgent && !routine && overfull.is_empty() {
            return;
        }
        let mut asks = Vec::new();
        // A holder that was not greeted yet has nothing to ask for.
        if holder.epoch > 0 && urgent {
            asks.extend(
                waiting
                    .iter()
                    .filter_map(|want| self.ask_for_want(holder, want, now))
                    .take(MAX_ASKS),
            );
        }
        if holder.epoch > 0 {
            let left = MAX_ASKS.saturating_sub(asks.len());
            let overfull = overfull.iter().take(left);
            asks.extend(
                overfull.filter_map(|(account, span)| self.ask(holder, account, *span, 0, 0, now)),
            );
        }
        if holder.epoch > 0 && routine {
            self.ask_routinely(holder, &mut asks, now);
            errands.reported.set(Some(Instant::now()));
        }
        let speak = leads && (holder.epoch == 0 || passed(&errands.spoke, SIGN_OF_LIFE_EVERY));
        if asks.is_empty() && !speak {
            if routine && due {
                errands.upkeep.borrow_mut().leases_idle(now);
            }
            return;
        }
        let request = self.with_gate(|gate| upkeep::lease_request(gate, holder, asks));
        errands.upkeep.borrow_mut().leases_sent(now);
        errands.spoke.set(Some(Instant::now()));
        self.send(&request, Sent::Leases(Rc::clone(holder)));
    }

    /// What the waiting calls want, each account and window once.
    fn wanted(&self) -> Vec<Want> {
        let mut wanted: BTreeMap<(Account, i64), Want> = BTreeMap::new();
        for call in self.waiting() {
            for want in call.borrow().wants() {
                wanted
                    .entry((want.account.clone(), want.span.start))
                    .and_modify(|all| all.amount = all.amount.saturating_add(want.amount))
                    .or_insert_with(|| want.clone());
            }
        }
        wanted.into_values().collect()
    }

    /// The ask for what waiting calls want, unless there is enough by now, or none to be had.
    fn ask_for_want(&self, holder: &Holder, want: &Want, now: Time) -> Option<Ask> {
        if !want.is_worth_asking(self.store.cell(holder, &want.account), now) {
            return None;
        }
        self.ask(holder, &want.account, want.span, 0, want.amount, now)
    }

    /// Reports and renews: every account of the holder whose cell says that it is time.
    fn ask_routinely(&self, holder: &Holder, asks: &mut Vec<Ask>, now: Time) {
        let cells = self.store.cells(holder, now);
        let start = self.errands.account.get().checked_rem(cells.len());
        let mut live = 0;
        for (number, (account, cell)) in cells
            .iter()
            .enumerate()
            .cycle()
            .skip(start.unwrap_or(0))
            .take(cells.len())
        {
            let lives = |until: i64| until > now.millis();
            live += i64::from(cell.slots().iter().any(|slot| lives(slot.expires_ms)));
            let plan = self.errands.upkeep.borrow().plan(cell, now);
            for (span, wanted) in plan {
                if asks.len() < MAX_ASKS {
                    asks.extend(self.ask(holder, account, span, wanted, 0, now));
                    self.errands.account.set(number);
                }
            }
        }
        self.metrics.leases_live.record(live);
        self.metrics
            .lease_accounts
            .record(i64::try_from(cells.len()).unwrap_or(i64::MAX));
    }

    /// One ask, unless another VM has it under way.
    fn ask(
        &self,
        holder: &Holder,
        account: &Account,
        span: Span,
        wanted: u64,
        needed: u64,
        now: Time,
    ) -> Option<Ask> {
        let change = CellOp {
            account: account.clone(),
            op: Op::Ask { span },
        };
        let cells = self.store.apply(holder, &[change], now).ok()?;
        let slot = cells.first()?.slot(span.start)?;
        Some(upkeep::ask_for(account, slot, wanted, needed))
    }

    fn take_leases(&self, holder: &Holder, response: Response<'_>, now: Time, entropy: u64) {
        let answer = self.with_gate(|gate| {
            let mut upkeep = self.errands.upkeep.borrow_mut();
            upkeep.leases_answered(gate, holder, response, now, entropy)
        });
        let Some((refills, epoch)) = answer else {
            self.failed(Kind::Leases, response.status);
            return;
        };
        let refilled = self.store.apply_each(holder, &refills, now);
        let failed = refilled.iter().filter(|cell| cell.is_none()).count();
        // The next report asks again.
        let failed = i64::try_from(failed).unwrap_or(i64::MAX);
        self.metrics.host_errors.add(failed);
        if let Some(epoch) = epoch {
            let greeted = Holder {
                id: holder.id.clone(),
                epoch,
            };
            self.store.replace_holder(holder, &greeted);
            self.look_up_holder();
        }
        self.resume_waiting(now);
    }

    fn deliver_journal(&self, now: Time) {
        let errands = &self.errands;
        let Some(holder) = self.holder().filter(|holder| holder.epoch > 0) else {
            return;
        };
        if errands.batch.borrow().is_none() {
            let batch = self.with_gate(|gate| self.next_batch(gate, &holder, now));
            *errands.batch.borrow_mut() = batch.map(Rc::new);
        }
        let due = errands.batch.borrow().as_ref().and_then(|batch| {
            let mut upkeep = errands.upkeep.borrow_mut();
            let errand = self.with_gate(|gate| upkeep.next_journal(gate, &batch.journal, now))?;
            Some((errand, Rc::clone(batch)))
        });
        if let Some((errand, batch)) = due {
            self.send(&errand, Sent::Journal(holder, batch));
        }
    }

    /// The batch to deliver: one that was left undelivered, else a new one of what has gathered. It is in the store before it is given out.
    fn next_batch(&self, gate: &Gate, holder: &Holder, now: Time) -> Option<Batch> {
        let key = self.store.journal(holder);
        let current = |stored: Option<&[u8]>| -> Journal {
            let mut journal = stored
                .and_then(Journal::decode)
                .unwrap_or_else(|| Journal::start(&gate.config.workspace, holder));
            if journal.epoch != holder.epoch {
                journal.move_to(gate, holder, now);
            }
            journal
        };
        let records = if current(store::read(&key).as_deref()).is_idle() {
            self.gathered()?
        } else {
            Vec::new()
        };
        let dropped = self.metrics.journal_unreported.value();
        let (mut sealed, mut kept) = (false, None);
        let stored = store::update(&key, |old| {
            let mut journal = current(old.as_deref());
            sealed = journal.is_idle() && !records.is_empty();
            if sealed {
                journal.seal(gate, holder, &records, dropped, now);
            }
            if journal.is_idle() {
                return Err(());
            }
            Ok(kept.insert(journal).encode())
        });
        if sealed && stored.is_ok() {
            let reported = i64::try_from(dropped).unwrap_or(i64::MAX);
            self.metrics.journal_unreported.add(-reported);
        } else {
            self.put_back(&records);
        }
        Some(Batch {
            journal: kept?,
            stored: stored.ok()?,
        })
    }

    /// The records to seal, when it is time to.
    fn gathered(&self) -> Option<Vec<Vec<u8>>> {
        let errands = &self.errands;
        let backlog = usize::try_from(self.metrics.journal_backlog.value());
        let full = backlog.is_ok_and(|backlog| backlog >= MAX_BATCH_RECORDS);
        let early = errands
            .sealed
            .get()
            .is_some_and(|sealed| sealed.elapsed() < GATHER);
        if early && !full {
            return None;
        }
        let queue = self.records()?;
        let (mut records, mut bytes) = (Vec::new(), 0);
        // As long as there is room for one more piece, whose last record may be as long as records get.
        while upkeep::batch_has_room(records.len() + GATHERED_RECORDS, bytes + GATHERED_BYTES) {
            let Ok(Some(piece)) = host::dequeue(queue) else {
                break;
            };
            let before = records.len();
            records.extend(piece.split(|byte| *byte == b'\n').map(<[u8]>::to_vec));
            bytes += piece.len();
            let count = i64::try_from(records.len() - before).unwrap_or(i64::MAX);
            self.metrics.count_backlog(&piece, -count);
        }
        if records.is_empty() {
            return None;
        }
        errands.sealed.set(Some(Instant::now()));
        Some(records)
    }

    /// Another leader has sealed a batch meanwhile, or nothing could be stored.
    fn put_back(&self, records: &[Vec<u8>]) {
        for record in records {
            if !self.enqueue_records(record, 1) {
                self.metrics.host_errors.add(1);
            }
        }
    }

    fn take_receipt(
        &self,
        holder: &Holder,
        sent: &Batch,
        response: Response<'_>,
        now: Time,
        entropy: u64,
    ) {
        let key = self.store.journal(holder);
        let mut after = sent.journal.clone();
        let delivery = self.with_gate(|gate| {
            let mut upkeep = self.errands.upkeep.borrow_mut();
            upkeep.journal_answered(gate, &mut after, response, now, entropy)
        });
        match delivery {
            Delivery::Acknowledged => {
                // Another leader may be one batch further already; what is in the store then is not ours to clear.
                let _ = store::update(&key, |old| {
                    if old.as_ref() == Some(&sent.stored) {
                        Ok(after.encode())
                    } else {
                        Err(())
                    }
                });
                // Header and seal are lines too.
                let pending = &sent.journal.pending;
                let lines = pending.iter().filter(|byte| **byte == b'\n').count();
                let records = i64::try_from(lines.saturating_sub(2)).unwrap_or(0);
                self.metrics.journal_delivered.add(records);
                *self.errands.batch.borrow_mut() = None;
                if self.errands.leads.get() {
                    self.deliver_journal(now);
                }
            }
            Delivery::Later => self.failed(Kind::Journal, response.status),
            Delivery::Refused => {
                self.failed(Kind::Journal, response.status);
                self.start_afresh(holder, sent.journal.clone());
                *self.errands.batch.borrow_mut() = None;
            }
        }
    }

    /// Goes on under a new name. The refused batch goes along: it belongs to no epoch until the new name is greeted, and then to that one.
    fn start_afresh(&self, holder: &Holder, mut refused: Journal) {
        let Ok(entropy) = host::random() else { return };
        let fresh = Holder::new(entropy);
        refused.epoch = 0;
        // The batch before the name: whoever sees the name finds the batch.
        if host::set_shared(&self.store.journal(&fresh), &refused.encode(), 0).is_ok() {
            self.store.replace_holder(holder, &fresh);
            let line = format!(
                "the control plane refuses the journal of holder {}; goes on as {}",
                holder.id, fresh.id
            );
            host::log(LogLevel::Error, &line);
        }
        self.look_up_holder();
    }
}

/// Half of 128 random bits.
fn half(bits: u128) -> u64 {
    u64::try_from(bits >> 64).unwrap_or(0)
}
