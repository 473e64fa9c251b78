//! Text that callers name things with.

use crate::problem::{Kind, Problem};

/// Characters of a name.
pub(crate) const MAX_NAME_CHARS: usize = 128;

/// A name for people.
pub(crate) fn name<'a>(field: &'static str, text: &'a str) -> Result<&'a str, Problem> {
    line(field, text, MAX_NAME_CHARS)
}

/// Something for people to read, on one line. Whatever would reach a terminal as a control sequence is refused.
pub(crate) fn line<'a>(
    field: &'static str,
    text: &'a str,
    max_chars: usize,
) -> Result<&'a str, Problem> {
    let fine = !text.is_empty()
        && text.chars().count() <= max_chars
        && !text.chars().any(char::is_control);
    if fine {
        Ok(text)
    } else {
        Err(Problem::new(
            Kind::Invalid,
            format!("`{field}` must have 1 to {max_chars} characters and no control characters"),
        ))
    }
}

/// An identifier that policies and accounts refer to: `|` and `:` separate the parts of an account.
pub(crate) fn id<'a>(field: &'static str, text: &'a str) -> Result<&'a str, Problem> {
    let fine = (1..=MAX_NAME_CHARS).contains(&text.len())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'));
    if fine {
        Ok(text)
    } else {
        Err(Problem::new(
            Kind::Invalid,
            format!(
                "`{field}` must have 1 to {MAX_NAME_CHARS} of the characters a-z A-Z 0-9 . _ -"
            ),
        ))
    }
}
