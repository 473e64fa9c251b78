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

/// Defines every code once: its constant, its place in `ALL`, and its meaning in words.
macro_rules! codes {
    ($($(#[doc = $meaning:literal])+ $name:ident = $code:literal;)+) => {
        $($(#[doc = $meaning])+ pub const $name: &str = $code;)+

        /// Every code.
        pub const ALL: &[&str] = &[$($name),+];

        /// What `code` means, in a sentence; empty for what is no code.
        pub fn meaning(code: &str) -> &'static str {
            match code {
                $($code => concat!($($meaning),+).trim(),)+
                _ => "",
            }
        }
    };
}

/// The codes, in groups: `P0` the file, `P1` its shape, `P2` a value, `P3` enforcement, `P4` several documents together.
/// A code keeps its meaning; one that is no longer used is not given to anything else.
pub mod codes {
    codes! {
        /// Not text this reads: too large, or not UTF-8.
        UNREADABLE = "P001";
        /// Not YAML.
        SYNTAX = "P002";
        /// A YAML feature that policies may not use: anchors, aliases, tags, directives, merge keys, keys that are not plain text.
        REFUSED_YAML = "P003";
        /// Deeper, longer or more than a limit allows.
        OVER_LIMIT = "P004";
        /// The same key twice in one mapping.
        DUPLICATE_KEY = "P005";
        /// No policy in the file.
        NO_DOCUMENT = "P006";

        /// A key the language does not have.
        UNKNOWN_KEY = "P101";
        /// A value of another type than the field's.
        WRONG_TYPE = "P102";
        /// A field that must be there is not.
        MISSING = "P103";
        /// `apiVersion` or `kind` is not one this reads.
        API_VERSION = "P104";
        /// Empty where something must be.
        EMPTY = "P105";
        /// A name or identifier that is too long or has characters that cannot be shown.
        BAD_NAME = "P106";
        /// A field of `tollgate/v1` in a document of the older version.
        NEEDS_TOLLGATE_V1 = "P107";
        /// A field of `spec` or `metadata` outside it.
        MISPLACED = "P108";

        /// Not a scope.
        SCOPE = "P201";
        /// Not a host or `*.domain`.
        HOST = "P202";
        /// Not a time of day, or an end that is not behind its start.
        TIME_OF_DAY = "P203";
        /// Not an IANA time zone.
        TIME_ZONE = "P204";
        /// Not an amount of money this can count.
        MONEY = "P205";
        /// A whole number outside its range.
        NUMBER = "P206";
        /// Not one of the words the field knows.
        CHOICE = "P207";
        /// Not a regular expression.
        PATTERN = "P208";
        /// A regular expression that RE2 and this gate would not read the same way.
        PATTERN_NOT_RE2 = "P209";
        /// A regular expression that matches the empty text, or nothing at all.
        PATTERN_POINTLESS = "P210";
        /// A regular expression that is too long or compiles too large.
        PATTERN_TOO_LARGE = "P211";
        /// Not a condition: empty, not in the language, of another type, or with a name that does not exist.
        CONDITION = "P212";
        /// Not a capability.
        CAPABILITY = "P213";
        /// A limit below that of a shorter period.
        LIMITS_CROSSED = "P214";

        /// A valid field that this version does not enforce.
        NOT_ENFORCED = "P301";
        /// Something that happens where a gate cannot see it.
        NOT_VISIBLE = "P302";
        /// A setting with nothing to act on.
        NO_EFFECT = "P303";
        /// Allows more than it looks like.
        BROAD = "P304";
        /// A setting of other products, or another form, that has another place here.
        ELSEWHERE = "P305";

        /// Two documents of one name.
        DUPLICATE_NAME = "P401";
        /// More documents than a bundle carries.
        TOO_MANY_DOCUMENTS = "P402";
        /// Meant to take the place of another version than the one that is there.
        REPLACES_ANOTHER = "P403";
    }
}
