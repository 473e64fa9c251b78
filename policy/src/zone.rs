//! Time zones: names checked when a policy is written, days turned into instants when a bundle is made. A gate knows no zones.

use jiff::{Timestamp, tz::TimeZone};

/// The canonical spelling of an IANA time zone; `None` when there is no such zone.
pub fn canonical(name: &str) -> Option<String> {
    let zone = TimeZone::get(name).ok()?;
    if zone.is_unknown() {
        return None;
    }
    zone.iana_name().map(str::to_string)
}

/// The midnights of a zone, in seconds since the Unix epoch: the last one not after `from` to the first one not before `until`.
///
/// A day begins at its first instant, which is not 00:00 where a clock change skips it; a date that a zone skipped has no midnight.
/// `None` when there is no such zone or an instant is outside the years a calendar has.
pub fn midnights(zone: &str, from: i64, until: i64) -> Option<Vec<i64>> {
    let zone = TimeZone::get(zone).ok()?;
    let until = until.max(from);
    let mut day = Timestamp::from_second(from)
        .ok()?
        .to_zoned(zone)
        .start_of_day()
        .ok()?;
    let mut edges = vec![day.timestamp().as_second()];
    while edges.last().is_some_and(|last| *last < until) {
        day = day.tomorrow().and_then(|day| day.start_of_day()).ok()?;
        edges.push(day.timestamp().as_second());
    }
    Some(edges)
}
