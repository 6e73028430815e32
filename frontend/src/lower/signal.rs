//! Signals that STOPSIGNAL takes.

const NAMES: [&str; 34] = [
    "ABRT", "ALRM", "BUS", "CHLD", "CLD", "CONT", "FPE", "HUP", "ILL", "INT", "IO", "IOT", "KILL", "PIPE",
    "POLL", "PROF", "PWR", "QUIT", "SEGV", "STKFLT", "STOP", "SYS", "TERM", "TRAP", "TSTP", "TTIN", "TTOU",
    "URG", "USR1", "USR2", "VTALRM", "WINCH", "XCPU", "XFSZ",
];

/// Real-time signals: RTMIN+1 to RTMIN+15, RTMAX-14 to RTMAX-1 (Docker's table).
const RTMIN_OFFSET_MAX: u32 = 15;
const RTMAX_OFFSET_MAX: u32 = 14;

/// True for a number other than zero, or a known name in any case, with or without SIG.
pub(super) fn is_valid(text: &str) -> bool {
    if let Ok(number) = text.parse::<i64>() {
        return number != 0;
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let offset = |text: &str, max: u32| text.parse::<u32>().is_ok_and(|n| (1..=max).contains(&n));
    NAMES.contains(&name)
        || matches!(name, "RTMIN" | "RTMAX")
        || name.strip_prefix("RTMIN+").is_some_and(|n| offset(n, RTMIN_OFFSET_MAX))
        || name.strip_prefix("RTMAX-").is_some_and(|n| offset(n, RTMAX_OFFSET_MAX))
}
