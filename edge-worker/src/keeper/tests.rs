//! Rounds, by a clock that only moves when everybody waits.

use super::{HOLDER, Keeper};
use crate::{
    platform::{Broken, Platform, Request, RequestBody, Response, Unreachable},
    store::Memory,
};
use futures_util::{
    future::{Either, poll_fn, select},
    stream::{self, Iter},
};
use std::{
    cell::{Cell, RefCell},
    pin::pin,
    rc::Rc,
    task::{Context, Poll, Waker},
    vec,
};
use tollgate_engine::{
    gate::Config,
    journal::{Batch, Receipt, SealKey},
    sorted::Map,
    time::Time,
    upkeep::Holder,
};

const WORKSPACE: &str = "ws-00000000-0000-4000-8000-000000000000";
const ENROLMENT_KEY: &str = "not-a-real-key";
/// The longest that anything here may take.
const PATIENCE_MS: i64 = 60_000;

/// A platform whose time is told, with a control plane that takes its time over records. It confirms every bundle and gives no leases.
#[derive(Clone)]
struct Lab(Rc<Inside>);

struct Inside {
    now_ms: Cell<i64>,
    /// The next moment at which a pause is over, of those asked about since time last moved.
    next_ms: Cell<i64>,
    receipt_takes_ms: u32,
    /// What it was asked for, and when.
    asked: RefCell<Vec<(i64, &'static str)>>,
}

impl Lab {
    fn new(receipt_takes_ms: u32) -> Lab {
        Lab(Rc::new(Inside {
            now_ms: Cell::new(0),
            next_ms: Cell::new(i64::MAX),
            receipt_takes_ms,
            asked: RefCell::default(),
        }))
    }

    fn asked_for(&self, what: &str) -> Vec<i64> {
        let asked = self.0.asked.borrow();
        let asked = asked.iter().filter(|(_, asked)| *asked == what);
        asked.map(|(at_ms, _)| *at_ms).collect()
    }

    /// Lets time pass until `work` is done.
    fn run<T>(&self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        loop {
            self.0.next_ms.set(i64::MAX);
            if let Poll::Ready(done) = work.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                return done;
            }
            let next_ms = self.0.next_ms.get();
            assert!(next_ms <= PATIENCE_MS, "this goes on and on");
            self.0.now_ms.set(next_ms);
        }
    }
}

impl Platform for Lab {
    type Body = Iter<vec::IntoIter<Result<Vec<u8>, Broken>>>;

    fn now(&self) -> Time {
        Time::from_millis(self.0.now_ms.get())
    }

    fn entropy(&self) -> Option<u128> {
        Some(0)
    }

    async fn fetch(
        &self,
        request: Request<Self::Body>,
    ) -> Result<Response<Self::Body>, Unreachable> {
        let of = |what: &str| request.url.contains(&format!("/gate/{what}"));
        let what = ["bundle", "leases", "audit"]
            .into_iter()
            .find(|what| of(what));
        let what = what.expect("something that a control plane has");
        let at_ms = self.0.now_ms.get();
        self.0.asked.borrow_mut().push((at_ms, what));
        let (status, body) = match (what, request.body) {
            ("bundle", _) => (304, Vec::new()),
            ("audit", RequestBody::Bytes(batch)) => {
                self.pause(self.0.receipt_takes_ms).await;
                let batch = Batch::read(&batch).unwrap();
                let root = SealKey::root(ENROLMENT_KEY);
                let receipt = Receipt::of(&batch, &SealKey::derive(&root, &holder().id));
                (200, serde_json::to_vec(&receipt).unwrap())
            }
            _ => (503, Vec::new()),
        };
        Ok(Response {
            status,
            headers: Vec::new(),
            body: stream::iter(vec![Ok(body)]),
        })
    }

    async fn pause(&self, millis: u32) {
        let due_ms = self.0.now_ms.get() + i64::from(millis);
        poll_fn(|_| {
            if self.0.now_ms.get() >= due_ms {
                return Poll::Ready(());
            }
            self.0.next_ms.set(self.0.next_ms.get().min(due_ms));
            Poll::Pending
        })
        .await;
    }

    fn log(&self, _line: &str) {}
}

fn holder() -> Holder {
    Holder {
        epoch: 1,
        ..Holder::new(1)
    }
}

fn keeper(lab: &Lab) -> Keeper<Lab, Memory> {
    let settings = serde_json::json!({
        "workspace": WORKSPACE,
        "trust": [{"key_id": "none", "public_key": format!("{}=", "A".repeat(43))}],
        "enrolment_key": "env:KEY",
        "upstream": {},
    });
    let look_up = |_: &str| Some(ENROLMENT_KEY.to_owned());
    let config = Config::read(settings.to_string().as_bytes(), look_up).unwrap();
    let mut values = Map::default();
    values.insert(HOLDER.to_owned(), holder().encode());
    let store = Memory::with(values);
    lab.run(Keeper::open(
        lab.clone(),
        store,
        config,
        "http://control-plane",
    ))
}

fn record(number: i64) -> Vec<u8> {
    format!(r#"{{"id":"d-{number}","at_ms":{number}}}"#).into_bytes()
}

#[test]
fn a_delivery_that_takes_long_holds_up_no_policy() {
    let lab = Lab::new(4_500);
    let keeper = keeper(&lab);
    lab.run(keeper.record(&record(1)));
    lab.run(keeper.round());
    assert_eq!(lab.asked_for("audit"), [0]);
    assert_eq!(lab.asked_for("bundle"), [0, 1_000, 2_000, 3_000, 4_000]);
    assert_eq!(lab.now().millis(), 4_500);
}

/// Under load there is always one more.
#[test]
fn a_round_ends_while_records_keep_coming() {
    let lab = Lab::new(300);
    let keeper = keeper(&lab);
    let calls = async {
        for number in 1.. {
            keeper.record(&record(number)).await;
            lab.pause(100).await;
        }
    };
    match lab.run(select(pin!(calls), pin!(keeper.round()))) {
        Either::Right((next, _)) => assert_eq!(next, Some(lab.now())),
        Either::Left(_) => panic!("there is always one more"),
    }
    assert_eq!(lab.asked_for("audit"), [0, 300, 600, 900]);
    assert_eq!(lab.asked_for("bundle"), [0, 1_000]);
    assert_eq!(lab.now().millis(), 1_200);
}
