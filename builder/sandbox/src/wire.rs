//! What parent and child say to each other over their socket: length-prefixed fields, native integers in little endian.
//!
//! The builder asks the spawner for an init of a [`Flavour`], and sends that one [`ChildSpec`] with the root mount and the
//! output pipes attached; init answers with [`Report`]s. All are the same binary, so there are no versions; the builder
//! still bounds and checks everything it reads.

use crate::error::SetupStep;
use rustix::io::Errno;

/// The largest encoded spec: far above what `execve` takes as arguments and environment.
pub(crate) const SPEC_SIZE_BYTES_MAX: usize = 16 << 20;
/// The largest report: a failure with its detail.
pub(crate) const REPORT_SIZE_BYTES_MAX: usize = 8 << 10;

/// What of a step its init is told before the step itself: enough to prepare everything but the root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Flavour {
    /// Which network namespace the step gets.
    pub(crate) network: NetworkNamespace,
    /// Size limit of `/dev/shm`.
    pub(crate) shm_size_bytes: u64,
    /// Nothing masked, filtered or dropped.
    pub(crate) insecure: bool,
    /// The command enters a user namespace: its descriptor is the last that comes with the request.
    pub(crate) emulated: bool,
}

/// Network namespace of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NetworkNamespace {
    /// The builder's.
    Builder,
    /// A new one, with nothing but loopback.
    New,
    /// One that exists: its descriptor comes with the request.
    Joined,
}

/// A step with everything resolved: what init needs besides the [`Flavour`], and nothing else.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ChildSpec {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
    /// Those of the builder's process stay, and `groups` are not set.
    pub(crate) keeps_groups: bool,
    pub(crate) argv: Vec<String>,
    /// `NAME=value`.
    pub(crate) env: Vec<String>,
    pub(crate) cwd: String,
    pub(crate) hostname: String,
    /// Whether standard output is a terminal that is to be the controlling one, and standard input too.
    pub(crate) has_console: bool,
    /// Files shown over those of the image: path, mode, content.
    pub(crate) files: Vec<(String, u32, Vec<u8>)>,
    /// What is mounted after that, in order.
    pub(crate) mounts: Vec<WireMount>,
    /// Index into [`RLIMITS`](crate::spec::RLIMITS), soft, hard.
    pub(crate) rlimits: Vec<(u32, Option<u64>, Option<u64>)>,
    /// How many of the attached descriptors are `cgroup.procs` files; they come after root and output.
    pub(crate) cgroups: u32,
    /// Whether the table of owners is attached, after the mounts.
    pub(crate) has_owner_table: bool,
}

/// One mount of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WireMount {
    pub(crate) target: String,
    pub(crate) source: WireSource,
    pub(crate) read_only: bool,
    pub(crate) is_dir: bool,
}

/// What is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum WireSource {
    /// Its descriptor is the next of those attached.
    Tree { path: String },
    /// Its descriptor is the next of those attached.
    Host { executable: bool },
    /// Its descriptor is the next of those attached.
    Device,
    /// A device node to be made.
    Node { is_block: bool, major: u32, minor: u32, mode: u32, uid: u32, gid: u32 },
    /// 0 bytes for no limit of ours.
    Tmpfs { size_bytes: u64 },
    /// A file in memory.
    File { mode: u32, uid: u32, gid: u32, content: Vec<u8> },
}

/// What the child reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Report {
    /// Init exists; its pidfd comes with the message.
    Started,
    /// Setup failed at a step.
    Failed { step: SetupStep, errno: i32, detail: String },
    /// The command exited.
    Exited(i32),
    /// The command was ended by a signal.
    Signaled(i32),
}

/// A message that does not decode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

#[derive(Default)]
struct Writer(Vec<u8>);

impl Writer {
    fn u32(&mut self, value: u32) {
        self.0.extend(value.to_le_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.0.extend(value.to_le_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        // Callers are bounded by SPEC_SIZE_BYTES_MAX, checked by the parent before it encodes.
        self.u32(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
        self.0.extend(bytes);
    }

    fn optional(&mut self, value: Option<u64>) {
        self.u32(value.is_some().into());
        self.u64(value.unwrap_or(0));
    }

    fn list<T>(&mut self, items: &[T], mut write: impl FnMut(&mut Self, &T)) {
        self.u32(u32::try_from(items.len()).unwrap_or(u32::MAX));
        for item in items {
            write(self, item);
        }
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        Ok(u32::from_le_bytes(self.take(4)?.try_into().map_err(|_| Malformed)?))
    }

    fn u64(&mut self) -> Result<u64, Malformed> {
        Ok(u64::from_le_bytes(self.take(8)?.try_into().map_err(|_| Malformed)?))
    }

    fn optional(&mut self) -> Result<Option<u64>, Malformed> {
        let (is_some, value) = (self.u32()? != 0, self.u64()?);
        Ok(is_some.then_some(value))
    }

    fn bytes(&mut self) -> Result<&'a [u8], Malformed> {
        let count = self.u32()?;
        self.take(count as usize)
    }

    fn string(&mut self) -> Result<String, Malformed> {
        String::from_utf8(self.bytes()?.to_vec()).map_err(|_| Malformed)
    }

    fn list<T>(
        &mut self,
        mut read: impl FnMut(&mut Self) -> Result<T, Malformed>,
    ) -> Result<Vec<T>, Malformed> {
        // Not reserved up front: the count is only believed as far as the bytes go.
        let count = self.u32()?;
        (0..count).map(|_| read(self)).collect()
    }

    fn end(self) -> Result<(), Malformed> {
        if self.0.is_empty() { Ok(()) } else { Err(Malformed) }
    }
}

impl Flavour {
    /// Bytes of an encoded flavour.
    pub(crate) const SIZE_BYTES: usize = 20;

    pub(crate) fn encode(self) -> Vec<u8> {
        let mut w = Writer::default();
        w.u32(match self.network {
            NetworkNamespace::Builder => 0,
            NetworkNamespace::New => 1,
            NetworkNamespace::Joined => 2,
        });
        w.u64(self.shm_size_bytes);
        w.u32(self.insecure.into());
        w.u32(self.emulated.into());
        w.0
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Flavour, Malformed> {
        let mut r = Reader(bytes);
        let network = match r.u32()? {
            0 => NetworkNamespace::Builder,
            1 => NetworkNamespace::New,
            2 => NetworkNamespace::Joined,
            _ => return Err(Malformed),
        };
        let flavour =
            Flavour { network, shm_size_bytes: r.u64()?, insecure: r.u32()? != 0, emulated: r.u32()? != 0 };
        r.end()?;
        Ok(flavour)
    }
}

impl ChildSpec {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut w = Writer::default();
        w.u32(self.uid);
        w.u32(self.gid);
        w.list(&self.groups, |w, gid| w.u32(*gid));
        w.u32(self.keeps_groups.into());
        w.list(&self.argv, |w, arg| w.bytes(arg.as_bytes()));
        w.list(&self.env, |w, var| w.bytes(var.as_bytes()));
        w.bytes(self.cwd.as_bytes());
        w.bytes(self.hostname.as_bytes());
        w.u32(self.has_console.into());
        w.list(&self.files, |w, (path, mode, content)| {
            w.bytes(path.as_bytes());
            w.u32(*mode);
            w.bytes(content);
        });
        w.list(&self.mounts, WireMount::write);
        w.list(&self.rlimits, |w, (index, soft, hard)| {
            w.u32(*index);
            w.optional(*soft);
            w.optional(*hard);
        });
        w.u32(self.cgroups);
        w.u32(self.has_owner_table.into());
        w.0
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<ChildSpec, Malformed> {
        let mut r = Reader(bytes);
        let spec = ChildSpec {
            uid: r.u32()?,
            gid: r.u32()?,
            groups: r.list(Reader::u32)?,
            keeps_groups: r.u32()? != 0,
            argv: r.list(Reader::string)?,
            env: r.list(Reader::string)?,
            cwd: r.string()?,
            hostname: r.string()?,
            has_console: r.u32()? != 0,
            files: r.list(|r| Ok((r.string()?, r.u32()?, r.bytes()?.to_vec())))?,
            mounts: r.list(WireMount::read)?,
            rlimits: r.list(|r| Ok((r.u32()?, r.optional()?, r.optional()?)))?,
            cgroups: r.u32()?,
            has_owner_table: r.u32()? != 0,
        };
        r.end()?;
        Ok(spec)
    }
}

impl WireSource {
    /// Whether one of the attached descriptors is its own.
    pub(crate) fn has_descriptor(&self) -> bool {
        match self {
            WireSource::Tree { .. } | WireSource::Host { .. } | WireSource::Device => true,
            WireSource::Node { .. } | WireSource::Tmpfs { .. } | WireSource::File { .. } => false,
        }
    }
}

impl WireMount {
    fn write(w: &mut Writer, mount: &WireMount) {
        w.bytes(mount.target.as_bytes());
        w.u32(mount.read_only.into());
        w.u32(mount.is_dir.into());
        match &mount.source {
            WireSource::Tree { path } => {
                w.u32(0);
                w.bytes(path.as_bytes());
            }
            WireSource::Tmpfs { size_bytes } => {
                w.u32(1);
                w.u64(*size_bytes);
            }
            WireSource::File { mode, uid, gid, content } => {
                w.u32(2);
                [mode, uid, gid].into_iter().for_each(|number| w.u32(*number));
                w.bytes(content);
            }
            WireSource::Host { executable } => {
                w.u32(3);
                w.u32((*executable).into());
            }
            WireSource::Device => w.u32(4),
            WireSource::Node { is_block, major, minor, mode, uid, gid } => {
                w.u32(5);
                w.u32((*is_block).into());
                [major, minor, mode, uid, gid].into_iter().for_each(|number| w.u32(*number));
            }
        }
    }

    fn read(r: &mut Reader<'_>) -> Result<WireMount, Malformed> {
        let (target, read_only, is_dir) = (r.string()?, r.u32()? != 0, r.u32()? != 0);
        let source = match r.u32()? {
            0 => WireSource::Tree { path: r.string()? },
            1 => WireSource::Tmpfs { size_bytes: r.u64()? },
            2 => {
                let (mode, uid, gid) = (r.u32()?, r.u32()?, r.u32()?);
                WireSource::File { mode, uid, gid, content: r.bytes()?.to_vec() }
            }
            3 => WireSource::Host { executable: r.u32()? != 0 },
            4 => WireSource::Device,
            5 => {
                let (is_block, major, minor) = (r.u32()? != 0, r.u32()?, r.u32()?);
                let (mode, uid, gid) = (r.u32()?, r.u32()?, r.u32()?);
                WireSource::Node { is_block, major, minor, mode, uid, gid }
            }
            _ => return Err(Malformed),
        };
        Ok(WireMount { target, source, read_only, is_dir })
    }
}

impl Report {
    /// The report with its length in front, as it goes over the socket.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut w = Writer::default();
        match self {
            Report::Started => w.u32(0),
            Report::Failed { step, errno, detail } => {
                w.u32(1);
                w.u32(step.to_wire().into());
                w.u32(errno.cast_unsigned());
                let end = detail.floor_char_boundary_at(4096);
                w.bytes(&detail.as_bytes()[..end]);
            }
            Report::Exited(code) => {
                w.u32(2);
                w.u32(code.cast_unsigned());
            }
            Report::Signaled(signal) => {
                w.u32(3);
                w.u32(signal.cast_unsigned());
            }
        }
        let mut framed = Writer::default();
        framed.bytes(&w.0);
        framed.0
    }

    /// Takes one whole report off the front of `buffer`; `None` while it is incomplete.
    pub(crate) fn take_from(buffer: &mut Vec<u8>) -> Result<Option<Report>, Malformed> {
        let Some(length) = buffer.first_chunk::<4>() else { return Ok(None) };
        let length = u32::from_le_bytes(*length) as usize;
        if length > REPORT_SIZE_BYTES_MAX {
            return Err(Malformed);
        }
        let Some(body) = buffer.get(4..4 + length) else { return Ok(None) };
        let report = Report::decode(body)?;
        buffer.drain(..4 + length);
        Ok(Some(report))
    }

    fn decode(body: &[u8]) -> Result<Report, Malformed> {
        let mut r = Reader(body);
        let report = match r.u32()? {
            0 => Report::Started,
            1 => {
                let step = u8::try_from(r.u32()?).ok().and_then(SetupStep::from_wire).ok_or(Malformed)?;
                Report::Failed { step, errno: r.u32()?.cast_signed(), detail: r.string()? }
            }
            2 => Report::Exited(r.u32()?.cast_signed()),
            3 => Report::Signaled(r.u32()?.cast_signed()),
            _ => return Err(Malformed),
        };
        r.end()?;
        Ok(report)
    }
}

impl From<crate::error::SetupFailure> for Report {
    fn from(failure: crate::error::SetupFailure) -> Report {
        Report::Failed {
            step: failure.step,
            errno: Errno::raw_os_error(failure.errno),
            detail: failure.detail,
        }
    }
}

/// `str::floor_char_boundary`, which is newer than our minimum Rust.
trait FloorCharBoundary {
    fn floor_char_boundary_at(&self, index: usize) -> usize;
}

impl FloorCharBoundary for str {
    fn floor_char_boundary_at(&self, index: usize) -> usize {
        (0..=index.min(self.len())).rev().find(|at| self.is_char_boundary(*at)).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests;
