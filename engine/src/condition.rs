//! Conditions as a gate runs them: a small program for a stack of values, made from an expression by the policy compiler.
//!
//! It has no jumps and no loops, so it ends after as many steps as it has instructions. `&&` and `||` take both sides and absorb what cannot
//! be known where the other side decides, as in CEL: false and unknown is false, true or unknown is true. What remains unknown (an argument
//! that is not there, a value of another type, an overflow) is an error with a reason, and whoever asks takes the restrictive answer.

use crate::{
    facts::{Facts, Head},
    identity::{Caller, GovernanceLevel},
    json::{self, Kind},
    time::Time,
};
use alloc::{borrow::Cow, string::String, vec::Vec};
use core::cmp::Ordering;
use serde::{Deserialize, Serialize};

/// Instructions of one program. An expression of a line has a dozen; 256 take some microseconds, lists of names included.
pub const MAX_STEPS: usize = 256;

/// A condition, compiled.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Program(pub Vec<Instruction>);

/// One step. Operands come from the stack, the last one on top; the result goes there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Instruction {
    /// A constant.
    Bool(bool),
    /// A constant.
    Int(i64),
    /// A constant.
    Text(String),
    /// A constant.
    Level(GovernanceLevel),
    /// A constant, in nano-USD.
    Money(i64),
    /// A constant, in seconds since the Unix epoch.
    Instant(i64),
    /// A fact of the call.
    Fact(Fact),
    /// The member of this name of a map.
    Member(String),
    /// Whether a map has a member of this name.
    Has(String),
    /// The item of a list or the member of a map that the top names.
    At,
    /// A list of this many values.
    List(usize),
    /// `!`
    Not,
    /// Unary `-`
    Negate,
    /// `&&`
    And,
    /// `||`
    Or,
    /// `==`
    Equal,
    /// `!=`
    Unequal,
    /// `<`
    Less,
    /// `<=`
    AtMost,
    /// `>`
    Greater,
    /// `>=`
    AtLeast,
    /// `in`
    In,
    /// `+`
    Add,
    /// `-`
    Subtract,
    /// `*`
    Multiply,
    /// `/`
    Divide,
    /// `%`
    Remainder,
    /// `a.startsWith(b)`
    StartsWith,
    /// `a.endsWith(b)`
    EndsWith,
    /// `a.contains(b)`
    Contains,
    /// `size(a)`: characters of a text, items of a list, members of a map.
    Size,
    /// `a.lowerAscii()`
    LowerAscii,
    /// `now.getHours()`, UTC
    Hours,
    /// `now.getMinutes()`, UTC
    Minutes,
    /// `now.getDayOfWeek()`, UTC, 0 is Sunday
    DayOfWeek,
}

/// What a condition may ask about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fact {
    /// The agent's governance level.
    GovernanceLevel,
    /// The agent's UUID.
    Agent,
    /// Its team; empty when it has none.
    Team,
    /// Its organisation; empty when it has none.
    Org,
    /// The tool the rule is about, as the call names it.
    Tool,
    /// Every tool the call offers or calls.
    Tools,
    /// The arguments of an MCP tool call; unknown where a tool is only offered.
    Args,
    /// The model; empty when the call names none.
    Model,
    /// The method.
    Method,
    /// The host that is called.
    Host,
    /// Its path, without the query.
    Path,
    /// What the call may cost at most; unknown where the model has no price.
    EstimatedCostUsd,
    /// When the call is decided.
    Now,
}

/// Where the facts come from.
#[derive(Clone, Copy)]
pub struct Call<'c> {
    /// Who calls.
    pub caller: &'c Caller,
    /// Where to.
    pub head: &'c Head,
    /// What the body says.
    pub facts: &'c Facts,
    /// The tool the rule is about, as the call names it.
    pub tool: &'c str,
    /// Its arguments, where the call brings them.
    pub args: Option<json::Value<'c, 'c>>,
    /// What the call may cost at most.
    pub cost_nano_usd: Option<u64>,
    /// When.
    pub now: Time,
}

/// A value on the stack.
#[derive(Clone)]
enum Value<'c> {
    Bool(bool),
    Int(i64),
    Text(Cow<'c, str>),
    Level(GovernanceLevel),
    Money(i64),
    Instant(i64),
    Null,
    List(Vec<Value<'c>>),
    /// A list or map of the arguments.
    Json(json::Value<'c, 'c>),
    /// Why there is no value.
    Unknown(&'static str),
}

const WRONG_TYPE: &str = "a value in the call has another type than the condition needs";
const NO_MEMBER: &str = "the call lacks an argument that the condition asks for";
const OVERFLOW: &str = "a number in the condition is too large";
const NOT_A_PROGRAM: &str = "the condition is not one this gate runs";

impl Program {
    /// Whether the condition holds; the error says why that cannot be known.
    pub fn holds(&self, call: &Call<'_>) -> Result<bool, &'static str> {
        if self.0.len() > MAX_STEPS {
            return Err(NOT_A_PROGRAM);
        }
        let mut stack: Vec<Value<'_>> = Vec::new();
        for instruction in &self.0 {
            let value = step(instruction, &mut stack, call).ok_or(NOT_A_PROGRAM)?;
            stack.push(value);
        }
        match (stack.pop(), stack.is_empty()) {
            (Some(Value::Bool(holds)), true) => Ok(holds),
            (Some(Value::Unknown(why)), true) => Err(why),
            (Some(_), true) => Err(WRONG_TYPE),
            _ => Err(NOT_A_PROGRAM),
        }
    }
}

/// One step; `None` when the stack lacks an operand.
fn step<'c>(
    instruction: &'c Instruction,
    stack: &mut Vec<Value<'c>>,
    call: &Call<'c>,
) -> Option<Value<'c>> {
    Some(match instruction {
        Instruction::Bool(value) => Value::Bool(*value),
        Instruction::Int(value) => Value::Int(*value),
        Instruction::Text(value) => Value::Text(Cow::Borrowed(value)),
        Instruction::Level(value) => Value::Level(*value),
        Instruction::Money(value) => Value::Money(*value),
        Instruction::Instant(value) => Value::Instant(*value),
        Instruction::Fact(fact) => known(*fact, call),
        Instruction::Member(name) => match stack.pop()? {
            Value::Json(map) if map.kind() == Kind::Object => member(map, name),
            Value::Unknown(why) => Value::Unknown(why),
            _ => Value::Unknown(WRONG_TYPE),
        },
        Instruction::Has(name) => match stack.pop()? {
            Value::Json(map) if map.kind() == Kind::Object => Value::Bool(map.get(name).is_some()),
            Value::Unknown(why) => Value::Unknown(why),
            _ => Value::Unknown(WRONG_TYPE),
        },
        Instruction::At => {
            let (place, container) = (stack.pop()?, stack.pop()?);
            at(container, place)
        }
        Instruction::List(count) => {
            let first = stack.len().checked_sub(*count)?;
            let items = stack.split_off(first);
            let unknown = items.iter().find_map(|item| match item {
                Value::Unknown(why) => Some(*why),
                _ => None,
            });
            // Known where all that is in it is, as in CEL: whatever is looked for in it.
            unknown.map_or(Value::List(items), Value::Unknown)
        }
        Instruction::Not => match stack.pop()? {
            Value::Bool(value) => Value::Bool(!value),
            other => unfit(&[other]),
        },
        Instruction::Negate => match stack.pop()? {
            Value::Int(value) => value
                .checked_neg()
                .map_or(Value::Unknown(OVERFLOW), Value::Int),
            Value::Money(value) => value
                .checked_neg()
                .map_or(Value::Unknown(OVERFLOW), Value::Money),
            other => unfit(&[other]),
        },
        Instruction::And => either(stack.pop()?, stack.pop()?, false),
        Instruction::Or => either(stack.pop()?, stack.pop()?, true),
        Instruction::Equal => equality(stack.pop()?, stack.pop()?, true),
        Instruction::Unequal => equality(stack.pop()?, stack.pop()?, false),
        Instruction::Less => ordered(stack.pop()?, stack.pop()?, Ordering::is_lt),
        Instruction::AtMost => ordered(stack.pop()?, stack.pop()?, Ordering::is_le),
        Instruction::Greater => ordered(stack.pop()?, stack.pop()?, Ordering::is_gt),
        Instruction::AtLeast => ordered(stack.pop()?, stack.pop()?, Ordering::is_ge),
        Instruction::In => {
            let (container, item) = (stack.pop()?, stack.pop()?);
            is_in(&item, container)
        }
        Instruction::Add => arithmetic(stack.pop()?, stack.pop()?, i64::checked_add),
        Instruction::Subtract => arithmetic(stack.pop()?, stack.pop()?, i64::checked_sub),
        Instruction::Multiply => match (stack.pop()?, stack.pop()?) {
            (Value::Int(b), Value::Money(a)) | (Value::Money(b), Value::Int(a)) => a
                .checked_mul(b)
                .map_or(Value::Unknown(OVERFLOW), Value::Money),
            (b, a) => integers(b, a, i64::checked_mul),
        },
        // Division by zero is unknown, as an overflow is.
        Instruction::Divide => integers(stack.pop()?, stack.pop()?, i64::checked_div),
        Instruction::Remainder => integers(stack.pop()?, stack.pop()?, i64::checked_rem),
        Instruction::StartsWith => texts(stack.pop()?, stack.pop()?, |a, b| a.starts_with(b)),
        Instruction::EndsWith => texts(stack.pop()?, stack.pop()?, |a, b| a.ends_with(b)),
        Instruction::Contains => texts(stack.pop()?, stack.pop()?, |a, b| a.contains(b)),
        Instruction::Size => match stack.pop()? {
            Value::Text(text) => count(text.chars().count()),
            Value::List(items) => count(items.len()),
            Value::Json(json) if json.kind() == Kind::Array => count(json.items().count()),
            Value::Json(json) => count(json.members().count()),
            other => unfit(&[other]),
        },
        Instruction::LowerAscii => match stack.pop()? {
            Value::Text(text) => Value::Text(Cow::Owned(text.to_ascii_lowercase())),
            other => unfit(&[other]),
        },
        Instruction::Hours => clock(stack.pop()?, |secs| secs.rem_euclid(86_400) / 3_600),
        Instruction::Minutes => clock(stack.pop()?, |secs| secs.rem_euclid(3_600) / 60),
        // The first day of the epoch was a Thursday.
        Instruction::DayOfWeek => clock(stack.pop()?, |secs| {
            (secs.div_euclid(86_400) + 4).rem_euclid(7)
        }),
    })
}

fn known<'c>(fact: Fact, call: &Call<'c>) -> Value<'c> {
    let text = |text: &'c str| Value::Text(Cow::Borrowed(text));
    match fact {
        Fact::GovernanceLevel => Value::Level(call.caller.level),
        Fact::Agent => text(&call.caller.agent),
        Fact::Team => text(call.caller.team.as_deref().unwrap_or_default()),
        Fact::Org => text(call.caller.org.as_deref().unwrap_or_default()),
        Fact::Tool => text(call.tool),
        Fact::Tools => Value::List(call.facts.tools().map(text).collect()),
        Fact::Args => call.args.map_or(
            Value::Unknown("the tool's arguments are not in the call"),
            Value::Json,
        ),
        Fact::Model => text(call.facts.said.model.as_deref().unwrap_or_default()),
        Fact::Method => text(&call.head.method),
        Fact::Host => text(&call.head.host),
        Fact::Path => text(&call.head.path),
        Fact::EstimatedCostUsd => call
            .cost_nano_usd
            .and_then(|amount| i64::try_from(amount).ok())
            .map_or(
                Value::Unknown("what the call may cost is not known"),
                Value::Money,
            ),
        Fact::Now => Value::Instant(call.now.secs()),
    }
}

fn of_json<'c>(json: json::Value<'c, 'c>) -> Value<'c> {
    if let Some(text) = json.as_str() {
        return Value::Text(text);
    }
    if let Some(value) = json.as_bool() {
        return Value::Bool(value);
    }
    if let Some(digits) = json.as_number() {
        // There are no fractions here, nor numbers beyond 64 bits.
        return digits
            .parse()
            .map_or(Value::Unknown(WRONG_TYPE), Value::Int);
    }
    match json.is_null() {
        true => Value::Null,
        false => Value::Json(json),
    }
}

fn member<'c>(map: json::Value<'c, 'c>, name: &str) -> Value<'c> {
    map.get(name).map_or(Value::Unknown(NO_MEMBER), of_json)
}

fn at<'c>(container: Value<'c>, place: Value<'c>) -> Value<'c> {
    let nth = |index: i64| usize::try_from(index).ok();
    match (container, place) {
        (Value::Json(map), Value::Text(name)) if map.kind() == Kind::Object => member(map, &name),
        (Value::Json(list), Value::Int(index)) if list.kind() == Kind::Array => nth(index)
            .and_then(|index| list.items().nth(index))
            .map_or(Value::Unknown(NO_MEMBER), of_json),
        (Value::List(items), Value::Int(index)) => nth(index)
            .and_then(|index| items.get(index).cloned())
            .unwrap_or(Value::Unknown(NO_MEMBER)),
        (a, b) => unfit(&[a, b]),
    }
}

fn count(count: usize) -> Value<'static> {
    i64::try_from(count).map_or(Value::Unknown(OVERFLOW), Value::Int)
}

/// What comes of operands that do not fit: the first thing that was unknown before, or else that.
fn unfit<'c>(operands: &[Value<'c>]) -> Value<'c> {
    let before = operands.iter().find_map(|operand| match operand {
        Value::Unknown(why) => Some(*why),
        _ => None,
    });
    Value::Unknown(before.unwrap_or(WRONG_TYPE))
}

/// `&&` (`decisive` false) and `||` (true).
fn either<'c>(b: Value<'c>, a: Value<'c>, decisive: bool) -> Value<'c> {
    match (a, b) {
        (Value::Bool(a), _) if a == decisive => Value::Bool(decisive),
        (_, Value::Bool(b)) if b == decisive => Value::Bool(decisive),
        (Value::Bool(_), Value::Bool(_)) => Value::Bool(!decisive),
        (a, b) => unfit(&[a, b]),
    }
}

/// Whether two values are the same; values of different types are not. `None` for what has no equality here.
fn same(a: &Value<'_>, b: &Value<'_>) -> Result<bool, &'static str> {
    Ok(match (a, b) {
        (Value::Unknown(why), _) | (_, Value::Unknown(why)) => return Err(why),
        (Value::Json(_), _) | (_, Value::Json(_)) | (Value::List(_), _) | (_, Value::List(_)) => {
            return Err(WRONG_TYPE);
        }
        (Value::Bool(a), Value::Bool(b)) => a == b,
        (Value::Int(a), Value::Int(b))
        | (Value::Money(a), Value::Money(b))
        | (Value::Instant(a), Value::Instant(b)) => a == b,
        (Value::Text(a), Value::Text(b)) => a == b,
        (Value::Level(a), Value::Level(b)) => a == b,
        (Value::Null, Value::Null) => true,
        _ => false,
    })
}

fn equality<'c>(b: Value<'c>, a: Value<'c>, wanted: bool) -> Value<'c> {
    match same(&a, &b) {
        Ok(same) => Value::Bool(same == wanted),
        Err(why) => Value::Unknown(why),
    }
}

fn ordered<'c>(b: Value<'c>, a: Value<'c>, fits: fn(Ordering) -> bool) -> Value<'c> {
    let order = match (&a, &b) {
        (Value::Int(a), Value::Int(b))
        | (Value::Money(a), Value::Money(b))
        | (Value::Instant(a), Value::Instant(b)) => a.cmp(b),
        (Value::Text(a), Value::Text(b)) => a.cmp(b),
        (Value::Level(a), Value::Level(b)) => a.cmp(b),
        // False before true, as in CEL.
        (Value::Bool(a), Value::Bool(b)) => a.cmp(b),
        _ => return unfit(&[a, b]),
    };
    Value::Bool(fits(order))
}

/// Found is found, whatever else is unknown.
fn is_in<'c>(item: &Value<'c>, container: Value<'c>) -> Value<'c> {
    if let Value::Unknown(why) = item {
        return Value::Unknown(why);
    }
    let among = |items: &mut dyn Iterator<Item = Value<'c>>| {
        let mut unknown = None;
        for other in items {
            match same(item, &other) {
                Ok(true) => return Value::Bool(true),
                Ok(false) => {}
                Err(why) => unknown = Some(why),
            }
        }
        unknown.map_or(Value::Bool(false), Value::Unknown)
    };
    match (container, item) {
        (Value::List(items), _) => among(&mut items.into_iter()),
        (Value::Json(list), _) if list.kind() == Kind::Array => {
            among(&mut list.items().map(of_json))
        }
        (Value::Json(map), Value::Text(name)) => Value::Bool(map.get(name).is_some()),
        // A key is a text, so nothing else is one.
        (Value::Json(_), Value::Int(_) | Value::Bool(_)) => Value::Bool(false),
        (other, _) => unfit(&[other]),
    }
}

fn arithmetic<'c>(b: Value<'c>, a: Value<'c>, of: fn(i64, i64) -> Option<i64>) -> Value<'c> {
    match (a, b) {
        (Value::Money(a), Value::Money(b)) => {
            of(a, b).map_or(Value::Unknown(OVERFLOW), Value::Money)
        }
        (a, b) => integers(b, a, of),
    }
}

fn integers<'c>(b: Value<'c>, a: Value<'c>, of: fn(i64, i64) -> Option<i64>) -> Value<'c> {
    match (a, b) {
        (Value::Int(a), Value::Int(b)) => of(a, b).map_or(Value::Unknown(OVERFLOW), Value::Int),
        (a, b) => unfit(&[a, b]),
    }
}

fn texts<'c>(b: Value<'c>, a: Value<'c>, of: fn(&str, &str) -> bool) -> Value<'c> {
    match (a, b) {
        (Value::Text(a), Value::Text(b)) => Value::Bool(of(&a, &b)),
        (a, b) => unfit(&[a, b]),
    }
}

fn clock<'c>(value: Value<'c>, of: fn(i64) -> i64) -> Value<'c> {
    match value {
        Value::Instant(secs) => Value::Int(of(secs)),
        other => unfit(&[other]),
    }
}
