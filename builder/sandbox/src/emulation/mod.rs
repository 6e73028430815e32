//! Steps for another processor.
//!
//! The kernel runs foreign programs through an interpreter that is registered for them (`binfmt_misc`). Where the host has
//! one registered, nothing is done here. Else, from Linux 6.7 on, a user namespace may have registrations of its own:
//!
//! ```text
//! builder ── spawns ──▶ child: new user and mount namespace
//!    │ ── maps every id to itself ──▶ │ binfmt_misc, detached; QEMU registered from an open file (flag F)
//!    │ ◀── namespace, file system ─── │ exits
//!    └── each emulated step's command enters the namespace before anything else
//! ```
//!
//! Nothing of the host changes and nothing is mounted anywhere: both ends are descriptors, gone with the builder, and with
//! them the registration. The step sees neither QEMU nor the registration, and every program that it starts, however deep,
//! is emulated.
//!
//! The command's ids are the same as without (the map is the identity), so what it writes is, too. It has its capabilities in
//! its own namespace only, one deeper than the step's: it makes no device nodes, and as root of the host's network no raw
//! sockets either.

mod machine;
mod namespace;

pub use machine::Machine;
pub(crate) use namespace::registrar_main;
pub use namespace::{EmulationError, Emulator};

use std::path::Path;

/// Where hosts have their registrations.
const HOST_REGISTRATIONS: &str = "/proc/sys/fs/binfmt_misc";

/// Whether the host has an interpreter registered that takes the machine's programs.
///
/// `false` as well where that cannot be seen: a container may profit from a registration that it does not see.
pub fn is_registered(machine: &Machine) -> bool {
    is_registered_in(Path::new(HOST_REGISTRATIONS), machine)
}

fn is_registered_in(dir: &Path, machine: &Machine) -> bool {
    let Ok(entries) = std::fs::read_dir(dir) else { return false };
    let is_on =
        |name: &str| std::fs::read_to_string(dir.join(name)).is_ok_and(|text| text.starts_with("enabled"));
    is_on("status")
        && entries.flatten().any(|entry| {
            let is_entry = entry.file_name() != "status" && entry.file_name() != "register";
            let text = std::fs::read_to_string(entry.path()).unwrap_or_default();
            is_entry && text.starts_with("enabled") && takes(&text, machine)
        })
}

/// Whether a registration, as the kernel prints it, takes the machine's programs. Without flag F its interpreter would be
/// looked for in the image.
fn takes(entry: &str, machine: &Machine) -> bool {
    let field = |name: &str| entry.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let bytes = |text: &str| -> Option<Vec<u8>> {
        let digits = text.as_bytes();
        let byte = |pair: &[u8]| u8::from_str_radix(str::from_utf8(pair).ok()?, 16).ok();
        digits.chunks(2).map(byte).collect()
    };
    let (Some(magic), Some("0")) = (field("magic ").and_then(bytes), field("offset ")) else { return false };
    let mask = field("mask ").and_then(bytes).unwrap_or_else(|| vec![0xff; magic.len()]);
    let (program, _) = machine.magic();
    let is_held_open = field("flags:").is_some_and(|flags| flags.contains('F'));
    is_held_open
        && magic.len() <= program.len()
        && program.iter().zip(&mask).zip(&magic).all(|((byte, mask), magic)| byte & mask == magic & mask)
}

/// What this machine does for other processors, in words: `arm64, riscv64 (qemu, for each step)`.
pub(crate) fn survey() -> Result<String, EmulationError> {
    let foreign = || Machine::ALL.iter().filter(|machine| !machine.is_native());
    let names = |machines: Vec<&Machine>| {
        machines.iter().map(|machine| machine.architecture).collect::<Vec<_>>().join(", ")
    };
    let registered: Vec<&Machine> = foreign().filter(|machine| is_registered(machine)).collect();
    let ours = || foreign().filter(|machine| !registered.contains(machine));
    let (found, mut missing) = (ours().filter(|machine| Emulator::is_installed(machine)), ours());
    let found: Vec<&Machine> = found.collect();
    let mut parts = Vec::new();
    if !registered.is_empty() {
        parts.push(format!("{} (registered with the kernel)", names(registered.clone())));
    }
    if let Some(first) = found.first() {
        Emulator::start(first)?;
        parts.push(format!("{} (QEMU, registered for the steps only)", names(found.clone())));
    }
    match (parts.is_empty(), missing.next()) {
        (true, Some(machine)) => Err(EmulationError::NotInstalled { qemu: machine.qemu }),
        _ => Ok(parts.join("; ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Linux prints it for Debian's registration of arm64.
    const ENTRY: &str = "enabled\ninterpreter /usr/libexec/qemu-binfmt/aarch64-binfmt-P\nflags: POCF\noffset 0\n\
        magic 7f454c460201010000000000000000000200b700\nmask ffffffffffffff00fffffffffffffffffeffffff\n";

    #[test]
    fn a_registration_of_the_host_is_recognised() {
        let arm64 = Machine::of_architecture("arm64").unwrap();
        assert!(takes(ENTRY, arm64));
        assert!(!takes(ENTRY, Machine::of_architecture("riscv64").unwrap()));
        assert!(!takes(&ENTRY.replace("POCF", "OC"), arm64), "the interpreter would have to be in the image");
        assert!(!takes("enabled\ninterpreter /usr/bin/python3\nflags: \nextension .py\n", arm64));
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("qemu-aarch64"), ENTRY).unwrap();
        std::fs::write(dir.path().join("status"), "enabled\n").unwrap();
        assert!(is_registered_in(dir.path(), arm64));
        std::fs::write(dir.path().join("status"), "disabled\n").unwrap();
        assert!(!is_registered_in(dir.path(), arm64));
        assert!(!is_registered_in(&dir.path().join("none"), arm64));
    }
}
