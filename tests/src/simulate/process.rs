//! A simulated Envoy: what its workers share, and what each of them does.
//!
//! The same logic as in the Envoy filter, over the same engine. It is written as tasks that pause at every look at shared data, between
//! reading and writing, so that the scheduler can let another worker of the process come between.

use super::{Mutation, auditor::Promise, scenario::Fault, world::World};
use std::{
    cell::{Cell as Place, RefCell},
    collections::{BTreeMap, BTreeSet, VecDeque},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
};
use tollgate_engine::{
    decide::{Charge, Outcome},
    exchange::{CellOp, End, Exchange, Finished, Step, Want},
    facts::Headers,
    gate::{Config, Gate},
    lease::{Ask, MAX_ASKS},
    ledger::{Account, Cell, Op, Refusal, Span},
    time::Time,
    upkeep::{self, Delivery, Errand, Holder, Journal, Response, Upkeep},
};

/// How often a worker looks after its errands when nothing presses.
const TICK_MS: i64 = 1_000;
/// …while calls wait for a lease, or something is to go back before the next report.
const WAITING_TICK_MS: i64 = 10;
/// …when a call has just begun to wait.
const ASKING_TICK_MS: i64 = 1;
const GATHER_MS: i64 = 200;
const REPORT_EVERY_MS: i64 = 1_000;
const SIGN_OF_LIFE_EVERY_MS: i64 = 15_000;
const LEADER_TIMEOUT_MS: i64 = 2_000;

/// Something a worker does in one go, but for other workers of its process.
type Task = Pin<Box<dyn Future<Output = ()>>>;

/// Lets others go first.
async fn pause() {
    let mut paused = false;
    std::future::poll_fn(|_| {
        if std::mem::replace(&mut paused, true) {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    })
    .await;
}

/// What the workers of a process share: values with a version, and a queue. Gone when the process dies.
#[derive(Debug, Default)]
struct Shared {
    values: RefCell<BTreeMap<String, (u64, Vec<u8>)>>,
    records: RefCell<VecDeque<Vec<u8>>>,
    written: Place<u64>,
}

impl Shared {
    fn read(&self, key: &str) -> Option<Vec<u8>> {
        Some(self.values.borrow().get(key)?.1.clone())
    }

    fn write(&self, key: &str, value: Vec<u8>) {
        let version = self.written.get() + 1;
        self.written.set(version);
        self.values
            .borrow_mut()
            .insert(key.to_owned(), (version, value));
    }

    /// Reads, changes, and writes unless somebody else wrote meanwhile; then again. `wrote` runs in the instant of writing.
    async fn update<E>(
        &self,
        key: &str,
        mut change: impl FnMut(Option<&[u8]>) -> Result<Vec<u8>, E>,
        wrote: impl FnOnce(&[u8]),
    ) -> Result<Vec<u8>, E> {
        loop {
            let old = self.values.borrow().get(key).cloned();
            let new = change(old.as_ref().map(|(_, value)| value.as_slice()))?;
            pause().await;
            let version = |value: Option<&(u64, Vec<u8>)>| value.map(|(version, _)| *version);
            if version(self.values.borrow().get(key)) == version(old.as_ref()) {
                self.write(key, new.clone());
                wrote(&new);
                return Ok(new);
            }
        }
    }
}

/// One Envoy.
pub(super) struct Process {
    pub(super) number: usize,
    /// How often it has started.
    pub(super) life: Place<u64>,
    /// How far its clock is off.
    pub(super) skew_us: Place<i64>,
    pub(super) was_set_back: Place<bool>,
    /// The control plane is out of its reach until then.
    pub(super) cut_off_until_us: Place<i64>,
    pub(super) workers: RefCell<Vec<Rc<Worker>>>,
    shared: RefCell<Rc<Shared>>,
}

impl Process {
    pub(super) fn new(number: usize) -> Process {
        Process {
            number,
            life: Place::default(),
            skew_us: Place::default(),
            was_set_back: Place::default(),
            cut_off_until_us: Place::default(),
            workers: RefCell::default(),
            shared: RefCell::default(),
        }
    }

    pub(super) fn is_up(&self) -> bool {
        !self.workers.borrow().is_empty()
    }

    /// Who it is towards the control plane.
    pub(super) fn holder(&self) -> Option<Holder> {
        Holder::decode(&self.shared.borrow().read("holder")?)
    }

    /// Starts it with nothing but its configuration.
    pub(super) fn start(self: &Rc<Self>, world: &Rc<World>, config: &Config) {
        self.life.set(self.life.get() + 1);
        self.was_set_back.set(false);
        *self.shared.borrow_mut() = Rc::default();
        let workers = (0..2).map(|_| Worker::new(world, self, config)).collect();
        *self.workers.borrow_mut() = workers;
        for worker in self.workers.borrow().iter() {
            worker.set_tick(1);
        }
    }

    /// Kills it. Gives the calls that were on their way to the provider.
    pub(super) fn kill(&self, world: &World) -> Vec<CallSpec> {
        let workers = std::mem::take(&mut *self.workers.borrow_mut());
        let sent = workers.iter().flat_map(|worker| worker.kill()).collect();
        if let Some(holder) = self.holder() {
            let mut auditor = world.auditor.borrow_mut();
            auditor.process_died(&holder.id, self.number, self.life.get());
        }
        sent
    }

    /// Kills one worker's VM and loads it again. Gives the calls that were on their way to the provider.
    pub(super) fn kill_worker(
        self: &Rc<Self>,
        index: usize,
        world: &Rc<World>,
        config: &Config,
    ) -> Vec<CallSpec> {
        let fresh = Worker::new(world, self, config);
        let old = match self.workers.borrow_mut().get_mut(index) {
            Some(worker) => std::mem::replace(worker, Rc::clone(&fresh)),
            None => return Vec::new(),
        };
        fresh.set_tick(1);
        old.abandon();
        old.kill()
    }
}

/// What a caller asks for and what the provider will make of it.
#[derive(Clone, Debug)]
pub(super) struct CallSpec {
    pub(super) id: u64,
    pub(super) agent: usize,
    pub(super) body: Vec<u8>,
    /// What the provider counts of the body.
    pub(super) prompt_tokens: u64,
    /// What it will put out.
    pub(super) output_tokens: u64,
    pub(super) answer: Answered,
    pub(super) takes_us: i64,
    pub(super) leaves_after_us: Option<i64>,
}

/// How the provider answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answered {
    /// One JSON document.
    Json,
    /// Events, a word each, and the usage at the end.
    Stream,
    /// An error; nothing is billed.
    Error,
    /// It works and bills, and its answer is lost.
    Broken,
}

enum Stage {
    Waiting(Vec<Want>),
    Sent,
    Answered,
}

struct Call {
    spec: CallSpec,
    exchange: Exchange,
    stage: Stage,
    charges: Vec<Charge>,
    waited: bool,
}

enum Sent {
    Bundle,
    Leases(Rc<Holder>),
    Journal(Rc<Holder>, Journal),
}

/// One worker thread of an Envoy, with a VM of its own.
pub(super) struct Worker {
    /// Names its VM among all there ever were.
    pub(super) id: u64,
    world: Rc<World>,
    pub(super) process: Rc<Process>,
    life: u64,
    shared: Rc<Shared>,
    gate: RefCell<Gate>,
    upkeep: RefCell<Upkeep>,
    calls: RefCell<BTreeMap<u64, Call>>,
    /// Calls that are over and still settle.
    settling: RefCell<BTreeSet<u64>>,
    in_flight: RefCell<BTreeMap<u64, Sent>>,
    tasks: RefCell<VecDeque<Task>>,
    version: RefCell<Vec<u8>>,
    leads: Place<bool>,
    batch: RefCell<Option<Journal>>,
    sealed_ms: Place<Option<i64>>,
    reported_ms: Place<Option<i64>>,
    spoke_ms: Place<Option<i64>>,
    account: Place<usize>,
    /// Only the last tick that was set counts.
    ticks: Place<u64>,
    tick_at_ms: Place<i64>,
    dead: Place<bool>,
}

impl Worker {
    fn new(world: &Rc<World>, process: &Rc<Process>, config: &Config) -> Rc<Worker> {
        Rc::new(Worker {
            id: world.next_id(),
            world: Rc::clone(world),
            life: process.life.get(),
            shared: Rc::clone(&process.shared.borrow()),
            process: Rc::clone(process),
            gate: RefCell::new(Gate::new(config.clone())),
            upkeep: RefCell::default(),
            calls: RefCell::default(),
            settling: RefCell::default(),
            in_flight: RefCell::default(),
            tasks: RefCell::default(),
            version: RefCell::default(),
            leads: Place::default(),
            batch: RefCell::default(),
            sealed_ms: Place::default(),
            reported_ms: Place::default(),
            spoke_ms: Place::default(),
            account: Place::default(),
            ticks: Place::default(),
            tick_at_ms: Place::default(),
            dead: Place::default(),
        })
    }

    fn now(&self) -> Time {
        Time::from_micros(self.world.now_us() + self.process.skew_us.get())
    }

    /// A clock that never jumps.
    fn monotonic_ms(&self) -> i64 {
        self.world.now_us() / 1_000
    }

    fn kill(&self) -> Vec<CallSpec> {
        self.dead.set(true);
        self.tasks.borrow_mut().clear();
        let calls = std::mem::take(&mut *self.calls.borrow_mut());
        calls
            .into_values()
            .filter(|call| matches!(call.stage, Stage::Sent))
            .map(|call| call.spec)
            .collect()
    }

    fn abandon(&self) {
        let mut auditor = self.world.auditor.borrow_mut();
        for id in self.calls.borrow().keys().chain(&*self.settling.borrow()) {
            auditor.abandoned(*id);
        }
    }

    fn spawn(self: &Rc<Self>, task: impl Future<Output = ()> + 'static) {
        if self.dead.get() {
            return;
        }
        let idle = self.tasks.borrow().is_empty();
        self.tasks.borrow_mut().push_back(Box::pin(task));
        if idle {
            self.world.run_soon(self);
        }
    }

    /// Goes on with what it is doing, up to the next look at shared data.
    pub(super) fn run(self: &Rc<Self>) {
        let Some(mut task) = self.tasks.borrow_mut().pop_front() else {
            return;
        };
        let pending = task
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()))
            .is_pending();
        if pending {
            self.tasks.borrow_mut().push_front(task);
        }
        if !self.tasks.borrow().is_empty() {
            self.world.run_soon(self);
        }
    }

    fn tick_within(self: &Rc<Self>, after_ms: i64) {
        if self.tick_at_ms.get() > self.monotonic_ms() + after_ms {
            self.set_tick(after_ms);
        }
    }

    pub(super) fn set_tick(self: &Rc<Self>, after_ms: i64) {
        self.ticks.set(self.ticks.get() + 1);
        self.tick_at_ms.set(self.monotonic_ms() + after_ms);
        self.world.tick_at(self, self.ticks.get(), after_ms);
    }

    pub(super) fn ticked(self: &Rc<Self>, number: u64) {
        if number == self.ticks.get() {
            self.spawn(Rc::clone(self).tick());
        }
    }

    async fn tick(self: Rc<Self>) {
        let now = self.now();
        self.follow_bundle(now);
        let holder = self.look_up_holder().await;
        let leads = self.lead(now).await;
        if self.leads.replace(leads) != leads {
            *self.batch.borrow_mut() = None;
        }
        if leads {
            self.fetch_bundle(now);
            self.deliver_journal(&holder, now).await;
        }
        self.ask_for_leases(&holder, now).await;
        self.resume_waiting(now).await;
    }

    /// Who this process is; made up by whoever looks first.
    async fn look_up_holder(&self) -> Rc<Holder> {
        if let Some(holder) = self.process.holder() {
            return Rc::new(holder);
        }
        let made = Holder::new(self.world.entropy());
        let stored = self
            .shared
            .update(
                "holder",
                |old| old.map_or_else(|| Ok(made.encode()), |_| Err(())),
                |_| {},
            )
            .await;
        match stored {
            Ok(_) => Rc::new(made),
            Err(()) => Rc::new(self.process.holder().unwrap_or(made)),
        }
    }

    async fn replace_holder(&self, old: &Holder, new: &Holder) {
        let _ = self
            .shared
            .update(
                "holder",
                |stored| {
                    let same = stored.and_then(Holder::decode).as_ref() == Some(old);
                    if same { Ok(new.encode()) } else { Err(()) }
                },
                |_| {},
            )
            .await;
    }

    async fn lead(&self, now: Time) -> bool {
        let me = self.id;
        let read = |stored: &[u8]| -> Option<(u64, i64)> {
            let (id, beat) = stored.split_first_chunk::<8>()?;
            Some((
                u64::from_le_bytes(*id),
                i64::from_le_bytes(beat.try_into().ok()?),
            ))
        };
        self.shared
            .update(
                "leader",
                |old| match old.and_then(read) {
                    Some((id, beat))
                        if id != me
                            && now.millis().saturating_sub(beat).saturating_abs()
                                < LEADER_TIMEOUT_MS =>
                    {
                        Err(())
                    }
                    _ => Ok([me.to_le_bytes(), now.millis().to_le_bytes()].concat()),
                },
                |_| {},
            )
            .await
            .is_ok()
    }

    // Bundles.

    fn follow_bundle(&self, now: Time) {
        let Some(version) = self.shared.read("version") else {
            return;
        };
        if *self.version.borrow() == version {
            return;
        }
        if let Some(envelope) = self.shared.read("bundle") {
            let _ = self.gate.borrow_mut().install(&envelope, now);
        }
        *self.version.borrow_mut() = version;
    }

    fn fetch_bundle(self: &Rc<Self>, now: Time) {
        let errand = self
            .upkeep
            .borrow_mut()
            .next_bundle(&self.gate.borrow(), now);
        if let Some(errand) = errand {
            self.send(errand, Sent::Bundle);
        }
    }

    fn take_bundle(&self, response: Response<'_>, now: Time) {
        let entropy = self.world.bits();
        let envelope = self
            .upkeep
            .borrow_mut()
            .bundle_answered(response, now, entropy);
        let Some(envelope) = envelope else { return };
        self.follow_bundle(now);
        let installed = self.gate.borrow_mut().install(envelope, now);
        match installed {
            Ok(()) => {
                let version = self.gate.borrow().bundle().etag().unwrap_or_default();
                self.shared.write("bundle", envelope.to_vec());
                self.shared.write("version", version.into_bytes());
            }
            Err(_) => self.upkeep.borrow_mut().bundle_refused(now, entropy),
        }
    }

    // Errands.

    fn send(self: &Rc<Self>, errand: Errand, sent: Sent) {
        let token = self.world.next_id();
        self.in_flight.borrow_mut().insert(token, sent);
        self.world.send(self.process.number, self.id, token, errand);
    }

    pub(super) fn answered(self: &Rc<Self>, token: u64, status: u16, body: Vec<u8>) {
        if self.in_flight.borrow().contains_key(&token) {
            self.spawn(Rc::clone(self).take_answer(token, status, body));
        }
    }

    async fn take_answer(self: Rc<Self>, token: u64, status: u16, body: Vec<u8>) {
        let Some(sent) = self.in_flight.borrow_mut().remove(&token) else {
            return;
        };
        let now = self.now();
        let response = Response {
            status,
            body: &body,
        };
        match sent {
            Sent::Bundle => self.take_bundle(response, now),
            Sent::Leases(holder) => self.take_leases(&holder, response, now).await,
            Sent::Journal(holder, batch) => self.take_receipt(&holder, batch, response, now).await,
        }
    }

    // Cells.

    async fn apply(
        &self,
        holder: &Holder,
        change: &CellOp,
        call: Option<u64>,
        now: Time,
    ) -> Result<Cell, Refusal> {
        let key = cell_key(holder, &change.account);
        let mutation = self.world.mutation;
        let tell = |cell: &[u8]| {
            self.world.auditor.borrow_mut().cell_changed(
                &holder.id,
                &change.account,
                &change.op,
                call,
                &Cell::decode(cell),
            );
        };
        if let (Some(Mutation::NoReservation), Op::Reserve { .. }) = (mutation, &change.op) {
            let old = self.shared.read(&key);
            return change
                .op
                .apply(old.as_deref(), now)
                .map(|_| Cell::default());
        }
        self.shared
            .update(
                &key,
                |old| {
                    let mut op = change.op.clone();
                    if let (Op::Refill { grant, epoch }, Some(old)) = (&mut op, old)
                        && let Some(slot) = Cell::decode(old).slot(grant.window_start)
                    {
                        match mutation {
                            Some(Mutation::NoEpochCheck) => *epoch = slot.epoch.max(*epoch),
                            Some(Mutation::NoSequenceCheck) => {
                                grant.seq = grant.seq.max(slot.seq);
                            }
                            _ => {}
                        }
                    }
                    op.apply(old, now)
                },
                tell,
            )
            .await
            .map(|cell| Cell::decode(&cell))
    }

    async fn swap(
        &self,
        call: u64,
        changes: &[CellOp],
        now: Time,
    ) -> Result<Vec<u64>, (usize, Refusal)> {
        let holder = self.process.holder().ok_or((0, Refusal::NoLease))?;
        let mut taken = Vec::with_capacity(changes.len());
        for (place, change) in changes.iter().enumerate() {
            let cell = self
                .apply(&holder, change, Some(call), now)
                .await
                .map_err(|refusal| (place, refusal))?;
            taken.push(change.op.taken(&cell));
        }
        Ok(taken)
    }

    /// Changes that cannot be refused.
    async fn settle(self: &Rc<Self>, call: u64, changes: &[CellOp], now: Time) {
        for change in changes {
            if self.world.mutation == Some(Mutation::NoVoid) && matches!(change.op, Op::Void { .. })
            {
                continue;
            }
            let Some(holder) = self.process.holder() else {
                return;
            };
            match self.apply(&holder, change, Some(call), now).await {
                Ok(cell) => self.upkeep.borrow_mut().settled(&change.account, &cell),
                Err(refusal) => self.world.auditor.borrow_mut().broken(
                    Promise::ResolvedOnce,
                    format!("{:?} was refused: {refusal:?}", change.op),
                ),
            }
        }
        if self.upkeep.borrow().is_overfull() {
            self.tick_within(WAITING_TICK_MS);
        }
    }

    fn cell(&self, holder: &Holder, account: &Account) -> Cell {
        self.shared
            .read(&cell_key(holder, account))
            .map(|stored| Cell::decode(&stored))
            .unwrap_or_default()
    }

    fn accounts(&self, holder: &Holder) -> Vec<Account> {
        self.shared
            .read(&accounts_key(holder))
            .and_then(|stored| serde_json::from_slice(&stored).ok())
            .unwrap_or_default()
    }

    /// Takes the cell of a run away as soon as it may go, which hosts put off for ten minutes. A control plane that was put back asks for what
    /// gates have, and of what is gone it cannot be told: such runs keep theirs.
    async fn clear(&self, holder: &Holder, account: &Account, now: Time) {
        if self.world.scenario.has(Fault::Restore) {
            return;
        }
        let gone = |old: Option<&[u8]>| match old.map(Cell::decode) {
            Some(cell) if cell.is_done(now) => Ok(Cell::default().encode()),
            _ => Err(()),
        };
        let key = cell_key(holder, account);
        let _ = self.shared.update(&key, gone, |_| {}).await;
    }

    async fn enlist(&self, holder: &Holder, account: &Account) {
        let _ = self
            .shared
            .update(
                &accounts_key(holder),
                |old| {
                    let mut accounts: Vec<Account> = old
                        .and_then(|stored| serde_json::from_slice(stored).ok())
                        .unwrap_or_default();
                    if accounts.contains(account) {
                        return Err(());
                    }
                    accounts.push(account.clone());
                    serde_json::to_vec(&accounts).map_err(|_| ())
                },
                |_| {},
            )
            .await;
    }

    // Leases.

    async fn ask_for_leases(self: &Rc<Self>, holder: &Rc<Holder>, now: Time) {
        let passed = |since: &Place<Option<i64>>, limit| {
            since
                .get()
                .is_none_or(|since| self.monotonic_ms() - since >= limit)
        };
        let leads = self.leads.get();
        let waiting = self.wanted();
        let (urgent, due) = {
            let upkeep = self.upkeep.borrow();
            let urgent = !waiting.is_empty() && upkeep.leases_due(true, now);
            (urgent, upkeep.leases_due(false, now))
        };
        let overfull = self.upkeep.borrow_mut().take_overfull(now);
        let routine = leads && (due || (urgent && passed(&self.reported_ms, REPORT_EVERY_MS)));
        if !urgent && !routine && overfull.is_empty() {
            return;
        }
        let mut asks = Vec::new();
        if holder.epoch > 0 && urgent {
            for want in waiting.iter().take(MAX_ASKS) {
                asks.extend(self.ask_for_want(holder, want, now).await);
            }
        }
        if holder.epoch > 0 {
            for (account, span) in overfull.iter().take(MAX_ASKS.saturating_sub(asks.len())) {
                asks.extend(self.ask(holder, account, *span, 0, 0, now).await);
            }
        }
        if holder.epoch > 0 && routine {
            self.ask_routinely(holder, &mut asks, now).await;
            self.reported_ms.set(Some(self.monotonic_ms()));
        }
        let speak = leads && (holder.epoch == 0 || passed(&self.spoke_ms, SIGN_OF_LIFE_EVERY_MS));
        if asks.is_empty() && !speak {
            if routine && due {
                self.upkeep.borrow_mut().leases_idle(now);
            }
            return;
        }
        let request = upkeep::lease_request(&self.gate.borrow(), holder, asks);
        self.upkeep.borrow_mut().leases_sent(now);
        self.spoke_ms.set(Some(self.monotonic_ms()));
        self.send(request, Sent::Leases(Rc::clone(holder)));
    }

    fn wanted(&self) -> Vec<Want> {
        let mut wanted: BTreeMap<(Account, i64), Want> = BTreeMap::new();
        for call in self.calls.borrow().values() {
            let Stage::Waiting(wants) = &call.stage else {
                continue;
            };
            for want in wants {
                wanted
                    .entry((want.account.clone(), want.span.start))
                    .and_modify(|all| all.amount += want.amount)
                    .or_insert_with(|| want.clone());
            }
        }
        wanted.into_values().collect()
    }

    async fn ask_for_want(&self, holder: &Holder, want: &Want, now: Time) -> Option<Ask> {
        if !want.is_worth_asking(self.cell(holder, &want.account), now) {
            return None;
        }
        self.enlist(holder, &want.account).await;
        self.ask(holder, &want.account, want.span, 0, want.amount, now)
            .await
    }

    async fn ask_routinely(&self, holder: &Holder, asks: &mut Vec<Ask>, now: Time) {
        let accounts = self.accounts(holder);
        let start = self.account.get().checked_rem(accounts.len());
        for (number, account) in accounts
            .iter()
            .enumerate()
            .cycle()
            .skip(start.unwrap_or(0))
            .take(accounts.len())
        {
            let cell = self.cell(holder, account);
            let plan = self.upkeep.borrow().plan(&cell, now);
            if account.run.is_some() && plan.is_empty() {
                self.clear(holder, account, now).await;
            }
            for (span, wanted) in plan {
                if asks.len() < MAX_ASKS {
                    asks.extend(self.ask(holder, account, span, wanted, 0, now).await);
                    self.account.set(number);
                }
            }
        }
    }

    async fn ask(
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
        let cell = self.apply(holder, &change, None, now).await.ok()?;
        let slot = cell.slot(span.start)?;
        Some(upkeep::ask_for(account, slot, wanted, needed))
    }

    async fn take_leases(self: &Rc<Self>, holder: &Holder, response: Response<'_>, now: Time) {
        let entropy = self.world.bits();
        let answer = self.upkeep.borrow_mut().leases_answered(
            &self.gate.borrow(),
            holder,
            response,
            now,
            entropy,
        );
        let Some((refills, epoch)) = answer else {
            return;
        };
        for refill in &refills {
            let _ = self.apply(holder, refill, None, now).await;
        }
        if let Some(epoch) = epoch {
            let greeted = Holder {
                id: holder.id.clone(),
                epoch,
            };
            self.replace_holder(holder, &greeted).await;
        }
        self.resume_waiting(now).await;
    }

    // The journal.

    async fn deliver_journal(self: &Rc<Self>, holder: &Rc<Holder>, now: Time) {
        if holder.epoch == 0 {
            return;
        }
        if self.batch.borrow().is_none() {
            let batch = self.next_batch(holder, now).await;
            *self.batch.borrow_mut() = batch;
        }
        let due = {
            let batch = self.batch.borrow();
            batch.as_ref().and_then(|batch| {
                let errand =
                    self.upkeep
                        .borrow_mut()
                        .next_journal(&self.gate.borrow(), batch, now)?;
                Some((errand, batch.clone()))
            })
        };
        if let Some((errand, batch)) = due {
            self.send(errand, Sent::Journal(Rc::clone(holder), batch));
        }
    }

    fn current_journal(&self, stored: Option<&[u8]>, holder: &Holder, now: Time) -> Journal {
        let gate = self.gate.borrow();
        let mut journal = stored
            .and_then(Journal::decode)
            .unwrap_or_else(|| Journal::start(&gate.config.workspace, holder));
        if journal.epoch != holder.epoch {
            journal.move_to(&gate, holder, now);
        }
        journal
    }

    async fn next_batch(&self, holder: &Holder, now: Time) -> Option<Journal> {
        let key = journal_key(holder);
        let idle = self
            .current_journal(self.shared.read(&key).as_deref(), holder, now)
            .is_idle();
        let records = if idle { self.gathered()? } else { Vec::new() };
        let sealed = Place::new(false);
        let stored = self
            .shared
            .update(
                &key,
                |old| {
                    let mut journal = self.current_journal(old, holder, now);
                    sealed.set(journal.is_idle() && !records.is_empty());
                    if sealed.get() {
                        journal.seal(&self.gate.borrow(), holder, &records, 0, now);
                    }
                    if journal.is_idle() {
                        return Err(());
                    }
                    Ok(journal.encode())
                },
                |_| {},
            )
            .await;
        if !(sealed.get() && stored.is_ok()) {
            self.shared.records.borrow_mut().extend(records);
        }
        Journal::decode(&stored.ok()?)
    }

    fn gathered(&self) -> Option<Vec<Vec<u8>>> {
        let now_ms = self.monotonic_ms();
        if self
            .sealed_ms
            .get()
            .is_some_and(|sealed| now_ms - sealed < GATHER_MS)
        {
            return None;
        }
        let mut queue = self.shared.records.borrow_mut();
        let (mut records, mut bytes) = (Vec::new(), 0);
        while upkeep::batch_has_room(records.len(), bytes) {
            let Some(record) = queue.pop_front() else {
                break;
            };
            bytes += record.len();
            records.push(record);
        }
        if records.is_empty() {
            return None;
        }
        self.sealed_ms.set(Some(now_ms));
        Some(records)
    }

    async fn take_receipt(
        self: &Rc<Self>,
        holder: &Rc<Holder>,
        sent: Journal,
        response: Response<'_>,
        now: Time,
    ) {
        let mut after = sent.clone();
        let entropy = self.world.bits();
        let delivery = self.upkeep.borrow_mut().journal_answered(
            &self.gate.borrow(),
            &mut after,
            response,
            now,
            entropy,
        );
        match delivery {
            Delivery::Acknowledged => {
                let before = sent.encode();
                let _ = self
                    .shared
                    .update(
                        &journal_key(holder),
                        |old| {
                            if old == Some(before.as_slice()) {
                                Ok(after.encode())
                            } else {
                                Err(())
                            }
                        },
                        |_| {},
                    )
                    .await;
                *self.batch.borrow_mut() = None;
                if self.leads.get() {
                    let holder = self.look_up_holder().await;
                    self.deliver_journal(&holder, now).await;
                }
            }
            Delivery::Later => {}
            Delivery::Refused => {
                self.world.auditor.borrow_mut().refused(response.status);
                let fresh = Holder::new(self.world.entropy());
                let mut refused = sent;
                refused.epoch = 0;
                self.shared.write(&journal_key(&fresh), refused.encode());
                self.replace_holder(holder, &fresh).await;
                *self.batch.borrow_mut() = None;
            }
        }
    }

    // Calls.

    /// A call arrives.
    pub(super) fn call(self: &Rc<Self>, spec: CallSpec) {
        self.spawn(Rc::clone(self).begin(spec));
    }

    async fn begin(self: Rc<Self>, spec: CallSpec) {
        let now = self.now();
        self.follow_bundle(now);
        let token = format!("Bearer {}", self.world.token(spec.agent));
        let length = spec.body.len().to_string();
        let run = format!("r{}", spec.id % 3);
        let headers: [(&[u8], &[u8]); 8] = [
            (b":method", b"POST"),
            (b":path", b"/v1/chat/completions"),
            (b":authority", b"api.openai.com"),
            (b":scheme", b"http"),
            (b"content-type", b"application/json"),
            (b"content-length", length.as_bytes()),
            (b"authorization", token.as_bytes()),
            (b"x-tollgate-run", run.as_bytes()),
        ];
        let (exchange, step) = Exchange::begin(
            &mut self.gate.borrow_mut(),
            Headers(&headers),
            true,
            now,
            u128::from(spec.id),
        );
        let id = spec.id;
        let call = Call {
            spec,
            exchange,
            stage: Stage::Answered,
            charges: Vec::new(),
            waited: false,
        };
        self.calls.borrow_mut().insert(id, call);
        self.carry_out(id, step, now).await;
    }

    fn with_call<R>(&self, id: u64, use_it: impl FnOnce(&mut Call) -> R) -> Option<R> {
        self.calls.borrow_mut().get_mut(&id).map(use_it)
    }

    async fn carry_out(self: &Rc<Self>, id: u64, first: Step, now: Time) {
        let mut next = Some(first);
        while let Some(step) = next.take() {
            match step {
                Step::NeedBody { .. } => {
                    next = self.with_call(id, |call| {
                        let body = call.spec.body.clone();
                        let mut gate = self.gate.borrow_mut();
                        call.exchange.body(&mut gate, &body, now)
                    });
                }
                Step::Swap(changes) => {
                    self.with_call(id, |call| {
                        call.charges = call.exchange.decision().charges.clone();
                    });
                    let result = self.swap(id, &changes, now).await;
                    next = self.with_call(id, |call| {
                        call.exchange
                            .swapped(&mut self.gate.borrow_mut(), result, now)
                    });
                }
                Step::AwaitLease { undo, wants, .. } => {
                    self.settle(id, &undo, now).await;
                    let asks = !wants.is_empty();
                    let before = self.with_call(id, |call| {
                        call.stage = Stage::Waiting(wants);
                        let before = call.waited;
                        call.waited |= asks;
                        before
                    });
                    if asks && before == Some(false) {
                        self.world.waits();
                    }
                    self.set_tick(ASKING_TICK_MS);
                }
                Step::Forward(_) => {
                    let sent = self.with_call(id, |call| {
                        call.stage = Stage::Sent;
                        (call.spec.clone(), call.charges.clone())
                    });
                    if let Some((spec, charges)) = sent {
                        self.world.forwarded(self, &spec, &charges);
                    }
                }
                Step::Reply { undo, .. } => {
                    self.settle(id, &undo, now).await;
                    self.with_call(id, |call| call.stage = Stage::Answered);
                    self.finish(id, End::Complete, now).await;
                }
            }
        }
    }

    async fn resume_waiting(self: &Rc<Self>, now: Time) {
        let waiting: Vec<u64> = self
            .calls
            .borrow()
            .iter()
            .filter(|(_, call)| matches!(call.stage, Stage::Waiting(_)))
            .map(|(id, _)| *id)
            .collect();
        for id in waiting {
            if let Some(step) = self.with_call(id, |call| call.exchange.retry()) {
                self.carry_out(id, step, now).await;
            }
        }
        let pressing = self
            .calls
            .borrow()
            .values()
            .any(|call| matches!(call.stage, Stage::Waiting(_)));
        let pressing = pressing || self.upkeep.borrow().is_overfull();
        self.set_tick(if pressing { WAITING_TICK_MS } else { TICK_MS });
    }

    /// The provider has answered, as it was going to.
    pub(super) fn upstream_answered(self: &Rc<Self>, id: u64) {
        self.spawn(Rc::clone(self).respond(id));
    }

    async fn respond(self: Rc<Self>, id: u64) {
        let now = self.now();
        let end = self.with_call(id, |call| {
            let gate = self.gate.borrow();
            let spec = call.spec.clone();
            match spec.answer {
                Answered::Broken => return (End::UpstreamBroken, spec),
                Answered::Error => {
                    call.exchange
                        .response_head(Headers(&[(b":status", b"500")]));
                    call.exchange.response_chunk(&gate, b"", true);
                }
                Answered::Json => {
                    let body = format!(
                        r#"{{"model":"m","choices":[{{"message":{{"content":"x"}}}}],"usage":{{"prompt_tokens":{},"completion_tokens":{},"total_tokens":{}}}}}"#,
                        spec.prompt_tokens, spec.output_tokens, spec.prompt_tokens + spec.output_tokens
                    );
                    call.exchange.response_head(Headers(&[
                        (b":status", b"200"),
                        (b"content-type", b"application/json"),
                    ]));
                    call.exchange.response_chunk(&gate, body.as_bytes(), true);
                }
                Answered::Stream => {
                    stream(&gate, &mut call.exchange, spec.output_tokens);
                    let usage = format!(
                        "data: {{\"choices\":[],\"usage\":{{\"prompt_tokens\":{},\"completion_tokens\":{}}}}}\n\ndata: [DONE]\n\n",
                        spec.prompt_tokens, spec.output_tokens
                    );
                    call.exchange.response_chunk(&gate, usage.as_bytes(), true);
                }
            }
            (End::Complete, spec)
        });
        if let Some((end, spec)) = end {
            self.world.billed(&spec, spec.output_tokens);
            self.finish(id, end, now).await;
        }
    }

    /// The caller goes away, after `words` of the answer.
    pub(super) fn client_left(self: &Rc<Self>, id: u64, words: u64) {
        self.spawn(Rc::clone(self).leave(id, words));
    }

    async fn leave(self: Rc<Self>, id: u64, words: u64) {
        let now = self.now();
        let sent = self.with_call(id, |call| {
            let sent = matches!(call.stage, Stage::Sent);
            if sent {
                stream(&self.gate.borrow(), &mut call.exchange, words);
            }
            sent.then(|| call.spec.clone())
        });
        if let Some(spec) = sent.flatten() {
            // It stops when nobody listens, and bills what it has sent.
            self.world.billed(&spec, words.min(spec.output_tokens));
        }
        self.finish(id, End::ClientLeft, now).await;
    }

    /// How many calls it has.
    pub(super) fn open_calls(&self) -> usize {
        self.calls.borrow().len()
    }

    async fn finish(self: &Rc<Self>, id: u64, end: End, now: Time) {
        let Some(call) = self.calls.borrow_mut().remove(&id) else {
            return;
        };
        let decision = call.exchange.decision().clone();
        let Finished { ops, record, .. } = call.exchange.finish(end, now);
        // As long as it settles, a VM that dies takes the reservations along.
        self.settling.borrow_mut().insert(id);
        self.settle(id, &ops, now).await;
        self.settling.borrow_mut().remove(&id);
        self.shared.records.borrow_mut().push_back(record.clone());
        self.world
            .auditor
            .borrow_mut()
            .recorded(&record, self.process.number, self.life);
        if decision.outcome == Outcome::Deny {
            self.world
                .denied(self, &call.spec, &decision.reasons, &call.charges);
        } else {
            self.world.allowed(&call.spec);
        }
    }
}

fn stream(gate: &Gate, exchange: &mut Exchange, words: u64) {
    exchange.response_head(Headers(&[
        (b":status", b"200"),
        (b"content-type", b"text/event-stream"),
    ]));
    for _ in 0..words {
        exchange.response_chunk(
            gate,
            b"data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"word \"}}]}\n\n",
            false,
        );
    }
}

fn cell_key(holder: &Holder, account: &Account) -> String {
    format!("{} {}", holder.id, account.cell_key())
}

fn accounts_key(holder: &Holder) -> String {
    format!("{} accounts", holder.id)
}

fn journal_key(holder: &Holder) -> String {
    format!("{} journal", holder.id)
}
