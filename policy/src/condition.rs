//! Conditions as people write them: a subset of CEL (the Common Expression Language), checked and lowered to the engine's program.
//!
//! The subset always ends and has one meaning: `&& || !`, comparisons, `in`, `+ - * / %` on whole numbers and amounts, lists, members, `has()`,
//! `size()` and the string functions `startsWith`, `endsWith`, `contains`, `lowerAscii`. Every name and type is checked here; only what lies in a
//! tool's arguments is known no earlier than at the call.

use crate::{document::is_hyphenated_uuid, money, yaml::shown};
use std::{fmt, net::Ipv6Addr};
use tollgate_engine::{
    condition::{Fact, Instruction, MAX_STEPS, Program},
    facts::normal_host,
    identity::GovernanceLevel,
};

/// Parentheses, lists and calls inside each other.
const MAX_NESTING: usize = 24;
/// Words, numbers and signs. A program of [`MAX_STEPS`] needs no more; also bounds how deep a chain of operators becomes.
const MAX_TOKENS: usize = 2 * MAX_STEPS;

/// Why a text is not a condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConditionError {
    /// The character it is about, from 1.
    pub at: usize,
    /// What is wrong and what to do.
    pub message: String,
}

impl fmt::Display for ConditionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at character {}: {}", self.at, self.message)
    }
}

/// Reads, checks and compiles a condition. Of one that cannot be read the first error is told, of any other every wrong name and type.
pub fn compile(text: &str) -> Result<Program, Vec<ConditionError>> {
    let expression = read(text).map_err(|error| vec![error])?;
    let lowered = lower(&expression).map_err(|mut errors| {
        errors.sort_by_key(|error| error.at);
        errors
    })?;
    match lowered.kind {
        Kind::Bool | Kind::Any => {}
        other => {
            let message = format!("a condition must be true or false; this is {other}");
            return wrong(expression.at, message);
        }
    }
    if lowered.code.len() > MAX_STEPS {
        return Err(vec![too_long()]);
    }
    Ok(Program(lowered.code))
}

fn read(text: &str) -> Parsed {
    let tokens = tokens(text)?;
    if tokens.len() > MAX_TOKENS {
        return Err(too_long());
    }
    let mut parser = Parser {
        tokens: &tokens,
        next: 0,
        nesting: 0,
    };
    let expression = parser.either()?;
    if let Some(token) = parser.peek() {
        return Err(error(
            token.at,
            format!("expected an operator or the end, found {}", token.what),
        ));
    }
    Ok(expression)
}

fn too_long() -> ConditionError {
    let message = format!("the condition is too long; a gate takes {MAX_STEPS} steps at most");
    error(1, message)
}

fn error(at: usize, message: impl Into<String>) -> ConditionError {
    ConditionError {
        at,
        message: message.into(),
    }
}

/// A word, number, text or sign, and where it begins.
#[derive(Clone, Debug)]
struct Token {
    at: usize,
    what: What,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum What {
    Word(String),
    /// Digits, perhaps with a point.
    Number(String),
    Text(String),
    Sign(&'static str),
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            What::Word(word) => write!(f, "`{word}`"),
            What::Number(digits) => write!(f, "`{digits}`"),
            What::Text(_) => f.write_str("a text"),
            What::Sign(sign) => write!(f, "`{sign}`"),
        }
    }
}

/// Signs, the longer before those they begin with.
const SIGNS: [&str; 20] = [
    "&&", "||", "==", "!=", "<=", ">=", "<", ">", "!", "+", "-", "*", "/", "%", "(", ")", "[", "]",
    ",", ".",
];

fn tokens(text: &str) -> Result<Vec<Token>, ConditionError> {
    let chars: Vec<char> = text.chars().collect();
    let mut tokens = Vec::new();
    let mut place = 0;
    while let Some(&c) = chars.get(place) {
        let at = place + 1;
        let rest = || chars.get(place..).unwrap_or_default();
        let run = |accept: fn(&char) -> bool| rest().iter().take_while(|c| accept(c)).count();
        if c.is_whitespace() {
            place += 1;
        } else if c.is_ascii_alphabetic() || c == '_' {
            let length = run(|c| c.is_ascii_alphanumeric() || *c == '_');
            tokens.push(Token {
                at,
                what: What::Word(rest().iter().take(length).collect()),
            });
            place += length;
        } else if c.is_ascii_digit() {
            let length = run(|c| c.is_ascii_alphanumeric() || *c == '.' || *c == '_');
            let digits: String = rest().iter().take(length).collect();
            let (whole, fraction) = digits.split_once('.').unwrap_or((&digits, "0"));
            let plain = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
            if !plain(whole) || !plain(fraction) {
                return Err(error(
                    at,
                    format!("`{digits}` is not a number like 10 or 0.50"),
                ));
            }
            tokens.push(Token {
                at,
                what: What::Number(digits),
            });
            place += length;
        } else if c == '"' || c == '\'' {
            let (content, length) = quoted(rest(), at)?;
            tokens.push(Token {
                at,
                what: What::Text(content),
            });
            place += length;
        } else {
            let sign = SIGNS.into_iter().find(|sign| {
                let mut ahead = rest().iter();
                sign.chars().all(|c| ahead.next() == Some(&c))
            });
            let Some(sign) = sign else {
                let advice = match c {
                    '=' => "; write `==`",
                    '&' => "; write `&&`",
                    '|' => "; write `||`",
                    '?' => "; there is no `? :` here",
                    _ => "",
                };
                return Err(error(at, format!("`{c}` has no meaning here{advice}")));
            };
            tokens.push(Token {
                at,
                what: What::Sign(sign),
            });
            place += sign.len();
        }
    }
    Ok(tokens)
}

/// A text in quotes, and how many characters it takes.
fn quoted(chars: &[char], at: usize) -> Result<(String, usize), ConditionError> {
    let mut content = String::new();
    let mut rest = chars.iter().enumerate();
    let quote = rest.next().map(|(_, quote)| *quote);
    while let Some((index, &c)) = rest.next() {
        match c {
            c if Some(c) == quote => return Ok((content, index + 1)),
            '\\' => match rest.next().map(|(_, escaped)| *escaped) {
                Some('n') => content.push('\n'),
                Some('r') => content.push('\r'),
                Some('t') => content.push('\t'),
                Some(c @ ('\\' | '"' | '\'' | '`' | '?')) => content.push(c),
                _ => {
                    let message = "only \\\\ \\\" \\' \\n \\r \\t may follow a backslash";
                    return Err(error(at + index, message));
                }
            },
            c => content.push(c),
        }
    }
    Err(error(at, "this text has no closing quote"))
}

#[derive(Clone, Debug)]
struct Expression {
    at: usize,
    node: Node,
}

#[derive(Clone, Debug)]
enum Node {
    Name(String),
    Number(String),
    Text(String),
    List(Vec<Expression>),
    Member(Box<Expression>, String),
    At(Box<Expression>, Box<Expression>),
    /// A function, or a method of the first argument.
    Call(String, Vec<Expression>),
    Unary(&'static str, Box<Expression>),
    Binary(&'static str, Box<Expression>, Box<Expression>),
}

/// Recursive descent over CEL's grammar (github.com/google/cel-spec, "Syntax"), as far as it goes here.
struct Parser<'t> {
    tokens: &'t [Token],
    next: usize,
    nesting: usize,
}

type Parsed = Result<Expression, ConditionError>;

impl Parser<'_> {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.next)
    }

    /// Takes the next token if it is one of these signs, or the word `in`.
    fn take(&mut self, signs: &[&'static str]) -> Option<(usize, &'static str)> {
        let token = self.peek()?;
        let found = signs.iter().find(|sign| match &token.what {
            What::Sign(found) => found == *sign,
            What::Word(word) => **sign == "in" && word == "in",
            What::Number(_) | What::Text(_) => false,
        })?;
        let taken = (token.at, *found);
        self.next += 1;
        Some(taken)
    }

    fn expect(&mut self, sign: &'static str) -> Result<(), ConditionError> {
        match self.take(&[sign]) {
            Some(_) => Ok(()),
            None => Err(self.unexpected(&format!("`{sign}`"))),
        }
    }

    fn unexpected(&self, expected: &str) -> ConditionError {
        match self.peek() {
            Some(token) => error(
                token.at,
                format!("expected {expected}, found {}", token.what),
            ),
            None => {
                let end = self.tokens.last().map_or(1, |last| last.at);
                error(end, format!("expected {expected} behind this"))
            }
        }
    }

    /// What `operand` reads, joined by any of `signs`, from the left.
    fn joined(&mut self, signs: &[&'static str], operand: fn(&mut Self) -> Parsed) -> Parsed {
        let mut left = operand(self)?;
        while let Some((at, sign)) = self.take(signs) {
            let right = operand(self)?;
            left = Expression {
                at,
                node: Node::Binary(sign, Box::new(left), Box::new(right)),
            };
        }
        Ok(left)
    }

    fn either(&mut self) -> Parsed {
        self.nesting += 1;
        if self.nesting > MAX_NESTING {
            let at = self.peek().map_or(1, |token| token.at);
            return Err(error(at, format!("nested more than {MAX_NESTING} deep")));
        }
        let expression = self.joined(&["||"], Self::both);
        self.nesting -= 1;
        expression
    }

    fn both(&mut self) -> Parsed {
        self.joined(&["&&"], Self::relation)
    }

    fn relation(&mut self) -> Parsed {
        self.joined(&["==", "!=", "<=", ">=", "<", ">", "in"], Self::sum)
    }

    fn sum(&mut self) -> Parsed {
        self.joined(&["+", "-"], Self::product)
    }

    fn product(&mut self) -> Parsed {
        self.joined(&["*", "/", "%"], Self::unary)
    }

    fn unary(&mut self) -> Parsed {
        let Some((at, sign)) = self.take(&["!", "-"]) else {
            return self.member();
        };
        self.nesting += 1;
        if self.nesting > MAX_NESTING {
            return Err(error(at, format!("nested more than {MAX_NESTING} deep")));
        }
        let operand = self.unary()?;
        self.nesting -= 1;
        Ok(Expression {
            at,
            node: Node::Unary(sign, Box::new(operand)),
        })
    }

    fn member(&mut self) -> Parsed {
        let mut value = self.primary()?;
        while let Some((at, sign)) = self.take(&[".", "["]) {
            let node = if sign == "[" {
                let place = self.either()?;
                self.expect("]")?;
                Node::At(Box::new(value), Box::new(place))
            } else {
                let name = self.word("a name")?;
                match self.take(&["("]) {
                    None => Node::Member(Box::new(value), name),
                    Some(_) => {
                        let mut arguments = vec![value];
                        arguments.extend(self.list(")")?);
                        Node::Call(name, arguments)
                    }
                }
            };
            value = Expression { at, node };
        }
        Ok(value)
    }

    fn primary(&mut self) -> Parsed {
        if let Some((_, _)) = self.take(&["("]) {
            let inner = self.either()?;
            self.expect(")")?;
            return Ok(inner);
        }
        if let Some((at, _)) = self.take(&["["]) {
            let node = Node::List(self.list("]")?);
            return Ok(Expression { at, node });
        }
        let Some(token) = self.peek().cloned() else {
            return Err(self.unexpected("a value"));
        };
        let at = token.at;
        let node = match token.what {
            What::Number(digits) => Node::Number(digits),
            What::Text(text) => Node::Text(text),
            What::Word(word) if word != "in" => {
                self.next += 1;
                let node = match self.take(&["("]) {
                    Some(_) => Node::Call(word, self.list(")")?),
                    None => Node::Name(word),
                };
                return Ok(Expression { at, node });
            }
            What::Word(_) | What::Sign(_) => return Err(self.unexpected("a value")),
        };
        self.next += 1;
        Ok(Expression { at, node })
    }

    fn word(&mut self, expected: &str) -> Result<String, ConditionError> {
        match self.peek() {
            Some(Token {
                what: What::Word(word),
                ..
            }) => {
                let word = word.clone();
                self.next += 1;
                Ok(word)
            }
            _ => Err(self.unexpected(expected)),
        }
    }

    /// Values up to `end`, which is taken.
    fn list(&mut self, end: &'static str) -> Result<Vec<Expression>, ConditionError> {
        let mut items = Vec::new();
        if self.take(&[end]).is_some() {
            return Ok(items);
        }
        loop {
            items.push(self.either()?);
            if self.take(&[","]).is_none() {
                self.expect(end)?;
                return Ok(items);
            }
        }
    }
}

/// What kind of value an expression has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Bool,
    Int,
    Text,
    Level,
    Money,
    Instant,
    /// A list of values of one kind, which is itself no list.
    ListOf(Scalar),
    /// Something in the tool's arguments.
    Any,
}

/// What a list may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scalar {
    Int,
    Text,
    Level,
    /// Nothing, or things that only the call shows.
    Any,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Bool => "true or false",
            Kind::Int => "a whole number",
            Kind::Text => "a text",
            Kind::Level => "a governance level",
            Kind::Money => "an amount in US dollars",
            Kind::Instant => "an instant",
            Kind::ListOf(_) => "a list",
            Kind::Any => "something in the arguments",
        })
    }
}

/// Names and what they stand for.
const FACTS: [(&str, Fact, Kind); 13] = [
    ("governance_level", Fact::GovernanceLevel, Kind::Level),
    ("agent", Fact::Agent, Kind::Text),
    ("team", Fact::Team, Kind::Text),
    ("org", Fact::Org, Kind::Text),
    ("tool", Fact::Tool, Kind::Text),
    ("tools", Fact::Tools, Kind::ListOf(Scalar::Text)),
    ("args", Fact::Args, Kind::Any),
    ("model", Fact::Model, Kind::Text),
    ("method", Fact::Method, Kind::Text),
    ("host", Fact::Host, Kind::Text),
    ("path", Fact::Path, Kind::Text),
    ("estimated_cost_usd", Fact::EstimatedCostUsd, Kind::Money),
    ("now", Fact::Now, Kind::Instant),
];

/// An expression as code, with its kind.
struct Lowered {
    code: Vec<Instruction>,
    kind: Kind,
    /// The digits, where it is a number and nothing else: beside an amount it is an amount.
    digits: Option<String>,
}

impl Lowered {
    fn of(code: Vec<Instruction>, kind: Kind) -> Lowered {
        Lowered {
            code,
            kind,
            digits: None,
        }
    }

    fn then(mut self, instruction: Instruction, kind: Kind) -> Lowered {
        self.code.push(instruction);
        Lowered::of(self.code, kind)
    }

    fn is(&self, kind: Kind) -> bool {
        self.kind == kind || self.kind == Kind::Any
    }
}

/// An expression as code, or everything that is wrong with it.
type Checked = Result<Lowered, Vec<ConditionError>>;

fn wrong<T>(at: usize, message: impl Into<String>) -> Result<T, Vec<ConditionError>> {
    Err(vec![error(at, message)])
}

/// All of these as code, or what is wrong with any.
fn each<'e>(
    expressions: impl IntoIterator<Item = &'e Expression>,
) -> Result<Vec<Lowered>, Vec<ConditionError>> {
    let (mut all, mut errors) = (Vec::new(), Vec::new());
    for expression in expressions {
        match lower(expression) {
            Ok(lowered) => all.push(lowered),
            Err(more) => errors.extend(more),
        }
    }
    match errors.is_empty() {
        true => Ok(all),
        false => Err(errors),
    }
}

/// Both of these.
fn two(first: &Expression, second: &Expression) -> Result<(Lowered, Lowered), Vec<ConditionError>> {
    match (lower(first), lower(second)) {
        (Ok(first), Ok(second)) => Ok((first, second)),
        (first, second) => Err([first.err(), second.err()]
            .into_iter()
            .flatten()
            .flatten()
            .collect()),
    }
}

fn lower(expression: &Expression) -> Checked {
    let at = expression.at;
    match &expression.node {
        Node::Name(name) => name_of(name, at),
        Node::Number(digits) => number(digits, at),
        Node::Text(text) => Ok(Lowered::of(
            vec![Instruction::Text(text.clone())],
            Kind::Text,
        )),
        Node::List(items) => list(items, at),
        Node::Member(of, name) => {
            Ok(in_arguments(of)?.then(Instruction::Member(name.clone()), Kind::Any))
        }
        Node::At(of, place) => {
            let place_at = place.at;
            let (of, place) = two(of, place)?;
            let kind = match of.kind {
                Kind::Any if place.is(Kind::Text) || place.is(Kind::Int) => Kind::Any,
                Kind::ListOf(item) if place.is(Kind::Int) => kind_of(item),
                Kind::Any | Kind::ListOf(_) => {
                    let message = format!("{} does not name a place in a list", place.kind);
                    return wrong(place_at, message);
                }
                other => return wrong(at, format!("{other} has no places")),
            };
            let mut code = of.code;
            code.extend(place.code);
            Ok(Lowered::of(code, kind).then(Instruction::At, kind))
        }
        Node::Call(name, arguments) => call(name, arguments, at),
        Node::Unary(sign, operand) => {
            let lowered = lower(operand)?;
            match *sign {
                "!" if lowered.is(Kind::Bool) => Ok(lowered.then(Instruction::Not, Kind::Bool)),
                "-" if lowered.kind == Kind::Int || lowered.kind == Kind::Money => {
                    let kind = lowered.kind;
                    Ok(lowered.then(Instruction::Negate, kind))
                }
                "-" if lowered.kind == Kind::Any => {
                    Ok(lowered.then(Instruction::Negate, Kind::Any))
                }
                sign => wrong(
                    at,
                    format!("`{sign}` cannot be applied to {}", lowered.kind),
                ),
            }
        }
        Node::Binary(sign, left, right) => binary(sign, left, right, at),
    }
}

fn name_of(name: &str, at: usize) -> Checked {
    if name == "true" || name == "false" {
        return Ok(Lowered::of(
            vec![Instruction::Bool(name == "true")],
            Kind::Bool,
        ));
    }
    if let Some(level) = GovernanceLevel::parse(name) {
        return Ok(Lowered::of(vec![Instruction::Level(level)], Kind::Level));
    }
    if let Some((_, fact, kind)) = FACTS.iter().find(|(known, ..)| *known == name) {
        return Ok(Lowered::of(vec![Instruction::Fact(*fact)], *kind));
    }
    let digits = name.strip_prefix('L').unwrap_or_default();
    if !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) {
        let message = format!("`{name}` is not a governance level; there are `L0` to `L3`");
        return wrong(at, message);
    }
    let known: Vec<&'static str> = FACTS.iter().map(|(name, ..)| *name).collect();
    // `cost` is nearer to `host` than to what is meant.
    let longer = known
        .iter()
        .find(|known| known.split('_').any(|part| part == name));
    let meant = longer
        .copied()
        .or_else(|| crate::decode::nearest(name, &known))
        .map_or(String::new(), |known| format!("; did you mean `{known}`?"));
    wrong(at, format!("there is nothing named `{name}`{meant}"))
}

fn number(digits: &str, at: usize) -> Checked {
    let (instruction, kind) = match digits.contains('.') {
        // Fractions there are of dollars alone.
        true => (amount(digits, at)?, Kind::Money),
        false => {
            let value = digits.parse().map(Instruction::Int);
            let too_large = |_| vec![error(at, format!("`{digits}` is too large"))];
            (value.map_err(too_large)?, Kind::Int)
        }
    };
    Ok(Lowered {
        code: vec![instruction],
        kind,
        digits: Some(digits.to_string()),
    })
}

fn amount(digits: &str, at: usize) -> Result<Instruction, Vec<ConditionError>> {
    let amount = money::nano_usd(digits).ok();
    match amount.and_then(|amount| i64::try_from(amount).ok()) {
        Some(amount) => Ok(Instruction::Money(amount)),
        None => wrong(at, format!("`{digits}` is not an amount in US dollars")),
    }
}

fn kind_of(item: Scalar) -> Kind {
    match item {
        Scalar::Int => Kind::Int,
        Scalar::Text => Kind::Text,
        Scalar::Level => Kind::Level,
        Scalar::Any => Kind::Any,
    }
}

fn list(items: &[Expression], at: usize) -> Checked {
    let mut code = Vec::new();
    let mut kind = None;
    for (item, lowered) in items.iter().zip(each(items)?) {
        let of = match lowered.kind {
            Kind::Int => Scalar::Int,
            Kind::Text => Scalar::Text,
            Kind::Level => Scalar::Level,
            Kind::Any => Scalar::Any,
            other => return wrong(item.at, format!("a list cannot hold {other}")),
        };
        if *kind.get_or_insert(of) != of {
            return wrong(item.at, "the items of a list must be of one kind");
        }
        code.extend(lowered.code);
    }
    if items.is_empty() {
        return wrong(at, "an empty list holds nothing to compare with");
    }
    let kind = Kind::ListOf(kind.unwrap_or(Scalar::Any));
    Ok(Lowered::of(code, kind).then(Instruction::List(items.len()), kind))
}

/// A value whose members may be asked for.
fn in_arguments(of: &Expression) -> Checked {
    let lowered = lower(of)?;
    match lowered.kind {
        Kind::Any => Ok(lowered),
        other => wrong(of.at, format!("{other} has no members; only `args` has")),
    }
}

fn call(name: &str, arguments: &[Expression], at: usize) -> Checked {
    let method = |instruction, of: Kind, with: &[Kind], gives: Kind| {
        let wanted: Vec<Kind> = std::iter::once(of).chain(with.iter().copied()).collect();
        if arguments.len() != wanted.len() {
            let within = if with.is_empty() { "" } else { "y" };
            return wrong(at, format!("`{name}` is written `x.{name}({within})`"));
        }
        let mut code = Vec::new();
        for ((argument, lowered), wanted) in arguments.iter().zip(each(arguments)?).zip(wanted) {
            if !lowered.is(wanted) {
                let message = format!("`{name}` needs {wanted}, this is {}", lowered.kind);
                return wrong(argument.at, message);
            }
            code.extend(lowered.code);
        }
        if let [of, part] = arguments {
            misspelt(of, part, Spelling::part)?;
        }
        Ok(Lowered::of(code, gives).then(instruction, gives))
    };
    match (name, arguments) {
        ("has", [argument]) => match &argument.node {
            Node::Member(of, name) => {
                Ok(in_arguments(of)?.then(Instruction::Has(name.clone()), Kind::Bool))
            }
            _ => wrong(
                argument.at,
                "`has` needs a member, such as `has(args.path)`",
            ),
        },
        ("size", [argument]) => {
            let lowered = lower(argument)?;
            match lowered.kind {
                Kind::Text | Kind::ListOf(_) | Kind::Any => {
                    Ok(lowered.then(Instruction::Size, Kind::Int))
                }
                other => wrong(argument.at, format!("{other} has no size")),
            }
        }
        ("timestamp", [argument]) => match &argument.node {
            Node::Text(text) => match text.parse::<jiff::Timestamp>() {
                Ok(instant) => Ok(Lowered::of(
                    vec![Instruction::Instant(instant.as_second())],
                    Kind::Instant,
                )),
                Err(_) => wrong(
                    argument.at,
                    "not an instant such as \"2026-12-01T00:00:00Z\"",
                ),
            },
            _ => wrong(argument.at, "`timestamp` needs a text in quotes"),
        },
        ("startsWith", _) => method(
            Instruction::StartsWith,
            Kind::Text,
            &[Kind::Text],
            Kind::Bool,
        ),
        ("endsWith", _) => method(Instruction::EndsWith, Kind::Text, &[Kind::Text], Kind::Bool),
        ("contains", _) => method(Instruction::Contains, Kind::Text, &[Kind::Text], Kind::Bool),
        ("lowerAscii", _) => method(Instruction::LowerAscii, Kind::Text, &[], Kind::Text),
        ("getHours", _) => method(Instruction::Hours, Kind::Instant, &[], Kind::Int),
        ("getMinutes", _) => method(Instruction::Minutes, Kind::Instant, &[], Kind::Int),
        ("getDayOfWeek", _) => method(Instruction::DayOfWeek, Kind::Instant, &[], Kind::Int),
        _ => {
            const KNOWN: [&str; 10] = [
                "has",
                "size",
                "timestamp",
                "startsWith",
                "endsWith",
                "contains",
                "lowerAscii",
                "getHours",
                "getMinutes",
                "getDayOfWeek",
            ];
            let message = match KNOWN.contains(&name) {
                true => format!("`{name}` takes one value"),
                false => {
                    let meant = crate::decode::nearest(name, &KNOWN)
                        .map_or(String::new(), |known| format!("; did you mean `{known}`?"));
                    format!("there is no function `{name}`{meant}")
                }
            };
            // What it was given may be wrong too.
            let mut errors = vec![error(at, message)];
            errors.extend(each(arguments).err().unwrap_or_default());
            Err(errors)
        }
    }
}

/// Whether something in the arguments can be of this kind.
fn in_args(kind: Kind) -> bool {
    !matches!(kind, Kind::Money | Kind::Level | Kind::Instant)
}

/// Whether values of these kinds may be the same.
fn comparable(left: Kind, right: Kind) -> bool {
    left == right || (left == Kind::Any && in_args(right)) || (right == Kind::Any && in_args(left))
}

/// How a text of the call is always spelt, so that another spelling is never the same.
#[derive(Clone, Copy)]
enum Spelling {
    /// A UUID in lower case.
    Agent,
    /// As [`normal_host`] has it.
    Host,
    /// In upper case, as RFC 9110 §9 has all methods; nobody means another one.
    Method,
    /// What `lowerAscii` gives.
    Lower,
}

impl Spelling {
    fn of(expression: &Expression) -> Option<Spelling> {
        match &expression.node {
            Node::Name(name) if name == "agent" => Some(Spelling::Agent),
            Node::Name(name) if name == "host" => Some(Spelling::Host),
            Node::Name(name) if name == "method" => Some(Spelling::Method),
            Node::Call(name, _) if name == "lowerAscii" => Some(Spelling::Lower),
            _ => None,
        }
    }

    /// Why a text that is not empty is no part of it, if that is certain.
    fn part(self, text: &str) -> Option<String> {
        let (words, spelt) = match self {
            Spelling::Agent => (
                "an agent's UUID is in lower case",
                text.to_ascii_lowercase(),
            ),
            Spelling::Host => ("hosts are in lower case", text.to_ascii_lowercase()),
            Spelling::Method => ("methods are in upper case", text.to_ascii_uppercase()),
            Spelling::Lower => ("`lowerAscii` gives lower case", text.to_ascii_lowercase()),
        };
        (spelt != text).then(|| format!("{words}; write `{}`", shown(&spelt)))
    }

    /// Why a text is not the whole of it, if that is certain.
    fn whole(self, text: &str) -> Option<String> {
        match self {
            Spelling::Agent if !is_hyphenated_uuid(text) => Some(format!(
                "`{}` is not the UUID of an agent (`tollgate agent list`)",
                shown(text)
            )),
            Spelling::Host => {
                let address = text.parse::<Ipv6Addr>().map(|address| address.to_string());
                match address.ok().or_else(|| normal_host(text)) {
                    Some(spelt) if spelt == text => None,
                    Some(spelt) => Some(format!(
                        "hosts are in lower case, without port; write `{}`",
                        shown(&spelt)
                    )),
                    None => Some(format!("`{}` is not a host", shown(text))),
                }
            }
            Spelling::Agent | Spelling::Method | Spelling::Lower => self.part(text),
        }
    }
}

/// Refuses the constants of `with` that `of` can never be.
fn misspelt(
    of: &Expression,
    with: &Expression,
    problem: fn(Spelling, &str) -> Option<String>,
) -> Result<(), Vec<ConditionError>> {
    let Some(spelling) = Spelling::of(of) else {
        return Ok(());
    };
    let constants = match &with.node {
        Node::List(items) => items.as_slice(),
        _ => std::slice::from_ref(with),
    };
    let wrong = constants.iter().filter_map(|constant| {
        let Node::Text(text) = &constant.node else {
            return None;
        };
        Some(error(constant.at, problem(spelling, text)?))
    });
    let errors: Vec<ConditionError> = wrong.collect();
    match errors.is_empty() {
        true => Ok(()),
        false => Err(errors),
    }
}

fn binary(
    sign: &'static str,
    left_side: &Expression,
    right_side: &Expression,
    at: usize,
) -> Checked {
    let (left_at, right_at) = (left_side.at, right_side.at);
    let (mut left, mut right) = two(left_side, right_side)?;
    // `estimated_cost_usd > 1` compares amounts.
    if !matches!(sign, "*" | "/" | "%") {
        let (left_kind, right_kind) = (left.kind, right.kind);
        for (side, other, side_at) in [
            (&mut left, right_kind, left_at),
            (&mut right, left_kind, right_at),
        ] {
            if let (Some(digits), Kind::Money) = (&side.digits, other) {
                *side = Lowered::of(vec![amount(digits, side_at)?], Kind::Money);
            }
        }
    }
    let kinds = (left.kind, right.kind);
    let alike = comparable(left.kind, right.kind);
    let scalar = |kind: Kind| !matches!(kind, Kind::ListOf(_));
    let given = match sign {
        "&&" | "||" if left.is(Kind::Bool) && right.is(Kind::Bool) => Some(Kind::Bool),
        "==" | "!=" if alike && scalar(left.kind) && scalar(right.kind) => Some(Kind::Bool),
        "<" | "<=" | ">" | ">="
            if alike
                && [left.kind, right.kind]
                    .iter()
                    .all(|k| scalar(*k) && *k != Kind::Bool) =>
        {
            Some(Kind::Bool)
        }
        "in" => match right.kind {
            Kind::ListOf(item) if comparable(left.kind, kind_of(item)) => Some(Kind::Bool),
            Kind::Any if in_args(left.kind) => Some(Kind::Bool),
            _ => None,
        },
        "+" | "-" | "/" | "%" | "*" => match kinds {
            (Kind::Int | Kind::Any, Kind::Int | Kind::Any) => Some(Kind::Int),
            (Kind::Money, Kind::Money) if matches!(sign, "+" | "-") => Some(Kind::Money),
            (Kind::Money, Kind::Int) | (Kind::Int, Kind::Money) if sign == "*" => Some(Kind::Money),
            _ => None,
        },
        _ => None,
    };
    let Some(kind) = given else {
        let advice = match kinds {
            (Kind::Any, Kind::Money) | (Kind::Money, Kind::Any) => {
                "; numbers in arguments are whole, so compare them with whole ones"
            }
            (Kind::Money, Kind::Int | Kind::Money) | (Kind::Int, Kind::Money)
                if matches!(sign, "*" | "/" | "%") =>
            {
                "; an amount can be multiplied by a whole number, and no more"
            }
            _ => "",
        };
        let message = format!(
            "`{sign}` does not go between {} and {}{advice}",
            kinds.0, kinds.1
        );
        return wrong(at, message);
    };
    if matches!(sign, "==" | "!=" | "in") {
        misspelt(left_side, right_side, Spelling::whole)?;
        if sign != "in" {
            misspelt(right_side, left_side, Spelling::whole)?;
        }
    }
    let instruction = match sign {
        "&&" => Instruction::And,
        "||" => Instruction::Or,
        "==" => Instruction::Equal,
        "!=" => Instruction::Unequal,
        "<" => Instruction::Less,
        "<=" => Instruction::AtMost,
        ">" => Instruction::Greater,
        ">=" => Instruction::AtLeast,
        "in" => Instruction::In,
        "+" => Instruction::Add,
        "-" => Instruction::Subtract,
        "*" => Instruction::Multiply,
        "/" => Instruction::Divide,
        _ => Instruction::Remainder,
    };
    let mut code = left.code;
    code.extend(right.code);
    Ok(Lowered::of(code, kind).then(instruction, kind))
}
