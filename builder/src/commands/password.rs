//! Names and passwords from a terminal or standard input.

use std::io::{self, Read, Write};

use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};

use super::ImageError;
use crate::error::BuildError;

/// Longest password read, in bytes: access tokens have a few thousand.
const SECRET_BYTES_MAX: u64 = 64 << 10;

/// What Ctrl-C would have sent.
const SIGINT: u8 = 2;

const PASSWORD: &str = "password";

/// Everything on standard input but one line end.
pub(super) fn from_stdin() -> Result<String, ImageError> {
    let mut text = String::new();
    let input = io::stdin().lock();
    input
        .take(SECRET_BYTES_MAX)
        .read_to_string(&mut text)
        .map_err(|source| ImageError::Ask { what: PASSWORD, source })?;
    checked(without_line_end(&text).to_owned())
}

/// Refuses what cannot be a password.
pub(super) fn checked(text: String) -> Result<String, ImageError> {
    if text.is_empty() {
        return Err(ImageError::Unusable { what: PASSWORD, problem: "is empty" });
    }
    Ok(text)
}

fn without_line_end(text: &str) -> &str {
    text.strip_suffix("\r\n")
        .or_else(|| text.strip_suffix('\n'))
        .or_else(|| text.strip_suffix('\r'))
        .unwrap_or(text)
}

/// Asks for a name. `what` is shown.
pub(super) fn ask_name() -> Result<String, ImageError> {
    let failed = |source| ImageError::Ask { what: "user name", source };
    prompt("Username: ").map_err(failed)?;
    let mut line = String::new();
    io::stdin().read_line(&mut line).map_err(failed)?;
    match line.trim() {
        "" => Err(ImageError::Unusable { what: "user name", problem: "is empty" }),
        name => Ok(name.to_owned()),
    }
}

/// Asks for a password without showing it.
pub(super) fn ask_password() -> Result<String, BuildError> {
    let failed = |source| ImageError::Ask { what: PASSWORD, source };
    prompt("Password: ").map_err(failed)?;
    let stdin = io::stdin();
    let before = tcgetattr(&stdin).map_err(|errno| failed(errno.into()))?;
    let mut silent = before.clone();
    // Keys arrive one by one, Ctrl-C too: a signal would end us and leave the terminal silent.
    silent.local_modes &= !(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG);
    tcsetattr(&stdin, OptionalActions::Flush, &silent).map_err(|errno| failed(errno.into()))?;
    let typed = typed(stdin.lock());
    let restored = tcsetattr(&stdin, OptionalActions::Flush, &before);
    prompt("\n").map_err(failed)?;
    restored.map_err(|errno| failed(errno.into()))?;
    match typed.map_err(failed)? {
        Some(text) => Ok(checked(text)?),
        None => Err(BuildError::Signal(SIGINT)),
    }
}

fn prompt(text: &str) -> io::Result<()> {
    let mut out = io::stderr().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Keys up to the line's end; `None` for Ctrl-C.
fn typed(mut keys: impl Read) -> io::Result<Option<String>> {
    let mut bytes: Vec<u8> = Vec::new();
    let mut key = [0];
    loop {
        match keys.read(&mut key) {
            Ok(0) => break,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        }
        match key[0] {
            b'\n' | b'\r' | 4 => break,
            3 => return Ok(None),
            8 | 127 => {
                // A whole character, however many bytes it has.
                while bytes.pop().is_some_and(|byte| byte & 0xc0 == 0x80) {}
            }
            21 => bytes.clear(),
            byte if (bytes.len() as u64) < SECRET_BYTES_MAX => bytes.push(byte),
            _ => {}
        }
    }
    String::from_utf8(bytes).map(Some).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_end_is_not_part_of_a_password() {
        for (text, password) in [
            ("x\n", "x"),
            ("x\r\n", "x"),
            ("x\r", "x"),
            ("x\n\n", "x\n"),
            ("x", "x"),
            (" x ", " x "),
            ("\n", ""),
        ] {
            assert_eq!(without_line_end(text), password, "{text:?}");
        }
    }

    #[test]
    fn keys_are_edited_and_ctrl_c_ends() {
        assert_eq!(typed(&b"secret\nrest"[..]).unwrap().as_deref(), Some("secret"));
        assert_eq!(typed("aä\u{7f}b\r".as_bytes()).unwrap().as_deref(), Some("ab"));
        assert_eq!(typed(&b"wrong\x15right"[..]).unwrap().as_deref(), Some("right"));
        assert_eq!(typed(&b"\x7f\x7fx\n"[..]).unwrap().as_deref(), Some("x"));
        assert_eq!(typed(&b"abc\x03"[..]).unwrap(), None);
    }
}
