//! One RFC 4180 record: the grammar of `-o`, `--platform`, `--secret` and their kind.
//!
//! Fields are split at `,`. A field that starts with `"` runs to the matching `"`; a doubled `"` inside stands for
//! one. A `"` elsewhere is an error, as in Go's `encoding/csv`, which Docker uses.

/// Why a text is not one CSV record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CsvError {
    /// A quote inside an unquoted field.
    #[error("bare \" in non-quoted field; wrap the whole field in double quotes")]
    BareQuote,
    /// No closing quote.
    #[error("missing closing \"")]
    Unclosed,
    /// Text between a closing quote and the next comma.
    #[error("extraneous text after a closing \"")]
    AfterQuote,
    /// A line break outside quotes would begin a second record.
    #[error("line break outside of quotes")]
    LineBreak,
}

/// Splits one record into its fields. An empty text is a record of no field.
pub fn parse_record(text: &str) -> Result<Vec<String>, CsvError> {
    let mut fields = Vec::new();
    if text.is_empty() {
        return Ok(fields);
    }
    let mut rest = text;
    loop {
        let (field, after) = match rest.strip_prefix('"') {
            Some(quoted) => quoted_field(quoted)?,
            None => {
                let end = rest.find(',').unwrap_or(rest.len());
                let field = &rest[..end];
                if field.contains('"') {
                    return Err(CsvError::BareQuote);
                }
                if field.contains(['\n', '\r']) {
                    return Err(CsvError::LineBreak);
                }
                (field.to_owned(), &rest[end..])
            }
        };
        fields.push(field);
        match after.strip_prefix(',') {
            Some(next) => rest = next,
            None if after.is_empty() => return Ok(fields),
            None => return Err(CsvError::AfterQuote),
        }
    }
}

/// The field after an opening quote, and what follows its closing quote.
fn quoted_field(mut rest: &str) -> Result<(String, &str), CsvError> {
    let mut field = String::new();
    loop {
        let end = rest.find('"').ok_or(CsvError::Unclosed)?;
        field.push_str(&rest[..end]);
        rest = &rest[end + 1..];
        match rest.strip_prefix('"') {
            Some(more) => {
                field.push('"');
                rest = more;
            }
            None => return Ok((field, rest)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{CsvError, parse_record};

    #[track_caller]
    fn check(text: &str, expected: &[&str]) {
        assert_eq!(parse_record(text).unwrap(), expected, "{text}");
    }

    #[test]
    fn fields_split_at_commas_and_keep_empty_ones() {
        check("", &[]);
        check("a", &["a"]);
        check("type=oci,dest=x y.tar", &["type=oci", "dest=x y.tar"]);
        check("a,,b,", &["a", "", "b", ""]);
        check(",", &["", ""]);
    }

    #[test]
    fn quotes_protect_commas_and_double_to_one() {
        check(r#"type=image,"name=a,b",push=true"#, &["type=image", "name=a,b", "push=true"]);
        check(r#""say ""hi""""#, &[r#"say "hi""#]);
        check("\"\"", &[""]);
        check("\"a\nb\",c", &["a\nb", "c"]);
    }

    #[test]
    fn malformed_records_say_what_is_wrong() {
        assert_eq!(parse_record(r#"name="a,b""#), Err(CsvError::BareQuote));
        assert_eq!(parse_record(r#""a"#), Err(CsvError::Unclosed));
        assert_eq!(parse_record(r#""a"b"#), Err(CsvError::AfterQuote));
        assert_eq!(parse_record("a\nb"), Err(CsvError::LineBreak));
    }
}
