//! Go's `fmt.Sprintf`, for the verbs that formats use: `v s d q x X t f g e c %`.

use serde_json::Value;

use super::DataProblem;
use super::eval::Val;
use super::limits::{OUTPUT_BYTES_MAX, WIDTH_MAX};
use super::print::sprint;

#[derive(Default)]
struct Verb {
    left: bool,
    zero: bool,
    plus: bool,
    space: bool,
    sharp: bool,
    width: usize,
    precision: Option<usize>,
}

/// A wrong verb prints `%!d(string=x)`, a missing argument `%!s(MISSING)`, as in Go.
pub(super) fn sprintf(format: &str, arguments: &[Val<'_>]) -> Result<String, DataProblem> {
    let mut out = String::new();
    let mut rest = arguments.iter();
    let mut chars = format.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut verb = Verb::default();
        while let Some(flag) = chars.next_if(|c| "-0+ #".contains(*c)) {
            match flag {
                '-' => verb.left = true,
                '0' => verb.zero = true,
                '+' => verb.plus = true,
                ' ' => verb.space = true,
                _ => verb.sharp = true,
            }
        }
        verb.width = number(&mut chars)?.unwrap_or(0);
        if chars.next_if_eq(&'.').is_some() {
            verb.precision = Some(number(&mut chars)?.unwrap_or(0));
        }
        match chars.next() {
            None => out.push_str("%!(NOVERB)"),
            Some('%') => out.push('%'),
            Some(letter) => match rest.next() {
                None => out.push_str(&format!("%!{letter}(MISSING)")),
                Some(value) => out.push_str(&verb.format(letter, value)),
            },
        }
        if out.len() > OUTPUT_BYTES_MAX {
            return Err(DataProblem::TooLong);
        }
    }
    if rest.len() > 0 {
        let extra: Vec<String> = rest.map(|value| format!("{}={}", go_type(value), sprint(value))).collect();
        out.push_str(&format!("%!(EXTRA {})", extra.join(", ")));
    }
    Ok(out)
}

fn number(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Result<Option<usize>, DataProblem> {
    let mut found: Option<usize> = None;
    while let Some(digit) = chars.peek().and_then(|c| c.to_digit(10)) {
        chars.next();
        let value = found.unwrap_or(0).saturating_mul(10).saturating_add(digit as usize);
        if value > WIDTH_MAX {
            return Err(DataProblem::TooWide);
        }
        found = Some(value);
    }
    Ok(found)
}

fn go_type(value: &Val<'_>) -> &'static str {
    match &*value.data {
        Value::Null => "<nil>",
        Value::Bool(_) => "bool",
        Value::Number(number) if number.is_f64() => "float64",
        Value::Number(_) => "int",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    }
}

impl Verb {
    fn format(&self, letter: char, value: &Val<'_>) -> String {
        let integer = value.data.as_i64().map(i128::from).or_else(|| value.data.as_u64().map(i128::from));
        match (letter, &*value.data) {
            ('v', Value::Number(number)) if number.is_f64() => self.number(sprint(value)),
            ('v' | 'd', _) if integer.is_some() => self.number(sprint(value)),
            ('s' | 'v', Value::String(_)) | ('v', _) => self.text(sprint(value)),
            ('s', Value::Array(_) | Value::Object(_) | Value::Null) => self.text(sprint(value)),
            ('t', Value::Bool(_)) => self.text(sprint(value)),
            ('q', Value::String(text)) => self.text(quote(text)),
            ('x' | 'X', Value::String(text)) => {
                let hex = hex::encode(text.as_bytes());
                self.text(if letter == 'X' { hex.to_uppercase() } else { hex })
            }
            ('x' | 'X' | 'o' | 'b', Value::Number(_)) if integer.is_some() => {
                let number = integer.unwrap_or_default();
                let sign = if number < 0 { "-" } else { "" };
                let size = number.unsigned_abs();
                let prefix = match (self.sharp, letter) {
                    (true, 'x') => "0x",
                    (true, 'X') => "0X",
                    (true, 'o') => "0",
                    (true, 'b') => "0b",
                    _ => "",
                };
                let digits = match letter {
                    'x' => format!("{size:x}"),
                    'X' => format!("{size:X}"),
                    'o' => format!("{size:o}"),
                    _ => format!("{size:b}"),
                };
                self.number(format!("{sign}{prefix}{digits}"))
            }
            ('c', Value::Number(_)) => {
                let c = integer.and_then(|n| u32::try_from(n).ok()).and_then(char::from_u32);
                self.text(c.unwrap_or(char::REPLACEMENT_CHARACTER).to_string())
            }
            ('f' | 'F', Value::Number(number)) if number.is_f64() => {
                let number = number.as_f64().unwrap_or_default();
                self.number(format!("{number:.*}", self.precision.unwrap_or(6)))
            }
            ('e' | 'g', Value::Number(number)) if number.is_f64() => self.number(number.to_string()),
            _ => format!("%!{letter}({}={})", go_type(value), sprint(value)),
        }
    }

    fn text(&self, mut text: String) -> String {
        if let Some(precision) = self.precision {
            text = text.chars().take(precision).collect();
        }
        self.pad(text, ' ')
    }

    fn number(&self, text: String) -> String {
        let signed = match (self.plus, self.space) {
            (true, _) if !text.starts_with('-') => format!("+{text}"),
            (_, true) if !text.starts_with('-') => format!(" {text}"),
            _ => text,
        };
        if self.zero && !self.left {
            let (sign, digits) = signed.split_at(usize::from(signed.starts_with(['+', '-', ' '])));
            let zeros = self.width.saturating_sub(signed.chars().count());
            return format!("{sign}{}{digits}", "0".repeat(zeros));
        }
        self.pad(signed, ' ')
    }

    fn pad(&self, text: String, with: char) -> String {
        let blanks: String =
            std::iter::repeat_n(with, self.width.saturating_sub(text.chars().count())).collect();
        if self.left { text + &blanks } else { blanks + &text }
    }
}

/// `strconv.Quote`.
fn quote(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            c if c.is_control() && u32::from(c) < 0x80 => out.push_str(&format!("\\x{:02x}", u32::from(c))),
            c if c.is_control() => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}
