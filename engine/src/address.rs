//! Addresses that stand where a host name may stand, and ranges of them.
//!
//! `2130706433`, `0x7f.1`, `0177.0.0.1` and `[::ffff:127.0.0.1]` all reach `127.0.0.1`: libraries read an IPv4 address in the spellings of
//! the WHATWG URL standard (§3.5, "IPv4 parser"), and IPv6 has a place for IPv4 addresses. A range must hold whatever the spelling. What a
//! name resolves to is not seen here.

use alloc::{
    format,
    string::{String, ToString},
};
use core::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};
use serde::{Deserialize, Serialize};

/// What a host is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A name.
    Name,
    /// An address.
    Address(Address),
    /// It ends in a number, as no name does, and is no address: some library may yet make one of it.
    Unclear,
}

impl Place {
    /// Of a host as [`crate::facts::Head`] has it: lower case, IPv6 without brackets.
    pub fn of(host: &str) -> Place {
        if let Ok(address) = host.parse::<Ipv6Addr>() {
            return Place::Address(IpAddr::V6(address).into());
        }
        let last = host.rsplit('.').next().unwrap_or(host);
        let numeric = last.starts_with("0x") || last.bytes().all(|byte| byte.is_ascii_digit());
        match (numeric, ipv4(host)) {
            (false, _) => Place::Name,
            (true, Some(address)) => Place::Address(IpAddr::V4(address).into()),
            (true, None) => Place::Unclear,
        }
    }
}

/// One to four numbers in decimal, octal (`0…`) or hexadecimal (`0x…`); the last fills all bytes that are left.
fn ipv4(host: &str) -> Option<Ipv4Addr> {
    let mut value: u64 = 0;
    let mut parts = host.split('.').peekable();
    let mut bytes_left: u32 = 4;
    while let Some(part) = parts.next() {
        let number = match part.strip_prefix("0x") {
            Some("") => 0,
            Some(hex) => u64::from_str_radix(hex, 16).ok()?,
            None if part.len() > 1 && part.starts_with('0') => u64::from_str_radix(part, 8).ok()?,
            None => part.parse().ok()?,
        };
        let fills = match parts.peek() {
            Some(_) => 1,
            None => bytes_left,
        };
        bytes_left = bytes_left.checked_sub(fills)?;
        let size = 1_u64.checked_shl(fills.checked_mul(8)?)?;
        if number >= size {
            return None;
        }
        value = value.checked_mul(size)?.checked_add(number)?;
    }
    u32::try_from(value).ok().map(Ipv4Addr::from)
}

/// An IP address; an IPv4 one is the same as the IPv6 one it is mapped to (RFC 4291 §2.5.5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address(u128);

impl From<IpAddr> for Address {
    fn from(address: IpAddr) -> Address {
        Address(match address {
            IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
            IpAddr::V6(address) => address.to_bits(),
        })
    }
}

/// All addresses that begin alike. In text `10.0.0.0/8` or `fe80::/10`; a single address without the length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    first: Address,
    /// Leading bits that count, of 128.
    bits: u32,
}

/// Bits before an IPv4 address in an IPv6 one.
const MAPPED_BITS: u32 = 96;

impl Range {
    /// Reads the text form; the bits behind the length must be zero.
    pub fn parse(text: &str) -> Option<Range> {
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => (address, Some(length)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().ok()?;
        let (before, most) = match address {
            IpAddr::V4(_) => (MAPPED_BITS, 32),
            IpAddr::V6(_) => (0, 128),
        };
        let length: u32 = match length {
            None => most,
            Some(digits) => digits.parse().ok().filter(|length| *length <= most)?,
        };
        let range = Range {
            first: address.into(),
            bits: before.checked_add(length)?,
        };
        (range.first.0 & !range.mask() == 0).then_some(range)
    }

    /// Whether `address` is in it.
    pub fn contains(self, address: Address) -> bool {
        address.0 & self.mask() == self.first.0
    }

    fn mask(self) -> u128 {
        let free = 128_u32.saturating_sub(self.bits);
        u128::MAX.checked_shl(free).unwrap_or(0)
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = Ipv6Addr::from_bits(self.first.0);
        let (address, bits, most) = match address.to_ipv4_mapped() {
            Some(mapped) if self.bits >= MAPPED_BITS => (
                mapped.to_string(),
                self.bits.saturating_sub(MAPPED_BITS),
                32,
            ),
            _ => (address.to_string(), self.bits, 128),
        };
        match bits == most {
            true => f.write_str(&address),
            false => f.write_str(&format!("{address}/{bits}")),
        }
    }
}

impl Serialize for Range {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Range {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Range, D::Error> {
        let text = String::deserialize(deserializer)?;
        Range::parse(&text)
            .ok_or_else(|| serde::de::Error::custom("expected an address or <address>/<bits>"))
    }
}
