//! A record cannot be changed, dropped, inserted, reordered or cut off without the next reader noticing.

mod issuer;
mod random;

use issuer::{NOW, OTHER_WORKSPACE, WORKSPACE};
use random::Random;
use std::collections::BTreeSet;
use tollgate_engine::{
    bytes::{Digest, from_hex, to_hex},
    journal::{
        Batch, BatchFault, MAX_BATCH_BYTES, MAX_BATCH_RECORDS, MAX_RECORD_BYTES, Position, SealKey,
        genesis, hmac, root_from_hex, seal,
    },
    upkeep::batch_has_room,
};

const HOLDER: &str = "h-00000000000000000000000000000001";
const EPOCH: u64 = 3;

fn seal_key() -> SealKey {
    SealKey::derive(&SealKey::root("test-enrolment-key"), HOLDER)
}

fn record(number: usize) -> Vec<u8> {
    format!(r#"{{"id":"d-{number}","outcome":"allow"}}"#).into_bytes()
}

/// Seals batches of so many records each, one after the other.
fn journal(sizes: &[usize]) -> Vec<Vec<u8>> {
    let mut position = Position::start(WORKSPACE, HOLDER, EPOCH);
    let mut number = 0;
    sizes
        .iter()
        .map(|size| {
            let records: Vec<Vec<u8>> = (number..number + size).map(record).collect();
            number += size;
            sealed(&mut position, &records)
        })
        .collect()
}

fn sealed(position: &mut Position, records: &[Vec<u8>]) -> Vec<u8> {
    seal(
        &seal_key(),
        WORKSPACE,
        HOLDER,
        EPOCH,
        position,
        records,
        0,
        NOW,
    )
}

/// Walks a journal as an auditor does who has the seal key: where it ends, or what is wrong. `Err` holds a sentence.
fn audit(mut input: &[u8]) -> Result<Position, String> {
    let mut position = Position::start(WORKSPACE, HOLDER, EPOCH);
    while !input.is_empty() {
        let batch = Batch::read(input).map_err(|fault| fault.to_string())?;
        batch
            .verify(&seal_key())
            .map_err(|fault| fault.to_string())?;
        let header = &batch.header;
        if (
            header.workspace.as_str(),
            header.holder.as_str(),
            header.epoch,
        ) != (WORKSPACE, HOLDER, EPOCH)
        {
            return Err("of another journal".to_string());
        }
        if header.first_seq != position.next_seq || header.previous != position.head {
            return Err("does not follow from the batch before".to_string());
        }
        position = batch.position_after();
        input = input.get(batch.len..).unwrap();
    }
    Ok(position)
}

#[test]
fn what_is_sealed_is_read_back() {
    for size in [0, 1, 2, 17, MAX_BATCH_RECORDS] {
        let records: Vec<Vec<u8>> = (0..size).map(record).collect();
        let mut position = Position::start(WORKSPACE, HOLDER, EPOCH);
        let start = position.clone();
        let bytes = seal(
            &seal_key(),
            WORKSPACE,
            HOLDER,
            EPOCH,
            &mut position,
            &records,
            5,
            NOW,
        );
        let batch = Batch::read(&bytes).unwrap();
        assert_eq!(batch.verify(&seal_key()), Ok(()));
        assert_eq!(batch.records, records);
        assert_eq!(batch.len, bytes.len());
        assert_eq!(batch.position_after(), position);
        let header = batch.header;
        assert_eq!(header.workspace, WORKSPACE);
        assert_eq!(header.holder, HOLDER);
        assert_eq!((header.epoch, header.first_seq), (EPOCH, 1));
        assert_eq!(header.count, size as u64);
        assert_eq!(header.previous, start.head);
        assert_eq!((header.dropped, header.sealed_ms), (5, NOW.millis()));
        assert_eq!(position.next_seq, 1 + size as u64);
    }
}

#[test]
fn batches_follow_from_each_other() {
    let batches = journal(&[3, 1, 0, 5]);
    let end = audit(&batches.concat()).unwrap();
    assert_eq!(end.next_seq, 1 + 3 + 1 + 5);
    let last = Batch::read(&batches[3]).unwrap();
    assert_eq!(last.header.first_seq, 5);
    assert_eq!(last.seal.head, end.head);
    assert_eq!(
        last.header.previous,
        Batch::read(&batches[2]).unwrap().seal.head
    );
}

/// Worked out with Python's `hmac` and `hashlib` from the formulas in the module's documentation:
///
/// ```text
/// root = hmac.new(b"test-enrolment-key", b"tollgate seal root 1", "sha256")
/// key  = hmac.new(root, b"tollgate seal key 1\n" + b"h-00000000000000000000000000000001", "sha256")
/// seal = hmac.new(key, bytes(32), "sha256")
/// genesis = sha256(b"tollgate journal 1\nws-00000000-0000-4000-8000-000000000001\nh-00000000000000000000000000000001\n" + (3).to_bytes(8, "big"))
/// ```
#[test]
fn keys_and_heads_are_what_the_documentation_says() {
    let root = SealKey::root("test-enrolment-key");
    assert_eq!(
        to_hex(&root),
        "89327632c76c4b4aaf3f67c641790ab2b62e94af45ea7dbcc0b23192c783faec"
    );
    assert_eq!(
        root_from_hex("89327632c76c4b4aaf3f67c641790ab2b62e94af45ea7dbcc0b23192c783faec"),
        Some(root)
    );
    assert_eq!(
        root_from_hex("89327632c76c4b4aaf3f67c641790ab2b62e94af45ea7dbcc0b23192c783faec00"),
        None
    );
    let seal = seal_key().seal(Digest([0; 32]));
    assert_eq!(
        seal.to_string(),
        "16938d3e06e6d56a048725f807994b645ebfafb6c32bab5e3ae61584afc5ee36"
    );
    assert_eq!(
        genesis(WORKSPACE, HOLDER, EPOCH).to_string(),
        "5d27ee44d726bf0f761e656443c1afb82ea80fe5b582c2a0b2207019083830b6"
    );
    // RFC 4231 §4.3 and §4.7: a short key, and one longer than a block.
    assert_eq!(
        to_hex(&hmac(b"Jefe", &[b"what do ya ", b"want for nothing?"])),
        "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
    );
    assert_eq!(
        to_hex(&hmac(
            &[0xaa; 131],
            &[b"Test Using Larger Than Block-Size Key - Hash Key First"]
        )),
        "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54"
    );
}

#[test]
fn every_holder_seals_with_a_key_of_its_own() {
    let head = Digest([1; 32]);
    let mut seals = BTreeSet::new();
    for enrolment_key in ["a", "b", ""] {
        let root = SealKey::root(enrolment_key);
        assert!(seals.insert(Digest(root)));
        for holder in ["h-1", "h-2", "", "h-1\n"] {
            let key = SealKey::derive(&root, holder);
            assert!(seals.insert(key.seal(head)), "{enrolment_key} {holder}");
            assert!(key.verifies(head, key.seal(head)));
            assert!(!key.verifies(Digest([2; 32]), key.seal(head)));
        }
    }
    assert_eq!(seals.len(), 3 * 5);
    assert_eq!(format!("{:?}", seal_key()), "SealKey(…)");
}

#[test]
fn a_batch_of_another_holder_does_not_pass() {
    let records = [record(0)];
    for holder in ["h-00000000000000000000000000000002", ""] {
        // Its own place in its own journal, but under our name: the seal is wrong.
        let other = SealKey::derive(&SealKey::root("test-enrolment-key"), holder);
        let mut position = Position::start(WORKSPACE, HOLDER, EPOCH);
        let forged = seal(
            &other,
            WORKSPACE,
            HOLDER,
            EPOCH,
            &mut position,
            &records,
            0,
            NOW,
        );
        let batch = Batch::read(&forged).unwrap();
        assert_eq!(batch.verify(&seal_key()), Err(BatchFault::Seal));
    }
    // And with another enrolment key.
    let other = SealKey::derive(&SealKey::root("another-enrolment-key"), HOLDER);
    let whole = &journal(&[1])[0];
    assert_eq!(
        Batch::read(whole).unwrap().verify(&other),
        Err(BatchFault::Seal)
    );
}

#[test]
fn a_journal_begins_with_its_workspace_holder_and_epoch() {
    let ours = genesis(WORKSPACE, HOLDER, EPOCH);
    assert_ne!(ours, genesis(OTHER_WORKSPACE, HOLDER, EPOCH));
    assert_ne!(
        ours,
        genesis(WORKSPACE, "h-00000000000000000000000000000002", EPOCH)
    );
    assert_ne!(ours, genesis(WORKSPACE, HOLDER, EPOCH + 1));
    assert_ne!(ours, genesis(WORKSPACE, HOLDER, 0));
    // The first batch of one journal is not the first of another: moved as it is, it does not follow from that one's beginning.
    let first = &journal(&[2])[0];
    let batch = Batch::read(first).unwrap();
    assert_eq!(batch.header.previous, ours);
    for (workspace, holder, epoch) in [
        (OTHER_WORKSPACE, HOLDER, EPOCH),
        (WORKSPACE, "h-00000000000000000000000000000002", EPOCH),
        (WORKSPACE, HOLDER, EPOCH + 1),
    ] {
        assert_ne!(
            batch.header.previous,
            Position::start(workspace, holder, epoch).head
        );
    }
}

#[test]
fn two_batches_for_one_place_are_a_fork() {
    let mut here = Position::start(WORKSPACE, HOLDER, EPOCH);
    let mut there = here.clone();
    let one = sealed(&mut here, &[record(1)]);
    let other = sealed(&mut there, &[record(2)]);
    let (one, other) = (Batch::read(&one).unwrap(), Batch::read(&other).unwrap());
    // Both are sealed and both follow from the beginning; only their heads tell.
    assert_eq!(
        (one.verify(&seal_key()), other.verify(&seal_key())),
        (Ok(()), Ok(()))
    );
    assert_eq!(
        (one.header.first_seq, one.header.previous),
        (other.header.first_seq, other.header.previous)
    );
    assert_ne!(one.seal.head, other.seal.head);
    // The same content gives the same bytes.
    assert_eq!(journal(&[2, 3]), journal(&[2, 3]));
}

#[test]
fn no_flipped_bit_is_overlooked() {
    let whole = journal(&[2]).remove(0);
    for bit in 0..whole.len() * 8 {
        let mut flipped = whole.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(audit(&flipped).is_err(), "bit {bit}");
    }
}

#[test]
fn no_cut_is_overlooked() {
    let batches = journal(&[2, 1]);
    let whole = batches.concat();
    let end = audit(&whole).unwrap();
    for cut in 0..whole.len() {
        match audit(&whole[..cut]) {
            Err(_) => {}
            // Between two batches what is left is a whole journal, only a shorter one: its end is not where the checkpoint has it.
            Ok(position) => {
                assert!(cut == 0 || cut == batches[0].len());
                assert_ne!(position, end);
            }
        }
        assert_eq!(
            Batch::read(&whole[..cut.min(batches[0].len() - 1)]).err(),
            Some(BatchFault::Truncated)
        );
    }
}

/// The lines of a journal, newlines included.
fn lines(bytes: &[u8]) -> Vec<Vec<u8>> {
    bytes
        .split_inclusive(|byte| *byte == b'\n')
        .map(<[u8]>::to_vec)
        .collect()
}

/// Changes a journal the way somebody would who wants to hide something.
fn tamper(random: &mut Random, batches: &[Vec<u8>]) -> Vec<u8> {
    let mut whole: Vec<Vec<u8>> = batches.to_vec();
    let some = random.below(whole.len());
    match random.below(11) {
        // Bytes anywhere.
        0 => {
            let mut bytes = whole.concat();
            random.mutate(
                &mut bytes,
                &[b"\n", b" ", b"{}", b"0", b"}", b"{}\n", b"\"\""],
            );
            return bytes;
        }
        // Whole batches: dropped, repeated, exchanged, moved.
        1 => {
            whole.remove(some);
        }
        2 => whole.insert(some, batches[random.below(batches.len())].clone()),
        3 => whole.swap(some, random.below(batches.len())),
        // Lines of a batch: the same, and changed.
        kind => {
            let donor = lines(&batches[random.below(batches.len())]);
            let mut lines = lines(&whole[some]);
            let last = lines.len() - 1;
            let (one, other) = (random.below(lines.len()), random.below(lines.len()));
            match kind {
                4 => {
                    lines.remove(one);
                }
                5 => lines.insert(one, lines[other].clone()),
                6 => lines.swap(one, other),
                7 => {
                    let line = random.below(lines.len());
                    random.mutate(&mut lines[line], &[b"\n", b"9", b"deny", b" "]);
                }
                // The seal of another batch.
                8 => lines[last] = donor[donor.len() - 1].clone(),
                // The header of another batch, the records of another batch.
                9 => lines[0] = donor[0].clone(),
                _ => {
                    lines.splice(1..last, donor[1..donor.len() - 1].to_vec());
                }
            }
            whole[some] = lines.concat();
        }
    }
    whole.concat()
}

#[test]
fn no_tampering_is_overlooked() {
    let mut random = Random::new(11);
    let (mut changed, mut unchanged) = (0, 0);
    for _ in 0..6_000 {
        let sizes: Vec<usize> = (0..2 + random.below(3)).map(|_| random.below(5)).collect();
        let batches = journal(&sizes);
        let whole = batches.concat();
        let end = audit(&whole).unwrap();
        let tampered = tamper(&mut random, &batches);
        if tampered == whole {
            unchanged += 1;
            continue;
        }
        changed += 1;
        // Cut at the end is what an end known from elsewhere shows; anything else shows by itself.
        match audit(&tampered) {
            Ok(position) => {
                assert!(whole.starts_with(&tampered), "{}", tampered.escape_ascii());
                assert_ne!(position, end);
            }
            Err(fault) => assert!(!fault.is_empty()),
        }
    }
    assert!(changed > 4_000, "{changed} changed, {unchanged} not");
}

/// Whoever has no key can work out new heads for changed lines, but not the seals over them.
#[test]
fn heads_worked_out_anew_do_not_help() {
    let batches = journal(&[3, 2]);
    let thief = SealKey::derive(&[0; 32], HOLDER);
    let mut position = Position::start(WORKSPACE, HOLDER, EPOCH);
    let mut forged = Vec::new();
    for batch in &batches {
        let batch = Batch::read(batch).unwrap();
        let mut records: Vec<Vec<u8>> =
            batch.records.iter().map(|record| record.to_vec()).collect();
        records[0] = br#"{"id":"d-0","outcome":"deny"}"#.to_vec();
        forged.extend(seal(
            &thief,
            WORKSPACE,
            HOLDER,
            EPOCH,
            &mut position,
            &records,
            0,
            NOW,
        ));
    }
    assert!(Batch::read(&forged).is_ok(), "it is in good form");
    assert_eq!(audit(&forged), Err(BatchFault::Seal.to_string()));
}

/// The last line has one spelling, though its head does not cover it: else one batch would have many forms.
#[test]
fn the_seal_line_has_one_spelling() {
    let whole = journal(&[1]).remove(0);
    let text = String::from_utf8(whole).unwrap();
    let (rest, last) = text.trim_end().rsplit_once('\n').unwrap();
    for other in [
        last.replace(':', ": "),
        format!(" {last}"),
        format!("{last} "),
        format!("{last}\r"),
        last.replace("head", "\\u0068ead"),
        last.to_uppercase(),
        last.replacen('{', "{\"more\":1,", 1),
        last.replacen('{', "{\"seal\":null,", 1),
    ] {
        let respelt = format!("{rest}\n{other}\n");
        let fault = Batch::read(respelt.as_bytes()).err();
        assert_eq!(fault, Some(BatchFault::Malformed(2)), "{other}");
    }
}

#[test]
fn what_is_no_batch_is_refused_with_its_line() {
    let whole = String::from_utf8(journal(&[2]).remove(0)).unwrap();
    let header = whole.lines().next().unwrap();
    let with_header = |header: &str| whole.replacen(whole.lines().next().unwrap(), header, 1);
    for (bad, fault) in [
        (String::new(), BatchFault::Truncated),
        ("\n".to_string(), BatchFault::Malformed(0)),
        ("{}\n".to_string(), BatchFault::Malformed(0)),
        (
            with_header(&header.replace("\"format\":1", "\"format\":2")),
            BatchFault::Malformed(0),
        ),
        (
            with_header(&header.replacen('{', "{\"more\":1,", 1)),
            BatchFault::Malformed(0),
        ),
        (
            with_header(&header.replacen('{', "{\"count\":2,", 1)),
            BatchFault::Malformed(0),
        ),
        (
            with_header(&header.replace("\"count\":2", "\"count\":513")),
            BatchFault::Malformed(0),
        ),
        (
            with_header(&header.replace("\"count\":2", "\"count\":18446744073709551615")),
            BatchFault::Malformed(0),
        ),
        // One record fewer or more than it says: the seal stands where a record should, or the other way round.
        (
            with_header(&header.replace("\"count\":2", "\"count\":1")),
            BatchFault::Malformed(2),
        ),
        (
            with_header(&header.replace("\"count\":2", "\"count\":3")),
            BatchFault::Truncated,
        ),
        (
            whole.replacen("{\"id\":\"d-1\"", "{\"id\":d-1", 1),
            BatchFault::Malformed(2),
        ),
        (
            whole.replacen("{\"id\":\"d-0\"", "", 1),
            BatchFault::Malformed(1),
        ),
        (whole.replacen("allow", "deny", 1), BatchFault::Head),
        (
            with_header(&header.replace("\"first_seq\":1", "\"first_seq\":2")),
            BatchFault::Head,
        ),
    ] {
        assert_eq!(Batch::read(bad.as_bytes()).err(), Some(fault), "{bad}");
        assert!(!fault.to_string().is_empty());
    }
}

#[test]
fn hex_has_one_spelling() {
    let digest = Digest([0xab; 32]);
    assert_eq!(Digest::parse(&digest.to_string()), Some(digest));
    assert_eq!(Digest::parse(&digest.to_string().to_uppercase()), None);
    for bad in ["", "0", "ab", "zz", "é", &"ab".repeat(33), &"ab".repeat(31)] {
        assert_eq!(Digest::parse(bad), None, "{bad}");
    }
    assert_eq!(from_hex("00ff"), Some(vec![0, 255]));
    assert_eq!(from_hex("0"), None);
    assert_eq!(from_hex("0g"), None);
}

/// A batch that is filled as long as there is room is one that is accepted, whatever its last record.
#[test]
fn a_batch_with_room_takes_the_longest_record() {
    let longest = vec![b'1'; MAX_RECORD_BYTES];
    let short = record(1);
    for filler in [&longest, &short] {
        let (mut records, mut bytes) = (Vec::new(), 0);
        while batch_has_room(records.len(), bytes) {
            records.push(filler.clone());
            bytes += filler.len();
            // The next one may be the longest.
            let mut full = records.clone();
            if batch_has_room(records.len(), bytes) && records.len() % 64 == 27 {
                full.push(longest.clone());
                assert!(sealed(&mut end_of_time(), &full).len() <= MAX_BATCH_BYTES);
            }
        }
        let batch = sealed(&mut end_of_time(), &records);
        assert!(batch.len() <= MAX_BATCH_BYTES, "{}", batch.len());
        assert!(Batch::read(&batch).is_ok());
    }
    assert!(batch_has_room(0, 0));
    assert!(!batch_has_room(MAX_BATCH_RECORDS, 0));
    assert!(!batch_has_room(0, MAX_BATCH_BYTES));
    assert!(!batch_has_room(usize::MAX, usize::MAX));
}

/// Where every number is at its longest.
fn end_of_time() -> Position {
    Position {
        next_seq: u64::MAX - 1_000,
        head: Digest([0xff; 32]),
    }
}
