//! Processors: what their programs look like, and who emulates them.

use crate::image_file::{self, Opened};
use rustix::io::Errno;
use std::os::fd::{BorrowedFd, OwnedFd};

/// What of a file says which processor it is for: up to `e_machine` (elf(5)).
pub(super) const HEADER_SIZE_BYTES: usize = 20;
/// As the kernel has it for `#!`.
const SCRIPT_DEPTH_MAX: usize = 5;
const SCRIPT_LINE_SIZE_BYTES_MAX: usize = 256;

/// A processor that Linux programs are made for.
#[derive(Debug, PartialEq, Eq)]
pub struct Machine {
    /// As OCI names it: `arm64`.
    pub architecture: &'static str,
    /// As QEMU names it: `aarch64`.
    pub(super) qemu: &'static str,
    is_64: bool,
    is_big_endian: bool,
    /// `e_machine`.
    number: u16,
}

const fn little(architecture: &'static str, qemu: &'static str, is_64: bool, number: u16) -> Machine {
    Machine { architecture, qemu, is_64, is_big_endian: false, number }
}

const fn big(architecture: &'static str, qemu: &'static str, is_64: bool, number: u16) -> Machine {
    Machine { architecture, qemu, is_64, is_big_endian: true, number }
}

impl Machine {
    /// Those that images are published for.
    pub(super) const ALL: &[Machine] = &[
        little("amd64", "x86_64", true, 62),
        little("386", "i386", false, 3),
        little("arm64", "aarch64", true, 183),
        little("arm", "arm", false, 40),
        little("riscv64", "riscv64", true, 243),
        little("ppc64le", "ppc64le", true, 21),
        little("loong64", "loongarch64", true, 258),
        little("mips64le", "mips64el", true, 8),
        little("mipsle", "mipsel", false, 8),
        big("mips64", "mips64", true, 8),
        big("mips", "mips", false, 8),
        big("s390x", "s390x", true, 22),
    ];

    /// The processor that OCI calls this.
    pub fn of_architecture(architecture: &str) -> Option<&'static Machine> {
        Machine::ALL.iter().find(|machine| machine.architecture == architecture)
    }

    /// The processor that a file is for, by its first bytes; `None` when they are not those of a program we know.
    pub(super) fn of_header(header: &[u8]) -> Option<&'static Machine> {
        let header = header.first_chunk::<HEADER_SIZE_BYTES>()?;
        Machine::ALL.iter().find(|machine| {
            let (magic, mask) = machine.magic();
            header.iter().zip(mask).zip(magic).all(|((byte, mask), magic)| byte & mask == magic & mask)
        })
    }

    /// The processor that a step's program is for, looked up as the step would in its `root`: through the `PATH` of `env`,
    /// and for a script its interpreter. `None` when there is no such program, or it is none that we know.
    pub fn of_program(
        root: BorrowedFd<'_>,
        argv: &[String],
        env: &[(String, String)],
    ) -> Option<&'static Machine> {
        let program = argv.first()?;
        let mut header = if program.contains('/') {
            head(root, program)?
        } else {
            let path = env.iter().find(|(name, _)| name == "PATH").map(|(_, value)| value.as_str());
            let dirs = path.unwrap_or(crate::child::DEFAULT_PATH).split(':');
            dirs.filter(|dir| !dir.is_empty()).find_map(|dir| head(root, &format!("{dir}/{program}")))?
        };
        for _ in 0..SCRIPT_DEPTH_MAX {
            let Some(line) = header.strip_prefix(b"#!") else { break };
            let line = line.split(|byte| *byte == b'\n').next()?;
            let interpreter =
                line.split(|byte| matches!(byte, b' ' | b'\t')).find(|word| !word.is_empty())?;
            header = head(root, str::from_utf8(interpreter).ok()?)?;
        }
        Machine::of_header(&header)
    }

    /// Whether this processor runs its programs, or is to be asked to: not all arm64 processors run those for arm.
    pub fn is_native(&self) -> bool {
        let own = std::env::consts::ARCH;
        match self.architecture {
            "amd64" => own == "x86_64",
            "386" => own == "x86_64" || own == "x86",
            "arm64" => own == "aarch64",
            "arm" => own == "aarch64" || own == "arm",
            "ppc64le" => own == "powerpc64" && cfg!(target_endian = "little"),
            "loong64" => own == "loongarch64",
            other => other == own,
        }
    }

    /// The bytes that programs begin with, and which of their bits count. Executable files and shared objects, which
    /// position-independent programs are, differ in one bit; the byte for the operating system is not looked at.
    pub(super) fn magic(&self) -> ([u8; HEADER_SIZE_BYTES], [u8; HEADER_SIZE_BYTES]) {
        const OS_ABI: usize = 7;
        let mut magic = [0; HEADER_SIZE_BYTES];
        let mut mask = [0xff; HEADER_SIZE_BYTES];
        magic[..4].copy_from_slice(b"\x7fELF");
        magic[4] = if self.is_64 { 2 } else { 1 };
        magic[5] = if self.is_big_endian { 2 } else { 1 };
        magic[6] = 1;
        mask[OS_ABI] = 0;
        let executable = 2_u16;
        let halves = if self.is_big_endian { u16::to_be_bytes } else { u16::to_le_bytes };
        magic[16..18].copy_from_slice(&halves(executable));
        mask[16..18].copy_from_slice(&halves(!1));
        magic[18..].copy_from_slice(&halves(self.number));
        (magic, mask)
    }
}

/// The first line's worth of a regular file in `root`, which the image may have made anything.
fn head(root: BorrowedFd<'_>, path: &str) -> Option<Vec<u8>> {
    let Ok(Opened::File(file)) = image_file::open(root, path) else { return None };
    let mut bytes = vec![0; SCRIPT_LINE_SIZE_BYTES_MAX];
    let count = rustix::io::retry_on_intr(|| rustix::io::pread(&file, &mut bytes[..], 0));
    bytes.truncate(count.unwrap_or(0));
    Some(bytes)
}

/// Whether an ELF file is whole in itself: without an interpreter that would be looked for in the image.
pub(super) fn is_static(file: &OwnedFd) -> Result<bool, Errno> {
    /// `PT_INTERP`.
    const INTERPRETER: u32 = 3;
    const SEGMENTS_MAX: u64 = 64;
    let mut header = [0; 64];
    if rustix::io::pread(file, &mut header[..], 0)? < header.len() || !header.starts_with(b"\x7fELF\x02") {
        return Ok(false);
    }
    let number = |bytes: &[u8]| {
        let mut word = [0; 8];
        word[..bytes.len()].copy_from_slice(bytes);
        if cfg!(target_endian = "big") {
            word[..bytes.len()].reverse()
        }
        u64::from_le_bytes(word)
    };
    let (table, size, count) = (number(&header[32..40]), number(&header[54..56]), number(&header[56..58]));
    for segment in 0..count.min(SEGMENTS_MAX) {
        let mut kind = [0; 4];
        let at = table.saturating_add(segment * size);
        if rustix::io::pread(file, &mut kind[..], at)? < kind.len() {
            return Ok(false);
        }
        if u32::from_ne_bytes(kind) == INTERPRETER {
            return Ok(false);
        }
    }
    Ok(count > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first bytes of a program, as compilers write them.
    fn header(machine: &Machine, kind: u16) -> Vec<u8> {
        let (mut magic, _) = machine.magic();
        magic[7] = 3;
        magic[16..18].copy_from_slice(&if machine.is_big_endian {
            kind.to_be_bytes()
        } else {
            kind.to_le_bytes()
        });
        magic.to_vec()
    }

    #[test]
    fn programs_tell_their_processor() {
        for machine in Machine::ALL {
            let told = |kind| Machine::of_header(&header(machine, kind));
            assert_eq!(told(2), Some(machine));
            assert_eq!(told(3), Some(machine), "a position-independent one");
            assert_eq!(told(1), None, "an object file is no program");
        }
        assert_eq!(Machine::of_header(b"#!/bin/sh\n"), None);
        assert_eq!(Machine::of_header(b""), None);
    }

    #[test]
    fn this_program_is_for_this_processor() {
        let own = std::fs::read("/proc/self/exe").unwrap();
        assert!(Machine::of_header(&own).unwrap().is_native());
        assert!(!Machine::of_architecture("s390x").unwrap().is_native() || cfg!(target_arch = "s390x"));
    }

    #[test]
    fn the_program_of_a_step_is_found_as_the_step_would() {
        use std::os::fd::AsFd as _;
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &str| dir.path().join(path);
        std::fs::create_dir_all(at("usr/bin")).unwrap();
        let arm64 = Machine::of_architecture("arm64").unwrap();
        std::fs::write(at("usr/bin/tool"), header(arm64, 3)).unwrap();
        std::fs::write(at("script"), "#! /bin/tool -x\n").unwrap();
        std::fs::write(at("loop"), "#!/loop\n").unwrap();
        // Absolute, as images have it: it leads to the image's file, not the host's.
        std::os::unix::fs::symlink("/usr/bin", at("bin")).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, at("pipe"), rustix::fs::Mode::from_raw_mode(0o644)).unwrap();
        let root = std::fs::File::open(dir.path()).unwrap();
        let of = |program: &str, path: &str| {
            let env = [("PATH".to_owned(), path.to_owned())];
            Machine::of_program(root.as_fd(), &[program.to_owned()], &env)
        };
        assert_eq!(of("/bin/tool", ""), Some(arm64));
        assert_eq!(of("tool", "/nowhere:/bin"), Some(arm64));
        assert_eq!(of("/script", ""), Some(arm64));
        for other in ["/loop", "/pipe", "/usr", "/none", "tool"] {
            assert_eq!(of(other, "/nowhere"), None, "{other}");
        }
    }
}
