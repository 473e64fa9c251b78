//! Entries of `network.allowlist`: a host, every host below a domain, or every host; and of `network.denylist`, which may also name addresses.

use std::{fmt, net::Ipv4Addr};
use tollgate_engine::{address::Range, bundle::HostPattern};

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
    /// `*.example.com` or `.example.com`: one or more labels below `example.com`, not `example.com` itself.
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
    /// Reads an entry of an allowlist; the error says what to write instead.
    pub(crate) fn allowed(text: &str) -> Result<Host, &'static str> {
        match text.eq_ignore_ascii_case(PRIVATE) {
            true => Err(
                "this is a word of `denylist`, and no address here; write each address that is meant, or `private.` for a host of that name",
            ),
            false => Host::parse(text),
        }
    }

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
        let (domain, below) = match name.strip_prefix("*.").or_else(|| name.strip_prefix('.')) {
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

/// One entry of `network.denylist`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Denied {
    /// A host, or every host below one.
    Host(Host),
    /// Addresses.
    Addresses(Range),
    /// `private`: what is not on the public internet, by address and by the names that stand for such addresses.
    Private,
}

/// The word for it.
const PRIVATE: &str = "private";

/// Addresses that are not globally reachable (IANA's IPv4 and IPv6 Special-Purpose Address Registries), multicast and reserved ones, those
/// that carry an IPv4 address inside (RFC 4291 §2.5.5.1, 6052, 4380, 3056), and the host service of Azure, which has a public address.
const PRIVATE_ADDRESSES: [&str; 27] = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "168.63.129.16",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/4",
    "240.0.0.0/4",
    "::/96",
    "64:ff9b::/96",
    "64:ff9b:1::/48",
    "100::/64",
    "2001::/23",
    "2001:db8::/32",
    "2002::/16",
    "3fff::/20",
    "fc00::/7",
    "fe80::/10",
    "fec0::/10",
    "ff00::/8",
];

/// Names that stand for such addresses: RFC 6761 §6.3, RFC 6762 §3, RFC 8375, ICANN's `.internal`, and how metadata services are called.
const PRIVATE_HOSTS: [&str; 6] = [
    "localhost",
    "*.localhost",
    "*.local",
    "*.home.arpa",
    "*.internal",
    "metadata",
];

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Denied::Host(host) => host.fmt(f),
            Denied::Addresses(range) => range.fmt(f),
            Denied::Private => f.write_str(PRIVATE),
        }
    }
}

impl Denied {
    /// Reads an entry; the error says what to write instead.
    pub fn parse(text: &str) -> Result<Denied, &'static str> {
        if text == PRIVATE {
            return Ok(Denied::Private);
        }
        if let Some(range) = Range::parse(text) {
            return Ok(Denied::Addresses(range));
        }
        if text.contains('/') && !text.contains("://") {
            return Err(
                "an address range is its first address and the bits that count, such as `10.0.0.0/8` or `fe80::/10`",
            );
        }
        if text.contains(':') && !text.contains("://") {
            return Err(
                "write a host without a port (every port of it is meant), and an IPv6 address without brackets, such as `::1`",
            );
        }
        match Host::parse(text)? {
            Host::Exact(host) if host == PRIVATE => Err("write `private` in lower case"),
            Host::Any => Err("to allow no host at all, write an empty `allowlist`"),
            host => Ok(Denied::Host(host)),
        }
    }

    /// The names it stands for.
    pub(crate) fn hosts(&self) -> Vec<HostPattern> {
        match self {
            Denied::Host(host) => vec![HostPattern(host.to_string())],
            Denied::Addresses(_) => Vec::new(),
            Denied::Private => PRIVATE_HOSTS
                .iter()
                .map(|host| HostPattern((*host).to_string()))
                .collect(),
        }
    }

    /// The addresses it stands for.
    pub(crate) fn addresses(&self) -> Vec<Range> {
        match self {
            Denied::Host(_) => Vec::new(),
            Denied::Addresses(range) => vec![*range],
            Denied::Private => PRIVATE_ADDRESSES
                .iter()
                .filter_map(|range| Range::parse(range))
                .collect(),
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_private_range_and_host_is_one() {
        assert_eq!(Denied::Private.addresses().len(), PRIVATE_ADDRESSES.len());
        for host in PRIVATE_HOSTS {
            assert!(Host::parse(host).is_ok(), "{host}");
        }
    }
}
