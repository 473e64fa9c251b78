//! What the code that serves calls says to the keeper, and what it hears. JSON, since on some platforms it travels.

use crate::platform::Unreachable;
use serde::{Deserialize, Serialize};
use tollgate_engine::{
    exchange::{self, CellOp},
    ledger::{Account, Op, Refusal, Span},
};

/// The way to the keeper.
pub trait Line {
    /// Says something and waits for the answer. On an error the keeper may have heard it all the same.
    async fn ask(&self, message: Message) -> Result<Heard, Unreachable>;
}

/// What is said to the keeper.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Message {
    /// Which bundle is to be run? It is sent along when it is another than that of `etag`.
    Follow {
        /// What the asker runs.
        etag: Option<String>,
        /// How many calls have ended since it last asked of which nobody could be told.
        #[serde(default, skip_serializing_if = "is_zero")]
        lost: u64,
    },
    /// Make these reservations for a call, all or, from the first that is refused, none further.
    Reserve {
        /// The decision's id.
        call: String,
        /// The reservations, in order.
        changes: Vec<Change>,
    },
    /// Give back what the call reserved, and reserve anew, all or nothing, when these can be reserved, never will be, or the wait is over. The wait
    /// is told and not its end: the keeper may have another clock.
    Lease {
        /// The decision's id.
        call: String,
        /// What the call needs.
        wants: Vec<Want>,
        /// The reservations.
        changes: Vec<Change>,
        /// How long to wait at most.
        wait_ms: i64,
    },
    /// The call is over: settle it, and put its record into the journal.
    Close {
        /// The decision's id.
        call: String,
        /// The settlements; none gives back what was reserved.
        changes: Vec<Change>,
        /// One line of JSON.
        record: String,
    },
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// What is heard from the keeper.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Heard {
    /// Of the bundle that the keeper runs.
    pub etag: Option<String>,
    /// That bundle, where it was asked for: a signed envelope.
    pub envelope: Option<String>,
    /// The reservation that was refused.
    pub refused: Option<Refused>,
    /// What is taken of each limit, where all were made.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub taken: Vec<u64>,
}

impl Heard {
    /// Puts down what came of reservations.
    pub(crate) fn reserved(&mut self, result: Result<Vec<u64>, Refused>) {
        match result {
            Ok(taken) => self.taken = taken,
            Err(refused) => self.refused = Some(refused),
        }
    }
}

/// A reservation that was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Refused {
    /// Its place among those asked for.
    pub place: usize,
    /// Why.
    #[serde(with = "RefusalForm")]
    pub why: Refusal,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Refusal", rename_all = "snake_case")]
enum RefusalForm {
    NoLease,
    Short,
    Exhausted { retry_ms: i64, left: u64 },
    AlreadyAsked,
}

/// One change of one cell.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Change {
    /// Whose cell.
    pub account: Account,
    /// The change.
    pub op: Op,
}

impl From<CellOp> for Change {
    fn from(CellOp { account, op }: CellOp) -> Change {
        Change { account, op }
    }
}

/// Spending rights that a call needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Want {
    /// From which account.
    pub account: Account,
    /// In which window.
    pub span: Span,
    /// How much.
    pub amount: u64,
}

impl From<exchange::Want> for Want {
    fn from(want: exchange::Want) -> Want {
        Want {
            account: want.account,
            span: want.span,
            amount: want.amount,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_travels_arrives() {
        let account = Account::parse("agent:a|calls|minute").unwrap();
        let span = Span {
            start: 60,
            end: 120,
        };
        let message = Message::Lease {
            call: "d-1".to_owned(),
            wants: vec![Want {
                account,
                span,
                amount: 7,
            }],
            changes: Vec::new(),
            wait_ms: 1_000,
        };
        let text = serde_json::to_string(&message).unwrap();
        assert_eq!(serde_json::from_str::<Message>(&text).unwrap(), message);
        let heard = Heard {
            refused: Some(Refused {
                place: 1,
                why: Refusal::Exhausted {
                    retry_ms: 5,
                    left: 3,
                },
            }),
            taken: vec![7],
            ..Heard::default()
        };
        let text = serde_json::to_string(&heard).unwrap();
        assert_eq!(serde_json::from_str::<Heard>(&text).unwrap(), heard);
    }
}
