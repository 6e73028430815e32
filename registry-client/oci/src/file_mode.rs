//! `--chmod`: a new mode, or changes to the one that is there.

use std::fmt;
use std::str::FromStr;

use crate::{Canonical, CanonicalWriter};

/// All mode bits that an image keeps.
const ALL: u32 = 0o7777;
/// The three executable bits.
const EXECUTABLE: u32 = 0o111;
/// Longest text taken. No sensible mode comes near.
const TEXT_BYTES_MAX: usize = 1024;

/// What `--chmod` does to modes: octal (`0755`), or symbolic as in POSIX `chmod` with umask 0 (`u=rwX,go=rX`).
///
/// A clause says whose bits (`u` with setuid, `g` with setgid, `o` with sticky, `a` or nothing for all), then one or
/// more of `+`, `-`, `=`, each with letters out of `rwxXst` or one of `ugo` to copy from. `X` is executable for
/// directories and for what is executable for anyone when the clause is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileMode {
    text: String,
    form: Form,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Form {
    Octal(u32),
    Symbolic(Vec<Action>),
}

/// One operator of one clause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Action {
    /// Bits that it may touch.
    whose: u32,
    operator: Operator,
    bits: Bits,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operator {
    Add,
    Remove,
    Set,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bits {
    /// Bits, and whether `X` is among the letters.
    Letters { fixed: u32, if_executable: bool },
    /// The permissions at this shift.
    CopyOf(u32),
}

/// A text that is no mode.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FileModeError {
    /// Starts like an octal number and is none between 0 and 07777.
    #[error("invalid chmod parameter: '{0}'. it should be octal string and between 0 and 07777")]
    Octal(String),
    /// Not the symbolic grammar.
    #[error("invalid chmod parameter: '{0}': invalid syntax")]
    Syntax(String),
}

impl FileMode {
    /// The bits of an octal mode.
    pub fn octal(&self) -> Option<u32> {
        match self.form {
            Form::Octal(mode) => Some(mode),
            Form::Symbolic(_) => None,
        }
    }

    /// The mode that a file or directory gets in place of `mode`.
    pub fn apply(&self, mode: u32, is_dir: bool) -> u32 {
        match &self.form {
            Form::Octal(mode) => *mode,
            Form::Symbolic(actions) => {
                actions.iter().fold(mode & ALL, |mode, action| action.apply(mode, is_dir))
            }
        }
    }
}

impl Action {
    fn apply(self, mode: u32, is_dir: bool) -> u32 {
        let bits = match self.bits {
            Bits::Letters { fixed, if_executable } => {
                let executable = if_executable && (is_dir || mode & EXECUTABLE != 0);
                fixed | if executable { EXECUTABLE } else { 0 }
            }
            Bits::CopyOf(shift) => ((mode >> shift) & 0o7) * EXECUTABLE,
        };
        let bits = bits & self.whose;
        match self.operator {
            Operator::Add => mode | bits,
            Operator::Remove => mode & !bits,
            Operator::Set => (mode & !self.whose) | bits,
        }
    }
}

impl FromStr for FileMode {
    type Err = FileModeError;

    fn from_str(text: &str) -> Result<Self, FileModeError> {
        let form = if text.starts_with(|c: char| c.is_ascii_digit()) {
            let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= ALL);
            Form::Octal(mode.ok_or_else(|| FileModeError::Octal(text.to_owned()))?)
        } else {
            let actions = if text.len() > TEXT_BYTES_MAX { None } else { symbolic(text) };
            Form::Symbolic(actions.ok_or_else(|| FileModeError::Syntax(text.to_owned()))?)
        };
        Ok(Self { text: text.to_owned(), form })
    }
}

fn symbolic(text: &str) -> Option<Vec<Action>> {
    let mut actions = Vec::new();
    for clause in text.split(',') {
        let mut chars = clause.chars().peekable();
        let mut whose = 0;
        while let Some(who) = chars.next_if(|c| "ugoa".contains(*c)) {
            whose |= match who {
                'u' => 0o4700,
                'g' => 0o2070,
                'o' => 0o1007,
                _ => ALL,
            };
        }
        if whose == 0 {
            whose = ALL;
        }
        let operator = |c: char| match c {
            '+' => Some(Operator::Add),
            '-' => Some(Operator::Remove),
            '=' => Some(Operator::Set),
            _ => None,
        };
        let mut next = Some(operator(chars.next()?)?);
        while let Some(this) = next.take() {
            let mut bits = Bits::Letters { fixed: 0, if_executable: false };
            for (at, c) in std::iter::from_fn(|| chars.next_if(|c| operator(*c).is_none())).enumerate() {
                bits = match (bits, c) {
                    (Bits::Letters { .. }, 'u' | 'g' | 'o') if at == 0 => Bits::CopyOf(match c {
                        'u' => 6,
                        'g' => 3,
                        _ => 0,
                    }),
                    (Bits::Letters { fixed, .. }, 'X') => Bits::Letters { fixed, if_executable: true },
                    (Bits::Letters { fixed, if_executable }, c) => {
                        Bits::Letters { fixed: fixed | letter(c)?, if_executable }
                    }
                    (Bits::CopyOf(_), _) => return None,
                };
            }
            actions.push(Action { whose, operator: this, bits });
            next = match chars.next() {
                Some(c) => Some(operator(c)?),
                None => None,
            };
        }
    }
    Some(actions)
}

fn letter(c: char) -> Option<u32> {
    Some(match c {
        'r' => 0o444,
        'w' => 0o222,
        'x' => EXECUTABLE,
        's' => 0o6000,
        't' => 0o1000,
        _ => return None,
    })
}

/// As it was written.
impl fmt::Display for FileMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Octal by value (`755` is `0755`), symbolic by text.
impl Canonical for FileMode {
    fn write(&self, out: &mut CanonicalWriter) {
        match &self.form {
            Form::Octal(mode) => out.str("octal").u64(u64::from(*mode)),
            Form::Symbolic(_) => out.str("symbolic").str(&self.text),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, mode: u32, is_dir: bool, expected: u32) {
        let got = text.parse::<FileMode>().unwrap().apply(mode, is_dir);
        assert_eq!(got, expected, "{text} on {mode:o}: {got:o}, expected {expected:o}");
    }

    #[test]
    fn case_104_symbolic_modes_follow_chmod() {
        let cleaned = "u=rwX,go=rX";
        check(cleaned, 0o700, true, 0o755);
        check(cleaned, 0o600, false, 0o644);
        check(cleaned, 0o700, false, 0o755);
        check("+x", 0o644, false, 0o755);
        check("g=u", 0o750, false, 0o770);
        check("go-w", 0o666, false, 0o644);
        check("u+s,+t", 0o755, false, 0o5755);
        check("a=", 0o6755, false, 0);
        check("u=rw-r", 0o777, false, 0o277);
        check("o=g-x", 0o750, false, 0o754);
        check("ug+s", 0o755, true, 0o6755);
    }

    #[test]
    fn octal_modes_replace_all_bits() {
        check("755", 0o4600, false, 0o755);
        check("07777", 0, true, 0o7777);
        assert_eq!("0755".parse::<FileMode>().unwrap().octal(), Some(0o755));
    }

    #[test]
    fn case_105_what_is_no_mode_is_refused() {
        for text in ["888", "10000", "7x", "0o7"] {
            assert_eq!(text.parse::<FileMode>(), Err(FileModeError::Octal(text.to_owned())));
        }
        for text in ["zzz", "", "u", "u=rwx,", "u+ug", "u=rz", "=q", "+ux", "-é", &"+x,".repeat(1000)] {
            assert_eq!(text.parse::<FileMode>(), Err(FileModeError::Syntax(text.to_owned())));
        }
    }

    #[test]
    fn equal_octal_modes_have_equal_canonical_bytes() {
        let bytes = |text: &str| {
            let mut out = CanonicalWriter::new("test");
            out.value(&text.parse::<FileMode>().unwrap());
            out.finish()
        };
        assert_eq!(bytes("755"), bytes("0755"));
        assert_ne!(bytes("755"), bytes("u=rwx"));
    }
}
