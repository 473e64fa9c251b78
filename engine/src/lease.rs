//! What a gate and the control plane say to each other about spending rights.
//!
//! A request with epoch 0 is the greeting of a new holder; the answer carries its epoch. Amounts are cumulative within a window and
//! travel as decimal strings (JSON numbers are not exact beyond 2⁵³). The answer is a DSSE envelope of [`Answer`].

use crate::{ledger::Account, time::Time};
use alloc::{string::String, vec::Vec};
use serde::{Deserialize, Serialize};

/// Accounts in one request; more wait for the next. 256 entries of about 300 bytes keep it below 80 KiB.
pub const MAX_ASKS: usize = 256;

/// A holder reports what it has used and asks for more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// Who asks; made by the gate at its start, `h-` and 32 hex digits.
    pub holder: String,
    /// As the control plane gave it; 0 asks for one.
    pub epoch: u64,
    /// The bundle revision this gate runs; 0 when none.
    pub revision: u64,
    /// One per account and window.
    pub asks: Vec<Ask>,
}

/// One account in a [`Request`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ask {
    /// The account.
    pub account: Account,
    /// Start of the window, seconds since the Unix epoch.
    pub window_start: i64,
    /// Grows with every ask for this account and window by this holder; the same number again changes nothing.
    pub seq: u64,
    /// The epoch under which what follows was leased and counted, 0 when nothing was. It is an earlier one than the request's until the
    /// first grant after a new greeting, and nothing but what was used counts then.
    pub epoch: u64,
    /// Leased to this holder in this window, as it knows. More than the control plane has down means that its database was put back.
    #[serde(with = "amount")]
    pub granted: u64,
    /// Given back of that.
    #[serde(with = "amount")]
    pub returned: u64,
    /// Used so far in this window by this holder.
    #[serde(with = "amount")]
    pub settled: u64,
    /// Worst case of the calls under way.
    #[serde(with = "amount")]
    pub reserved: u64,
    /// Needed beyond what is granted; 0 only reports and renews.
    #[serde(with = "amount")]
    pub want: u64,
    /// No call waits for it: as much as lasts a while, if there is plenty.
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    pub ahead: bool,
}

/// The signed answer to a [`Request`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answer {
    /// The tenant.
    pub workspace: String,
    /// Who asked.
    pub holder: String,
    /// The holder's epoch; a gate that reads a newer one than its own starts its cells afresh.
    pub epoch: u64,
    /// Signed at; milliseconds since the Unix epoch.
    pub issued_ms: i64,
    /// The control plane's database was put back to an earlier state. It grants nothing until it has heard what every holder has: tell it
    /// of every account.
    pub learning: bool,
    /// One per ask that named an account with a limit, or one that the holder has leased from and that has none any more: all of that goes back.
    /// An ask without a grant names neither, or a call waits at it for a limit that is no more.
    pub grants: Vec<Grant>,
}

/// What a holder has of one account and window.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grant {
    /// The account.
    pub account: Account,
    /// First second of the window.
    pub window_start: i64,
    /// First second after the window.
    pub window_end: i64,
    /// The ask that this answers.
    pub seq: u64,
    /// Leased in this window in all.
    #[serde(with = "amount")]
    pub granted: u64,
    /// What the control plane has down as given back.
    #[serde(with = "amount")]
    pub returned: u64,
    /// What the control plane has down as used.
    #[serde(with = "amount")]
    pub settled: u64,
    /// What all holders together have used, as far as they have said.
    #[serde(with = "amount")]
    pub spent: u64,
    /// When an operator last let the account be spent from again that had been suspended; milliseconds since the Unix epoch, 0 when never.
    pub lifted_ms: i64,
    /// The lease ends; milliseconds since the Unix epoch.
    pub expires_ms: i64,
    /// There is no more to be had before; milliseconds since the Unix epoch, 0 when there may be.
    pub retry_ms: i64,
    /// What of it may stay there beside what calls have reserved, where those are few; the rest goes back. 0 where little is left for all: then nothing is fetched
    /// ahead of need either.
    #[serde(with = "amount")]
    pub keep: u64,
}

impl Grant {
    /// The same by a clock that shows `by_ms` more than the one it was written by.
    pub(crate) fn shifted(self, by_ms: i64) -> Grant {
        let shifted = |at_ms: i64| match at_ms {
            0 => 0,
            at_ms => at_ms.saturating_add(by_ms),
        };
        let window_end = match self.account.run {
            // Of a run that may not begin it is 0.
            Some(_) if self.window_end != 0 => {
                self.window_end.saturating_add(by_ms.div_euclid(1_000))
            }
            Some(_) => 0,
            // On the calendar, which both share.
            None => self.window_end,
        };
        Grant {
            window_end,
            expires_ms: self.expires_ms.saturating_add(by_ms),
            retry_ms: shifted(self.retry_ms),
            lifted_ms: shifted(self.lifted_ms),
            ..self
        }
    }
}

impl Answer {
    /// Whether this answers a request of `holder` in `workspace` and is fresh enough to act on at `now`.
    pub fn is_for(&self, workspace: &str, holder: &str, now: Time) -> bool {
        self.workspace == workspace
            && self.holder == holder
            && now.millis().saturating_sub(self.issued_ms).saturating_abs() < MAX_AGE_MS
    }
}

/// An answer older than this (or this far in the future) is a replay or a clock gone wrong. Five minutes, as for bundles.
const MAX_AGE_MS: i64 = crate::bundle::CLOCK_SKEW_SECS * 1_000;

/// Amounts as decimal strings.
pub mod amount {
    use alloc::string::String;
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    /// Writes the digits.
    pub fn serialize<S: Serializer>(amount: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(amount)
    }

    /// Reads the digits.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(|_| D::Error::custom("expected an amount in decimal digits"))
    }
}
