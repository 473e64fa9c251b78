//! Time as an argument. The engine never asks for it; a host passes its wall clock with every call.

use core::fmt;
use serde::{Deserialize, Serialize};

/// Microseconds since the Unix epoch, UTC. Fine enough for the time to decide, wide enough for 292,000 years.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Time(i64);

impl Time {
    /// From whole seconds since the Unix epoch; saturates.
    pub const fn from_secs(secs: i64) -> Time {
        Time(secs.saturating_mul(1_000_000))
    }
    /// From milliseconds since the Unix epoch; saturates.
    pub const fn from_millis(millis: i64) -> Time {
        Time(millis.saturating_mul(1_000))
    }
    /// From microseconds since the Unix epoch.
    pub const fn from_micros(micros: i64) -> Time {
        Time(micros)
    }
    /// Whole seconds since the Unix epoch, rounded down.
    pub const fn secs(self) -> i64 {
        self.0.div_euclid(1_000_000)
    }
    /// Milliseconds since the Unix epoch, rounded down.
    pub const fn millis(self) -> i64 {
        self.0.div_euclid(1_000)
    }
    /// Microseconds since the Unix epoch.
    pub const fn micros(self) -> i64 {
        self.0
    }
    /// This time plus `millis` milliseconds (may be negative); saturates.
    pub const fn plus_millis(self, millis: i64) -> Time {
        Time(self.0.saturating_add(millis.saturating_mul(1_000)))
    }
    /// This time plus `secs` seconds (may be negative); saturates.
    pub const fn plus_secs(self, secs: i64) -> Time {
        self.plus_millis(secs.saturating_mul(1_000))
    }
    /// Milliseconds from `earlier` to this, rounded down; negative when this is the earlier one.
    pub const fn millis_since(self, earlier: Time) -> i64 {
        self.0.saturating_sub(earlier.0).div_euclid(1_000)
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Civil date from days, Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms" (civil_from_days).
        let secs = self.secs();
        let days = secs.div_euclid(86_400);
        let rest = secs.rem_euclid(86_400);
        let z = days + 719_468;
        let era = z.div_euclid(146_097);
        let doe = z.rem_euclid(146_097);
        let yoe = (doe - doe / 1_460 + doe / 36_524 - doe / 146_096) / 365;
        let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
        let mp = (5 * doy + 2) / 153;
        let day = doy - (153 * mp + 2) / 5 + 1;
        let month = if mp < 10 { mp + 3 } else { mp - 9 };
        let year = yoe + era * 400 + i64::from(month <= 2);
        let (h, m, s) = (rest / 3_600, rest / 60 % 60, rest % 60);
        write!(f, "{year:04}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}Z")
    }
}
