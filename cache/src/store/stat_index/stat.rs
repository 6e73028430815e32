//! What `stat` says, and when that can be trusted later.

use rustix::time::ClockId;

use crate::layer::Mtime;

/// Length of a stat in an index.
pub const STAT_BYTES: usize = 60;
/// Some file systems keep times in coarser steps than the clock: margin in nanoseconds for a step of this many.
const MARGIN_NS: i128 = 10_000_000;
/// Margin for times without a fraction: the file system may keep whole or even seconds only.
const WHOLE_SECONDS_MARGIN_NS: i128 = 2_000_000_000;

/// What `stat` says of a file or directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileStat {
    /// Length in bytes.
    pub size: u64,
    /// Time of the last change of the bytes.
    pub mtime: Mtime,
    /// Time of the last change of bytes or inode: cannot be set by anybody.
    pub ctime: Mtime,
    /// Inode number.
    pub ino: u64,
    /// Device number.
    pub dev: u64,
    /// Type and permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

impl From<&rustix::fs::Stat> for FileStat {
    fn from(stat: &rustix::fs::Stat) -> Self {
        // The kernel gives no negative size, and no fraction of a second above a thousand million.
        let nanos = |nanos| u32::try_from(nanos).unwrap_or(0);
        Self {
            size: u64::try_from(stat.st_size).unwrap_or(0),
            mtime: Mtime { secs: stat.st_mtime, nanos: nanos(stat.st_mtime_nsec) },
            ctime: Mtime { secs: stat.st_ctime, nanos: nanos(stat.st_ctime_nsec) },
            ino: stat.st_ino,
            dev: stat.st_dev,
            mode: stat.st_mode,
            uid: stat.st_uid,
            gid: stat.st_gid,
        }
    }
}

impl FileStat {
    /// As an index keeps it: equal stats have equal bytes.
    pub fn to_bytes(&self) -> [u8; STAT_BYTES] {
        let mut bytes = [0; STAT_BYTES];
        let mut at = 0;
        let mut put = |part: &[u8]| {
            bytes[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        };
        put(&self.size.to_le_bytes());
        for time in [self.mtime, self.ctime] {
            put(&time.secs.to_le_bytes());
            put(&time.nanos.to_le_bytes());
        }
        put(&self.ino.to_le_bytes());
        put(&self.dev.to_le_bytes());
        for number in [self.mode, self.uid, self.gid] {
            put(&number.to_le_bytes());
        }
        debug_assert_eq!(at, STAT_BYTES, "every field has its place");
        bytes
    }

    /// The inverse.
    pub(super) fn from_bytes(bytes: &[u8; STAT_BYTES]) -> Self {
        fn part<const N: usize>(bytes: &[u8; STAT_BYTES], at: usize) -> [u8; N] {
            std::array::from_fn(|n| bytes[at + n])
        }
        let time = |at| Mtime {
            secs: i64::from_le_bytes(part(bytes, at)),
            nanos: u32::from_le_bytes(part(bytes, at + 8)),
        };
        Self {
            size: u64::from_le_bytes(part(bytes, 0)),
            mtime: time(8),
            ctime: time(20),
            ino: u64::from_le_bytes(part(bytes, 32)),
            dev: u64::from_le_bytes(part(bytes, 40)),
            mode: u32::from_le_bytes(part(bytes, 48)),
            uid: u32::from_le_bytes(part(bytes, 52)),
            gid: u32::from_le_bytes(part(bytes, 56)),
        }
    }

    /// True when a change after `scanned` would show in the times.
    pub(super) fn is_settled(&self, scanned: ScanMoment) -> bool {
        settled(self.ctime, scanned) && settled(self.mtime, scanned)
    }
}

/// The moment a scan began, by the clock that also stamps files. Take it before the first `stat`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ScanMoment(Mtime);

impl ScanMoment {
    /// Now.
    pub fn now() -> Self {
        // File times are stamped with the coarse clock: the fine one runs up to a tick ahead of it.
        let now = rustix::time::clock_gettime(ClockId::RealtimeCoarse);
        Self::at(now.tv_sec, u32::try_from(now.tv_nsec).unwrap_or(0))
    }

    /// A moment given in whole seconds since the epoch and nanoseconds above them.
    pub const fn at(secs: i64, nanos: u32) -> Self {
        Self(Mtime { secs, nanos })
    }
}

/// True when a change after the scan began would show as another time.
pub(in crate::store) fn settled(time: Mtime, scanned: ScanMoment) -> bool {
    let ns = |time: Mtime| i128::from(time.secs) * 1_000_000_000 + i128::from(time.nanos);
    let margin = if time.nanos == 0 { WHOLE_SECONDS_MARGIN_NS } else { MARGIN_NS };
    ns(time) + margin < ns(scanned.0)
}
