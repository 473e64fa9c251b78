//! The interface `upkeep`: errands, the holder, the journal.

use crate::{
    Component,
    bindings::exports::tollgate::policy::upkeep as wit,
    calls::{Gate, cell_op, cell_ops, entropy, set_headers, size, span, time},
};
use std::cell::RefCell;
use tollgate_engine::{
    exchange::CellOp,
    lease::MAX_ASKS,
    ledger::{Account, Cell, Op, Span},
    upkeep::{self, Delivery, Errand, Response, Upkeep},
};

/// A holder behind a handle.
pub(crate) struct Holder(RefCell<upkeep::Holder>);

/// A journal behind a handle.
pub(crate) struct Journal(RefCell<upkeep::Journal>);

/// The errands behind a handle.
pub(crate) struct Errands(RefCell<Upkeep>);

impl wit::Guest for Component {
    type Holder = Holder;
    type Journal = Journal;
    type Errands = Errands;

    fn batch_has_room(records: u32, bytes: u64) -> bool {
        upkeep::batch_has_room(size(records), usize::try_from(bytes).unwrap_or(usize::MAX))
    }

    fn ask_op(want: wit::Want) -> Option<wit::CellOp> {
        let ask = CellOp {
            account: Account::parse(&want.account)?,
            op: Op::Ask {
                span: Span {
                    start: want.span.start,
                    end: want.span.end,
                },
            },
        };
        Some(cell_op(ask))
    }

    fn max_asks() -> u32 {
        u32::try_from(MAX_ASKS).unwrap_or(u32::MAX)
    }

    fn lease_request(
        gate: wit::GateBorrow<'_>,
        holder: wit::HolderBorrow<'_>,
        asks: Vec<wit::Ask>,
    ) -> wit::Errand {
        let asks = asks
            .iter()
            .filter_map(|ask| {
                let account = Account::parse(&ask.want.account)?;
                let cell = Cell::decode(&ask.cell);
                let slot = cell.slot(ask.want.span.start)?;
                Some(upkeep::ask_for(&account, slot, ask.want.amount, ask.needed))
            })
            .collect();
        errand(upkeep::lease_request(
            &gate.get::<Gate>().0.borrow(),
            &holder.get::<Holder>().0.borrow(),
            asks,
        ))
    }
}

impl wit::GuestHolder for Holder {
    fn new(entropy: wit::Entropy) -> Holder {
        Holder(RefCell::new(upkeep::Holder::new(self::entropy(entropy))))
    }

    fn decode(stored: Vec<u8>) -> Option<wit::Holder> {
        let holder = upkeep::Holder::decode(&stored)?;
        Some(wit::Holder::new(Holder(RefCell::new(holder))))
    }

    fn encode(&self) -> Vec<u8> {
        self.0.borrow().encode()
    }

    fn epoch(&self) -> u64 {
        self.0.borrow().epoch
    }

    fn greeted(&self, epoch: u64) {
        self.0.borrow_mut().epoch = epoch;
    }
}

impl wit::GuestJournal for Journal {
    fn new(gate: wit::GateBorrow<'_>, holder: wit::HolderBorrow<'_>) -> Journal {
        Journal(RefCell::new(upkeep::Journal::start(
            &gate.get::<Gate>().0.borrow().config.workspace,
            &holder.get::<Holder>().0.borrow(),
        )))
    }

    fn decode(stored: Vec<u8>) -> Option<wit::Journal> {
        let journal = upkeep::Journal::decode(&stored)?;
        Some(wit::Journal::new(Journal(RefCell::new(journal))))
    }

    fn encode(&self) -> Vec<u8> {
        self.0.borrow().encode()
    }

    fn epoch(&self) -> u64 {
        self.0.borrow().epoch
    }

    fn is_idle(&self) -> bool {
        self.0.borrow().is_idle()
    }

    fn seal(
        &self,
        gate: wit::GateBorrow<'_>,
        holder: wit::HolderBorrow<'_>,
        records: Vec<Vec<u8>>,
        dropped: u64,
        now: wit::Time,
    ) {
        self.0.borrow_mut().seal(
            &gate.get::<Gate>().0.borrow(),
            &holder.get::<Holder>().0.borrow(),
            &records,
            dropped,
            time(now),
        );
    }

    fn move_to(&self, gate: wit::GateBorrow<'_>, holder: wit::HolderBorrow<'_>, now: wit::Time) {
        self.0.borrow_mut().move_to(
            &gate.get::<Gate>().0.borrow(),
            &holder.get::<Holder>().0.borrow(),
            time(now),
        );
    }
}

impl wit::GuestErrands for Errands {
    fn new() -> Errands {
        Errands(RefCell::default())
    }

    fn plan(&self, account: String, cell: Vec<u8>, now: wit::Time) -> Vec<wit::Want> {
        self.0
            .borrow()
            .plan(&Cell::decode(&cell), time(now))
            .into_iter()
            .map(|(window, amount)| wit::Want {
                account: account.clone(),
                span: span(window),
                amount,
            })
            .collect()
    }

    fn may_forget(&self, account: String, cell: Vec<u8>, now: wit::Time) -> bool {
        let is_of_a_run = Account::parse(&account).is_some_and(|account| account.run.is_some());
        is_of_a_run && Cell::decode(&cell).is_forgotten(time(now))
    }

    fn next_bundle(&self, gate: wit::GateBorrow<'_>, now: wit::Time) -> Option<wit::Errand> {
        let gate = gate.get::<Gate>().0.borrow();
        let next = self.0.borrow_mut().next_bundle(&gate, time(now));
        next.map(errand)
    }

    fn bundle_answered(&self, response: wit::Response, now: wit::Time, entropy: u64) -> bool {
        self.0
            .borrow_mut()
            .bundle_answered(self::response(&response), time(now), entropy)
            .is_some()
    }

    fn bundle_refused(&self, now: wit::Time, entropy: u64) {
        self.0.borrow_mut().bundle_refused(time(now), entropy);
    }

    fn leases_due(&self, urgent: bool, now: wit::Time) -> bool {
        self.0.borrow().leases_due(urgent, time(now))
    }

    fn leases_idle(&self, now: wit::Time) {
        self.0.borrow_mut().leases_idle(time(now));
    }

    fn leases_sent(&self, now: wit::Time) {
        self.0.borrow_mut().leases_sent(time(now));
    }

    fn leases_answered(
        &self,
        gate: wit::GateBorrow<'_>,
        holder: wit::HolderBorrow<'_>,
        response: wit::Response,
        now: wit::Time,
        entropy: u64,
    ) -> Option<wit::Leased> {
        let (refills, epoch) = self.0.borrow_mut().leases_answered(
            &gate.get::<Gate>().0.borrow(),
            &holder.get::<Holder>().0.borrow(),
            self::response(&response),
            time(now),
            entropy,
        )?;
        Some(wit::Leased {
            refills: cell_ops(refills),
            epoch,
        })
    }

    fn next_journal(
        &self,
        gate: wit::GateBorrow<'_>,
        journal: wit::JournalBorrow<'_>,
        now: wit::Time,
    ) -> Option<wit::Errand> {
        let gate = gate.get::<Gate>().0.borrow();
        let journal = journal.get::<Journal>().0.borrow();
        let next = self.0.borrow_mut().next_journal(&gate, &journal, time(now));
        next.map(errand)
    }

    fn journal_answered(
        &self,
        gate: wit::GateBorrow<'_>,
        journal: wit::JournalBorrow<'_>,
        response: wit::Response,
        now: wit::Time,
        entropy: u64,
    ) -> wit::Delivery {
        let delivery = self.0.borrow_mut().journal_answered(
            &gate.get::<Gate>().0.borrow(),
            &mut journal.get::<Journal>().0.borrow_mut(),
            self::response(&response),
            time(now),
            entropy,
        );
        match delivery {
            Delivery::Acknowledged => wit::Delivery::Acknowledged,
            Delivery::Later => wit::Delivery::Later,
            Delivery::Refused => wit::Delivery::Refused,
        }
    }
}

fn errand(errand: Errand) -> wit::Errand {
    wit::Errand {
        method: errand.method.to_string(),
        path: errand.path,
        headers: set_headers(errand.headers),
        body: errand.body,
        timeout_ms: errand.timeout_ms,
    }
}

fn response(response: &wit::Response) -> Response<'_> {
    Response {
        status: response.status,
        body: &response.body,
    }
}
