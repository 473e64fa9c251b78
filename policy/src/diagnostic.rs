//! What the reader says about a document: one [`Diagnostic`] per finding, with a stable code and a position.

use std::fmt;

/// A place in a file, both counted from 1; columns count characters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
}

/// Whether a finding keeps the document from being used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// The document is refused.
    Error,
    /// The document is accepted; its author should look again.
    Warning,
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// Error or warning.
    pub severity: Severity,
    /// One of [`codes::ALL`].
    pub code: &'static str,
    /// The field, such as `spec.tools.bash.limit_per_hour`; empty when the whole file is meant.
    pub path: String,
    /// What is wrong and what to do.
    pub message: String,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// What the author may have meant, ready to be put in the place of what is there.
    pub suggestion: Option<String>,
}

impl Diagnostic {
    /// Whether this keeps the document from being used.
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        write!(
            f,
            "{}:{}: {severity}[{}]",
            self.line, self.column, self.code
        )?;
        if !self.path.is_empty() {
            write!(f, " {}", self.path)?;
        }
        write!(f, ": {}", self.message)
    }
}

/// The codes, in groups: `P0` the file, `P1` its shape, `P2` a value, `P3` enforcement, `P4` several documents together.
/// A code keeps its meaning; one that is no longer used is not given to anything else.
pub mod codes {
    /// Not text this reads: too large, or not UTF-8.
    pub const UNREADABLE: &str = "P001";
    /// Not YAML.
    pub const SYNTAX: &str = "P002";
    /// A YAML feature that policies may not use: anchors, aliases, tags, directives, merge keys, keys that are not plain text.
    pub const REFUSED_YAML: &str = "P003";
    /// Deeper, longer or more than a limit allows.
    pub const OVER_LIMIT: &str = "P004";
    /// The same key twice in one mapping.
    pub const DUPLICATE_KEY: &str = "P005";
    /// No document in the file.
    pub const NO_DOCUMENT: &str = "P006";

    /// A key the language does not have.
    pub const UNKNOWN_KEY: &str = "P101";
    /// A value of another type than the field's.
    pub const WRONG_TYPE: &str = "P102";
    /// A field that must be there is not.
    pub const MISSING: &str = "P103";
    /// `apiVersion` or `kind` is not one this reads.
    pub const API_VERSION: &str = "P104";
    /// Empty where something must be.
    pub const EMPTY: &str = "P105";
    /// A name or identifier that is too long or has characters that cannot be shown.
    pub const BAD_NAME: &str = "P106";
    /// A field of `tollgate/v1` in a document of the older version.
    pub const NEEDS_TOLLGATE_V1: &str = "P107";
    /// A field of `spec` outside it.
    pub const MISPLACED: &str = "P108";

    /// Not a scope.
    pub const SCOPE: &str = "P201";
    /// Not a host or `*.domain`.
    pub const HOST: &str = "P202";
    /// Not a time of day, or an end before its start.
    pub const TIME_OF_DAY: &str = "P203";
    /// Not an IANA time zone.
    pub const TIME_ZONE: &str = "P204";
    /// Not an amount of money this can count.
    pub const MONEY: &str = "P205";
    /// A whole number outside its range.
    pub const NUMBER: &str = "P206";
    /// Not one of the words the field knows.
    pub const CHOICE: &str = "P207";
    /// Not a regular expression.
    pub const PATTERN: &str = "P208";
    /// A regular expression that RE2 and this gate would not read the same way.
    pub const PATTERN_NOT_RE2: &str = "P209";
    /// A regular expression that matches the empty text, or nothing at all.
    pub const PATTERN_POINTLESS: &str = "P210";
    /// A regular expression that is too long or compiles too large.
    pub const PATTERN_TOO_LARGE: &str = "P211";
    /// An approval condition that is empty or names an unknown governance level.
    pub const CONDITION: &str = "P212";
    /// Not a capability.
    pub const CAPABILITY: &str = "P213";
    /// Monthly limit below the daily one.
    pub const MONTH_BELOW_DAY: &str = "P214";

    /// A valid field that this version does not enforce.
    pub const NOT_ENFORCED: &str = "P301";
    /// Something that happens where a gate cannot see it.
    pub const NOT_VISIBLE: &str = "P302";
    /// A setting with nothing to act on.
    pub const NO_EFFECT: &str = "P303";
    /// Allows more than it looks like.
    pub const BROAD: &str = "P304";

    /// Two documents of one name.
    pub const DUPLICATE_NAME: &str = "P401";
    /// More documents than a bundle carries.
    pub const TOO_MANY_DOCUMENTS: &str = "P402";

    /// Every code.
    pub const ALL: &[&str] = &[
        UNREADABLE,
        SYNTAX,
        REFUSED_YAML,
        OVER_LIMIT,
        DUPLICATE_KEY,
        NO_DOCUMENT,
        UNKNOWN_KEY,
        WRONG_TYPE,
        MISSING,
        API_VERSION,
        EMPTY,
        BAD_NAME,
        NEEDS_TOLLGATE_V1,
        MISPLACED,
        SCOPE,
        HOST,
        TIME_OF_DAY,
        TIME_ZONE,
        MONEY,
        NUMBER,
        CHOICE,
        PATTERN,
        PATTERN_NOT_RE2,
        PATTERN_POINTLESS,
        PATTERN_TOO_LARGE,
        CONDITION,
        CAPABILITY,
        MONTH_BELOW_DAY,
        NOT_ENFORCED,
        NOT_VISIBLE,
        NO_EFFECT,
        BROAD,
        DUPLICATE_NAME,
        TOO_MANY_DOCUMENTS,
    ];
}
