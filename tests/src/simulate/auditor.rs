//! The auditor: a model so simple that it can be checked by reading, fed with what really happened.
//!
//! It shares no code with what it watches. It knows what the provider was asked and what it billed, what the control plane signed, which
//! changes of cells took place, and which records were made and stored; it is never put back to an earlier state.

use super::scenario::Limits;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use tollgate_engine::{
    decide::Charge,
    journal::Batch,
    lease::{Answer, Request},
    ledger::{Account, Cell, Op, Span},
};

/// A promise that a run may break.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Promise {
    /// What the provider billed and may still bill for calls under way stays within the limit.
    NoOverspend,
    /// Nothing is spent that was not leased.
    WithinLeases,
    /// The control plane leases out no more than the limit in force.
    WithinLimit,
    /// A gate believes no more than it was granted.
    BelievedIsGranted,
    /// A message that comes again changes nothing.
    ReplayChangesNothing,
    /// Every reservation is settled or given back, once.
    ResolvedOnce,
    /// Journals arrive without gap, fork or repetition.
    JournalWhole,
    /// What was recorded by a gate that lives arrives.
    JournalArrives,
    /// After things have calmed down, what is left of a limit can be spent.
    NoStarvation,
    /// A gate that reaches the control plane gets its leases.
    Served,
}

/// A promise broken.
#[derive(Clone, Debug)]
pub struct Violation {
    /// Which.
    pub promise: Promise,
    /// At which step.
    pub step: u64,
    /// How.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "step {}: {:?}: {}", self.step, self.promise, self.what)
    }
}

/// An account in one of its windows.
type Window = (Account, i64);
/// A holder in one of its epochs.
type Tenure = (String, u64);

/// Where the model keeps what it knows of an account. A run's cells begin when their gates first hear of it, and are all of one run.
fn window(account: &Account, start: i64) -> Window {
    let start = match account.run {
        Some(_) => Span::RUN.start,
        None => start,
    };
    (account.clone(), start)
}

/// Who holds what was leased to a cell. Each cell of a run has what was leased to it, and a later one of the same gate has none of that.
fn tenure(holder: &str, epoch: u64, account: &Account, start: i64) -> Tenure {
    let holder = match account.run {
        Some(_) => format!("{holder} {start}"),
        None => holder.to_owned(),
    };
    (holder, epoch)
}

/// What the provider knows of one account and window.
#[derive(Clone, Copy, Debug, Default)]
struct Truth {
    /// Billed.
    spent: u64,
    /// The most that calls under way may still be billed.
    outstanding: u64,
    /// The largest limit in force since it was first spent from or leased.
    peak: u64,
    /// What a restore made the control plane forget, and nobody alive reminded it of in time.
    written_off: u64,
}

/// What a holder was signed in one epoch.
#[derive(Clone, Copy, Debug, Default)]
struct Right {
    /// The most that was ever signed; the rest is cut to what a restored control plane has learned.
    signed: u64,
    granted: u64,
    /// Given back, as the control plane has been told.
    returned: u64,
    settled: u64,
    seq: u64,
    /// What the control plane has down: the same, unless it was restored.
    down: Amounts,
}

/// What was granted, given back and used.
#[derive(Clone, Copy, Debug, Default)]
struct Amounts {
    granted: u64,
    returned: u64,
    settled: u64,
}

impl Amounts {
    fn taken(&self) -> u64 {
        self.granted.saturating_sub(self.returned).max(self.settled)
    }
}

impl Right {
    fn taken(&self) -> u64 {
        self.granted.saturating_sub(self.returned).max(self.settled)
    }
}

/// A journal as it was acknowledged.
#[derive(Clone, Debug, Default)]
struct Shelf {
    next_seq: u64,
    batches: BTreeSet<Vec<u8>>,
}

/// The model.
#[derive(Debug)]
pub(super) struct Auditor {
    pub(super) step: u64,
    pub(super) grants: u64,
    limits: Limits,
    truths: BTreeMap<Window, Truth>,
    calls: BTreeMap<u64, Vec<Charge>>,
    rights: BTreeMap<Window, BTreeMap<Tenure, Right>>,
    backup: BTreeMap<Window, BTreeMap<Tenure, Right>>,
    /// By holder, window and call.
    reservations: BTreeMap<(String, Window), BTreeMap<u64, u64>>,
    /// What holders settled, by epoch.
    used: BTreeMap<(Tenure, Window), u64>,
    abandoned: BTreeSet<u64>,
    shelves: BTreeMap<Tenure, Shelf>,
    /// Records made and not yet stored, with the process that made them.
    recorded: BTreeMap<String, (usize, u64)>,
    stored: BTreeSet<String>,
    pub(super) violations: Vec<Violation>,
    pub(super) first_refusal: Option<(u64, u64)>,
    pub(super) most_kept: u64,
    pub(super) most_at_risk: u64,
}

/// Violations kept of a run. The first few say all there is to say.
const MAX_VIOLATIONS: usize = 16;

impl Auditor {
    pub(super) fn new(limits: Limits) -> Auditor {
        Auditor {
            step: 0,
            grants: 0,
            limits,
            truths: BTreeMap::new(),
            calls: BTreeMap::new(),
            rights: BTreeMap::new(),
            backup: BTreeMap::new(),
            reservations: BTreeMap::new(),
            used: BTreeMap::new(),
            abandoned: BTreeSet::new(),
            shelves: BTreeMap::new(),
            recorded: BTreeMap::new(),
            stored: BTreeSet::new(),
            violations: Vec::new(),
            first_refusal: None,
            most_kept: 0,
            most_at_risk: 0,
        }
    }

    /// A budget does not cover a call.
    pub(super) fn refused_by(&mut self, charge: &Charge) {
        let window = window(&charge.account, charge.span.start);
        let truth = *self.truth(&window);
        self.first_refusal
            .get_or_insert((truth.spent + truth.outstanding, charge.limit));
    }

    pub(super) fn broken(&mut self, promise: Promise, what: String) {
        if self.violations.len() < MAX_VIOLATIONS {
            self.violations.push(Violation {
                promise,
                step: self.step,
                what,
            });
        }
    }

    /// Somebody changed the policy.
    pub(super) fn limits_changed(&mut self, limits: Limits) {
        self.limits = limits;
        for ((account, _), truth) in &mut self.truths {
            truth.peak = truth.peak.max(limits.on(account).unwrap_or(u64::MAX));
        }
    }

    fn truth(&mut self, window: &Window) -> &mut Truth {
        let limit = self.limits.on(&window.0).unwrap_or(u64::MAX);
        self.truths.entry(window.clone()).or_insert(Truth {
            peak: limit,
            ..Truth::default()
        })
    }

    fn taken(&self, window: &Window) -> u64 {
        let rights = self.rights.get(window);
        rights.map_or(0, |rights| rights.values().map(Right::taken).sum())
    }

    /// A call went out to the provider.
    pub(super) fn forwarded(&mut self, call: u64, charges: &[Charge]) {
        for charge in charges {
            let window = (charge.account.clone(), charge.span.start);
            let truth = self.truth(&window);
            truth.outstanding += charge.amount;
            self.check_spending(&window);
        }
        self.calls.insert(call, charges.to_vec());
    }

    /// The provider billed a call; `used` in the unit of a charge.
    pub(super) fn billed(&mut self, call: u64, used: impl Fn(&Charge) -> u64) {
        for charge in self.calls.remove(&call).unwrap_or_default() {
            let window = (charge.account.clone(), charge.span.start);
            let used = used(&charge);
            assert!(
                used <= charge.amount,
                "the simulated provider billed {used} where {} was the worst case",
                charge.amount
            );
            let truth = self.truth(&window);
            truth.outstanding -= charge.amount;
            truth.spent += used;
            self.check_spending(&window);
        }
    }

    fn check_spending(&mut self, window: &Window) {
        let taken = self.taken(window);
        let truth = *self.truth(window);
        let at_most = truth.spent + truth.outstanding;
        if at_most > truth.peak.saturating_add(truth.written_off) {
            self.broken(
                Promise::NoOverspend,
                format!(
                    "{} from {}: {} billed and {} under way; the limit was never more than {}",
                    window.0, window.1, truth.spent, truth.outstanding, truth.peak
                ),
            );
        }
        if at_most > taken.saturating_add(truth.written_off) {
            self.broken(
                Promise::WithinLeases,
                format!(
                    "{} from {}: {} billed and {} under way, {taken} leased",
                    window.0, window.1, truth.spent, truth.outstanding
                ),
            );
        }
    }

    /// The control plane committed an answer to a lease request, whether or not anybody reads it.
    pub(super) fn leased(&mut self, request: &Request, answer: &Answer) {
        for grant in &answer.grants {
            let window = window(&grant.account, grant.window_start);
            let Some(ask) = request
                .asks
                .iter()
                .find(|ask| ask.account == grant.account && ask.window_start == grant.window_start)
            else {
                self.broken(
                    Promise::WithinLimit,
                    format!("{} granted unasked", window.0),
                );
                continue;
            };
            self.truth(&window);
            let tenure = tenure(
                &answer.holder,
                answer.epoch,
                &grant.account,
                grant.window_start,
            );
            let rights = self.rights.entry(window.clone()).or_default();
            let right = rights.entry(tenure).or_default();
            let before = *right;
            let fresh = ask.seq > before.seq;
            // What the holder itself says it was granted is no grant: a restored control plane takes it down.
            let told = if ask.epoch == answer.epoch {
                ask.granted
            } else {
                0
            };
            let more = grant.granted.saturating_sub(before.granted.max(told));
            right.signed = before.signed.max(grant.granted);
            right.granted = before.granted.max(grant.granted);
            right.returned = before.returned.max(grant.returned);
            right.settled = before.settled.max(grant.settled);
            right.seq = before.seq.max(ask.seq);
            // Had it died just after it was answered, and just before it reported. Calls wait for what it wants, and are about to use it.
            let waited_for = if ask.ahead { 0 } else { ask.want };
            let idle = |right: &Right, needed: u64| {
                let held = right.granted.saturating_sub(right.returned);
                held.saturating_sub(ask.settled + ask.reserved + needed)
            };
            if let Some(limit) = self.limits.on(&window.0).filter(|limit| *limit > 0)
                && ask.epoch == answer.epoch
                && fresh
            {
                let part = |amount: u64| amount * 1_000 / limit;
                let (kept, at_risk) = (part(idle(right, waited_for)), part(idle(&before, 0)));
                self.most_kept = self.most_kept.max(kept);
                self.most_at_risk = self.most_at_risk.max(at_risk);
            }
            right.down = Amounts {
                granted: grant.granted,
                returned: grant.returned,
                settled: grant.settled,
            };
            if !fresh && grant.granted > before.granted {
                self.broken(
                    Promise::ReplayChangesNothing,
                    format!(
                        "{} of {}: ask {} again, and {} became {}",
                        window.0, answer.holder, ask.seq, before.granted, grant.granted
                    ),
                );
            }
            if more > 0 {
                self.grants += 1;
                let taken = self.taken(&window);
                let limit = self.limits.on(&window.0).unwrap_or(0);
                if taken > limit {
                    let shares = self.shares(&window.0, window.1);
                    self.broken(
                        Promise::WithinLimit,
                        format!(
                            "{} from {}: {more} more for {} makes {taken} leased, and the limit is {limit}:{shares}",
                            window.0, window.1, answer.holder
                        ),
                    );
                }
            }
        }
    }

    /// A change of a cell took place.
    pub(super) fn cell_changed(
        &mut self,
        holder: &str,
        account: &Account,
        change: &Op,
        call: Option<u64>,
        cell: &Cell,
    ) {
        let call = call.unwrap_or(0);
        let start = match change {
            Op::Reserve { span, .. }
            | Op::Look { span }
            | Op::Count { span }
            | Op::Ask { span, .. } => span.start,
            Op::Void { start, .. } | Op::Settle { start, .. } | Op::Suspend { start, .. } => *start,
            Op::Refill { grant, .. } => grant.window_start,
        };
        let window = window(account, start);
        let here = (holder.to_owned(), window.clone());
        let resolved = match change {
            Op::Reserve { amount, .. } => {
                let reservations = self.reservations.entry(here.clone()).or_default();
                if reservations.insert(call, *amount).is_some() {
                    self.broken(
                        Promise::ResolvedOnce,
                        format!("call {call} reserved {account} twice"),
                    );
                }
                None
            }
            Op::Void { reserved, .. } => Some((*reserved, 0)),
            Op::Settle { reserved, used, .. } => Some((*reserved, *used)),
            Op::Look { .. }
            | Op::Count { .. }
            | Op::Ask { .. }
            | Op::Refill { .. }
            | Op::Suspend { .. } => None,
        };
        if let Some((reserved, used)) = resolved {
            let reservation = self
                .reservations
                .get_mut(&here)
                .and_then(|reservations| reservations.remove(&call));
            if reservation != Some(reserved) {
                self.broken(
                    Promise::ResolvedOnce,
                    format!("call {call} resolves {reserved} of {account}, having reserved {reservation:?}"),
                );
            }
            if let Some(slot) = cell.slot(start) {
                let tenure = tenure(holder, slot.epoch, account, slot.start);
                *self.used.entry((tenure, window.clone())).or_default() += used;
            }
        }
        let Some(slot) = cell.slot(start) else {
            return;
        };
        let reserved: u64 = self
            .reservations
            .get(&here)
            .map_or(0, |reservations| reservations.values().sum());
        if slot.reserved != reserved {
            self.broken(
                Promise::ResolvedOnce,
                format!(
                    "{holder} has {} of {account} reserved, for calls that need {reserved}",
                    slot.reserved
                ),
            );
        }
        let right = self
            .rights
            .get(&window)
            .and_then(|rights| rights.get(&tenure(holder, slot.epoch, account, slot.start)));
        let granted = right.map_or(0, |right| right.signed);
        if slot.granted > granted {
            self.broken(
                Promise::BelievedIsGranted,
                format!(
                    "{holder} believes to have {} of {account}, and was granted {granted}",
                    slot.granted
                ),
            );
        }
    }

    /// A call was lost with the VM that ran it: its reservations stay until their windows end.
    pub(super) fn abandoned(&mut self, call: u64) {
        self.abandoned.insert(call);
    }

    /// An Envoy died: its cells are gone, and so are the records it had not handed in.
    pub(super) fn process_died(&mut self, holder: &str, process: usize, life: u64) {
        self.reservations.retain(|(of, _), _| of != holder);
        self.recorded.retain(|_, made| *made != (process, life));
    }

    pub(super) fn backed_up(&mut self) {
        self.backup = self.rights.clone();
    }

    /// The control plane was put back to the last backup.
    pub(super) fn restored(&mut self) {
        for (window, rights) in &mut self.rights {
            for (tenure, right) in rights {
                right.down = self
                    .backup
                    .get(window)
                    .and_then(|rights| rights.get(tenure))
                    .map_or(Amounts::default(), |right| right.down);
            }
        }
    }

    /// The restored control plane has waited long enough. What nobody has told it by now it cannot know.
    pub(super) fn learned(&mut self) {
        let mut forgotten = Vec::new();
        for (window, rights) in &mut self.rights {
            for right in rights.values_mut() {
                let before = right.taken();
                right.granted = right.down.granted;
                right.returned = right.down.returned;
                right.settled = right.down.settled;
                forgotten.push((window.clone(), before.saturating_sub(right.taken())));
            }
        }
        for (window, amount) in forgotten {
            self.truth(&window).written_off += amount;
        }
    }

    /// A record went into the journal of a gate.
    pub(super) fn recorded(&mut self, record: &[u8], process: usize, life: u64) {
        self.recorded.insert(id_of(record), (process, life));
    }

    /// The control plane acknowledged a batch.
    pub(super) fn acknowledged(&mut self, bytes: &[u8]) {
        let Ok(batch) = Batch::read(bytes) else {
            self.broken(
                Promise::JournalWhole,
                "something that is no batch was acknowledged".to_owned(),
            );
            return;
        };
        let header = &batch.header;
        let shelf = self
            .shelves
            .entry((header.holder.clone(), header.epoch))
            .or_insert_with(|| Shelf {
                next_seq: 1,
                batches: BTreeSet::new(),
            });
        if !shelf.batches.insert(bytes.to_vec()) {
            return;
        }
        let expected = shelf.next_seq;
        shelf.next_seq = header.first_seq + header.count;
        if header.first_seq != expected {
            self.broken(
                Promise::JournalWhole,
                format!(
                    "the journal of {} went on with record {} instead of {expected}",
                    header.holder, header.first_seq
                ),
            );
        }
        for record in &batch.records {
            let id = id_of(record);
            self.recorded.remove(&id);
            if !self.stored.insert(id.clone()) {
                self.broken(
                    Promise::JournalWhole,
                    format!("record {id} was stored twice"),
                );
            }
        }
    }

    /// A batch was refused for good.
    pub(super) fn refused(&mut self, status: u16) {
        self.broken(
            Promise::JournalWhole,
            format!("a genuine batch was refused with status {status}"),
        );
    }

    /// Who has how much, for people to read.
    pub(super) fn shares(&self, account: &Account, start: i64) -> String {
        let rights = self.rights.get(&(account.clone(), start));
        rights
            .into_iter()
            .flatten()
            .map(|((holder, epoch), right)| {
                format!(
                    " [{} epoch {epoch}: {} granted, {} returned, {} settled]",
                    holder.get(..8).unwrap_or_default(),
                    right.granted,
                    right.returned,
                    right.settled
                )
            })
            .collect()
    }

    /// What is left of an account for holders that live: the limit without what lost ones had and living ones used.
    pub(super) fn left(&self, account: &Account, start: i64, living: &BTreeSet<Tenure>) -> u64 {
        let window = (account.clone(), start);
        let rights = self.rights.get(&window);
        let gone: u64 = rights
            .into_iter()
            .flatten()
            .map(|(tenure, right)| {
                let holder = tenure.0.split(' ').next().unwrap_or_default();
                if !living.contains(&(holder.to_owned(), tenure.1)) {
                    return right.down.taken();
                }
                let here = (holder.to_owned(), window.clone());
                let reserved = self
                    .reservations
                    .get(&here)
                    .map_or(0, |reservations| reservations.values().sum());
                let used = self.used.get(&(tenure.clone(), window.clone()));
                used.copied().unwrap_or(0).max(right.settled) + reserved
            })
            .sum();
        self.limits.on(account).unwrap_or(0).saturating_sub(gone)
    }

    /// The end of a run, everything having come to rest.
    pub(super) fn close(&mut self) {
        let open: Vec<String> = self
            .reservations
            .iter()
            .flat_map(|((holder, (account, _)), calls)| {
                calls
                    .keys()
                    .filter(|call| !self.abandoned.contains(call))
                    .map(move |call| format!("call {call} never resolved {account} at {holder}"))
            })
            .collect();
        for what in open {
            self.broken(Promise::ResolvedOnce, what);
        }
        if !self.recorded.is_empty() {
            let some: Vec<&String> = self.recorded.keys().take(3).collect();
            let what = format!(
                "{} records never arrived, such as {some:?}",
                self.recorded.len()
            );
            self.broken(Promise::JournalArrives, what);
        }
    }
}

/// The `id` of a record.
fn id_of(record: &[u8]) -> String {
    let record: serde_json::Value = serde_json::from_slice(record).unwrap_or_default();
    record["id"].as_str().unwrap_or_default().to_owned()
}
