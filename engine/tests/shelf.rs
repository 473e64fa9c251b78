//! Cells that share a place: found again, changed together, and of runs no more than there is room for.

mod issuer;

use tollgate_engine::{
    exchange::CellOp,
    ledger::{Account, Cell, Op, Refusal, Span},
    shelf::{MAX_RUNS, PLACES, Place, Shelf, are_together, place_of},
    time::Time,
};

const NOW: Time = Time::from_secs(1_000_000);
const HOUR: Span = Span {
    start: 997_200,
    end: 1_000_800,
};
const ASK: Op = Op::Ask { span: Span::RUN };

fn account(text: &str) -> Account {
    Account::parse(text).unwrap()
}

fn run(name: &str) -> Account {
    account(&format!("agent:a|tokens|run:{name}"))
}

fn after_secs(secs: i64) -> Time {
    NOW.plus_millis(secs * 1_000)
}

fn granted(account: &Account, span: Span, amount: u64) -> Op {
    Op::Refill {
        grant: issuer::grant(account, span, amount, after_secs(60)),
        epoch: 1,
    }
}

fn reserve(span: Span, amount: u64) -> Op {
    Op::Reserve { span, amount }
}

fn change(account: &Account, op: Op) -> CellOp {
    CellOp {
        account: account.clone(),
        op,
    }
}

/// A shelf with accounts of which each has been leased so much of this hour.
fn leased(accounts: &[(&Account, u64)]) -> Shelf {
    let mut shelf = Shelf::default();
    for (account, amount) in accounts {
        let refill = change(account, granted(account, HOUR, *amount));
        shelf.apply(&refill, NOW).unwrap();
    }
    shelf
}

/// The cell of a run that has a call under way.
fn in_use(shelf: &mut Shelf, account: &Account, now: Time) -> Result<Cell, Refusal> {
    shelf.apply(&change(account, ASK), now)?;
    let span = Span {
        start: now.secs(),
        end: now.secs() + 86_400,
    };
    shelf.apply(&change(account, granted(account, span, 10)), now)?;
    shelf.apply(&change(account, reserve(Span::RUN, 10)), now)
}

#[test]
fn cells_are_found_again() {
    let [calls, tokens] = ["team:t|calls|hour", "team:t|tokens|hour"].map(account);
    let shelf = leased(&[(&calls, 3), (&tokens, 40)]);
    let read = Shelf::decode(shelf.clone().into_bytes());
    assert_eq!(read, shelf);
    let granted = |account: &Account| Some(read.cell(account)?.slots()[0].granted);
    assert_eq!(granted(&calls), Some(3));
    assert_eq!(granted(&tokens), Some(40));
    assert_eq!(granted(&account("team:t|tokens|minute")), None);
    assert_eq!(granted(&account("team:t|tokens|hour|model:m")), None);
    let found: Vec<Account> = read.cells().map(|(account, _)| account).collect();
    assert_eq!(found, [calls, tokens]);
}

#[test]
fn changes_are_made_up_to_the_first_that_is_refused() {
    let [one, two, three] =
        ["calls", "tokens", "nano_usd"].map(|unit| account(&format!("agent:a|{unit}|hour")));
    let mut shelf = leased(&[(&one, 9), (&two, 1), (&three, 9)]);
    let changes = [&one, &two, &three].map(|account| change(account, reserve(HOUR, 2)));
    let mut cells = Vec::new();
    assert_eq!(
        shelf.apply_all(&changes, NOW, &mut cells),
        Err(Refusal::Short)
    );
    assert_eq!(cells.len(), 1);
    let reserved = |shelf: &Shelf, account| shelf.cell(account).unwrap().slots()[0].reserved;
    let all = [&one, &two, &three].map(|account| reserved(&shelf, account));
    assert_eq!(all, [2, 0, 0]);

    let changes = [&one, &three].map(|account| change(account, reserve(HOUR, 7)));
    cells.clear();
    shelf.apply_all(&changes, NOW, &mut cells).unwrap();
    let given = cells.iter().map(|cell| cell.slots()[0].reserved);
    assert_eq!(given.collect::<Vec<_>>(), [9, 7]);
    assert_eq!(reserved(&shelf, &one), 9);
    assert_eq!(shelf.cells().count(), 3);
}

#[test]
fn what_differs_in_unit_and_window_alone_is_in_one_place() {
    let together = [
        "team:t|calls|minute",
        "team:t|tokens|day@UTC",
        "team:t|nano_usd|month@Europe/Berlin",
    ];
    let apart = [
        "team:u|calls|minute",
        "agent:t|calls|minute",
        "agent:t|calls|minute|tool:x",
        "agent:t|calls|hour|tool:y",
        "team:t|calls|minute|model:x",
        "workspace:t|calls|minute",
    ];
    let of = |text: &str| place_of("h-1", &account(text));
    assert_eq!(of(together[0]), Place::Of("team:t".to_owned()));
    assert_eq!(of(apart[2]), Place::Of("agent:t|tool:x".to_owned()));
    assert_eq!(of(apart[4]), Place::Of("team:t|model:x".to_owned()));
    let mut all = together.to_vec();
    all.extend(apart);
    for one in &all {
        for other in &all {
            let same = of(one) == of(other);
            assert_eq!(are_together(&account(one), &account(other)), same);
            let expected = one == other || (together.contains(one) && together.contains(other));
            assert_eq!(same, expected, "{one} and {other}");
        }
    }
}

#[test]
fn a_full_shelf_takes_one_more_run_only_where_one_is_done() {
    let mut shelf = Shelf::default();
    for number in 1..MAX_RUNS {
        in_use(&mut shelf, &run(&number.to_string()), NOW).unwrap();
    }
    // Asked for and never leased anything: done once no answer can come any more.
    shelf.apply(&change(&run("asked"), ASK), NOW).unwrap();
    let full = Err(Refusal::AlreadyAsked);
    assert_eq!(in_use(&mut shelf, &run("more"), NOW), full);
    assert_eq!(shelf.cells().count(), MAX_RUNS);
    in_use(&mut shelf, &run("more"), after_secs(2)).unwrap();
    assert_eq!(shelf.cell(&run("asked")), None);
    assert_eq!(in_use(&mut shelf, &run("last"), after_secs(2)), full);
}

/// By a clock that is put back they may be the running ones again.
#[test]
fn cells_that_are_of_no_run_stay() {
    let accounts: Vec<Account> = (0..=MAX_RUNS)
        .map(|number| account(&format!("team:t|calls|day@Zone/{number}")))
        .collect();
    let all: Vec<(&Account, u64)> = accounts.iter().map(|account| (account, 1)).collect();
    let mut shelf = leased(&all);
    let later = after_secs(1_000_000);
    let refill = change(&accounts[0], granted(&accounts[0], HOUR, 2));
    shelf.apply(&refill, later).unwrap();
    assert_eq!(shelf.cells().count(), MAX_RUNS + 1);
}

#[test]
fn cells_that_nobody_needs_are_tidied_away() {
    let mut shelf = Shelf::default();
    in_use(&mut shelf, &run("used"), NOW).unwrap();
    shelf.apply(&change(&run("asked"), ASK), NOW).unwrap();
    assert!(!shelf.tidy(NOW));
    assert!(shelf.tidy(after_secs(2)));
    let left: Vec<Account> = shelf.cells().map(|(account, _)| account).collect();
    assert_eq!(left, [run("used")]);
}

#[test]
fn what_is_no_shelf_is_an_empty_one() {
    let whole = leased(&[(&account("team:t|calls|hour"), 1)]).into_bytes();
    for length in 0..whole.len() {
        let cells = Shelf::decode(whole[..length].to_vec()).cells().count();
        assert_eq!(cells, 0, "{length}");
    }
    assert_eq!(Shelf::decode([&whole[..], &[0]].concat()), Shelf::default());
    assert_eq!(Shelf::decode(vec![2]), Shelf::default());
}

#[test]
fn holders_spread_runs_differently() {
    let places = |holder: &str| -> Vec<u8> {
        let names = (0..64).map(|name| run(&name.to_string()));
        let places = names.map(|account| match place_of(holder, &account) {
            Place::Runs(place) => place,
            Place::Of(subject) => panic!("a run at {subject}"),
        });
        places.collect()
    };
    assert_eq!(places("h-1"), places("h-1"));
    assert_ne!(places("h-1"), places("h-2"));
    assert!(places("h-1").iter().all(|place| PLACES.contains(place)));
    // Which place is only known by looking.
    assert!(!are_together(&run("1"), &run("1")));
}
