//! What `data.mask_pii` looks for: personal data that has a shape of its own. By shape alone, so an order number that looks like a payment card's
//! goes too; names and addresses of streets have no shape, and stay.

use crate::pattern::Pattern;
use std::sync::LazyLock;

/// A test parses them all.
const PATTERNS: [&str; 5] = [
    // E-mail addresses: RFC 5321 §4.1.2, without quoted parts and addresses in brackets.
    r"[A-Za-z0-9._%+-]+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,}",
    // Payment cards: Visa, Mastercard, Discover in groups of four; American Express in 4-6-5 (ISO/IEC 7812, issuers' ranges).
    r"\b(?:4\d{3}|5[1-5]\d{2}|2[2-7]\d{2}|6(?:011|5\d{2}))(?:[ -]?\d{4}){3}\b|\b3[47]\d{2}[ -]?\d{6}[ -]?\d{5}\b",
    // IBANs (ISO 13616): country, two check digits, up to 30 letters and digits, often in groups of four.
    r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b",
    // US social security numbers.
    r"\b\d{3}-\d{2}-\d{4}\b",
    // Telephone numbers (ITU-T E.164), with the plus sign.
    r"\+\d{1,3}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d{1,4}(?:[ .-]?\d{2,4}){2,4}\b",
];

/// The patterns in normal form.
pub(crate) fn patterns() -> &'static [String] {
    static NORMAL: LazyLock<Vec<String>> = LazyLock::new(|| {
        let parsed = PATTERNS
            .iter()
            .filter_map(|pattern| Pattern::parse(pattern).ok());
        parsed.map(|pattern| pattern.normal).collect()
    });
    &NORMAL
}

#[cfg(test)]
mod tests {
    use super::{PATTERNS, patterns};
    use crate::pattern::compile;
    use tollgate_engine::redact::{Masker, REPLACEMENT};

    fn masked(text: &str) -> String {
        assert_eq!(patterns().len(), PATTERNS.len(), "one does not parse");
        let mut maskers: Vec<Masker> = patterns()
            .iter()
            .map(|pattern| Masker::new(&compile(pattern, true).unwrap()).unwrap())
            .collect();
        let redacted = tollgate_engine::redact::text(text.as_bytes(), &mut maskers).unwrap();
        String::from_utf8(redacted.body).unwrap()
    }

    #[test]
    fn what_looks_like_personal_data_goes() {
        // Numbers that issuers publish for tests, and examples of the standards.
        for (text, left) in [
            ("ask jane.doe+x@mail.example.com today", "ask * today"),
            ("card 4111 1111 1111 1111, please", "card *, please"),
            ("378282246310005", "*"),
            ("to DE89 3704 0044 0532 0130 00.", "to *."),
            ("GB82WEST12345698765432", "*"),
            ("ssn 078-05-1120;", "ssn *;"),
            ("call +44 20 7946 0958 or +1 (202) 555-0143", "call * or *"),
        ] {
            assert_eq!(masked(text), left.replace('*', REPLACEMENT), "{text}");
        }
    }

    #[test]
    fn what_does_not_stays() {
        for text in [
            "at 2026-11-20T10:00:00Z",
            "1795219056123456",
            "d-00000000000040008000000000000001",
            "a@b",
            "10.0.0.7",
            "1 + 2 = 3",
            "00000000-0000-4000-8000-00000000000a",
        ] {
            assert_eq!(masked(text), text);
        }
    }
}
