//! What a keeper does between messages, and what messages wait for: bundles, leases, the journal.

use super::{Keeper, OPEN_LIMIT_MS, Open, number, pieces, pieces_at, record_keys};
use crate::{
    message::{Change, Want},
    platform::{Platform, Request, RequestBody, within},
    store::{BUNDLE, DROPPED, HOLDER, MAX_SWAPS, OPEN, RECORDS, Store, cell_key, update},
};
use futures_channel::oneshot;
use futures_util::{
    StreamExt as _,
    future::{pending, select},
    join,
};
use std::{cell::Cell, pin::pin};
use tollgate_engine::{
    bundle::MAX_ENVELOPE_BYTES,
    exchange::{CellOp, LEASE_WAIT_MS},
    journal::Batch,
    json,
    lease::{Ask, MAX_ASKS},
    ledger::{self, Account, Op, Refusal, Slot, Span},
    sorted::Map,
    time::Time,
    upkeep::{self, Delivery, Errand, Holder, Journal, RECALL, Response},
};

/// Time between two looks at whether somebody else's question about the bundle has been answered.
const PAUSE_MS: u32 = 5;
/// A call that waits for a lease is woken by its answer. Should somebody else have got it who has the same store, it looks after this.
const LEASE_PAUSE_MS: u32 = 50;
/// How long records are gathered before a round delivers them.
pub const GATHER_MS: i64 = 200;
/// What came in while a batch was delivered waits for the next round, unless it is as many records, or pieces of long ones: a batch for each would cost more than they do.
const WORTH_A_BATCH: usize = 64;
/// Time between two rounds while there is something to do, and between two looks within one; also how often spending is reported while calls keep asking for leases.
pub const ROUND_MS: i64 = 1_000;
/// For so long after a message a keeper stays awake, so that the next call finds the newest bundle.
const AWAKE_MS: i64 = 10_000;
/// A bundle confirmed longer ago is asked for again before anybody is told to run it. A few rounds.
const CONFIRMED_MS: i64 = 5 * ROUND_MS;
/// How long somebody waits for that, at most. Then they go on with what there is.
const CONFIRM_WAIT_MS: i64 = 1_000;
/// After so long without a lease request the control plane gets an empty one, to know that this holder lives.
const SIGN_OF_LIFE_MS: i64 = 15_000;
/// A window that ended so long ago is settled by all who spent in it: its cell goes. An hour more than a call may take.
const KEEP_CELL_MS: i64 = OPEN_LIMIT_MS + 60 * 60 * 1_000;

impl<P: Platform, S: Store> Keeper<P, S> {
    /// Does what is due, once, and says when to come again; `None` when nothing is left to do until the next message.
    ///
    /// Nobody may have the next round begin before this one has ended. So what takes its time, the delivery, does not hold up the rest: meanwhile
    /// there is another look for bundles and leases every [`ROUND_MS`], and nothing more is delivered than is begun in that time.
    pub async fn round(&self) -> Option<Time> {
        let begun = self.platform.now();
        let (delivers, mut delivered) = oneshot::channel::<()>();
        let deliver = async {
            self.deliver(begun).await;
            drop(delivers);
        };
        let look = async {
            loop {
                join!(self.check_bundle(i64::MAX), self.ask_for_leases(false));
                // Something was wanted back: what is held is told at once, and what may not stay goes with the next request.
                while self.ask_for_leases(false).await {}
                let over = within(&self.platform, ROUND_MS, &mut delivered).await;
                if over.is_some() {
                    break;
                }
            }
        };
        join!(deliver, look);
        let now = self.platform.now();
        let oldest = self.count_lost(now).await;
        let heard_within = |limit_ms| {
            let heard = self.heard.get();
            heard.is_some_and(|heard| now.millis_since(heard).saturating_abs() < limit_ms)
        };
        let awake = heard_within(AWAKE_MS);
        if self
            .store
            .catch_up(!heard_within(ROUND_MS), now)
            .await
            .is_err()
        {
            self.platform.log("cannot make durable what is not yet");
        }
        let next = begun.plus_millis(ROUND_MS);
        if awake || self.owes().await {
            return Some(now.max(next));
        }
        let rests = self.rests_until(now).await.map(|until| until.max(next));
        oldest.into_iter().chain(rests).min()
    }

    /// When what is held for calls that did not come goes back.
    async fn rests_until(&self, now: Time) -> Option<Time> {
        let holder = self.holder().await?;
        let mut first: Option<Time> = None;
        for account in self.accounts(&holder).await {
            let cell = self.cell(&holder.id, &account).await;
            first = first
                .into_iter()
                .chain(upkeep::rests_until(&cell, now))
                .min();
        }
        first
    }

    /// Whether there is something that the control plane has to hear.
    pub async fn owes(&self) -> bool {
        let Some(holder) = self.holder().await else {
            return true;
        };
        if self.backlog.get() > 0 {
            return true;
        }
        let journal = self.store.get(&journal_key(&holder)).await.ok().flatten();
        if journal
            .and_then(|stored| Journal::decode(&stored))
            .is_some_and(|journal| !journal.is_idle())
        {
            return true;
        }
        let now = self.platform.now();
        // That something was given back nobody hears of whose limit is no more, so it is said for a lease's time at most.
        let untold = |slot: &Slot| {
            let live = now.millis() < slot.expires_ms;
            slot.settled != slot.reported || (live && slot.returned != slot.told)
        };
        for account in self.accounts(&holder).await {
            let cell = self.cell(&holder.id, &account).await;
            if cell.slots().iter().any(untold) {
                return true;
            }
        }
        false
    }

    /// Counts the calls that were never closed as records that are lost. Gives the time by which the next one will be.
    async fn count_lost(&self, now: Time) -> Option<Time> {
        let mut oldest: Option<Time> = None;
        for key in self.store.keys(OPEN).await.ok()? {
            let Ok(Some(stored)) = self.store.get(&key).await else {
                continue;
            };
            let lost_at =
                json::read::<Open>(&stored).map_or(now, |open| open.at.plus_millis(OPEN_LIMIT_MS));
            if lost_at > now {
                oldest = Some(oldest.map_or(lost_at, |oldest| oldest.min(lost_at)));
            } else if self.store.swap(&key, Some(&stored), None).await == Ok(true) {
                self.platform
                    .log(&format!("never heard the end of {key}; its record is lost"));
                self.dropped(1).await;
            }
        }
        oldest
    }

    /// Runs an errand within its time. Status 0 when nothing came.
    async fn run(&self, errand: Errand) -> (u16, Vec<u8>) {
        let Errand {
            method,
            path,
            headers,
            body,
            timeout_ms,
            ..
        } = errand;
        let request = Request {
            method: method.to_owned(),
            url: format!("{}{path}", self.control_plane),
            headers: headers
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value.into_bytes()))
                .collect(),
            body: if body.is_empty() {
                RequestBody::Empty
            } else {
                RequestBody::Bytes(body)
            },
            limit_ms: u32::try_from(timeout_ms).ok(),
        };
        let answer = within(&self.platform, timeout_ms, async {
            let mut response = self.platform.fetch(request).await.ok()?;
            let mut body = Vec::new();
            while let Some(chunk) = response.body.next().await {
                body.extend(chunk.ok()?);
                if body.len() > MAX_ENVELOPE_BYTES {
                    return None;
                }
            }
            Some((response.status, body))
        });
        answer.await.flatten().unwrap_or_default()
    }

    fn failed(&self, what: &str, status: u16) {
        self.platform.log(&match status {
            0 => format!("no answer from the control plane ({what})"),
            200 => format!("the control plane's answer is not one to act on ({what})"),
            status => format!("the control plane answered with status {status} ({what})"),
        });
    }

    /// Only spreads the pause after a failure.
    pub(super) fn jitter(&self) -> u64 {
        let bits = self.platform.entropy().unwrap_or_default();
        u64::try_from(bits >> 64).unwrap_or(0)
    }

    /// Sees to it that the bundle was confirmed not long ago, or that it has been tried.
    pub(super) async fn confirm_bundle(&self) {
        let start = self.platform.now();
        let fresh = |confirmed: Option<Time>| {
            confirmed.is_some_and(|at| start.millis_since(at).saturating_abs() < CONFIRMED_MS)
        };
        // Where nobody has just answered, it is for the rounds to try again, and for nobody else to wait.
        if fresh(self.confirmed.get()) || self.unanswered.get() && fresh(self.checked.get()) {
            return;
        }
        // Somebody else may have asked just now.
        let is_young = || {
            let checked = self.checked.get().unwrap_or(start);
            let waited = self.platform.now().millis_since(checked);
            self.checking.get() && waited.saturating_abs() < CONFIRM_WAIT_MS
        };
        while is_young() {
            self.platform.pause(PAUSE_MS).await;
        }
        if !fresh(self.confirmed.get()) {
            self.check_bundle(CONFIRM_WAIT_MS).await;
        }
    }

    async fn check_bundle(&self, limit_ms: i64) {
        let now = self.platform.now();
        let errand = self
            .upkeep
            .borrow_mut()
            .check_bundle(&self.gate.borrow(), now);
        let Some(mut errand) = errand else { return };
        errand.timeout_ms = errand.timeout_ms.min(limit_ms);
        self.checked.set(Some(now));
        let (status, body) = {
            let _checking = Busy::new(&self.checking);
            self.run(errand).await
        };
        let (now, entropy) = (self.platform.now(), self.jitter());
        let response = Response {
            status,
            body: &body,
        };
        let answers = matches!(status, 200 | 304 | RECALL);
        self.unanswered.set(!answers);
        if answers {
            self.confirmed.set(Some(now));
        } else {
            self.failed("bundle", status);
        }
        let answered = self
            .upkeep
            .borrow_mut()
            .bundle_answered(response, now, entropy);
        let Some(envelope) = answered else { return };
        let installed = self.gate.borrow_mut().install(envelope, now);
        match installed {
            Ok(()) => {
                let stored = update(&self.store, BUNDLE, |_| {
                    Ok::<_, ()>(Some(envelope.to_vec()))
                });
                if stored.await.is_err() {
                    self.platform.log("cannot store the bundle");
                }
                let revision = self.gate.borrow().bundle().revision();
                self.platform
                    .log(&format!("runs bundle revision {revision}"));
            }
            Err(why) => {
                self.upkeep.borrow_mut().bundle_refused(now, entropy);
                self.platform.log(&format!("a bundle is not run: {why}"));
            }
        }
    }

    /// Comes back when `wants` can be reserved, when the control plane has said that there is no more, or after `wait_ms` or so: whoever waits
    /// looks again, and comes back while it has time.
    pub(super) async fn await_lease(&self, wants: &[Want], wait_ms: i64) {
        let waits = Waits::new(self, wants);
        let start = self.platform.now();
        for _ in 0..=wait_ms / i64::from(LEASE_PAUSE_MS) {
            let waited = self.platform.now().millis_since(start).saturating_abs();
            if waited >= wait_ms || self.is_decided(wants).await {
                return;
            }
            if !self.ask_for_leases(true).await {
                let pause = self.platform.pause(LEASE_PAUSE_MS);
                select(waits.answer(), pin!(pause)).await;
            }
        }
    }

    /// Whether reserving `wants` would now succeed, or be refused for good.
    async fn is_decided(&self, wants: &[Want]) -> bool {
        let Some(holder) = self.holder().await else {
            return false;
        };
        for want in wants {
            match self.try_out(&holder, want).await {
                Ok(()) => {}
                Err(Refusal::Exhausted { .. }) => return true,
                Err(Refusal::NoLease | Refusal::Short | Refusal::AlreadyAsked) => return false,
            }
        }
        true
    }

    async fn try_out(&self, holder: &Holder, want: &Want) -> Result<(), Refusal> {
        let cell = self.cell(&holder.id, &want.account).await;
        let reserve = Op::Reserve {
            span: want.span,
            amount: want.amount,
        };
        let now = self.platform.now();
        reserve.apply(Some(&cell.encode()), now).map(|_| ())
    }

    /// Asks for what calls wait for (`urgent`), and reports and renews when that is due. Whether it has asked.
    async fn ask_for_leases(&self, urgent: bool) -> bool {
        let Some(holder) = self.holder().await else {
            return false;
        };
        let now = self.platform.now();
        let passed = |since: Option<Time>, limit_ms| {
            since.is_none_or(|since| now.millis_since(since).saturating_abs() >= limit_ms)
        };
        let (urgent, due) = {
            let upkeep = self.upkeep.borrow();
            let due = upkeep.leases_due(false, now);
            (urgent && upkeep.leases_due(true, now), due)
        };
        let routine = due || (urgent && passed(self.reported.get(), ROUND_MS));
        if !urgent && !routine {
            return false;
        }
        // From here on nobody else asks: what follows waits for the store.
        self.upkeep.borrow_mut().leases_sent(now);
        let mut asks = Vec::new();
        // A holder that was not greeted yet has nothing to ask for.
        if holder.epoch > 0 && urgent {
            for want in self.wanted() {
                if asks.len() < MAX_ASKS {
                    asks.extend(self.ask_for_want(&holder, &want, now).await);
                }
            }
        }
        if holder.epoch > 0 && routine {
            self.ask_routinely(&holder, &mut asks, now).await;
            self.reported.set(Some(now));
        }
        let speak = holder.epoch == 0 || passed(self.spoke.get(), SIGN_OF_LIFE_MS);
        if asks.is_empty() && !speak {
            self.upkeep.borrow_mut().leases_idle(now);
            return false;
        }
        let mut errand = upkeep::lease_request(&self.gate.borrow(), &holder, asks);
        if urgent {
            // Somebody waits for this very answer, and not for longer.
            errand.timeout_ms = errand.timeout_ms.min(LEASE_WAIT_MS);
        }
        self.spoke.set(Some(now));
        let (status, body) = self.run(errand).await;
        self.take_leases(&holder, status, &body).await;
        for waiting in self.waiting.borrow_mut().values_mut() {
            if let Some(wake) = waiting.wake.take() {
                // Who does not wait any more need not be woken.
                let _ = wake.send(());
            }
        }
        true
    }

    /// What the waiting calls want, each account and window once.
    fn wanted(&self) -> Vec<Want> {
        let mut wanted: Map<(Account, i64), Want> = Map::default();
        let waiting = self.waiting.borrow();
        for want in waiting.values().flat_map(|waiting| &waiting.wants) {
            let key = (want.account.clone(), want.span.start);
            match wanted.get_mut(&key) {
                Some(all) => all.amount = all.amount.saturating_add(want.amount),
                None => {
                    wanted.insert(key, want.clone());
                }
            }
        }
        wanted.into_values().collect()
    }

    /// The ask for what waiting calls want, unless there is enough by now, or none to be had.
    async fn ask_for_want(&self, holder: &Holder, want: &Want, now: Time) -> Option<Ask> {
        match self.try_out(holder, want).await {
            Err(Refusal::NoLease | Refusal::Short) => {
                self.ask(holder, &want.account, want.span, 0, want.amount, now)
                    .await
            }
            Ok(()) | Err(Refusal::Exhausted { .. } | Refusal::AlreadyAsked) => None,
        }
    }

    /// Reports and renews: every account whose cell says that it is time. Where there are more than fit into a request, those that were told stop
    /// saying so, and the next round goes on with the others.
    async fn ask_routinely(&self, holder: &Holder, asks: &mut Vec<Ask>, now: Time) {
        for account in self.accounts(holder).await {
            let cell = self.cell(&holder.id, &account).await;
            let plan = self.upkeep.borrow().plan(&cell, now);
            let over = |slot: &Slot| {
                slot.end.saturating_mul(1_000).saturating_add(KEEP_CELL_MS) < now.millis()
            };
            let forgotten = account.run.is_some() && cell.is_forgotten(now);
            if plan.is_empty() && (forgotten || cell.slots().iter().all(over)) {
                let stored = cell.encode();
                let key = cell_key(&holder.id, &account);
                let _ = self.store.swap(&key, Some(&stored), None).await;
            }
            for (span, wanted) in plan {
                if asks.len() < MAX_ASKS {
                    asks.extend(self.ask(holder, &account, span, wanted, 0, now).await);
                }
            }
        }
    }

    /// One ask, unless it is under way already.
    async fn ask(
        &self,
        holder: &Holder,
        account: &Account,
        span: Span,
        wanted: u64,
        needed: u64,
        now: Time,
    ) -> Option<Ask> {
        let change = Change {
            account: account.clone(),
            op: Op::Ask { span },
        };
        let cell = self.apply(&holder.id, &change, now).await.ok()?;
        let cell = ledger::Cell::decode(&cell);
        let slot = cell.slot(span.start)?;
        Some(upkeep::ask_for(account, slot, wanted, needed))
    }

    async fn take_leases(&self, holder: &Holder, status: u16, body: &[u8]) {
        let (now, entropy) = (self.platform.now(), self.jitter());
        let response = Response { status, body };
        let answer = self.upkeep.borrow_mut().leases_answered(
            &self.gate.borrow(),
            holder,
            response,
            now,
            entropy,
        );
        let Some((refills, epoch)) = answer else {
            return self.failed("leases", status);
        };
        let refills: Vec<Change> = refills.into_iter().map(CellOp::into).collect();
        self.apply_all(&holder.id, &refills).await;
        if let Some(epoch) = epoch {
            let greeted = Holder {
                id: holder.id.clone(),
                epoch,
            };
            self.replace_holder(holder, &greeted).await;
        }
    }

    /// Puts `new` in the place of `old`, unless somebody has done so already.
    async fn replace_holder(&self, old: &Holder, new: &Holder) {
        let (old, new) = (old.encode(), new.encode());
        let replaced = self.store.swap(HOLDER, Some(&old), Some(&new));
        if replaced.await.is_err() {
            self.platform.log("cannot store the holder");
        }
    }

    /// The accounts of which a holder has cells.
    async fn accounts(&self, holder: &Holder) -> Vec<Account> {
        let prefix = format!("{} cell ", holder.id);
        let keys = self.store.keys(&prefix).await.unwrap_or_default();
        keys.iter()
            .filter_map(|key| Account::parse(key.strip_prefix(&prefix)?))
            .collect()
    }

    /// Delivers batches until little is left, one is not taken, or the time of the round that has `begun` is up.
    async fn deliver(&self, begun: Time) {
        if self.delivering.get() {
            return;
        }
        let _delivering = Busy::new(&self.delivering);
        while self.deliver_one().await && self.backlog.get() >= WORTH_A_BATCH {
            if self.platform.now().millis_since(begun).saturating_abs() >= ROUND_MS {
                break;
            }
        }
    }

    /// Whether a batch was delivered.
    async fn deliver_one(&self) -> bool {
        let Some(holder) = self.holder().await.filter(|holder| holder.epoch > 0) else {
            return false;
        };
        let Some(batch) = self.next_batch(&holder).await else {
            return false;
        };
        let errand =
            self.upkeep
                .borrow_mut()
                .next_journal(&self.gate.borrow(), &batch, self.platform.now());
        let Some(errand) = errand else { return false };
        let (status, body) = self.run(errand).await;
        let (now, entropy) = (self.platform.now(), self.jitter());
        let response = Response {
            status,
            body: &body,
        };
        let mut after = batch.clone();
        let delivery = self.upkeep.borrow_mut().journal_answered(
            &self.gate.borrow(),
            &mut after,
            response,
            now,
            entropy,
        );
        let key = journal_key(&holder);
        match delivery {
            Delivery::Acknowledged => {
                // Somebody else may have done so, and be one batch further.
                let (before, after) = (batch.encode(), after.encode());
                let forgotten = self.store.swap(&key, Some(&before), Some(&after));
                forgotten.await.is_ok()
            }
            Delivery::Later => {
                self.failed("journal", status);
                false
            }
            Delivery::Refused => {
                self.failed("journal", status);
                self.start_afresh(&holder, batch).await;
                false
            }
        }
    }

    /// The batch to deliver: one that was left undelivered, else a new one of what has gathered. It is in the store before it is given out, and its
    /// records are nowhere else.
    async fn next_batch(&self, holder: &Holder) -> Option<Journal> {
        let key = journal_key(holder);
        for _ in 0..MAX_SWAPS {
            let old = self.store.get(&key).await.ok()?;
            let now = self.platform.now();
            let mut journal = old
                .as_deref()
                .and_then(Journal::decode)
                .unwrap_or_else(|| Journal::start(&self.gate.borrow().config.workspace, holder));
            if journal.epoch != holder.epoch {
                journal.move_to(&self.gate.borrow(), holder, now);
            }
            let mut dropped = 0;
            if journal.is_idle() {
                // Looked for after the journal was read: what others seal from now on makes the swap fail.
                let records = self.gathered().await?;
                if records.is_empty() {
                    return None;
                }
                dropped = number(self.store.get(DROPPED).await.ok()?.as_deref());
                journal.seal(&self.gate.borrow(), holder, &records, dropped, now);
            }
            let sealed = journal.encode();
            if old.as_deref() != Some(sealed.as_slice())
                && !self
                    .store
                    .swap(&key, old.as_deref(), Some(&sealed))
                    .await
                    .ok()?
            {
                continue;
            }
            if dropped > 0 {
                let told = update(&self.store, DROPPED, |old| {
                    let left = number(old).saturating_sub(dropped);
                    Ok::<_, ()>(Some(left.to_string().into_bytes()))
                });
                told.await.ok()?;
            }
            self.forget_records(&journal).await?;
            return Some(journal);
        }
        None
    }

    /// The records to seal, oldest first.
    async fn gathered(&self) -> Option<Vec<Vec<u8>>> {
        let keys = self.store.keys(RECORDS).await.ok()?;
        self.backlog.set(pieces(&keys));
        let (mut records, mut bytes) = (Vec::new(), 0_usize);
        for key in &keys {
            if !upkeep::batch_has_room(records.len(), bytes) {
                break;
            }
            if let Some(record) = self.store.get(key).await.ok()? {
                bytes = bytes.saturating_add(record.len());
                records.push(record);
            }
        }
        Some(records)
    }

    /// Takes away what a batch holds. Done again after a crash between sealing and this.
    async fn forget_records(&self, journal: &Journal) -> Option<()> {
        let batch = Batch::read(&journal.pending).ok()?;
        for record in batch.records {
            let (key, short) = record_keys(record);
            for key in [key].into_iter().chain(short) {
                if self.store.swap(&key, Some(record), None).await.ok()? {
                    let backlog = self.backlog.get().saturating_sub(pieces_at(&key));
                    self.backlog.set(backlog);
                }
            }
        }
        Some(())
    }

    /// Goes on under a new name. The refused batch goes along: it belongs to no epoch until the new name is greeted, and then to that one.
    async fn start_afresh(&self, holder: &Holder, mut refused: Journal) {
        let Some(entropy) = self.platform.entropy() else {
            return;
        };
        let fresh = Holder::new(entropy);
        refused.epoch = 0;
        // The batch before the name: whoever sees the name finds the batch.
        let (key, refused) = (journal_key(&fresh), refused.encode());
        if self.store.swap(&key, None, Some(&refused)).await == Ok(true) {
            self.replace_holder(holder, &fresh).await;
            self.platform.log(&format!(
                "the control plane refuses the journal of holder {}; goes on as {}",
                holder.id, fresh.id
            ));
        }
    }
}

/// How often in a row it is tried, where no call ends meanwhile.
const MAX_ROUNDS: u32 = 5;

/// The rounds on a platform without an alarm: of the calls that have ended one does them for all.
#[derive(Debug, Default)]
pub struct Rounds {
    /// Some call does them.
    going: Cell<bool>,
    /// A call has ended since the last one began.
    due: Cell<bool>,
}

impl Rounds {
    /// To be called when a call has ended: does rounds, one every [`ROUND_MS`], until the control plane has heard of every call that has ended by then,
    /// or does not take it. Does nothing where another call is at it.
    pub async fn after_a_call<P: Platform, S: Store>(&self, keeper: &Keeper<P, S>) {
        self.due.set(true);
        if self.going.replace(true) {
            return;
        }
        let mut left = MAX_ROUNDS;
        loop {
            self.due.set(false);
            keeper.round().await;
            let due = self.due.get();
            left = if due { MAX_ROUNDS } else { left - 1 };
            if left == 0 || !(due || keeper.owes().await) {
                break;
            }
            within(&keeper.platform, ROUND_MS, pending::<()>()).await;
        }
        self.going.set(false);
    }
}

fn journal_key(holder: &Holder) -> String {
    format!("{} journal", holder.id)
}

/// Says that something is under way, until it is over or was given up.
struct Busy<'a>(&'a Cell<bool>);

impl Busy<'_> {
    fn new(flag: &Cell<bool>) -> Busy<'_> {
        flag.set(true);
        Busy(flag)
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.set(false);
    }
}

/// A call that waits for a lease.
pub(super) struct Waiting {
    wants: Vec<Want>,
    wake: Option<oneshot::Sender<()>>,
}

/// Its place among those that do.
struct Waits<'a, P, S> {
    keeper: &'a Keeper<P, S>,
    number: u64,
}

impl<P, S> Waits<'_, P, S> {
    fn new<'a>(keeper: &'a Keeper<P, S>, wants: &[Want]) -> Waits<'a, P, S> {
        let number = keeper.waited.get();
        keeper.waited.set(number.wrapping_add(1));
        let waiting = Waiting {
            wants: wants.to_vec(),
            wake: None,
        };
        keeper.waiting.borrow_mut().insert(number, waiting);
        Waits { keeper, number }
    }

    /// Comes back with the next answer to a lease request, good or bad.
    fn answer(&self) -> oneshot::Receiver<()> {
        let (wake, answer) = oneshot::channel();
        if let Some(waiting) = self.keeper.waiting.borrow_mut().get_mut(&self.number) {
            waiting.wake = Some(wake);
        }
        answer
    }
}

impl<P, S> Drop for Waits<'_, P, S> {
    fn drop(&mut self) {
        self.keeper.waiting.borrow_mut().remove(&self.number);
    }
}
