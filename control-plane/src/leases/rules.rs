//! What a holder may have. Plain values in, plain values out: no database, no clock.
//!
//! The promise is kept here: Σ over holders of max(granted, settled) never grows beyond the limit by a grant. A holder that is lost
//! keeps what it was granted until the window ends, so nobody else is given the same amount again.

use tollgate_engine::{
    bundle::{CLOCK_SKEW_SECS, Payload},
    decide::span_of,
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
    /// What of the limit is gone for everybody else.
    pub fn taken(&self) -> u64 {
        self.granted.max(self.settled)
    }

    /// What was leased and not used: lost until the window ends when its holder is.
    pub fn unused(&self) -> u64 {
        self.granted.saturating_sub(self.settled)
    }

    /// Whether its holder may still spend from it.
    pub fn is_live(&self, now_ms: i64) -> bool {
        now_ms < self.expires_ms
    }
}

/// What a holder reports and asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ask {
    /// Grows with every ask.
    pub seq: u64,
    /// Used so far.
    pub settled: u64,
    /// Worst case of the calls under way.
    pub reserved: u64,
    /// Needed beyond what is granted; 0 only reports and renews.
    pub want: u64,
}

/// What everybody else has of the same account and window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Others {
    /// Σ [`Lease::taken`], of lost holders and earlier epochs too.
    pub taken: u64,
    /// Holders with a live lease.
    pub active: u64,
}

impl Others {
    /// Sums up their leases.
    pub fn of<'a>(leases: impl IntoIterator<Item = &'a Lease>, now_ms: i64) -> Others {
        leases
            .into_iter()
            .fold(Others::default(), |sum, lease| Others {
                taken: sum.taken.saturating_add(lease.taken()),
                active: sum.active.saturating_add(u64::from(lease.is_live(now_ms))),
            })
    }
}

/// How long an exhausted account is left alone: what others give back is seen after this at the latest.
pub const RETRY_MS: i64 = 1_000;

/// The holder's lease after `ask`.
///
/// A number that is not newer than the last changes nothing. Otherwise the holder gets what it wants, or, when there is plenty, half
/// of its even share of what is left, so that it need not ask for every call; the shares shrink as the limit comes near.
pub fn answer(
    mine: Option<Lease>,
    ask: Ask,
    limit: u64,
    others: Others,
    window_end_ms: i64,
    now_ms: i64,
    term_ms: i64,
) -> Lease {
    if let Some(mine) = mine
        && ask.seq <= mine.seq
    {
        return mine;
    }
    let mine = mine.unwrap_or_default();
    let settled = mine.settled.max(ask.settled);
    let ceiling = limit.saturating_sub(others.taken);
    let available = ceiling.saturating_sub(mine.granted.max(settled));
    let share = available / others.active.saturating_add(1).saturating_mul(2).max(1);
    let granted = if ask.want == 0 {
        mine.granted
    } else {
        mine.granted
            .saturating_add(ask.want.max(share))
            .min(ceiling)
            .max(mine.granted)
    };
    let met = granted.saturating_sub(mine.granted) >= ask.want;
    Lease {
        seq: ask.seq,
        granted,
        settled,
        reserved: ask.reserved,
        expires_ms: now_ms.saturating_add(term_ms),
        retry_ms: if met {
            0
        } else {
            window_end_ms.min(now_ms.saturating_add(RETRY_MS))
        },
    }
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
    /// The one the holder has.
    Running(u64),
    /// A new one: the holder starts afresh, what it had stays gone.
    New(u64),
    /// The holder has been given a newer one since; this is an old message.
    Stale(u64),
}

/// Compares the epoch of a request with the one on record (`None`: a holder never heard of).
///
/// A request with a newer epoch than we know comes after our database was put back to an earlier state; the holder is greeted anew.
pub fn epoch(known: Option<u64>, requested: u64) -> Epoch {
    match known {
        Some(known) if requested == known && known != 0 => Epoch::Running(known),
        Some(known) if requested != 0 && requested < known => Epoch::Stale(known),
        known => Epoch::New(known.unwrap_or(0).max(requested).saturating_add(1)),
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
            reserved: 0,
            want,
        }
    }

    fn others(taken: u64, active: u64) -> Others {
        Others { taken, active }
    }

    #[test]
    fn the_first_holder_gets_half_of_what_is_there() {
        // 1000 left, one holder: 1000 / (2 × 1).
        let lease = answer(
            None,
            ask(1, 0, 3),
            1_000,
            others(0, 0),
            9_000_000,
            1_000,
            TERM,
        );
        assert_eq!(
            lease,
            Lease {
                seq: 1,
                granted: 500,
                settled: 0,
                reserved: 0,
                expires_ms: 61_000,
                retry_ms: 0
            }
        );
    }

    #[test]
    fn the_share_shrinks_with_the_holders_and_the_rest() {
        // 1000 − 700 = 300 left, two others and this one: 300 / (2 × 3) = 50.
        let lease = answer(
            None,
            ask(1, 0, 3),
            1_000,
            others(700, 2),
            9_000_000,
            0,
            TERM,
        );
        assert_eq!(lease.granted, 50);
        // 4 left: the share is 0, the wish counts.
        let lease = answer(
            None,
            ask(1, 0, 3),
            1_000,
            others(996, 2),
            9_000_000,
            0,
            TERM,
        );
        assert_eq!(lease.granted, 3);
    }

    #[test]
    fn nothing_left_says_when_to_ask_again() {
        let lease = answer(
            None,
            ask(1, 0, 3),
            1_000,
            others(1_000, 1),
            9_000_000,
            500,
            TERM,
        );
        assert_eq!((lease.granted, lease.retry_ms), (0, 1_500));
        // Not beyond the window's end: then there is a new limit.
        let lease = answer(None, ask(1, 0, 3), 1_000, others(1_000, 1), 900, 500, TERM);
        assert_eq!(lease.retry_ms, 900);
    }

    #[test]
    fn a_replay_changes_nothing() {
        let first = answer(None, ask(1, 0, 3), 1_000, others(0, 0), 9_000_000, 0, TERM);
        assert_eq!(
            answer(
                Some(first),
                ask(1, 7, 3),
                1_000,
                others(0, 0),
                9_000_000,
                5,
                TERM
            ),
            first
        );
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
        let lease = answer(
            Some(mine),
            ask(2, 120, 30),
            130,
            others(0, 0),
            9_000_000,
            0,
            TERM,
        );
        assert_eq!((lease.granted, lease.taken()), (130, 130));
    }

    #[test]
    fn a_lowered_limit_takes_nothing_back_and_gives_nothing() {
        let mine = Lease {
            seq: 1,
            granted: 100,
            ..Lease::default()
        };
        let lease = answer(
            Some(mine),
            ask(2, 0, 1),
            50,
            others(0, 0),
            9_000_000,
            0,
            TERM,
        );
        assert_eq!(lease.granted, 100);
        assert_eq!(lease.retry_ms, RETRY_MS);
    }

    #[test]
    fn epochs_only_go_forward() {
        assert_eq!(epoch(None, 0), Epoch::New(1));
        assert_eq!(epoch(Some(4), 0), Epoch::New(5));
        assert_eq!(epoch(Some(4), 4), Epoch::Running(4));
        assert_eq!(epoch(Some(4), 3), Epoch::Stale(4));
        assert_eq!(epoch(Some(4), 9), Epoch::New(10));
        assert_eq!(epoch(None, 9), Epoch::New(10));
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
                let after = answer(
                    (before != Lease::default()).then_some(before),
                    ask,
                    limit,
                    Others::of(&rest, now_ms),
                    i64::MAX,
                    now_ms,
                    TERM,
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
