//! What the calls of one Envoy thread share.

use crate::{
    call::Call,
    errands::Errands,
    host,
    metrics::Metrics,
    root::TICK_MS,
    store::{self, Store},
};
use proxy_wasm::types::LogLevel;
use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    mem,
    rc::Rc,
};
use tollgate_engine::{
    bundle::InstallError, exchange::CellOp, gate::Gate, ledger::Refusal, time::Time, upkeep::Holder,
};

/// Bytes of records that may wait for the journal, in Envoy's memory: 64 MiB. A record has 1 KiB at most unless its caller means ill, so at 1,000
/// calls a second this is a minute without the control plane. Beyond it records are dropped, counted and reported.
const MAX_BACKLOG_BYTES: u64 = 64 << 20;

/// Records that a VM gathers before it hands them over; it does so at every tick anyway. Each handing over wakes another thread, which
/// costs more than all else about a record. What has gathered is lost with the VM, as the records of the calls under way in it are.
pub(crate) const GATHERED_RECORDS: usize = 32;
/// …or bytes, before the last of them: 16 pieces fit into a batch.
pub(crate) const GATHERED_BYTES: usize = 64 << 10;

/// Records on their way to the queue.
#[derive(Default)]
struct Gathering {
    /// Each a line, without the last line's end.
    lines: Vec<u8>,
    records: usize,
}

/// Ticks while calls wait for a lease that another worker has asked for, or something is to go back before the next report; milliseconds.
const WAITING_TICK_MS: u32 = 10;
/// The tick that asks for a lease, or ends a stream. What a stream asks itself ends with the stream, and its root can only act in a callback of
/// its own; what other calls want by then goes into the same request.
const ASKING_TICK_MS: u32 = 1;

pub(crate) struct Worker {
    root: u32,
    gate: RefCell<Gate>,
    pub(crate) store: Store,
    pub(crate) metrics: Metrics,
    pub(crate) errands: Errands,
    holder: RefCell<Option<Rc<Holder>>>,
    /// Of the bundle last looked at, installed or refused.
    seen_revision: Cell<u64>,
    gathering: RefCell<Gathering>,
    records: Cell<Option<u32>>,
    waiting: RefCell<BTreeMap<u32, Rc<RefCell<Call>>>>,
    /// Streams whose last event has been written…
    ending: RefCell<Vec<u32>>,
    /// …and sent.
    ended: RefCell<Vec<u32>>,
    tick_ms: Cell<u32>,
}

impl Worker {
    pub(crate) fn new(
        root: u32,
        id: u128,
        gate: Gate,
        control_plane_cluster: String,
        control_plane_authority: String,
    ) -> Worker {
        let (workspace, channel) = (&gate.config.workspace, &gate.config.channel);
        Worker {
            root,
            store: Store::new(workspace, channel),
            metrics: Metrics::new(workspace, channel),
            gate: RefCell::new(gate),
            errands: Errands::new(id, control_plane_cluster, control_plane_authority),
            holder: RefCell::default(),
            seen_revision: Cell::default(),
            gathering: RefCell::default(),
            records: Cell::default(),
            waiting: RefCell::default(),
            ending: RefCell::default(),
            ended: RefCell::default(),
            tick_ms: Cell::new(TICK_MS),
        }
    }

    /// Lends the gate out. `use_it` must not come back to the worker for it.
    pub(crate) fn with_gate<R>(&self, use_it: impl FnOnce(&mut Gate) -> R) -> R {
        use_it(&mut self.gate.borrow_mut())
    }

    /// Runs the newest bundle that any worker has stored. Called before every decision, so that all workers go over to it at once.
    pub(crate) fn follow_bundle(&self, now: Time) {
        let revision = self.metrics.bundle_revision.value();
        if self.seen_revision.get() == revision {
            return;
        }
        if let Some(envelope) = store::read(&self.store.bundle) {
            // A refusal is counted; it is not looked at again until there is another revision.
            let _ = self.install(&envelope, now);
        }
        self.seen_revision.set(revision);
    }

    /// Has all workers run the bundle that was just installed here.
    pub(crate) fn share_bundle(&self, envelope: &[u8]) -> bool {
        // The bundle before its number: who sees the number finds the bundle.
        let stored = host::set_shared(&self.store.bundle, envelope, 0).is_ok();
        if stored {
            let revision = self.with_gate(|gate| gate.bundle().revision());
            self.seen_revision.set(revision);
            let shown = i64::try_from(revision).unwrap_or(i64::MAX);
            self.metrics.bundle_revision.record(shown);
        }
        stored
    }

    /// Has the gate verify and run a bundle.
    pub(crate) fn install(&self, envelope: &[u8], now: Time) -> Result<(), InstallError> {
        let mut gate = self.gate.borrow_mut();
        let before = gate.bundle().revision();
        let began = host::now();
        let installed = gate.install(envelope, now);
        let took_us = host::now().micros().saturating_sub(began.micros());
        let revision = gate.bundle().revision();
        match installed {
            Ok(()) if revision != before => {
                self.metrics.bundle_install_us.record(took_us);
                let line = format!("runs bundle revision {revision}");
                host::log(LogLevel::Info, &line);
            }
            Ok(()) => {}
            Err(why) => {
                self.metrics.bundle_refused(why.name());
                let line = format!("keeps bundle revision {revision}; what came was {why}");
                host::log(LogLevel::Warn, &line);
            }
        }
        installed
    }

    /// Who this process is towards the control plane, as of the last tick.
    pub(crate) fn holder(&self) -> Option<Rc<Holder>> {
        let known = self.holder.borrow().clone();
        known.or_else(|| self.look_up_holder())
    }

    /// …as of now.
    pub(crate) fn look_up_holder(&self) -> Option<Rc<Holder>> {
        let holder = self.store.holder().map(Rc::new);
        self.holder.borrow_mut().clone_from(&holder);
        holder
    }

    /// Applies changes in order, up to the first that is refused; gives what was taken by then, or the place of that one.
    pub(crate) fn swap(&self, changes: &[CellOp], now: Time) -> Result<Vec<u64>, (usize, Refusal)> {
        if changes.is_empty() {
            return Ok(Vec::new());
        }
        let holder = self.holder().ok_or((0, Refusal::NoLease))?;
        let cells = self.store.apply(&holder, changes, now)?;
        let cells = changes.iter().zip(&cells);
        Ok(cells.map(|(change, cell)| change.op.taken(cell)).collect())
    }

    /// Applies changes that cannot be refused. Should the store fail, the reservation stays until its window ends: too little is spent
    /// then, never too much.
    pub(crate) fn settle(&self, changes: &[CellOp], now: Time) {
        if changes.is_empty() {
            return;
        }
        let cells = match self.holder() {
            Some(holder) => self.store.apply_each(&holder, changes, now),
            None => vec![None; changes.len()],
        };
        for (CellOp { account, .. }, cell) in changes.iter().zip(cells) {
            match cell {
                Some(cell) => self.errands.settled(account, &cell),
                None => {
                    self.metrics.host_errors.add(1);
                    host::log(LogLevel::Error, &format!("could not settle on {account}"));
                }
            }
        }
    }

    /// Takes a record for the journal.
    pub(crate) fn record(&self, record: &[u8]) {
        let mut gathering = self.gathering.borrow_mut();
        if gathering.records > 0 {
            gathering.lines.push(b'\n');
        }
        gathering.lines.extend_from_slice(record);
        gathering.records += 1;
        if gathering.records >= GATHERED_RECORDS || gathering.lines.len() >= GATHERED_BYTES {
            drop(gathering);
            self.hand_over_records();
        }
    }

    /// Hands what has gathered to whoever seals the journal, in one piece. From then on a crash of this VM cannot lose it.
    pub(crate) fn hand_over_records(&self) {
        let Gathering { lines, records } = mem::take(&mut *self.gathering.borrow_mut());
        if records == 0 {
            return;
        }
        let count = i64::try_from(records).unwrap_or(i64::MAX);
        let metrics = &self.metrics;
        if metrics.journal_backlog_bytes.value() < MAX_BACKLOG_BYTES
            && self.enqueue_records(&lines, count)
        {
            metrics.journal_enqueued.add(count);
        } else {
            metrics.journal_dropped.add(count);
            metrics.journal_unreported.add(count);
        }
    }

    /// Puts a piece of so many records into the queue.
    pub(crate) fn enqueue_records(&self, lines: &[u8], count: i64) -> bool {
        // Before the records themselves, so that whoever takes them out cannot count below zero.
        self.metrics.count_backlog(lines, count);
        let enqueued = self
            .records()
            .is_some_and(|queue| host::enqueue(queue, lines).is_ok());
        if !enqueued {
            self.metrics.count_backlog(lines, -count);
        }
        enqueued
    }

    /// The queue of records.
    pub(crate) fn records(&self) -> Option<u32> {
        if self.records.get().is_none() {
            self.records.set(host::queue(&self.store.records).ok());
        }
        self.records.get()
    }

    /// Keeps a paused call until there is a lease, or its time is over.
    pub(crate) fn wait_for_lease(&self, context: u32, call: Rc<RefCell<Call>>) {
        self.waiting.borrow_mut().insert(context, call);
        self.set_tick(ASKING_TICK_MS);
    }

    /// The call is over; if it waited, nobody waits any more.
    pub(crate) fn forget(&self, context: u32) {
        self.waiting.borrow_mut().remove(&context);
    }

    /// Ends a stream at the tick after the next: by then Envoy has sent its last bytes. In the callback that wrote them they would go with it, and
    /// on a thread that was kept from running the next tick may come before they are sent.
    pub(crate) fn end_soon(&self, context: u32) {
        let mut ending = self.ending.borrow_mut();
        if !ending.contains(&context) {
            ending.push(context);
            self.set_tick(ASKING_TICK_MS);
            // What follows in this callback is the stream's again.
            let _ = host::act_as(context);
        }
    }

    /// Ends the streams that are to end.
    pub(crate) fn end_streams(&self) {
        let sent = mem::take(&mut *self.ending.borrow_mut());
        for context in self.ended.replace(sent) {
            if host::act_as(context).is_ok() && host::end_stream().is_err() {
                self.metrics.host_errors.add(1);
            }
        }
        let _ = host::act_as(self.root);
    }

    /// Has the control plane told soon of what calls have left over, if that is much. What follows in this callback is not the stream's any more.
    pub(crate) fn give_back_soon(&self) {
        if self.errands.is_overfull() && self.tick_ms.get() > WAITING_TICK_MS {
            self.set_tick(WAITING_TICK_MS);
        }
    }

    /// The calls that wait.
    pub(crate) fn waiting(&self) -> Vec<Rc<RefCell<Call>>> {
        self.waiting.borrow().values().cloned().collect()
    }

    /// Tries every waiting call again, oldest first.
    pub(crate) fn resume_waiting(&self, now: Time) {
        let waiting = mem::take(&mut *self.waiting.borrow_mut());
        for (context, call) in waiting {
            if host::act_as(context).is_err() {
                continue;
            }
            if call.borrow_mut().resume(now) {
                self.waiting.borrow_mut().insert(context, call);
            }
        }
        // What follows in this callback is the root's own again.
        let _ = host::act_as(self.root);
        let pressing = !self.waiting.borrow().is_empty() || self.errands.is_overfull();
        self.set_tick(match pressing {
            _ if !self.ended.borrow().is_empty() => ASKING_TICK_MS,
            true => WAITING_TICK_MS,
            false => TICK_MS,
        });
    }

    fn set_tick(&self, tick_ms: u32) {
        // Also from a stream's callback: the timer is the root's.
        if self.tick_ms.get() != tick_ms
            && host::act_as(self.root).is_ok()
            && host::set_tick_period(tick_ms).is_ok()
        {
            self.tick_ms.set(tick_ms);
        }
    }
}
