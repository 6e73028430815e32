//! When to try again, and when to stop.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::{Duration, Instant, SystemTime};

use reqwest::header::RETRY_AFTER;
use reqwest::{Response, StatusCode};

use crate::error::{Reason, RegistryError};
use crate::limits::RETRY_AFTER_MAX;

/// How often one request is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Patience {
    /// Once: somebody else can answer (a mirror with the registry behind it), or trying again does harm.
    None,
    /// Up to [`TRIES_MAX`] times.
    Full,
}

/// Tries of one request.
const TRIES_MAX: u32 = 5;

/// Tries while no connection comes about at all: the usual cause is that there is no network, and nobody wants to
/// wait long for that news.
const CONNECTION_TRIES_MAX: u32 = 3;

/// Longest wait between tries when the registry names none.
const BACKOFF_MAX: Duration = Duration::from_secs(20);

/// True for statuses that mean «later».
pub(crate) fn is_temporary(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 429 | 500 | 502 | 503 | 504)
}

/// True for answers that mean «later»: those statuses, and GHCR's `403` with a time to wait.
pub(crate) fn means_later(answer: &Response) -> bool {
    is_temporary(answer.status())
        || answer.status() == StatusCode::FORBIDDEN && answer.headers().contains_key(RETRY_AFTER)
}

/// True when the same request may succeed later. TLS failures never do by themselves.
pub(crate) fn may_pass(error: &RegistryError, waits: u32) -> bool {
    match error {
        RegistryError::Unreachable { reason, .. } => match reason {
            Reason::Connect | Reason::Name | Reason::Tunnel => waits + 1 < CONNECTION_TRIES_MAX,
            Reason::Timeout | Reason::Broken | Reason::TooSlow => true,
            Reason::Tls | Reason::TrustStore => false,
        },
        _ => false,
    }
}

/// Counts and times the waits of one request.
pub(crate) struct Waits {
    left: u32,
    count: u32,
    backoff: Duration,
    deadline: Instant,
}

impl Waits {
    pub(crate) fn new(patience: Patience, backoff: Duration, budget: Duration) -> Self {
        let left = match patience {
            Patience::None => 0,
            Patience::Full => TRIES_MAX - 1,
        };
        Self { left, count: 0, backoff, deadline: Instant::now() + budget }
    }

    /// Waits done so far.
    pub(crate) fn count(&self) -> u32 {
        self.count
    }

    /// Sleeps before the next try: as long as asked, or the doubled backoff, with jitter. False when no try is left.
    pub(crate) async fn wait(&mut self, asked: Option<Duration>) -> bool {
        let Some(wait) = self.next(asked, Instant::now()) else { return false };
        tokio::time::sleep(wait).await;
        true
    }

    /// How long to wait before the next try; `None` when no try is left, or none before the deadline.
    fn next(&mut self, asked: Option<Duration>, now: Instant) -> Option<Duration> {
        let doubled = self.backoff.saturating_mul(1 << self.count.min(16)).min(BACKOFF_MAX);
        let wait = match asked {
            // Jitter only on top: never earlier than asked.
            Some(asked) => asked.min(RETRY_AFTER_MAX) + jitter(self.backoff),
            None => doubled / 2 + jitter(doubled / 2),
        };
        if self.left == 0 || now + wait > self.deadline {
            return None;
        }
        self.left -= 1;
        self.count += 1;
        Some(wait)
    }
}

/// Uniform in `[0, upper)`. `RandomState` is the standard library's only source of randomness, and good enough here.
fn jitter(upper: Duration) -> Duration {
    let random = RandomState::new().build_hasher().finish();
    upper.mul_f64((random >> 11) as f64 / (1u64 << 53) as f64)
}

/// Parses `Retry-After`: seconds or a date. Dates in the past mean «now»; anything else is no answer.
pub(crate) fn after(value: &str) -> Option<Duration> {
    let value = value.trim();
    if !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit()) {
        return Some(Duration::from_secs(value.parse().unwrap_or(u64::MAX / 2)));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    Some(date.duration_since(SystemTime::now()).unwrap_or(Duration::ZERO))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_takes_seconds_and_dates_only() {
        assert_eq!(after("7"), Some(Duration::from_secs(7)));
        assert_eq!(after("Wed, 21 Oct 2015 07:28:00 GMT"), Some(Duration::ZERO));
        assert!(after("99999999999999999999999").unwrap() > RETRY_AFTER_MAX);
        let later = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(100));
        assert!(after(&later).unwrap() > Duration::from_secs(90));
        for garbage in ["-5", "", "soon", "1.5"] {
            assert_eq!(after(garbage), None, "{garbage}");
        }
    }

    /// R6: ten years are five minutes, and all waits have an end.
    #[test]
    fn waits_are_counted_capped_and_bounded_by_the_budget() {
        let now = Instant::now();
        let mut waits = Waits::new(Patience::Full, Duration::from_millis(100), Duration::from_secs(3600));
        let first = waits.next(Some(Duration::from_secs(10 * 365 * 86_400)), now).unwrap();
        assert!(first >= RETRY_AFTER_MAX && first < RETRY_AFTER_MAX * 2, "{first:?}");
        for _ in 0..3 {
            assert!(waits.next(None, now).unwrap() <= BACKOFF_MAX);
        }
        assert_eq!(waits.next(None, now), None);
        assert_eq!(waits.count(), 4);
        assert_eq!(Waits::new(Patience::None, Duration::ZERO, Duration::MAX / 4).next(None, now), None);
        let mut poor = Waits::new(Patience::Full, Duration::from_millis(1), Duration::from_secs(1));
        assert_eq!(poor.next(Some(Duration::from_secs(2)), now), None);
        assert!(poor.next(None, now).is_some());
        assert_eq!(poor.next(None, now + Duration::from_secs(2)), None);
    }
}
