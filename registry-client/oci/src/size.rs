//! Sizes as people write them on command lines and in Dockerfiles.

/// A size as Docker's flags take it: a number, possibly with a fraction, and a unit whose multiples are 1024
/// (`10g`, `10GB` and `10GiB` are the same).
pub fn parse_bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        "p" | "pb" | "pib" => 50,
        _ => return None,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    // Nine digits are finer than a byte for every unit that people write fractions of.
    let mut fraction = fraction.to_owned();
    if fraction.contains('.') {
        return None;
    }
    fraction.truncate(9);
    let scale = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
    let part: u128 = if fraction.is_empty() { 0 } else { fraction.parse().ok()? };
    let unit = 1_u128 << shift;
    u64::try_from(u128::from(whole) * unit + part * unit / scale).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_docker_reads_them() {
        let cases = [
            ("0", Some(0)),
            ("512", Some(512)),
            ("10k", Some(10 << 10)),
            ("1.5MB", Some(3 << 19)),
            (".5g", Some(1 << 29)),
            ("2GiB", Some(2 << 30)),
            ("20 GB", Some(20 << 30)),
            ("", None),
            (".", None),
            ("1.2.3k", None),
            ("-1", None),
            ("10x", None),
            ("99999999999p", None),
        ];
        for (text, bytes) in cases {
            assert_eq!(parse_bytes(text), bytes, "{text:?}");
        }
    }
}
