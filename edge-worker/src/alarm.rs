//! The one alarm of a platform that has one.

use std::cell::Cell;
use tollgate_engine::time::Time;

/// Knows when the alarm rings that is set. What is kept here may be lost: then it is set once more.
#[derive(Debug, Default)]
pub struct Alarm(Cell<Option<Time>>);

/// One that has not rung so long after its time was not set after all.
const LATE_MS: i64 = 5_000;

impl Alarm {
    /// Whether it has to be set to ring in `wait_ms`: not where it rings in `at_most_ms` anyway. After a yes it is as good as set.
    pub fn moves_to(&self, now: Time, wait_ms: i64, at_most_ms: i64) -> bool {
        let rings = |set: Time| (-LATE_MS..=at_most_ms).contains(&set.millis_since(now));
        let moves = !self.0.get().is_some_and(rings);
        if moves {
            self.0.set(Some(now.plus_millis(wait_ms)));
        }
        moves
    }

    /// It has rung, and none is set.
    pub fn rang(&self) {
        self.0.set(None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A keeper that sleeps has one set for when it gives back what it holds. The next call does not wait for that.
    #[test]
    fn it_rings_by_the_earliest_time_that_was_asked_for() {
        let alarm = Alarm::default();
        let now = Time::from_millis(0);
        let moves_to = |wait_ms, at_most_ms| alarm.moves_to(now, wait_ms, at_most_ms);
        assert!(moves_to(30_000, 30_000));
        assert!(!moves_to(40_000, 40_000));
        assert!(!moves_to(30_000, 30_000));
        assert!(moves_to(200, 1_000));
        assert!(!moves_to(100, 1_000));
        assert!(!moves_to(100, 200));
        assert!(moves_to(100, 199));
        alarm.rang();
        assert!(moves_to(30_000, 30_000));
    }

    #[test]
    fn one_that_does_not_ring_is_set_again() {
        let alarm = Alarm::default();
        let moves_at = |millis| alarm.moves_to(Time::from_millis(millis), 200, 1_000);
        assert!(moves_at(0));
        // It may be late: somebody is busy.
        assert!(!moves_at(5_200));
        assert!(moves_at(5_201));
        // A clock that was set back.
        assert!(!moves_at(4_401));
        assert!(moves_at(4_400));
    }
}
