//! AWS Signature Version 4 for one small `POST` (AWS General Reference, «Create a signed AWS API request»).

use rbuild_oci::{Digest, Sha256};

/// Who signs.
#[derive(Clone)]
pub(super) struct Keys {
    pub(super) id: String,
    pub(super) secret: String,
    /// With temporary keys.
    pub(super) session: Option<String>,
}

/// What is signed: a `POST` to `/` without a query.
pub(super) struct Request<'a> {
    pub(super) host: &'a str,
    pub(super) region: &'a str,
    pub(super) service: &'a str,
    /// Lower-case names; `host` and the signature's own are added.
    pub(super) headers: &'a [(&'a str, String)],
    pub(super) body: &'a [u8],
    /// `20260131T235959Z`.
    pub(super) time: &'a str,
}

const ALGORITHM: &str = "AWS4-HMAC-SHA256";

/// All headers to send, the signature among them; `host` is left to the HTTP client.
pub(super) fn sign(request: &Request<'_>, keys: &Keys) -> Vec<(String, String)> {
    let mut headers: Vec<(String, String)> =
        request.headers.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
    headers.push(("x-amz-date".to_owned(), request.time.to_owned()));
    if let Some(session) = &keys.session {
        headers.push(("x-amz-security-token".to_owned(), session.clone()));
    }
    let mut signed = headers.clone();
    signed.push(("host".to_owned(), request.host.to_owned()));
    signed.sort();
    let names = signed.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(";");
    let lines: String = signed.iter().map(|(name, value)| format!("{name}:{}\n", value.trim())).collect();
    let canonical = format!("POST\n/\n\n{lines}\n{names}\n{}", Digest::of(request.body).hex());
    let day = request.time.get(..8).unwrap_or_default();
    let scope = format!("{day}/{}/{}/aws4_request", request.region, request.service);
    let text = format!("{ALGORITHM}\n{}\n{scope}\n{}", request.time, Digest::of(canonical.as_bytes()).hex());
    let signature = hex(&hmac(&key(keys, day, request.region, request.service), text.as_bytes()));
    headers.push((
        "authorization".to_owned(),
        format!("{ALGORITHM} Credential={}/{scope}, SignedHeaders={names}, Signature={signature}", keys.id),
    ));
    headers
}

/// The key derived for a day, region and service.
fn key(keys: &Keys, day: &str, region: &str, service: &str) -> [u8; 32] {
    let first = format!("AWS4{}", keys.secret);
    let mut key = hmac(first.as_bytes(), day.as_bytes());
    for part in [region, service, "aws4_request"] {
        key = hmac(&key, part.as_bytes());
    }
    key
}

/// HMAC-SHA-256 (RFC 2104).
fn hmac(key: &[u8], message: &[u8]) -> [u8; 32] {
    let mut block = [0u8; 64];
    match key.len() {
        0..=64 => block[..key.len()].copy_from_slice(key),
        _ => block[..32].copy_from_slice(Digest::of(key).as_bytes()),
    }
    let pass = |pad: u8, parts: &[&[u8]]| {
        let mut hash = Sha256::new();
        hash.update(&block.map(|byte| byte ^ pad));
        parts.iter().for_each(|part| hash.update(part));
        *hash.finish().as_bytes()
    };
    let inner = pass(0x36, &[message]);
    pass(0x5c, &[&inner])
}

fn hex(bytes: &[u8; 32]) -> String {
    Digest::from_bytes(*bytes).hex()
}

/// `20260131T235959Z` for seconds since 1970.
pub(super) fn time(unix: u64) -> String {
    let (days, seconds) = ((unix / 86_400) as i64, unix % 86_400);
    // Days to a date: years that begin in March have their leap day last (Hinnant, «chrono-compatible algorithms»).
    let days = days + 719_468;
    let era = days / 146_097;
    let of_era = days % 146_097;
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}{month:02}{day:02}T{hour:02}{minute:02}{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hmac_is_that_of_rfc_4231() {
        let text = |key: &[u8], message: &[u8]| hex(&hmac(key, message));
        assert_eq!(
            text(&[0x0b; 20], b"Hi There"),
            "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"
        );
        assert_eq!(
            text(b"Jefe", b"what do ya want for nothing?"),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
        assert_eq!(
            text(&[0xaa; 131], b"Test Using Larger Than Block-Size Key - Hash Key First"),
            "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54"
        );
    }

    /// AWS's published test suite, case `post-vanilla`.
    #[test]
    fn a_post_is_signed_as_the_published_test_suite_has_it() {
        let keys = Keys {
            id: "AKIDEXAMPLE".into(),
            secret: "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY".into(),
            session: None,
        };
        let request = Request {
            host: "example.amazonaws.com",
            region: "us-east-1",
            service: "service",
            headers: &[],
            body: b"",
            time: "20150830T123600Z",
        };
        let signed = sign(&request, &keys);
        let (_, value) = signed.iter().find(|(name, _)| name == "authorization").unwrap();
        assert_eq!(
            value,
            "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, \
             SignedHeaders=host;x-amz-date, \
             Signature=5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b"
        );
    }

    /// The derived key of AWS's documentation.
    #[test]
    fn the_signing_key_is_derived_as_documented() {
        let keys = Keys {
            id: String::new(),
            secret: "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY".into(),
            session: None,
        };
        assert_eq!(
            hex(&key(&keys, "20120215", "us-east-1", "iam")),
            "f4780e2d9f65fa895f9c67b32ce1baf0b0d8a43505a000a1a9e090d414db404d"
        );
    }

    #[test]
    fn times_are_dates() {
        assert_eq!(time(0), "19700101T000000Z");
        assert_eq!(time(951_827_696), "20000229T123456Z");
        assert_eq!(time(1_440_938_160), "20150830T123600Z");
        assert_eq!(time(4_107_542_399), "21000228T235959Z");
    }
}
