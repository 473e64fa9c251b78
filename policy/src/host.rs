//! Entries of `network.allowlist`: a host, every host below a domain, or every host.

use std::{fmt, net::Ipv4Addr};

/// Longest host name, RFC 1035 §2.3.4 without the length octets.
const MAX_HOST_BYTES: usize = 253;
/// Longest label, RFC 1035 §2.3.4.
const MAX_LABEL_BYTES: usize = 63;

/// One entry, in lower-case ASCII without a trailing dot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// `*`: every host.
    Any,
    /// `api.example.com`: this host, or this IPv4 address.
    Exact(String),
    /// `*.example.com`: one or more labels below `example.com`, not `example.com` itself.
    Below(String),
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Host::Any => f.write_str("*"),
            Host::Exact(host) => f.write_str(host),
            Host::Below(domain) => write!(f, "*.{domain}"),
        }
    }
}

impl Host {
    /// Reads an entry; the error says what to write instead.
    pub fn parse(text: &str) -> Result<Host, &'static str> {
        if text == "*" {
            return Ok(Host::Any);
        }
        if text.contains("://") || text.contains('/') {
            return Err("write only the host, without scheme, path or address range");
        }
        if text.contains(':') {
            return Err(
                "write the host without a port (every port of it is meant); IPv6 addresses are not accepted",
            );
        }
        if !text.is_ascii() {
            return Err("write an international name in its ASCII form (`xn--…`, punycode)");
        }
        let lower = text.to_ascii_lowercase();
        let name = lower.strip_suffix('.').unwrap_or(&lower);
        let (domain, below) = match name.strip_prefix("*.") {
            Some(domain) => (domain, true),
            None => (name, false),
        };
        if domain.contains('*') {
            return Err("a `*` must be the whole first label, such as `*.example.com`");
        }
        if name.len() > MAX_HOST_BYTES || !domain.split('.').all(is_label) {
            return Err(
                "is not a host name: labels of letters, digits and `-`, at most 63 each, joined by single dots",
            );
        }
        let last = domain.rsplit('.').next().unwrap_or(domain);
        let numeric = last.bytes().all(|byte| byte.is_ascii_digit()) || last.starts_with("0x");
        if numeric && (below || domain.parse::<Ipv4Addr>().is_err()) {
            return Err("write an IPv4 address as four decimal numbers, without `*`");
        }
        Ok(match below {
            true => Host::Below(domain.to_string()),
            false => Host::Exact(domain.to_string()),
        })
    }
}

/// Letters, digits, `-` inside. `_` is no host name (RFC 952) but names in container networks have it.
fn is_label(label: &str) -> bool {
    let inside = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    !label.is_empty()
        && label.len() <= MAX_LABEL_BYTES
        && label.bytes().all(|byte| inside(byte) || byte == b'-')
        && !label.starts_with('-')
        && !label.ends_with('-')
}
