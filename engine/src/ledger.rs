//! Spending rights at a gate.
//!
//! An [`Account`] is a limit somebody set. The control plane leases amounts of it to holders; what a holder has left lies in a [`Cell`],
//! a small value in whatever store the host has. The engine supplies pure transitions ([`Op::apply`]); the host supplies one atomic
//! swap: read the cell, apply, write unless it changed meanwhile, else again.
//!
//! Everything in a cell counts from the start of a window and only grows, so a message that arrives twice or late changes nothing:
//! - `granted`: what the control plane has leased to this holder in this window,
//! - `returned`: what of that the holder has given back,
//! - `settled`: what calls really used,
//! - `reserved`: the worst case of calls that are under way.
//!
//! A call may reserve while `settled + reserved + amount <= granted - returned` and the lease lives. The control plane counts
//! `granted - returned` as gone until the window ends, so what a lost holder had is never given twice, whatever the clocks say.

use crate::{
    bundle::Level,
    json,
    lease::{Grant, amount},
    price,
    sorted::sort_by_key,
    time::Time,
};
use alloc::{
    format,
    string::{String, ToString},
    vec::Vec,
};
use core::fmt;
use serde::{Deserialize, Serialize};

/// What an account counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Calls let through.
    Calls,
    /// Tokens in and out.
    Tokens,
    /// Money: 10⁻⁹ US dollars.
    NanoUsd,
    /// Calls that failed. Only of a run; known afterwards, so that a call reserves none.
    Errors,
    /// Time since the first call. Only of a run; passes by itself, so that a call takes none.
    Seconds,
    /// Calls whose agent said that with them the run is done. Only of a run; a call takes none but by saying so.
    Goals,
    /// Calls that somebody has approved. Only of one call that is held, whose [name](crate::approval) stands in the place of a run.
    Approvals,
}

impl Unit {
    /// The name used in accounts.
    pub const fn name(self) -> &'static str {
        match self {
            Unit::Calls => "calls",
            Unit::Tokens => "tokens",
            Unit::NanoUsd => "nano_usd",
            Unit::Errors => "errors",
            Unit::Seconds => "seconds",
            Unit::Goals => "goals",
            Unit::Approvals => "approvals",
        }
    }

    /// An amount of it, for people.
    pub fn in_words(self, amount: u64) -> String {
        match self {
            Unit::NanoUsd => price::usd(amount),
            Unit::Calls
            | Unit::Tokens
            | Unit::Errors
            | Unit::Seconds
            | Unit::Goals
            | Unit::Approvals => {
                format!("{amount} {}", self.name())
            }
        }
    }

    /// Whether a call must find something left, and takes nothing before it is over.
    pub const fn is_looked_at(self) -> bool {
        matches!(self, Unit::Errors | Unit::Seconds | Unit::Goals)
    }
}

/// When an account starts afresh. In text `minute`, `hour`, `day@<zone>`, `week@<zone>`, `month@<zone>` or `run`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Window {
    /// Every full minute UTC.
    Minute,
    /// Every full hour UTC.
    Hour,
    /// Every midnight of an IANA time zone.
    Day(String),
    /// Every midnight there on which a Monday begins.
    Week(String),
    /// Every midnight there on which a month begins.
    Month(String),
    /// With every run of an agent.
    Run,
}

impl Window {
    /// Reads the text form.
    pub fn parse(text: &str) -> Option<Window> {
        match text.split_once('@') {
            None if text == "minute" => Some(Window::Minute),
            None if text == "hour" => Some(Window::Hour),
            None if text == "run" => Some(Window::Run),
            Some((_, "")) | None => None,
            Some(("day", zone)) => Some(Window::Day(zone.to_string())),
            Some(("week", zone)) => Some(Window::Week(zone.to_string())),
            Some(("month", zone)) => Some(Window::Month(zone.to_string())),
            Some(_) => None,
        }
    }
}

impl Window {
    /// The pieces of its text form.
    fn pieces(&self) -> [&str; 2] {
        match self {
            Window::Minute => ["minute", ""],
            Window::Hour => ["hour", ""],
            Window::Day(zone) => ["day@", zone],
            Window::Week(zone) => ["week@", zone],
            Window::Month(zone) => ["month@", zone],
            Window::Run => ["run", ""],
        }
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.pieces()
            .into_iter()
            .try_for_each(|piece| f.write_str(piece))
    }
}

impl Serialize for Window {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Window {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Window, D::Error> {
        Window::parse(&String::deserialize(deserializer)?).ok_or_else(|| {
            serde::de::Error::custom(
                "expected minute, hour, day@<zone>, week@<zone>, month@<zone> or run",
            )
        })
    }
}

/// Stands for every model that the price table does not know. Callers make up names; each would have a cell of its own, and a fresh budget.
pub const OTHER_MODELS: &str = "*";

/// Begins the names of cells ([`Account::cell_key`]).
pub const CELL_KEY: &str = "cell ";

/// Something that can be spent from. In text `agent:<id>|nano_usd|day@UTC`, with `|model:<name>` behind it where each model is counted by itself,
/// and `|tool:<name>` behind that where one tool is counted; of a run `agent:<id>|nano_usd|run:<name>`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Account {
    /// Whose spending is counted together…
    pub level: Level,
    /// …and which of them.
    pub id: String,
    /// What is counted.
    pub unit: Unit,
    /// Over what time.
    pub window: Window,
    /// Only what uses this tool, in lower case, or uses it as far as a document is about ([`crate::bundle::within`]). Of more than one agent
    /// only where the name has no `|` in it.
    pub tool: Option<String>,
    /// Only calls to this model, as the price table names it, or [`OTHER_MODELS`]. No account of a run has one.
    pub model: Option<String>,
    /// The run whose account it is; there where `window` is [`Window::Run`], and only then. Only agents have runs.
    pub run: Option<String>,
}

impl Account {
    /// Reads the text form.
    pub fn parse(text: &str) -> Option<Account> {
        // A tool's name may contain the separator; it comes last.
        let mut parts = text.splitn(4, '|');
        let (entity, unit, window) = (parts.next()?, parts.next()?, parts.next()?);
        let part = parts.next();
        let (model, part) = match part.and_then(|part| part.strip_prefix("model:")) {
            None => (None, part),
            Some(rest) => match rest.split_once('|') {
                None => (Some(rest), None),
                Some((model, part)) => (Some(model), Some(part)),
            },
        };
        let tool = match part {
            None => None,
            Some(part) => Some(part.strip_prefix("tool:")?),
        };
        if model == Some("") || tool == Some("") {
            return None;
        }
        let (level, id) = entity.split_once(':')?;
        let level = match level {
            "workspace" => Level::Workspace,
            "org" => Level::Org,
            "team" => Level::Team,
            "agent" => Level::Agent,
            _ => return None,
        };
        let unit = match unit {
            "calls" => Unit::Calls,
            "tokens" => Unit::Tokens,
            "nano_usd" => Unit::NanoUsd,
            "errors" => Unit::Errors,
            "seconds" => Unit::Seconds,
            "goals" => Unit::Goals,
            "approvals" => Unit::Approvals,
            _ => return None,
        };
        let (window, run) = match window.strip_prefix("run:") {
            Some("") => return None,
            Some(run) => (Window::Run, Some(run.to_string())),
            None => (Window::parse(window)?, None),
        };
        // The names of teams and organisations may contain the separator too; an agent's is a UUID. So no text has two readings.
        let of_agent =
            run.is_some() || unit.is_looked_at() || tool.is_some_and(|tool| tool.contains('|'));
        let of_run = unit.is_looked_at() || unit == Unit::Approvals;
        let whole = run.is_some() == (window == Window::Run) && (run.is_some() || !of_run);
        let runs_a_model = run.is_some() && model.is_some();
        if id.is_empty() || (of_agent && level != Level::Agent) || !whole || runs_a_model {
            return None;
        }
        Some(Account {
            level,
            id: id.to_string(),
            unit,
            window,
            tool: tool.map(String::from),
            model: model.map(String::from),
            run,
        })
    }

    /// The name of its cell in the host's store. Made for every account of every call.
    pub fn cell_key(&self) -> String {
        let pieces = self.pieces();
        let bytes: usize = pieces.iter().map(|piece| piece.len()).sum();
        let mut key = String::with_capacity(CELL_KEY.len() + bytes);
        key.push_str(CELL_KEY);
        pieces.into_iter().for_each(|piece| key.push_str(piece));
        key
    }

    /// What it counts, without unit and window: the same for all accounts that count the spending of the same agents on the same tools or models.
    pub fn subject(&self) -> String {
        let [
            level,
            colon,
            id,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            model_mark,
            model,
            mark,
            tool,
        ] = self.pieces();
        [level, colon, id, model_mark, model, mark, tool].concat()
    }

    /// Whether two accounts count the same but for unit and window.
    pub fn has_subject_of(&self, other: &Account) -> bool {
        let Account {
            level,
            id,
            unit: _,
            window: _,
            tool,
            model,
            run,
        } = self;
        (level, id, tool) == (&other.level, &other.id, &other.tool)
            && (model, run) == (&other.model, &other.run)
    }

    /// Whether these are the bytes of its text form.
    pub fn is_called(&self, text: &[u8]) -> bool {
        let pieces = self.pieces();
        let length: usize = pieces.iter().map(|piece| piece.len()).sum();
        // Told apart by their lengths nearly always, and always cheaply: of accounts that lie together the pieces are alike at the beginning.
        length == text.len()
            && pieces
                .into_iter()
                .try_fold(text, |rest, piece| rest.strip_prefix(piece.as_bytes()))
                .is_some()
    }

    /// The pieces of its text form.
    fn pieces(&self) -> [&str; 14] {
        let [window, zone] = self.window.pieces();
        let (run_mark, run) = self.run.as_ref().map_or(("", ""), |run| (":", run));
        let (tool_mark, tool) = self.tool.as_ref().map_or(("", ""), |tool| ("|tool:", tool));
        let model = self.model.as_ref();
        let (model_mark, model) = model.map_or(("", ""), |model| ("|model:", model));
        let (level, unit) = (self.level.name(), self.unit.name());
        [
            level, ":", &self.id, "|", unit, "|", window, zone, run_mark, run, model_mark, model,
            tool_mark, tool,
        ]
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.pieces()
            .into_iter()
            .try_for_each(|piece| f.write_str(piece))
    }
}

impl Serialize for Account {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Account {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Account, D::Error> {
        Account::parse(&String::deserialize(deserializer)?).ok_or_else(|| {
            serde::de::Error::custom(
                "expected <level>:<id>|<unit>|<window>[|model:<name>][|tool:<name>]",
            )
        })
    }
}

/// A stretch of time an account counts over: from `start` up to and not including `end`, seconds since the Unix epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Span {
    /// First second.
    pub start: i64,
    /// First second of the next one.
    pub end: i64,
}

impl Span {
    /// The window of a run: whichever its cell holds. When a run began is for the control plane to say, and for a cell when it first heard of it.
    pub const RUN: Span = Span {
        start: i64::MIN,
        end: i64::MAX,
    };
}

/// How long a run lasts at most, from its first call; seconds. What the control plane has down of it goes some time after.
pub const MAX_RUN_SECS: i64 = 86_400;

/// One window of a cell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slot {
    /// First second of the window.
    pub start: i64,
    /// First second after the window.
    pub end: i64,
    /// Leased to this holder in this window, ever growing.
    pub granted: u64,
    /// Given back of that, ever growing. It is out of the cell before the control plane hears of it, and told until it has heard.
    pub returned: u64,
    /// Really used, ever growing.
    pub settled: u64,
    /// Worst case of calls under way.
    pub reserved: u64,
    /// The lease ends; milliseconds since the Unix epoch.
    pub expires_ms: i64,
    /// Asking for more is pointless before; milliseconds since the Unix epoch. [`SUSPENDED`] once nothing more may be reserved at all.
    pub retry_ms: i64,
    /// When that was said, by the clock of this gate; milliseconds since the Unix epoch.
    pub heard_ms: i64,
    /// Number of the last request sent for this window.
    pub seq: u64,
    /// When that was sent; 0 when it has been answered. Milliseconds since the Unix epoch.
    pub asked_ms: i64,
    /// Size of the last grant, as far as it may be kept: below half of it left, more is fetched ahead of need. 0 where little is left for all:
    /// nothing is fetched ahead, and what no call needs goes back soon.
    pub chunk: u64,
    /// What may stay here beside what calls have reserved. What is left above that goes back with the next ask.
    pub keep: u64,
    /// What `settled` was when last reported.
    pub reported: u64,
    /// What all holders had used by then.
    pub spent: u64,
    /// What `returned` was when last reported.
    pub told: u64,
    /// When a call last reserved; milliseconds since the Unix epoch.
    pub used_ms: i64,
    /// Epoch of the lease. A grant of a newer one starts the slot afresh, but for `reserved`: the calls under way still are.
    pub epoch: u64,
}

/// Stands for the time to ask again in a window that [`Op::Suspend`] has closed.
pub const SUSPENDED: i64 = i64::MAX;

impl Slot {
    /// What may still be reserved, lease permitting.
    pub fn available(&self) -> u64 {
        self.granted
            .saturating_sub(self.returned)
            .saturating_sub(self.settled)
            .saturating_sub(self.reserved)
    }

    /// How much more has to be granted before `amount` can be reserved. Calls may have used more than they reserved; that comes first.
    pub fn lacks(&self, amount: u64) -> u64 {
        let gone = self
            .returned
            .saturating_add(self.settled)
            .saturating_add(self.reserved);
        amount
            .saturating_add(gone.saturating_sub(self.granted))
            .saturating_sub(self.available())
    }

    /// What is known to be used of the limit, by all holders; calls under way are not in it.
    pub fn used_by_all(&self) -> u64 {
        self.spent
            .saturating_add(self.settled.saturating_sub(self.reported))
    }

    /// Whether [`Op::Suspend`] has closed it.
    pub fn is_suspended(&self) -> bool {
        self.retry_ms == SUSPENDED
    }

    /// Whether it has not been spent from for so long that somebody else should have what is left.
    pub fn is_idle(&self, now: Time) -> bool {
        now.millis().saturating_sub(self.used_ms).saturating_abs() >= self.idle_ms()
    }

    /// When [`Slot::is_idle`] begins to hold, if no call comes before.
    pub fn idle_from(&self) -> Time {
        Time::from_millis(self.used_ms).plus_millis(self.idle_ms())
    }

    /// What should go back: of what no call has reserved all that nobody uses, and else what is above [`Slot::keep`]. Calls reserve their worst
    /// case, so what they did not use piles up here.
    pub fn excess(&self, now: Time) -> u64 {
        match self.is_idle(now) {
            true => self.available(),
            false => self.available().saturating_sub(self.may_stay()),
        }
    }

    /// Whether so much should go back that others should not wait for it until the next report: a quarter more than may stay.
    pub fn is_overfull(&self) -> bool {
        let stays = self.may_stay();
        self.available().saturating_sub(stays) > stays / OVERFULL_PARTS
    }

    /// What may stay beside what calls have reserved: the less the more they have, since they will leave a part of that.
    fn may_stay(&self) -> u64 {
        self.keep.saturating_sub(self.reserved / LEFT_PARTS)
    }

    fn idle_ms(&self) -> i64 {
        if self.chunk == 0 {
            return SCARCE_IDLE_MS;
        }
        let window_ms = self.end.saturating_sub(self.start).saturating_mul(1_000);
        (window_ms / IDLE_PARTS).clamp(MIN_IDLE_MS, MAX_IDLE_MS)
    }

    /// Whether the control plane has said that asking is pointless for now; not by a clock that has been put back since.
    pub fn is_exhausted(&self, now: Time) -> bool {
        (self.heard_ms..self.retry_ms).contains(&now.millis())
    }

    /// Whether `amount` may be reserved now.
    fn look(&self, span: Span, amount: u64, now: Time) -> Result<(), Refusal> {
        let live = now.millis() < self.expires_ms;
        let over = span == Span::RUN && self.end <= now.secs();
        if self.is_suspended() || over {
            Err(Refusal::Exhausted {
                retry_ms: self.end.saturating_mul(1_000),
                left: 0,
            })
        } else if live && amount <= self.available() {
            Ok(())
        } else if !live && self.available() > 0 {
            // That there is no more to be had was said of what comes on top of this, and this is there once the lease is renewed.
            Err(Refusal::NoLease)
        } else if self.is_exhausted(now) {
            Err(Refusal::Exhausted {
                retry_ms: self.retry_ms,
                left: self.available(),
            })
        } else if live {
            Err(Refusal::Short)
        } else {
            Err(Refusal::NoLease)
        }
    }

    /// Whether somebody has asked and the answer may still come.
    pub fn is_asking(&self, now: Time) -> bool {
        self.asked_ms != 0
            && now.millis().saturating_sub(self.asked_ms).saturating_abs() < ASK_TIMEOUT_MS
    }

    /// Its part of a cell's byte form, in numbers.
    fn words(&self) -> [u64; SLOT_FIELDS] {
        [
            self.start.cast_unsigned(),
            self.end.cast_unsigned(),
            self.granted,
            self.returned,
            self.settled,
            self.reserved,
            self.expires_ms.cast_unsigned(),
            self.retry_ms.cast_unsigned(),
            self.heard_ms.cast_unsigned(),
            self.seq,
            self.asked_ms.cast_unsigned(),
            self.chunk,
            self.keep,
            self.reported,
            self.spent,
            self.told,
            self.used_ms.cast_unsigned(),
            self.epoch,
        ]
    }

    /// Reads them, as the byte form has them.
    fn of_words(words: &[[u8; 8]; SLOT_FIELDS]) -> Slot {
        let [
            start,
            end,
            granted,
            returned,
            settled,
            reserved,
            expires,
            retry,
            heard,
            seq,
            asked,
            chunk,
            keep,
            reported,
            spent,
            told,
            used,
            epoch,
        ] = words.map(u64::from_le_bytes);
        Slot {
            start: start.cast_signed(),
            end: end.cast_signed(),
            granted,
            returned,
            settled,
            reserved,
            expires_ms: expires.cast_signed(),
            retry_ms: retry.cast_signed(),
            heard_ms: heard.cast_signed(),
            seq,
            asked_ms: asked.cast_signed(),
            chunk,
            keep,
            reported,
            spent,
            told,
            used_ms: used.cast_signed(),
            epoch,
        }
    }

    /// Nothing was ever leased here, nor closed, so nothing is lost when it makes room.
    fn is_blank(&self) -> bool {
        self.granted == 0 && self.settled == 0 && self.reserved == 0 && !self.is_suspended()
    }
}

/// After this part of its window without a call, what is left is given back: of a minute five seconds.
const IDLE_PARTS: i64 = 12;
/// But not sooner than this; milliseconds. Whoever calls every few seconds keeps what it has.
const MIN_IDLE_MS: i64 = 5_000;
/// And not later than this; milliseconds. Half of the usual lease term: what nobody needs is back before it would run out.
const MAX_IDLE_MS: i64 = 30_000;

/// Of what calls under way have reserved so much is taken to be left over by those that end before the control plane can be told. They leave half of it
/// and more in all, bit by bit.
const LEFT_PARTS: u64 = 8;

/// What may stay is exceeded by this part of it before anybody is told at once.
const OVERFULL_PARTS: u64 = 4;

/// What is left of a lease is reserved ahead in so many parts. One is a few calls of a lease that is for many, and none where a few calls are left.
const AHEAD_PARTS: u64 = 16;

/// Where little is left for all: as long as it takes to tell the control plane of a call that is over.
const SCARCE_IDLE_MS: i64 = 1_000;

/// How long after a run calls of it may still be under way: an hour. Vendors' SDKs give up after ten minutes.
const AFTER_RUN_SECS: i64 = 3_600;

/// How long a run's cell is kept that nobody needs: ten minutes.
const FORGET_RUN_MS: i64 = 600_000;

/// What a holder has of one account: the running window and the one before, which late settlements still reach.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cell {
    slots: Vec<Slot>,
}

/// Version of the cell's byte form.
const CELL_FORMAT: u8 = 4;
/// Fields of a slot, eight bytes each, little-endian, in the order of the struct.
const SLOT_FIELDS: usize = 18;
const SLOT_BYTES: usize = SLOT_FIELDS * 8;
/// The running window and the one before.
const MAX_SLOTS: usize = 2;

impl Cell {
    /// Reads the byte form. What is not a cell, to the byte, is an empty one: from nothing nothing can be spent.
    pub fn decode(bytes: &[u8]) -> Cell {
        let Some((&CELL_FORMAT, rest)) = bytes.split_first() else {
            return Cell::default();
        };
        if rest.len() > MAX_SLOTS * SLOT_BYTES || !rest.len().is_multiple_of(SLOT_BYTES) {
            return Cell::default();
        }
        let (words, _) = rest.as_chunks::<8>();
        let (slots, _) = words.as_chunks::<SLOT_FIELDS>();
        Cell {
            slots: slots.iter().map(Slot::of_words).collect(),
        }
    }

    /// Writes the byte form.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.encoded_len());
        out.push(CELL_FORMAT);
        for word in self.slots.iter().flat_map(Slot::words) {
            out.extend_from_slice(&word.to_le_bytes());
        }
        out
    }

    /// Writes the byte form in the place of another one's, where they have the same length. Whether they have.
    pub(crate) fn write_over(&self, place: &mut [u8]) -> bool {
        let fits = place.len() == self.encoded_len();
        if let (true, Some((format, rest))) = (fits, place.split_first_mut()) {
            *format = CELL_FORMAT;
            let (words, _) = rest.as_chunks_mut::<8>();
            let (slots, _) = words.as_chunks_mut::<SLOT_FIELDS>();
            for (place, slot) in slots.iter_mut().zip(&self.slots) {
                *place = slot.words().map(u64::to_le_bytes);
            }
        }
        fits
    }

    fn encoded_len(&self) -> usize {
        1 + self.slots.len() * SLOT_BYTES
    }

    /// What to keep in a slow store in the place of this cell, so that not every reservation has to be written there: the same with more reserved,
    /// a sixteenth of what is left. Whoever begins again from it has reserved what was under way and, at worst, that much for nobody, until the
    /// window ends.
    #[must_use]
    pub fn ahead(&self) -> Cell {
        let mut ahead = self.clone();
        for slot in &mut ahead.slots {
            slot.reserved = slot.reserved.saturating_add(slot.available() / AHEAD_PARTS);
        }
        ahead
    }

    /// Whether nothing would be spent twice, nor be told otherwise than it was, by somebody who had this cell and not `other`: they differ at most in
    /// when a call last reserved, and less is reserved in `other`.
    pub fn covers(&self, other: &Cell) -> bool {
        let covered = |(slot, other): (&Slot, &Slot)| {
            let like_this = Slot {
                reserved: slot.reserved,
                used_ms: slot.used_ms,
                ..*other
            };
            other.reserved <= slot.reserved && like_this == *slot
        };
        self.slots.len() == other.slots.len() && self.slots.iter().zip(&other.slots).all(covered)
    }

    /// Whether a call has reserved in `after` that had not in this one.
    pub fn is_reserved_in(&self, after: &Cell) -> bool {
        after.slots.iter().any(|slot| {
            let before = self.slot(slot.start).map_or(0, |slot| slot.reserved);
            slot.reserved > before
        })
    }

    /// The windows it holds, oldest first.
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// The window that starts at `start`; of a run, whichever there is.
    pub fn slot(&self, start: i64) -> Option<&Slot> {
        let is_it = |slot: &&Slot| slot.start == start || start == Span::RUN.start;
        self.slots.iter().find(is_it)
    }

    fn slot_mut(&mut self, start: i64) -> Option<&mut Slot> {
        let is_it = |slot: &&mut Slot| slot.start == start || start == Span::RUN.start;
        self.slots.iter_mut().find(is_it)
    }

    /// Whether nothing is lost when a run's cell goes: the run is over, or nothing is left of what was leased, nothing under way, and the
    /// control plane has heard it all. What the same run does later is counted in a new cell, under another start, which to the control plane is somebody else's.
    pub fn is_done(&self, now: Time) -> bool {
        self.slots.iter().all(|slot| {
            let told = slot.settled == slot.reported && slot.returned == slot.told;
            // An answer that is still out may bring something; what comes to a cell that has gone stays leased until the run ends.
            let heard = slot.asked_ms == 0 || (slot.is_blank() && !slot.is_asking(now));
            let quiet = slot.reserved == 0 && slot.available() == 0 && slot.is_idle(now);
            let over = slot.end.saturating_add(AFTER_RUN_SECS) <= now.secs();
            over || (told && heard && quiet && !slot.is_suspended())
        })
    }

    /// Whether it [is done](Cell::is_done), and nobody has needed it for so long that it may as well go. Not at once: for a new cell a call
    /// waits for a round trip, and the control plane has one more thing to keep.
    pub fn is_forgotten(&self, now: Time) -> bool {
        let long_ago = |slot: &Slot| {
            now.millis().saturating_sub(slot.used_ms).saturating_abs() >= FORGET_RUN_MS
        };
        self.is_done(now) && self.slots.iter().all(long_ago)
    }

    /// The slot of `span`, made if absent. One that was never leased anything makes room, such as a clock leaves behind that was ahead for a
    /// while; else the oldest. `None` for a window older than all that were leased something: it may have been here before, and been spent.
    fn open(&mut self, span: Span) -> Option<&mut Slot> {
        if self.slot(span.start).is_none() {
            if self.slots.len() >= MAX_SLOTS {
                let oldest = self.slots.iter().find(|slot| !slot.is_blank());
                if oldest.is_some_and(|oldest| span.start < oldest.start) {
                    return None;
                }
                let blank = self.slots.iter().position(Slot::is_blank);
                self.slots.remove(blank.unwrap_or(0));
            }
            self.slots.push(Slot {
                start: span.start,
                end: span.end,
                ..Slot::default()
            });
            sort_by_key(&mut self.slots, |slot| slot.start);
        }
        self.slot_mut(span.start)
    }
}

/// How long an unanswered lease request keeps others from asking; milliseconds. A round trip takes a few; a lost one is asked again after this.
pub const ASK_TIMEOUT_MS: i64 = 1_000;

/// One change of one cell.
#[expect(
    clippy::large_enum_variant,
    reason = "a call has a handful of them at a time, and nearly all stores take one"
)]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Op {
    /// Set the worst case of a call aside.
    Reserve {
        /// The running window.
        span: Span,
        /// How much.
        #[serde(with = "amount")]
        amount: u64,
    },
    /// See whether anything is left, and set nothing aside.
    Look {
        /// The running window.
        span: Span,
    },
    /// Begin to count in a window, if nothing was counted in it yet. Never refused.
    Count {
        /// The running window.
        span: Span,
    },
    /// Give a reservation back: the call did not go out.
    Void {
        /// Start of the window it was made in.
        start: i64,
        /// What was reserved.
        #[serde(with = "amount")]
        reserved: u64,
    },
    /// Turn a reservation into what was really used.
    Settle {
        /// Start of the window it was made in.
        start: i64,
        /// What was reserved.
        #[serde(with = "amount")]
        reserved: u64,
        /// What was used.
        #[serde(with = "amount")]
        used: u64,
    },
    /// Let nothing more be reserved in this window, if what has been used leaves no room for a call that was refused. What others merely hold, or
    /// have under way, closes nothing: it may come back.
    Suspend {
        /// Start of the window.
        start: i64,
        /// The limit.
        #[serde(with = "amount")]
        limit: u64,
        /// What the call needed.
        #[serde(with = "amount")]
        amount: u64,
    },
    /// Note that the control plane is about to be told what was used and asked for more. [`Slot::excess`] is given back with it.
    Ask {
        /// The window to ask for.
        span: Span,
    },
    /// Take in what the control plane granted.
    Refill {
        /// The grant.
        grant: Grant,
        /// The epoch of the answer it came in.
        epoch: u64,
    },
}

/// Why an [`Op`] was not applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No live lease here; asking may help.
    NoLease,
    /// The lease has too little left; asking may help.
    Short,
    /// The control plane has said there is no more before `retry_ms` (milliseconds since the Unix epoch).
    Exhausted {
        /// When asking makes sense again.
        retry_ms: i64,
        /// What may still be reserved here: less than was asked for.
        left: u64,
    },
    /// Somebody has asked and the answer is under way.
    AlreadyAsked,
}

impl Refusal {
    /// Nothing is left, and there is nobody to ask for more.
    pub const NOTHING_LEFT: Refusal = Refusal::Exhausted {
        retry_ms: i64::MAX,
        left: 0,
    };
}

impl Op {
    /// The form in which it passes to where the cell is, for hosts that keep cells elsewhere.
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Reads that form.
    pub fn decode(bytes: &[u8]) -> Option<Op> {
        json::read(bytes).ok()
    }

    /// What is known to be taken of the limit once this has made `cell`: what all holders have used, and the worst case of the calls under way
    /// here. In the window that it changes.
    pub fn taken(&self, cell: &Cell) -> u64 {
        let start = match self {
            Op::Reserve { span, .. }
            | Op::Look { span }
            | Op::Count { span }
            | Op::Ask { span } => span.start,
            Op::Void { start, .. } | Op::Settle { start, .. } | Op::Suspend { start, .. } => *start,
            Op::Refill { grant, .. } => grant.window_start,
        };
        cell.slot(start)
            .map_or(0, |slot| slot.used_by_all().saturating_add(slot.reserved))
    }

    /// The cell after this change, in byte form. `old` is what the store holds now, `None` when nothing.
    pub fn apply(&self, old: Option<&[u8]>, now: Time) -> Result<Vec<u8>, Refusal> {
        let mut cell = old.map(Cell::decode).unwrap_or_default();
        self.change(&mut cell, now)?;
        Ok(cell.encode())
    }

    /// Changes a cell, or leaves it as it is.
    pub fn change(&self, cell: &mut Cell, now: Time) -> Result<(), Refusal> {
        match self {
            Op::Reserve { span, amount } => {
                let slot = cell.slot_mut(span.start).ok_or(Refusal::NoLease)?;
                slot.look(*span, *amount, now)?;
                slot.reserved = slot.reserved.saturating_add(*amount);
                slot.used_ms = now.millis();
            }
            Op::Look { span } => {
                let slot = cell.slot_mut(span.start).ok_or(Refusal::NoLease)?;
                slot.look(*span, 1, now)?;
                slot.used_ms = now.millis();
            }
            Op::Count { span } => {
                if let Some(slot) = cell.open(*span) {
                    slot.used_ms = now.millis();
                }
            }
            Op::Void { start, reserved } => {
                if let Some(slot) = cell.slot_mut(*start) {
                    slot.reserved = slot.reserved.saturating_sub(*reserved);
                }
            }
            Op::Settle {
                start,
                reserved,
                used,
            } => {
                if let Some(slot) = cell.slot_mut(*start) {
                    slot.reserved = slot.reserved.saturating_sub(*reserved);
                    slot.settled = slot.settled.saturating_add(*used);
                }
            }
            Op::Suspend {
                start,
                limit,
                amount,
            } => {
                if let Some(slot) = cell.slot_mut(*start)
                    && slot.used_by_all().saturating_add(*amount) > *limit
                {
                    slot.retry_ms = SUSPENDED;
                    slot.heard_ms = now.millis();
                }
            }
            Op::Ask { span } => {
                let span = match (*span == Span::RUN, cell.slots.first()) {
                    (false, _) => *span,
                    (true, Some(slot)) => Span {
                        start: slot.start,
                        end: slot.end,
                    },
                    (true, None) => Span {
                        start: now.secs(),
                        end: now.secs().saturating_add(MAX_RUN_SECS),
                    },
                };
                let slot = cell.open(span).ok_or(Refusal::NoLease)?;
                if slot.is_asking(now) {
                    return Err(Refusal::AlreadyAsked);
                }
                let excess = slot.excess(now);
                slot.returned = slot.returned.saturating_add(excess);
                if excess > 0 && !slot.is_suspended() {
                    // Whatever was said before: from now on there is more to be had.
                    slot.retry_ms = 0;
                }
                if slot.is_idle(now) {
                    // A clock that was set back does not reach the last use once more: idle it stays until the next call.
                    slot.used_ms = slot
                        .used_ms
                        .min(now.millis().saturating_sub(slot.idle_ms()));
                }
                slot.asked_ms = now.millis();
                slot.seq = slot.seq.saturating_add(1);
            }
            Op::Refill { grant, epoch } => {
                let span = Span {
                    start: grant.window_start,
                    end: grant.window_end,
                };
                // A run's cell may have gone and come again meanwhile; what was meant for the old one is not for the new.
                let slot = match grant.account.run {
                    Some(_) => cell.slot_mut(span.start),
                    None => cell.open(span),
                };
                if let Some(slot) = slot
                    && grant.seq >= slot.seq
                    && *epoch >= slot.epoch
                {
                    let suspended = slot.is_suspended() && grant.lifted_ms <= slot.heard_ms;
                    if *epoch > slot.epoch {
                        *slot = Slot {
                            start: span.start,
                            end: span.end,
                            epoch: *epoch,
                            // Else their settlements would take from what later calls reserve.
                            reserved: slot.reserved,
                            // What was only counted, before anything was leased here, nobody has heard of under an earlier epoch.
                            settled: if slot.epoch == 0 { slot.settled } else { 0 },
                            ..Slot::default()
                        };
                    }
                    let more = grant.granted.saturating_sub(slot.granted);
                    if more > 0 {
                        slot.chunk = more;
                        // Asked for by a call that is about to use it.
                        slot.used_ms = now.millis();
                    }
                    slot.keep = grant.keep;
                    slot.chunk = slot.chunk.min(grant.keep);
                    if grant.account.run.is_some() {
                        slot.end = span.end;
                        // More than is known here only where a clock that was put back has made two cells begin at the same time.
                        slot.returned = slot.returned.max(grant.returned);
                        slot.settled = slot.settled.max(grant.settled);
                    }
                    slot.seq = grant.seq;
                    slot.asked_ms = 0;
                    slot.granted = slot.granted.max(grant.granted);
                    slot.expires_ms = grant.expires_ms;
                    let retry_ms = match suspended {
                        true => SUSPENDED,
                        // No grant suspends: that is for the gate to say.
                        false => grant.retry_ms.min(SUSPENDED - 1),
                    };
                    // Said again after the clock was set back, it holds by the clock there is now: else a call would ask for ever.
                    if slot.retry_ms != retry_ms || now.millis() < slot.heard_ms {
                        slot.retry_ms = retry_ms;
                        slot.heard_ms = now.millis();
                    }
                    slot.reported = slot.reported.max(grant.settled);
                    slot.spent = slot.spent.max(grant.spent);
                    slot.told = slot.told.max(grant.returned);
                }
            }
        }
        Ok(())
    }
}
