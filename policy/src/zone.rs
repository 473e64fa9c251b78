//! Time zones: names checked when a policy is written, days turned into instants when a bundle is made. A gate knows no zones.

use crate::decode;
use jiff::{
    Timestamp, Zoned,
    civil::Date,
    tz::{self, TimeZone},
};

/// The canonical spelling of an IANA time zone; `None` when there is no such zone.
pub fn canonical(name: &str) -> Option<String> {
    let zone = TimeZone::get(name).ok()?;
    if zone.is_unknown() {
        return None;
    }
    zone.iana_name().map(str::to_string)
}

/// The zone that was probably meant by a name that is none: that of the city, or one that is spelt nearly so and begins alike.
pub(crate) fn nearest(name: &str) -> Option<String> {
    let asked = name.to_ascii_lowercase();
    let zones: Vec<String> = tz::db().available().map(|zone| zone.to_string()).collect();
    let lower: Vec<String> = zones.iter().map(|zone| zone.to_ascii_lowercase()).collect();
    let of_city = |zone: &String| zone.rsplit('/').next() == Some(asked.as_str());
    // Few are compared letter by letter: a file may have thousands of mistakes.
    let alike: Vec<&str> = lower
        .iter()
        .map(String::as_str)
        .filter(|zone| zone.get(..1) == asked.get(..1))
        .collect();
    let found = lower.iter().position(of_city).or_else(|| {
        let near = decode::nearest(&asked, &alike)?;
        lower.iter().position(|zone| zone == near)
    });
    zones.get(found?).cloned()
}

/// The midnights of a zone, in seconds since the Unix epoch: the last one not after `from` to the first one not before `until`.
///
/// A day begins at its first instant, which is not 00:00 where a clock change skips it; a date that a zone skipped has no midnight.
/// `None` when there is no such zone or an instant is outside the years a calendar has.
pub fn midnights(zone: &str, from: i64, until: i64) -> Option<Vec<i64>> {
    edges(zone, from, until, |day| Some(day.date()), Date::tomorrow)
}

/// Of the midnights those that begin a Monday (ISO 8601's first day of the week), as [`midnights`].
pub fn mondays(zone: &str, from: i64, until: i64) -> Option<Vec<i64>> {
    let monday = |day: &Zoned| {
        let since = i64::from(day.weekday().to_monday_zero_offset());
        day.date().checked_sub(jiff::Span::new().days(since)).ok()
    };
    edges(zone, from, until, monday, |date| {
        date.checked_add(jiff::Span::new().days(7))
    })
}

/// Of the midnights those that begin a month, as [`midnights`].
pub fn months(zone: &str, from: i64, until: i64) -> Option<Vec<i64>> {
    edges(
        zone,
        from,
        until,
        |day| Some(day.date().first_of_month()),
        |date| date.checked_add(jiff::Span::new().months(1)),
    )
}

/// The first instants of the dates that `first` and `next` name: from the last one not after `from` to the first one not before `until`.
fn edges(
    zone: &str,
    from: i64,
    until: i64,
    first: impl Fn(&Zoned) -> Option<Date>,
    next: impl Fn(Date) -> Result<Date, jiff::Error>,
) -> Option<Vec<i64>> {
    let zone = TimeZone::get(zone).ok()?;
    let until = until.max(from);
    let mut date = first(&Timestamp::from_second(from).ok()?.to_zoned(zone.clone()))?;
    let mut edges = Vec::new();
    loop {
        let begins = date.to_zoned(zone.clone()).ok()?.start_of_day().ok()?;
        let begins = begins.timestamp().as_second();
        // A skipped date begins with the one behind it.
        if edges.last() != Some(&begins) {
            edges.push(begins);
        }
        if begins >= until {
            return Some(edges);
        }
        date = next(date).ok()?;
    }
}

/// The stretches between `from` and `until` (seconds since the Unix epoch) in which clocks of the zone show a time from `start` up to and not
/// including `end`, both in minutes since midnight; over midnight where `end` comes first. Half open, ascending, not touching.
///
/// Clocks decide, minute by minute: a time that is skipped when they go forward is not shown, one that is shown twice when they go back
/// counts twice. `None` when there is no such zone or an instant is outside the years a calendar has.
pub fn open_hours(
    zone: &str,
    start: u32,
    end: u32,
    from: i64,
    until: i64,
) -> Option<Vec<(i64, i64)>> {
    const DAY_MINUTES: u32 = 24 * 60;
    const DAY_SECS: i64 = 24 * 60 * 60;
    let zone = TimeZone::get(zone).ok()?;
    let shown = match start < end {
        true => vec![(start, end)],
        // Over midnight: the morning and the evening of every day.
        false => vec![(0, end), (start, DAY_MINUTES)],
    };
    let mut open: Vec<(i64, i64)> = Vec::new();
    let mut at = Timestamp::from_second(from).ok()?;
    let mut changes = zone.following(at);
    while at.as_second() < until {
        // Up to the next change clocks run evenly: what they show is the instant plus an offset.
        let change = changes
            .next()
            .map_or(i64::MAX, |change| change.timestamp().as_second());
        let (begin, stop) = (at.as_second(), change.min(until));
        let offset = i64::from(zone.to_offset(at).seconds());
        let days = begin.checked_add(offset)?.div_euclid(DAY_SECS);
        let mut midnight = days.checked_mul(DAY_SECS)?.checked_sub(offset)?;
        while midnight < stop {
            for (start, end) in &shown {
                let start = (midnight + i64::from(*start) * 60).max(begin);
                let end = (midnight + i64::from(*end) * 60).min(stop);
                match open.last_mut() {
                    Some(last) if start < end && last.1 == start => last.1 = end,
                    _ if start < end => open.push((start, end)),
                    _ => {}
                }
            }
            midnight += DAY_SECS;
        }
        at = Timestamp::from_second(stop).ok()?;
    }
    Some(open)
}
