//! Rounds, by a clock that only moves when everybody waits.

use super::{DROPPED, HOLDER, Keeper, RECORDS, Rounds, pieces};
use crate::{
    message::{Change, Message},
    platform::{Broken, Platform, Request, RequestBody, Response, Unreachable},
    store::{Memory, Store as _},
};
use ed25519_dalek::{Signer as _, SigningKey};
use futures_util::{
    future::{Either, join_all, poll_fn, select},
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
    bytes::to_base64,
    envelope::{Envelope, EnvelopeSignature, LEASES_TYPE, pre_authentication_encoding},
    gate::Config,
    journal::{Batch, Receipt, SealKey},
    lease::{Answer, Grant, Request as Asked},
    ledger::{Account, Op, Span},
    sorted::Map,
    time::Time,
    upkeep::{Holder, RECALL},
};

const WORKSPACE: &str = "ws-00000000-0000-4000-8000-000000000000";
const ENROLMENT_KEY: &str = "not-a-real-key";
/// Of the limit by which it leases, for every account.
const DAY: Span = Span {
    start: 0,
    end: 86_400,
};
/// What it leases of each, and what of that may stay with a gate.
const LEASED: u64 = 10;
const KEPT: u64 = 4;
/// The longest that anything here may take.
const PATIENCE_MS: i64 = 60_000;

/// A platform whose time is told, with a control plane that takes its time over records. It confirms every bundle.
#[derive(Clone)]
struct Lab(Rc<Inside>);

struct Inside {
    now_ms: Cell<i64>,
    /// The next moment at which a pause is over, of those asked about since time last moved.
    next_ms: Cell<i64>,
    receipt_takes_ms: u32,
    /// Something that it has leased is wanted back.
    recalls: Cell<bool>,
    /// No policy has limits any more.
    unlimited: Cell<bool>,
    /// It does not answer.
    silent: Cell<bool>,
    /// It does not even say so.
    hangs: Cell<bool>,
    /// What it was asked for, and when.
    asked: RefCell<Vec<(i64, &'static str)>>,
    /// What of an account was told to have been given back, and when.
    returned: RefCell<Vec<(i64, u64)>>,
}

impl Lab {
    fn new(receipt_takes_ms: u32) -> Lab {
        Lab(Rc::new(Inside {
            now_ms: Cell::new(0),
            next_ms: Cell::new(i64::MAX),
            receipt_takes_ms,
            recalls: Cell::default(),
            unlimited: Cell::default(),
            silent: Cell::default(),
            hangs: Cell::default(),
            asked: RefCell::default(),
            returned: RefCell::default(),
        }))
    }

    /// Its answer to a lease request.
    fn leases(&self, request: &[u8]) -> Vec<u8> {
        let asked: Asked = serde_json::from_slice(request).unwrap();
        let now_ms = self.0.now_ms.get();
        let mut grants = Vec::new();
        for ask in asked.asks {
            let mut returned = self.0.returned.borrow_mut();
            returned.push((now_ms, ask.returned));
            if self.0.unlimited.get() {
                continue;
            }
            grants.push(Grant {
                seq: ask.seq,
                granted: ask.granted,
                returned: ask.returned,
                settled: ask.settled,
                spent: ask.settled,
                keep: if self.0.recalls.get() { 0 } else { KEPT },
                ..grant(ask.account)
            });
        }
        let answer = Answer {
            workspace: WORKSPACE.to_owned(),
            holder: asked.holder,
            epoch: asked.epoch,
            issued_ms: now_ms,
            learning: false,
            grants,
        };
        let payload = serde_json::to_vec(&answer).unwrap();
        let signature = key().sign(&pre_authentication_encoding(LEASES_TYPE, &payload));
        let envelope = Envelope {
            payload,
            payload_type: LEASES_TYPE.to_owned(),
            signatures: vec![EnvelopeSignature {
                keyid: KEY_ID.to_owned(),
                sig: signature.to_bytes().to_vec(),
            }],
        };
        serde_json::to_vec(&envelope).unwrap()
    }

    fn asked_for(&self, what: &str) -> Vec<i64> {
        let asked = self.0.asked.borrow();
        let asked = asked.iter().filter(|(_, asked)| *asked == what);
        asked.map(|(at_ms, _)| *at_ms).collect()
    }

    fn returned(&self) -> Vec<(i64, u64)> {
        self.0.returned.borrow().clone()
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
        if self.0.silent.get() {
            return Err(Unreachable);
        }
        if self.0.hangs.get() {
            self.pause(u32::MAX).await;
        }
        let (status, body) = match (what, request.body) {
            ("bundle", _) if self.0.recalls.get() => (RECALL, Vec::new()),
            ("bundle", _) => (304, Vec::new()),
            ("leases", RequestBody::Bytes(request)) => (200, self.leases(&request)),
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

const KEY_ID: &str = "k";

fn key() -> SigningKey {
    SigningKey::from_bytes(&[7; 32])
}

fn account() -> Account {
    Account::parse("agent:a|calls|day@UTC").unwrap()
}

fn grant(account: Account) -> Grant {
    Grant {
        account,
        window_start: DAY.start,
        window_end: DAY.end,
        seq: 0,
        granted: LEASED,
        returned: 0,
        settled: 0,
        spent: 0,
        lifted_ms: 0,
        expires_ms: 60_000,
        retry_ms: 0,
        keep: KEPT,
    }
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
        "trust": [{"key_id": KEY_ID, "public_key": to_base64(key().verifying_key().as_bytes())}],
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

/// One round of a keeper of which the control plane answers in 300 ms, while so many calls come in each 100 ms; when the next is due.
fn round_under_load(lab: &Lab, calls_at_once: i64) -> Option<Time> {
    let keeper = keeper(lab);
    let calls = async {
        for number in 1.. {
            keeper.record(&record(number)).await;
            if number % calls_at_once == 0 {
                lab.pause(100).await;
            }
        }
    };
    match lab.run(select(pin!(calls), pin!(keeper.round()))) {
        Either::Right((next, _)) => next,
        Either::Left(_) => panic!("there is always one more"),
    }
}

/// A batch for each would cost more than they do, and hold up those who call.
#[test]
fn the_few_records_that_come_while_a_batch_is_delivered_wait_for_the_next_round() {
    let lab = Lab::new(300);
    let next = round_under_load(&lab, 1);
    assert_eq!(lab.asked_for("audit"), [0]);
    assert_eq!(lab.now().millis(), 300);
    assert_eq!(next.map(Time::millis), Some(1_000));
}

/// Under load there is always one more.
#[test]
fn a_round_ends_while_records_keep_coming() {
    let lab = Lab::new(300);
    let next = round_under_load(&lab, 30);
    assert_eq!(next, Some(lab.now()));
    assert_eq!(lab.asked_for("audit"), [0, 300, 600, 900]);
    assert_eq!(lab.asked_for("bundle"), [0, 1_000]);
    assert_eq!(lab.now().millis(), 1_200);
}

/// Whichever round the last call ends in.
#[test]
fn without_an_alarm_the_control_plane_hears_of_all_calls_that_have_ended() {
    for calls in 1..30 {
        let lab = Lab::new(300);
        let (keeper, rounds) = (keeper(&lab), Rounds::default());
        let ends = async |number: i64| {
            lab.pause(u32::try_from(number * 250).unwrap()).await;
            keeper.record(&record(number)).await;
            rounds.after_a_call(&keeper).await;
        };
        lab.run(join_all((0..calls).map(ends)));
        assert!(!lab.run(keeper.owes()), "{calls} calls");
    }
}

#[test]
fn without_an_alarm_nobody_waits_for_ever_for_a_control_plane_that_does_not_answer() {
    let lab = Lab::new(300);
    lab.0.silent.set(true);
    let (keeper, rounds) = (keeper(&lab), Rounds::default());
    lab.run(keeper.record(&record(1)));
    lab.run(rounds.after_a_call(&keeper));
    assert!(lab.run(keeper.owes()));
    // One round each second.
    assert_eq!(lab.now().millis(), 4_000);
}

/// Whoever was not heard, or did not hear that it was, says so again.
#[test]
fn a_call_is_closed_once_however_often_it_is_said() {
    let lab = Lab::new(0);
    let keeper = keeper(&lab);
    let close = || Message::Close {
        call: "d-1".to_owned(),
        changes: Vec::new(),
        record: String::from_utf8(record(1)).unwrap(),
    };
    for _ in 0..3 {
        lab.run(keeper.handle(close()));
        lab.run(keeper.round());
        lab.run(lab.pause(1_000));
    }
    assert_eq!(lab.asked_for("audit"), [0]);
    assert!(!lab.run(keeper.owes()));
}

/// A long record takes the room of many.
#[test]
fn records_that_wait_have_so_much_room_and_no_more() {
    let lab = Lab::new(0);
    let keeper = keeper(&lab);
    let long = |number: i64| {
        let content = "x".repeat(64 * 1024 - 60);
        format!(r#"{{"id":"d-{number}","at_ms":{number},"content":"{content}"}}"#).into_bytes()
    };
    assert_eq!(long(10).len().div_ceil(2_048), 32);
    // 16 MiB are 256 of 64 KiB.
    for number in 0..256 {
        lab.run(keeper.record(&long(number)));
    }
    let counted = || lab.run(keeper.store.get(DROPPED)).unwrap();
    assert_eq!(counted(), None);
    lab.run(keeper.record(&record(300)));
    lab.run(keeper.record(&long(301)));
    assert_eq!(counted().as_deref(), Some(&b"2"[..]));
    // Whatever begins again with them knows how much they are, and there is room once they are delivered.
    assert_eq!(pieces(&lab.run(keeper.store.keys(RECORDS)).unwrap()), 8_192);
    while lab.run(keeper.owes()) {
        lab.run(keeper.round());
        lab.run(lab.pause(1_000));
    }
    lab.run(keeper.record(&long(302)));
    assert_eq!(keeper.backlog.get(), 32);
}

#[test]
fn calls_of_which_nobody_was_told_are_counted() {
    let lab = Lab::new(0);
    let keeper = keeper(&lab);
    for lost in [2, 0, 3] {
        lab.run(keeper.handle(Message::Follow { etag: None, lost }));
    }
    let counted = lab.run(keeper.store.get(DROPPED)).unwrap();
    assert_eq!(counted.as_deref(), Some(&b"5"[..]));
}

#[test]
fn a_control_plane_that_hangs_holds_up_one_call_and_not_each() {
    let lab = Lab::new(0);
    lab.0.hangs.set(true);
    let keeper = keeper(&lab);
    let follow = || {
        let (etag, lost) = (None, 0);
        keeper.handle(Message::Follow { etag, lost })
    };
    lab.run(follow());
    assert_eq!(lab.now().millis(), 1_000);
    for _ in 0..3 {
        lab.run(follow());
    }
    assert_eq!(lab.now().millis(), 1_000);
    // Beside a round that waits longer, too.
    let calls = async {
        lab.pause(7_000).await;
        let begun = lab.now();
        for _ in 0..3 {
            follow().await;
        }
        assert!(lab.now().millis_since(begun) <= 1_000);
    };
    lab.run(select(pin!(calls), pin!(keeper.round())));
}

/// A keeper that holds a lease, for which one call has come: a second after the beginning.
fn after_a_call(lab: &Lab) -> Keeper<Lab, Memory> {
    let keeper = keeper(lab);
    lab.run(lab.pause(1_000));
    let (grant, epoch) = (grant(account()), holder().epoch);
    let (start, span) = (DAY.start, DAY);
    for op in [
        Op::Refill { grant, epoch },
        Op::Reserve { span, amount: 3 },
        Op::Settle {
            start,
            reserved: 3,
            used: 2,
        },
    ] {
        let account = account();
        let change = Change { account, op };
        lab.run(keeper.apply(&holder().id, &change, lab.now()))
            .unwrap();
    }
    // What may not stay goes with the report.
    assert_eq!(
        lab.run(keeper.round()),
        Some(Time::from_millis(31_000)),
        "when nobody has used the rest for half a minute"
    );
    assert_eq!(lab.returned(), [(1_000, LEASED - 2 - KEPT)]);
    keeper
}

#[test]
fn a_keeper_that_sleeps_holds_nothing_for_longer_than_half_a_minute() {
    let lab = Lab::new(0);
    let keeper = after_a_call(&lab);
    lab.run(lab.pause(30_000));
    assert_eq!(lab.run(keeper.round()), None);
    assert_eq!(lab.returned()[1..], [(31_000, LEASED - 2)]);
}

#[test]
fn what_is_wanted_back_is_given_back_in_the_round_that_hears_of_it() {
    let lab = Lab::new(0);
    let keeper = after_a_call(&lab);
    lab.run(lab.pause(500));
    lab.0.recalls.set(true);
    assert_eq!(lab.run(keeper.round()), None);
    // First it is told what is there, and hears that nothing of it may stay.
    let told = [(1_500, LEASED - 2 - KEPT), (1_500, LEASED - 2)];
    assert_eq!(lab.returned()[1..], told);
}

#[test]
fn a_limit_that_is_no_more_keeps_nobody_awake() {
    let lab = Lab::new(0);
    let keeper = after_a_call(&lab);
    lab.0.unlimited.set(true);
    lab.run(lab.pause(30_000));
    // It says that it has given back, and nobody answers to that.
    assert_eq!(lab.run(keeper.round()), Some(Time::from_millis(32_000)));
    lab.run(lab.pause(29_000));
    assert_eq!(lab.run(keeper.round()), None, "its lease is over");
}
