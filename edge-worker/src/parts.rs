//! Values that are longer than a store takes, in parts.

use tollgate_engine::sorted::Map;

/// Begins the names of all parts but the first, which has the value's own.
const PART: &str = "part ";

/// A value as parts of at most `most` bytes, by name, the first one last: whoever finds it finds the rest. A part that is full is followed by another one,
/// so what a longer value has left behind is none.
pub fn parts<'v>(key: &str, value: &'v [u8], most: usize) -> Vec<(String, &'v [u8])> {
    let (mut first, mut rest) = value.split_at_checked(most).unwrap_or((value, &[]));
    let mut parts = Vec::new();
    let whole = first;
    let mut number = 0_u32;
    while first.len() == most {
        number += 1;
        (first, rest) = rest.split_at_checked(most).unwrap_or((rest, &[]));
        parts.push((name(key, number), first));
    }
    parts.push((key.to_owned(), whole));
    parts
}

/// The values of which these are the parts.
pub fn joined(mut stored: Map<String, Vec<u8>>, most: usize) -> Map<String, Vec<u8>> {
    let long = stored.iter().filter(|(_, value)| value.len() == most);
    let long: Vec<String> = long.map(|(key, _)| key.clone()).collect();
    for key in long.iter().filter(|key| !key.starts_with(PART)) {
        let mut rest: Vec<u8> = Vec::new();
        for number in 1.. {
            let part = stored.get(&name(key, number));
            rest.extend(part.into_iter().flatten());
            if part.is_none_or(|part| part.len() < most) {
                break;
            }
        }
        if let Some(value) = stored.get_mut(key) {
            value.extend(rest);
        }
    }
    stored.retain(|key, _| !key.starts_with(PART));
    stored
}

fn name(key: &str, number: u32) -> String {
    format!("{PART}{number:03} {key}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_apart_is_put_together() {
        let mut stored: Map<String, Vec<u8>> = Map::default();
        let write = |stored: &mut Map<String, Vec<u8>>, value: &[u8]| {
            for (key, part) in parts("bundle", value, 4) {
                assert!(part.len() <= 4);
                stored.insert(key, part.to_vec());
            }
        };
        stored.insert("holder".to_owned(), b"abc".to_vec());
        // Longer and shorter ones in turn: nothing of what was there before comes back.
        for length in [0, 1, 17, 3, 16, 4, 5, 12, 8, 7] {
            let value: Vec<u8> = (0..length).collect();
            write(&mut stored, &value);
            let read = joined(stored.clone(), 4);
            assert_eq!(read.get("bundle"), Some(&value), "{length} bytes");
            assert_eq!(read.len(), 2, "{length} bytes");
        }
    }

    #[test]
    fn the_first_part_is_written_last() {
        let names = |value: &[u8]| -> Vec<String> {
            let parts = parts("bundle", value, 4);
            parts.into_iter().map(|(key, _)| key).collect()
        };
        assert_eq!(names(b"123"), ["bundle"]);
        assert_eq!(names(b"1234"), ["part 001 bundle", "bundle"]);
        assert_eq!(
            names(b"123456789"),
            ["part 001 bundle", "part 002 bundle", "bundle"]
        );
    }
}
