//! The one alarm of a platform that has one.

use std::cell::Cell;
use tollgate_engine::time::Time;

/// Knows when the alarm rings that is set. What is kept here may be lost: then it is set once more.
#[derive(Debug, Default)]
pub struct Alarm(Cell<Option<Time>>);

impl Alarm {
    /// Whether it has to be set to `due`: not where it rings by `latest` anyway. After a yes it is as good as set.
    pub fn moves_to(&self, due: Time, latest: Time) -> bool {
        let moves = self.0.get().is_none_or(|set| set > latest);
        if moves {
            self.0.set(Some(due));
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
        let moves_to =
            |due, latest| alarm.moves_to(Time::from_millis(due), Time::from_millis(latest));
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
}
