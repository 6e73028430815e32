//! PAX records: `"<length> <key>=<value>\n"`, the length counting itself.

use std::collections::BTreeMap;

use super::super::diff::Mtime;

/// Prefix of records that carry xattrs, as every image tool writes them.
pub(super) const XATTR_PREFIX: &[u8] = b"SCHILY.xattr.";

/// What records say about the next entry.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Records {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) mtime: Option<Mtime>,
    pub(super) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(super) xattr_bytes: usize,
    pub(super) is_sparse: bool,
}

/// Parses all records of one extension. The error says what is wrong.
pub(super) fn parse(mut data: &[u8]) -> Result<Records, &'static str> {
    let mut records = Records::default();
    while !data.is_empty() {
        let (key, value, rest) = split_record(data)?;
        data = rest;
        apply(&mut records, key, value)?;
    }
    Ok(records)
}

/// Key, value, and what follows the record.
type Split<'a> = (&'a [u8], &'a [u8], &'a [u8]);

fn split_record(data: &[u8]) -> Result<Split<'_>, &'static str> {
    // 1 MiB, the most an extension may have, takes seven digits.
    let blank = data.iter().take(8).position(|b| *b == b' ').ok_or("a record has no length")?;
    let length = decimal(&data[..blank]).ok_or("a record's length is not a number")?;
    let length = usize::try_from(length).map_err(|_| "a record is longer than its extension")?;
    if length > data.len() {
        return Err("a record is longer than its extension");
    }
    let body = data.get(blank + 1..length).ok_or("a record is shorter than its length field")?;
    let body = body.strip_suffix(b"\n").ok_or("a record does not end in a newline")?;
    let equals = body.iter().position(|b| *b == b'=').ok_or("a record has no `=`")?;
    if equals == 0 || body[..equals].contains(&0) {
        return Err("a record has no proper key");
    }
    Ok((&body[..equals], &body[equals + 1..], &data[length..]))
}

fn apply(records: &mut Records, key: &[u8], value: &[u8]) -> Result<(), &'static str> {
    if let Some(name) = key.strip_prefix(XATTR_PREFIX) {
        if name.is_empty() {
            return Err("an xattr has no name");
        }
        records.xattr_bytes += name.len() + value.len();
        return match records.xattrs.insert(name.to_vec(), value.to_vec()) {
            None => Ok(()),
            Some(_) => Err("an xattr is given twice"),
        };
    }
    if key.starts_with(b"GNU.sparse.") {
        records.is_sparse = true;
        return Ok(());
    }
    // An empty value takes a record of a global header back; we apply none, so it says nothing.
    if value.is_empty() {
        return Ok(());
    }
    match key {
        b"path" => once(&mut records.path, name(value)?),
        b"linkpath" => once(&mut records.link, name(value)?),
        b"size" => once(&mut records.size, decimal(value).ok_or("the size is not a number")?),
        b"uid" => once(&mut records.uid, id(value)?),
        b"gid" => once(&mut records.gid, id(value)?),
        b"mtime" => once(&mut records.mtime, time(value).ok_or("the mtime is not a time")?),
        _ => Ok(()),
    }
}

fn once<T>(slot: &mut Option<T>, value: T) -> Result<(), &'static str> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err("a record is given twice"),
    }
}

fn name(value: &[u8]) -> Result<Vec<u8>, &'static str> {
    if value.contains(&0) { Err("a name contains NUL") } else { Ok(value.to_vec()) }
}

fn id(value: &[u8]) -> Result<u32, &'static str> {
    decimal(value).and_then(|id| u32::try_from(id).ok()).ok_or("an owner is not a 32-bit id")
}

fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u64, |value, digit| match digit {
        b'0'..=b'9' => value.checked_mul(10)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    })
}

/// `[-]seconds[.fraction]`; digits below a nanosecond are cut off.
fn time(value: &[u8]) -> Option<Mtime> {
    let (negative, value) = match value.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, value),
    };
    let mut parts = value.splitn(2, |b| *b == b'.');
    let secs = i64::try_from(decimal(parts.next()?)?).ok()?;
    let mut nanos = 0u32;
    if let Some(fraction) = parts.next() {
        if fraction.iter().any(|b| !b.is_ascii_digit()) {
            return None;
        }
        for at in 0..9 {
            nanos = nanos * 10 + u32::from(fraction.get(at).map_or(0, |b| b - b'0'));
        }
    }
    Some(match (negative, nanos) {
        (false, nanos) => Mtime { secs, nanos },
        (true, 0) => Mtime { secs: -secs, nanos: 0 },
        (true, nanos) => Mtime { secs: (-secs).checked_sub(1)?, nanos: 1_000_000_000 - nanos },
    })
}

/// Appends one record.
pub(super) fn push(data: &mut Vec<u8>, key: &[&[u8]], value: &[u8]) {
    let key_len: usize = key.iter().map(|part| part.len()).sum();
    let rest = 1 + key_len + 1 + value.len() + 1;
    // The length includes its own digits: grow until it agrees.
    let mut length = rest + 1;
    while length != rest + decimal_digits(length) {
        length = rest + decimal_digits(length);
    }
    data.extend_from_slice(length.to_string().as_bytes());
    data.push(b' ');
    for part in key {
        data.extend_from_slice(part);
    }
    data.push(b'=');
    data.extend_from_slice(value);
    data.push(b'\n');
}

fn decimal_digits(value: usize) -> usize {
    value.checked_ilog10().map_or(1, |log| log as usize + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn record_lengths_count_their_own_digits() {
        for value_len in [0, 1, 80, 85, 86, 87, 88, 89, 90, 91, 95, 980, 985, 986, 990, 995, 9985, 9990] {
            let value = vec![b'v'; value_len];
            let mut data = Vec::new();
            push(&mut data, &[b"comment"], &value);
            let (key, parsed, rest) = split_record(&data).unwrap();
            assert_eq!((key, parsed, rest), (&b"comment"[..], &value[..], &b""[..]), "{value_len}");
        }
    }

    #[test]
    fn times_before_the_epoch_round_down() {
        assert_eq!(time(b"-1.25"), Some(Mtime { secs: -2, nanos: 750_000_000 }));
        assert_eq!(time(b"-7"), Some(Mtime { secs: -7, nanos: 0 }));
        assert_eq!(time(b"3.0000000019"), Some(Mtime { secs: 3, nanos: 1 }));
        assert_eq!(time(b"3."), Some(Mtime { secs: 3, nanos: 0 }));
        assert_eq!(time(b"1e3"), None);
        assert_eq!(time(b"--1"), None);
        assert_eq!(time(b"99999999999999999999"), None);
    }

    #[test]
    fn malformed_records_are_errors_not_skipped() {
        for bad in [
            &b"path=x\n"[..],
            b"99 path=x\n",
            b"3 a\n",
            b"9 path=xy",
            b"10 path=x\0\n",
            b"5 =x\n",
            b"1 ",
            b"9 uid=-1\n",
            b"18 uid=4294967296\n",
            b"8 path=\n8 path\n",
            b"10 path=a\n10 path=b\n",
            b"0 \n",
        ] {
            assert!(parse(bad).is_err(), "{:?}", String::from_utf8_lossy(bad));
        }
    }
}
