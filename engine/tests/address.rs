//! Addresses in every spelling that reaches them.

use std::net::IpAddr;
use tollgate_engine::address::{Address, Place, Range};

fn address(text: &str) -> Address {
    text.parse::<IpAddr>().unwrap().into()
}

#[test]
fn one_address_has_many_spellings() {
    for spelling in [
        "127.0.0.1",
        "127.1",
        "127.0.1",
        "2130706433",
        "0x7f000001",
        "0x7f.1",
        "0x7f.0x0.0x0.0x1",
        "0177.0.0.1",
        "017700000001",
        "0x7f.0.0x.01",
        "::ffff:127.0.0.1",
        "::ffff:7f00:1",
    ] {
        assert_eq!(
            Place::of(spelling),
            Place::Address(address("127.0.0.1")),
            "{spelling}"
        );
    }
    assert_eq!(Place::of("0"), Place::Address(address("0.0.0.0")));
    assert_eq!(
        Place::of("4294967295"),
        Place::Address(address("255.255.255.255"))
    );
    assert_eq!(Place::of("::1"), Place::Address(address("::1")));
    assert_eq!(Place::of("1.65535"), Place::Address(address("1.0.255.255")));
}

#[test]
fn names_are_names_and_what_is_neither_is_said() {
    for name in [
        "localhost",
        "a.example",
        "1.example",
        "x1",
        "0x7f.a",
        "10.in-addr.arpa",
    ] {
        assert_eq!(Place::of(name), Place::Name, "{name}");
    }
    for unclear in [
        "256.0.0.1",
        "1.2.3.256",
        "1.2.65536",
        "4294967296",
        "1.2.3.4.5",
        "08.0.0.1",
        "a.1",
        "0xg",
        "1..2",
        "99999999999999999999",
    ] {
        assert_eq!(Place::of(unclear), Place::Unclear, "{unclear}");
    }
}

#[test]
fn ranges_hold_what_begins_alike() {
    let range = |text: &str| Range::parse(text).unwrap();
    for (text, inside, outside) in [
        ("10.0.0.0/8", "10.255.255.255", "11.0.0.0"),
        ("172.16.0.0/12", "172.31.0.1", "172.32.0.1"),
        ("169.254.169.254", "169.254.169.254", "169.254.169.253"),
        ("0.0.0.0/0", "255.255.255.255", "::1"),
        ("::/0", "10.0.0.1", "::"),
        ("fe80::/10", "febf::1", "fec0::1"),
        ("::1", "::1", "::2"),
    ] {
        assert!(range(text).contains(address(inside)), "{text} {inside}");
        let held = range(text).contains(address(outside));
        assert_eq!(held, text == "::/0", "{text} {outside}");
        assert_eq!(range(text).to_string(), text);
    }
    assert!(range("10.0.0.0/8").contains(address("::ffff:10.1.2.3")));
    for bad in [
        "10.0.0.1/8",
        "10.0.0.0/33",
        "fe80::/129",
        "10.0.0.0/",
        "10/8",
        "a/8",
        "::1/x",
    ] {
        assert_eq!(Range::parse(bad), None, "{bad}");
    }
}
