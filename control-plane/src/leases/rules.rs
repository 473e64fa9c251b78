//! What a holder may have. Plain values in, plain values out: no database, no clock.
//!
//! The promise is kept here: a grant never makes Σ over holders of max(granted − returned, settled) larger than the limit. A holder that
//! is lost keeps what it was granted until the window ends, so nobody else is given the same amount again.

use std::collections::BTreeMap;
use tollgate_engine::{
    bundle::{CLOCK_SKEW_SECS, Payload},
    decide::span_of,
    lease,
    ledger::{Account, Span},
    time::Time,
};

/// What one holder has of one account and window, under one epoch. Amounts count from the start of the window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lease {
    /// Number of the last request that counted.
    pub seq: u64,
    /// Leased in all; only grows.
    pub granted: u64,
    /// Given back of that; only grows.
    pub returned: u64,
    /// Used in all, as reported; only grows.
    pub settled: u64,
    /// Worst case of calls under way, as reported.
    pub reserved: u64,
    /// The lease ends; milliseconds since the Unix epoch.
    pub expires_ms: i64,
    /// There is no more to be had before; milliseconds since the Unix epoch, 0 when there may be.
    pub retry_ms: i64,
}

impl Lease {
    /// Leased and not given back.
    fn held(&self) -> u64 {
        self.granted.saturating_sub(self.returned)
    }

    /// What of the limit is gone for everybody else.
    pub fn taken(&self) -> u64 {
        self.held().max(self.settled)
    }

    /// What was leased and not used: lost until the window ends when its holder is.
    pub fn unused(&self) -> u64 {
        self.held().saturating_sub(self.settled)
    }

    /// Whether its holder may still spend from it.
    pub fn is_live(&self, now_ms: i64) -> bool {
        now_ms < self.expires_ms
    }
}

/// What a holder reports and asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ask {
    /// Grows with every ask.
    pub seq: u64,
    /// Leased to it, as it knows.
    pub granted: u64,
    /// Given back of that.
    pub returned: u64,
    /// Used so far.
    pub settled: u64,
    /// Worst case of the calls under way.
    pub reserved: u64,
    /// Needed beyond what is granted; 0 only reports and renews.
    pub want: u64,
    /// No call waits for it.
    pub ahead: bool,
}

impl Ask {
    /// Reads what a holder says in `epoch`. Amounts that it counted under an earlier one count for nothing here: what it used is taken down there.
    pub fn of(ask: &lease::Ask, epoch: u64) -> Ask {
        let told = |amount| if ask.epoch == epoch { amount } else { 0 };
        Ask {
            seq: ask.seq,
            granted: told(ask.granted),
            returned: told(ask.returned),
            settled: told(ask.settled),
            reserved: ask.reserved,
            want: ask.want,
            ahead: ask.ahead,
        }
    }

    /// Whether the holder has what we never gave: our database was put back to an earlier state.
    pub fn knows_more(&self, mine: Option<Lease>) -> bool {
        self.granted > mine.unwrap_or_default().granted
    }
}

/// What everybody else has of the same account and window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Others {
    /// Σ [`Lease::taken`], of lost holders and earlier epochs too.
    pub taken: u64,
    /// Holders with a live lease.
    pub active: u64,
    /// What those have and, by their last word, neither used nor reserved.
    pub unused: u64,
    /// Whether a call somewhere has just waited in vain for more than was left.
    pub wait: bool,
}

impl Others {
    /// Sums up their leases.
    pub fn of<'a>(leases: impl IntoIterator<Item = &'a Lease>, now_ms: i64) -> Others {
        leases.into_iter().fold(Others::default(), |sum, lease| {
            let live = lease.is_live(now_ms);
            let unused = lease.unused().saturating_sub(lease.reserved);
            Others {
                taken: sum.taken.saturating_add(lease.taken()),
                active: sum
                    .active
                    .saturating_add(u64::from(live && lease.held() > 0)),
                unused: sum.unused.saturating_add(if live { unused } else { 0 }),
                wait: false,
            }
        })
    }
}

/// Under which circumstances an ask is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// The limit now.
    pub limit: u64,
    /// How long its window is; milliseconds.
    pub window_ms: i64,
    /// It is now; milliseconds since the Unix epoch.
    pub now_ms: i64,
    /// How long a lease lasts; milliseconds.
    pub term_ms: i64,
    /// After a restore nothing is granted before; milliseconds since the Unix epoch.
    pub learning_until_ms: i64,
}

impl Terms {
    fn is_long(&self) -> bool {
        self.window_ms >= LONG_WINDOW_MS
    }
}

/// How long an exhausted account is left alone: what others give back is seen after this at the latest.
pub const RETRY_MS: i64 = 1_000;

/// A holder gets what lasts it a lease term at its pace, so that it goes on as long without us, but at most this part of the window: of a
/// minute's limit four seconds, or the few of the others would wait for what one holds.
const WINDOW_PARTS: i64 = 16;

/// …and of a long window's limit at most what keeps this part of it, 1 %, beside what calls under way may use: so much is lost with a gate that
/// dies. Calls reserve their worst case and use less, so what they leave over beyond this goes back. Of a short window that is no matter: what is
/// lost is back in a moment.
const KEPT_PARTS: u64 = 96;

/// …but for a call that waits as much as some like it, so that a gate goes on without us for a while, if those are not more than that part of the
/// limit. Many may wait at once, and need no more of the same each.
const CALLS_AHEAD: u64 = 4;

/// When less than this part of a long window's limit is left that nobody has been leased, or a call waits for more than is left, and others have leases, it is scarce: everybody gets
/// what its calls need and nothing ahead, and gives back the rest. Otherwise the last of it would lie about in small leases, and calls be refused
/// at one gate for what another does not use.
const SCARCE_PARTS: u64 = 12;

/// An hour.
const LONG_WINDOW_MS: i64 = 3_600_000;

/// Shorter stretches say nothing of a pace: a holder's first calls, and asks that follow each other closely.
const PACE_OVER_MS: i64 = 1_000;

/// What a holder that used `burn` in the last `elapsed_ms` will use until it is out of reach for a while.
fn ahead(burn: u64, elapsed_ms: i64, terms: &Terms) -> u64 {
    let horizon_ms = terms
        .term_ms
        .min(terms.window_ms / WINDOW_PARTS)
        .max(PACE_OVER_MS);
    let elapsed_ms = elapsed_ms.clamp(PACE_OVER_MS, horizon_ms);
    let ratio = |ms: i64| u128::from(ms.unsigned_abs());
    let ahead = u128::from(burn) * ratio(horizon_ms) / ratio(elapsed_ms);
    u64::try_from(ahead).unwrap_or(u64::MAX)
}

/// How long a restored control plane listens before it grants; milliseconds. A lease term, in which every holder that may still spend has to
/// renew, and never less than two signs of life of a gate at rest (15 s each).
pub fn learning_ms(term_ms: i64) -> i64 {
    term_ms.max(30_000)
}

/// What is known of a holder's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Life {
    /// The epoch that it was given last.
    pub epoch: i64,
    /// When it was last heard of; milliseconds since the Unix epoch.
    pub heard_ms: i64,
}

/// Since when holders could be heard of, and by what silence one is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listening {
    /// When we began to listen; milliseconds since the Unix epoch. What gates said before that, nobody took down.
    pub since_ms: i64,
    /// After a restore nobody is lost before; milliseconds since the Unix epoch. The last word of a gate in the backup is an old one.
    pub learning_until_ms: i64,
    /// How long a lease lasts; milliseconds.
    pub term_ms: i64,
}

impl Listening {
    /// The last moment at which a holder may be alive that was last heard of at `heard_ms`: two terms of silence later, one to live and one to
    /// renew late, if we have listened for as long.
    pub fn lost_after_ms(&self, heard_ms: i64) -> i64 {
        heard_ms
            .max(self.since_ms)
            .saturating_add(self.term_ms.saturating_mul(2))
            .max(self.learning_until_ms.saturating_sub(1))
    }

    /// Whether a holder is lost that was last heard of at `heard_ms`.
    pub fn is_lost(&self, heard_ms: i64, now_ms: i64) -> bool {
        now_ms > self.lost_after_ms(heard_ms)
    }

    /// Whether what a holder was leased under `epoch` is lost, in a lease that ends at `expires_ms`. With the holder all of it is. Of one that lives,
    /// what it was leased under an earlier epoch: a gate that has not heard of the later one can spend it while the lease lasts, then nobody can,
    /// and calls under way when it heard of that are counted under the later one. So it is the lease's end from which two terms are counted.
    pub fn is_lease_lost(&self, holder: Life, epoch: i64, expires_ms: i64, now_ms: i64) -> bool {
        let is_left = epoch < holder.epoch && self.is_lost(expires_ms, now_ms);
        is_left || self.is_lost(holder.heard_ms, now_ms)
    }
}

/// What a holder has by all that was ever said.
pub fn heard(mine: Option<Lease>, ask: &Ask) -> Lease {
    let mine = mine.unwrap_or_default();
    Lease {
        granted: mine.granted.max(ask.granted),
        returned: mine.returned.max(ask.returned),
        settled: mine.settled.max(ask.settled),
        ..mine
    }
}

/// The holder's lease after `ask`.
///
/// A number that is not newer than the last changes nothing. Otherwise the holder gets what it wants, or, where there is plenty, some of
/// what it will want next, so that it need not ask for every call; the shares shrink as the limit comes near. What a holder says it was
/// granted is taken down as such: after a restore it knows better.
pub fn answer(mine: Option<Lease>, ask: Ask, others: Others, terms: Terms) -> Lease {
    if let Some(mine) = mine
        && ask.seq <= mine.seq
    {
        return mine;
    }
    let had = heard(mine, &ask);
    let mine = mine.unwrap_or_default();
    let learning = terms.now_ms < terms.learning_until_ms;
    let ceiling = terms.limit.saturating_sub(others.taken);
    let left = ceiling.saturating_sub(had.taken());
    let fair = left / others.active.saturating_add(1).saturating_mul(2).max(1);
    let needed = if ask.ahead { 0 } else { ask.want };
    let burn = had
        .settled
        .saturating_sub(mine.settled)
        .saturating_add(ask.reserved)
        .saturating_add(needed);
    let elapsed_ms = match mine.seq {
        0 => 0,
        _ => terms
            .now_ms
            .saturating_sub(mine.expires_ms.saturating_sub(terms.term_ms)),
    };
    let at_risk = match (terms.is_long(), is_scarce(&had, others, &terms)) {
        (false, _) => u64::MAX,
        (true, true) => 0,
        (true, false) => {
            let waiting = needed.saturating_mul(CALLS_AHEAD);
            let waiting = waiting.min(terms.limit / KEPT_PARTS).max(needed);
            let spare = had.unused().saturating_sub(ask.reserved);
            waiting.max((terms.limit / KEPT_PARTS).saturating_sub(spare))
        }
    };
    let share = fair.min(ahead(burn, elapsed_ms, &terms)).min(at_risk);
    let held = if ask.want == 0 || learning {
        had.held()
    } else {
        had.held()
            .saturating_add(needed.max(share))
            .min(ceiling)
            .max(had.held())
    };
    // While learning there is no telling whether there is more: whoever needs it goes on asking.
    let met = learning || (held.saturating_sub(had.held()) >= needed && !(ask.ahead && left == 0));
    Lease {
        seq: ask.seq,
        granted: held.saturating_add(had.returned),
        returned: had.returned,
        settled: had.settled,
        reserved: ask.reserved,
        expires_ms: terms.now_ms.saturating_add(terms.term_ms),
        retry_ms: if met {
            0
        } else {
            terms.now_ms.saturating_add(RETRY_MS)
        },
    }
}

/// Others are asked for what they do not use at most so often; milliseconds. As often as a gate asks in vain.
const RECALL_EVERY_MS: i64 = RETRY_MS;

/// Whether others should be asked for what they do not use: a call waits for what they have, by this answer to `ask`. Of a short window that is no
/// matter: it is over before long.
pub fn recalls(lease: &Lease, ask: &Ask, others: Others, terms: &Terms) -> bool {
    let waits = ask.want > 0 && !ask.ahead && lease.retry_ms != 0;
    terms.is_long() && waits && others.unused > 0
}

/// What calls wait for in vain, and when gates were last asked for what they do not use. Nothing of it is stored: what is lost with it is asked for
/// again by the next call.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    asked: Option<Time>,
    since: BTreeMap<Account, Time>,
}

impl Wanted {
    /// Whether a call has just waited for this.
    pub fn has(&self, account: &Account, now: Time) -> bool {
        self.since
            .get(account)
            .is_some_and(|since| is_recent(*since, now))
    }

    /// Whether a call has just waited for anything.
    pub fn is_any(&self, now: Time) -> bool {
        self.since.values().any(|since| is_recent(*since, now))
    }

    /// Whether gates may be asked again.
    pub fn is_due(&self, now: Time) -> bool {
        self.asked.is_none_or(|asked| !is_recent(asked, now))
    }

    /// Calls wait for these. Whether gates are to be asked for them now: not where there are none, nor where gates were asked a moment ago.
    pub fn want(&mut self, accounts: &[Account], now: Time) -> bool {
        if accounts.is_empty() {
            return false;
        }
        self.since.retain(|_, since| is_recent(*since, now));
        let wanted = accounts.iter().map(|account| (account.clone(), now));
        self.since.extend(wanted);
        let due = self.is_due(now);
        if due {
            self.asked = Some(now);
        }
        due
    }
}

fn is_recent(since: Time, now: Time) -> bool {
    now.millis_since(since).saturating_abs() < RECALL_EVERY_MS
}

/// What one holder that has `lease` may keep beside its calls under way. Of a short window that is no matter.
pub fn keep(lease: &Lease, others: Others, terms: &Terms) -> u64 {
    match (terms.is_long(), is_scarce(lease, others, terms)) {
        (false, _) => u64::MAX,
        (true, true) => 0,
        (true, false) => terms.limit / KEPT_PARTS,
    }
}

/// Whether little is left for all, where one holder has `lease`.
fn is_scarce(lease: &Lease, others: Others, terms: &Terms) -> bool {
    let taken = others.taken.saturating_add(lease.taken());
    let left = terms.limit.saturating_sub(taken);
    let scarce = left < terms.limit / SCARCE_PARTS || others.wait;
    terms.is_long() && others.active > 0 && scarce
}

/// The window that starts at `start`, if it is the running one, the one before or the one after, by clocks up to five minutes apart.
pub fn window(payload: &Payload, account: &Account, start: i64, now: Time) -> Option<Span> {
    let at = |secs: i64| span_of(&account.window, &payload.calendars, Time::from_secs(secs));
    let earliest = at(now.secs().saturating_sub(CLOCK_SKEW_SECS))?;
    let latest = at(now.secs().saturating_add(CLOCK_SKEW_SECS))?;
    // At the rim of the calendar there is no window before or after.
    let from = at(earliest.start.saturating_sub(1)).map_or(earliest.start, |span| span.start);
    let to = at(latest.end).map_or(latest.start, |span| span.start);
    at(start).filter(|span| span.start == start && (from..=to).contains(&start))
}

/// Which epoch a request is answered under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Epoch {
    /// The one the holder has; newer than ours, when our database was put back.
    Running(u64),
    /// A new one: the holder starts afresh, what it had stays gone.
    New(u64),
    /// The holder has been given a newer one since; this is an old message.
    Stale(u64),
}

/// Compares the epoch of a request with the one on record (`None`: a holder never heard of).
///
/// A newer epoch than we know was given by us before our database was put back to an earlier state. It stands: the holder's own count is
/// what we have lost, and goes on.
pub fn epoch(known: Option<u64>, requested: u64) -> Epoch {
    let known = known.unwrap_or(0);
    match requested {
        0 => Epoch::New(known.saturating_add(1)),
        requested if requested < known => Epoch::Stale(known),
        requested => Epoch::Running(requested),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TERM: i64 = 60_000;

    fn ask(seq: u64, settled: u64, want: u64) -> Ask {
        Ask {
            seq,
            settled,
            want,
            ..Ask::default()
        }
    }

    fn others(taken: u64, active: u64) -> Others {
        Others {
            taken,
            active,
            unused: 0,
            wait: false,
        }
    }

    fn terms(limit: u64) -> Terms {
        Terms {
            limit,
            window_ms: 60_000,
            now_ms: 1_000,
            term_ms: TERM,
            learning_until_ms: 0,
        }
    }

    /// The same for a day.
    fn day(limit: u64) -> Terms {
        Terms {
            window_ms: 86_400_000,
            ..terms(limit)
        }
    }

    #[test]
    fn the_first_gets_some_ahead_of_its_need() {
        // 3 are wanted at once: of a minute's limit 60 / 16 = 3.75 seconds at that pace, 3 × 3.75 = 11, rounded down, as long as that is less
        // than half of what is there.
        let lease = answer(None, ask(1, 0, 3), others(0, 0), terms(1_000));
        assert_eq!(
            lease,
            Lease {
                seq: 1,
                granted: 11,
                returned: 0,
                settled: 0,
                reserved: 0,
                expires_ms: 61_000,
                retry_ms: 0
            }
        );
        // 20 left, alone: half of them.
        let lease = answer(None, ask(1, 0, 3), others(0, 0), terms(20));
        assert_eq!(lease.granted, 10);
    }

    #[test]
    fn whoever_uses_much_gets_much() {
        // 40 used in the second since the last ask, 8 under way, 2 wanted: (40 + 8 + 2) × 3.75 = 187 on top of the 60.
        let mine = Lease {
            seq: 1,
            granted: 60,
            settled: 10,
            expires_ms: TERM,
            ..Lease::default()
        };
        let asked = Ask {
            reserved: 8,
            ..ask(2, 50, 2)
        };
        assert_eq!(
            answer(Some(mine), asked, others(0, 3), terms(10_000)).granted,
            247
        );
    }

    #[test]
    fn of_a_long_window_it_gets_what_lasts_a_term() {
        let day = day(100_000);
        // 60 seconds of 3 a second.
        assert_eq!(answer(None, ask(1, 0, 3), others(0, 0), day).granted, 180);
        // 50 in ten seconds are 5 a second: 60 × 5 = 300 on top of 180.
        let mine = Lease {
            seq: 1,
            granted: 180,
            expires_ms: TERM,
            ..Lease::default()
        };
        let later = Terms {
            now_ms: 10_000,
            ..day
        };
        let lease = answer(Some(mine), ask(2, 49, 1), others(0, 0), later);
        assert_eq!(lease.granted, 480);
    }

    #[test]
    fn of_a_long_window_a_96th_is_at_risk_or_a_few_calls() {
        let day = day(6_400);
        // 60 seconds of 10 a second would be 600; a 96th of the limit is 66, and more than 4 × 10.
        assert_eq!(answer(None, ask(1, 0, 10), others(0, 0), day).granted, 66);
        // Four times what is wanted, 80, is more.
        assert_eq!(answer(None, ask(1, 0, 20), others(0, 0), day).granted, 66);
        // Of one that has a 96th to spare, it is what a call gets that waits for more than that: 4 × 10.
        let spare = Lease {
            granted: 66,
            expires_ms: 61_000,
            ..Lease::default()
        };
        let lease = answer(Some(spare), ask(1, 0, 10), others(0, 0), day);
        assert_eq!(lease.granted, 106);
        // What calls wait for is granted even so.
        assert_eq!(answer(None, ask(1, 0, 150), others(0, 0), day).granted, 150);
    }

    #[test]
    fn calls_that_wait_together_need_no_more_ahead() {
        let day = day(960_000);
        // Twenty calls of 1,000: four times that were more than a 96th of the limit (10,000), and what they need is 20,000.
        let lease = answer(None, ask(1, 0, 20_000), others(0, 0), day);
        assert_eq!(lease.granted, 20_000);
        // One of them: four.
        let lease = answer(None, ask(1, 0, 1_000), others(0, 0), day);
        assert_eq!(lease.granted, 10_000);
    }

    #[test]
    fn ahead_of_need_it_gets_what_keeps_a_96th_and_asks_again() {
        let day = Terms {
            now_ms: 10_000,
            ..day(96_000)
        };
        let mine = Lease {
            seq: 1,
            granted: 5_000,
            settled: 1_000,
            expires_ms: TERM,
            ..Lease::default()
        };
        let ahead = |settled, reserved| Ask {
            reserved,
            ahead: true,
            ..ask(2, settled, 5_000)
        };
        // 3,900 used and 400 under way: 700 to spare, so 300 more make a 96th, 1,000. The wish itself is not the measure.
        let lease = answer(Some(mine), ahead(3_900, 400), others(0, 0), day);
        assert_eq!((lease.granted, lease.retry_ms), (5_300, 0));
        // With more to spare than that, none.
        let lease = answer(Some(mine), ahead(1_200, 0), others(0, 0), day);
        assert_eq!((lease.granted, lease.retry_ms), (5_000, 0));
        // Where nothing is left, it hears so.
        let lease = answer(Some(mine), ahead(3_900, 400), others(91_000, 3), day);
        assert_eq!((lease.granted, lease.retry_ms), (5_000, 11_000));
    }

    #[test]
    fn what_is_scarce_is_leased_by_the_call() {
        let day = day(1_200);
        // A twelfth is 100. 101 are left: a 96th of the limit, ahead of need.
        let lease = answer(None, ask(1, 0, 2), others(1_099, 2), day);
        assert_eq!(lease.granted, 12);
        assert_eq!(keep(&lease, others(1_099, 2), &day), 0);
        // 99 are left: what is needed.
        let lease = answer(None, ask(1, 0, 2), others(1_101, 2), day);
        assert_eq!(lease.granted, 2);
        // Alone, nobody is waited for; of a minute the rest is back in a moment.
        assert_eq!(keep(&lease, others(1_101, 0), &day), 1_200 / 96);
        assert_eq!(keep(&lease, others(1_101, 2), &terms(1_200)), u64::MAX);
    }

    #[test]
    fn what_others_do_not_use_is_asked_for_where_a_call_waits() {
        let terms = day(1_000);
        let held = |granted, settled, reserved, expires_ms| Lease {
            granted,
            settled,
            reserved,
            expires_ms,
            ..Lease::default()
        };
        // 600 and 400 are held by others, 100 + 0 of that neither used nor reserved, and 50 by one that is lost.
        let rest = [
            held(600, 450, 50, TERM),
            held(350, 300, 50, TERM),
            held(50, 0, 0, 0),
        ];
        let rest = Others::of(&rest, terms.now_ms);
        assert_eq!((rest.taken, rest.active, rest.unused), (1_000, 2, 100));
        let waiting = ask(1, 0, 3);
        let short = answer(None, waiting, rest, terms);
        assert!(recalls(&short, &waiting, rest, &terms));
        // Nobody has anything that is not needed; nobody waits; there was enough; the window is over soon.
        let none = Others { unused: 0, ..rest };
        assert!(!recalls(&short, &waiting, none, &terms));
        let ahead = Ask {
            ahead: true,
            ..waiting
        };
        assert!(!recalls(&short, &ahead, rest, &terms));
        assert!(!recalls(&short, &ask(1, 0, 0), rest, &terms));
        let met = answer(None, waiting, others(0, 0), terms);
        assert!(!recalls(&met, &waiting, rest, &terms));
        let minute = Terms {
            window_ms: 60_000,
            ..terms
        };
        assert!(!recalls(&short, &waiting, rest, &minute));
        // Where a large call waits, nothing may stay with those that do not call, though not little is left.
        let mine = held(100, 0, 0, TERM);
        let rest = others(500, 3);
        assert_eq!(keep(&mine, rest, &terms), 1_000 / 96);
        let rest = Others { wait: true, ..rest };
        assert_eq!(keep(&mine, rest, &terms), 0);
    }

    #[test]
    fn the_share_shrinks_with_the_holders_and_the_rest() {
        // 1000 − 970 = 30 left, two others and this one: half an even share is 30 / 6 = 5.
        let lease = answer(None, ask(1, 0, 3), others(970, 2), terms(1_000));
        assert_eq!(lease.granted, 5);
        // 4 left: the share is 0, the wish counts.
        let lease = answer(None, ask(1, 0, 3), others(996, 2), terms(1_000));
        assert_eq!(lease.granted, 3);
    }

    #[test]
    fn nothing_left_says_when_to_ask_again() {
        let lease = answer(None, ask(1, 0, 3), others(1_000, 1), terms(1_000));
        assert_eq!((lease.granted, lease.retry_ms), (0, 2_000));
    }

    #[test]
    fn a_replay_changes_nothing() {
        let first = answer(None, ask(1, 0, 3), others(0, 0), terms(1_000));
        let replayed = Ask {
            returned: 12,
            ..ask(1, 7, 3)
        };
        assert_eq!(
            answer(Some(first), replayed, others(0, 0), terms(1_000)),
            first
        );
    }

    #[test]
    fn what_is_given_back_is_not_taken() {
        let mine = Lease {
            seq: 1,
            granted: 100,
            settled: 20,
            ..Lease::default()
        };
        assert_eq!((mine.taken(), mine.unused()), (100, 80));
        let back = Ask {
            granted: 100,
            returned: 80,
            ..ask(2, 20, 0)
        };
        let after = answer(Some(mine), back, others(0, 0), terms(100));
        assert_eq!((after.granted, after.taken(), after.unused()), (100, 20, 0));
        // It may have it again, on top of what it ever had: 100 + 80.
        let again = answer(Some(after), ask(3, 20, 80), others(0, 0), terms(100));
        assert_eq!((again.granted, again.taken()), (180, 100));
    }

    #[test]
    fn an_overrun_is_charged_to_what_it_gets_next() {
        // Granted 100, used 120, limit 130: max(100, 120) is gone, 10 are left. Wanting 30 beyond the 100 it gets them all,
        // and 130 − 120 = 10 is what they are worth.
        let mine = Lease {
            seq: 1,
            granted: 100,
            ..Lease::default()
        };
        let lease = answer(Some(mine), ask(2, 120, 30), others(0, 0), terms(130));
        assert_eq!((lease.granted, lease.taken()), (130, 130));
    }

    #[test]
    fn a_lowered_limit_takes_nothing_back_and_gives_nothing() {
        let mine = Lease {
            seq: 1,
            granted: 100,
            ..Lease::default()
        };
        let lease = answer(Some(mine), ask(2, 0, 1), others(0, 0), terms(50));
        assert_eq!(lease.granted, 100);
        assert_eq!(lease.retry_ms, 1_000 + RETRY_MS);
    }

    #[test]
    fn a_restored_control_plane_takes_down_what_it_hears_and_grants_nothing() {
        let learning = Terms {
            learning_until_ms: 1_001,
            ..terms(1_000)
        };
        let told = Ask {
            granted: 400,
            returned: 50,
            ..ask(7, 100, 30)
        };
        assert!(told.knows_more(None));
        let lease = answer(None, told, others(0, 0), learning);
        assert_eq!(
            (lease.granted, lease.returned, lease.settled),
            (400, 50, 100)
        );
        assert_eq!((lease.taken(), lease.retry_ms), (350, 0));
        assert!(!told.knows_more(Some(lease)));
        // The time is over: 350 are its own, 650 are left.
        let over = Terms {
            now_ms: 1_001,
            ..learning
        };
        let lease = answer(Some(lease), ask(8, 100, 900), others(0, 0), over);
        assert_eq!(lease.taken(), 1_000);
    }

    #[test]
    fn who_is_silent_is_lost_only_where_somebody_listened() {
        let listening = Listening {
            since_ms: 0,
            learning_until_ms: 0,
            term_ms: TERM,
        };
        // Heard of at 1,000: two terms of 60,000 later it may live, and no longer.
        assert!(!listening.is_lost(1_000, 121_000));
        assert!(listening.is_lost(1_000, 121_001));
        // Nobody listened before 500,000.
        let late = Listening {
            since_ms: 500_000,
            ..listening
        };
        assert!(!late.is_lost(1_000, 620_000));
        assert!(late.is_lost(1_000, 620_001));
        assert!(!late.is_lost(510_000, 630_000));
        // Not while it is being learned what gates have.
        let learning = Listening {
            learning_until_ms: 200_000,
            ..listening
        };
        assert!(!learning.is_lost(1_000, 199_999));
        assert!(learning.is_lost(1_000, 200_000));
    }

    #[test]
    fn what_an_earlier_epoch_has_is_lost_two_terms_after_its_lease() {
        let listening = Listening {
            since_ms: 0,
            learning_until_ms: 0,
            term_ms: TERM,
        };
        // Its lease ended at 60,000; in its second epoch it lives on.
        let lost = |listening: Listening, epoch, heard_ms, now_ms| {
            let holder = Life { epoch: 2, heard_ms };
            listening.is_lease_lost(holder, epoch, 60_000, now_ms)
        };
        assert!(!lost(listening, 1, 180_000, 180_000));
        assert!(lost(listening, 1, 180_001, 180_001));
        assert!(!lost(listening, 2, 180_001, 180_001));
        // With the holder all is lost, however long its lease.
        assert!(lost(listening, 1, 0, 120_001));
        assert!(lost(listening, 2, 0, 120_001));
        // Who has not heard of its second epoch had nobody to report to.
        let late = Listening {
            since_ms: 100_000,
            ..listening
        };
        assert!(!lost(late, 1, 220_000, 220_000));
        assert!(lost(late, 1, 220_001, 220_001));
    }

    #[test]
    fn amounts_of_an_earlier_epoch_count_for_nothing() {
        let told = lease::Ask {
            account: Account::parse("agent:a|calls|minute").unwrap(),
            window_start: 60,
            seq: 4,
            epoch: 2,
            granted: 10,
            returned: 1,
            settled: 5,
            reserved: 2,
            want: 3,
            ahead: false,
        };
        let same = Ask {
            seq: 4,
            granted: 10,
            returned: 1,
            settled: 5,
            reserved: 2,
            want: 3,
            ahead: false,
        };
        assert_eq!(Ask::of(&told, 2), same);
        let other = Ask {
            granted: 0,
            returned: 0,
            settled: 0,
            ..same
        };
        assert_eq!(Ask::of(&told, 3), other);
    }

    #[test]
    fn epochs_only_go_forward() {
        assert_eq!(epoch(None, 0), Epoch::New(1));
        assert_eq!(epoch(Some(4), 0), Epoch::New(5));
        assert_eq!(epoch(Some(4), 4), Epoch::Running(4));
        assert_eq!(epoch(Some(4), 3), Epoch::Stale(4));
        // Ours, from before the database was put back.
        assert_eq!(epoch(Some(4), 9), Epoch::Running(9));
        assert_eq!(epoch(None, 9), Epoch::Running(9));
        // A holder known from its journal alone has no epoch yet.
        assert_eq!(epoch(Some(0), 0), Epoch::New(1));
    }

    /// xorshift64*: enough of a random source to walk through many orders of messages.
    struct Dice(u64);

    impl Dice {
        fn roll(&mut self, below: u64) -> u64 {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % below
        }
    }

    #[test]
    fn holders_that_keep_to_their_leases_never_spend_more_than_the_limit() {
        for seed in 1..=300 {
            let mut dice = Dice(seed);
            let limit = dice.roll(2_000);
            let mut leases = [Lease::default(); 4];
            // What each holder believes: it sees only the answers that arrive.
            let mut believed = [Lease::default(); 4];
            let mut now_ms = 0;
            for _ in 0..200 {
                now_ms += i64::try_from(dice.roll(20_000)).unwrap();
                let who = usize::try_from(dice.roll(4)).unwrap();
                let room = believed[who].granted - believed[who].settled;
                believed[who].settled += dice.roll(room + 1);
                believed[who].seq += dice.roll(2);
                let ask = ask(believed[who].seq, believed[who].settled, dice.roll(50));
                let rest: Vec<Lease> = leases
                    .iter()
                    .enumerate()
                    .filter(|(other, _)| *other != who)
                    .map(|(_, lease)| *lease)
                    .collect();
                let before = leases[who];
                let terms = Terms {
                    now_ms,
                    ..terms(limit)
                };
                let after = answer(
                    (before != Lease::default()).then_some(before),
                    ask,
                    Others::of(&rest, now_ms),
                    terms,
                );
                assert!(after.granted >= before.granted && after.settled >= before.settled);
                leases[who] = after;
                if dice.roll(3) > 0 {
                    believed[who].granted = after.granted;
                }
                let taken: u64 = leases.iter().map(Lease::taken).sum();
                let spent: u64 = believed.iter().map(|lease| lease.settled).sum();
                assert!(taken <= limit && spent <= limit, "seed {seed}: {leases:?}");
            }
        }
    }
}
