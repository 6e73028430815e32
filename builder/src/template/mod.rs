//! `--format`: a subset of Go's `text/template`, as the docker CLI's users and scripts write it.
//!
//! ```text
//! text ──lex──▶ text and actions ──parse──▶ nodes ──eval(value, shape)──▶ text
//!                                              ▲
//!               rows: `table …`, `json`, or one line per row
//! ```
//!
//! Known: fields, variables, pipelines, parentheses, `if`/`else if`/`with`/`range` (with `break` and `continue`),
//! trimming (`{{-`, `-}}`), comments, and the functions of `functions`. Not known, and refused by name: `define`,
//! `template`, `block`.
//!
//! # Values
//!
//! Data are JSON values. JSON lacks what Go's types know: which fields exist at all, and how an absent one prints. A
//! [`Shape`] says it: an unknown field of a struct is an error that lists the known ones, an absent list prints `[]`.
//!
//! Where we differ from the docker CLI: in formats of rows, `\t` and `\n` become their characters outside of actions
//! only (there: in strings too, where a line end is an error), and errors name line and column.
//!
//! # Limits
//!
//! Length of the template, nesting, evaluation steps and length of any text made are bounded ([`limits`]); nothing a
//! template says makes rbuild panic.

mod eval;
mod functions;
mod lex;
pub mod limits;
mod parse;
mod print;
mod printf;
mod rows;
mod shape;

#[cfg(test)]
mod tests;

pub use rows::{Column, Format};
pub use shape::Shape;

use parse::Node;
use serde_json::Value;

/// A parsed template.
#[derive(Debug, Clone)]
pub struct Template {
    nodes: Vec<Node>,
}

/// Line and column in the template's text, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Line.
    pub line: usize,
    /// Characters from the start of the line.
    pub column: usize,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

/// Why a template gives no text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// It is not a template.
    #[error("template parsing error: {at}: {problem}")]
    Syntax {
        /// Where.
        at: Place,
        /// What is wrong.
        problem: SyntaxProblem,
    },
    /// It does not fit the data.
    #[error("template: {at}: {problem}")]
    Data {
        /// Where.
        at: Place,
        /// What is wrong.
        problem: DataProblem,
    },
}

/// What is wrong with a template's text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SyntaxProblem {
    /// Longer than allowed.
    #[error("the template has more than {} bytes", limits::TEMPLATE_BYTES_MAX)]
    TooLong,
    /// Nested deeper than allowed.
    #[error("more than {} levels of nesting", limits::DEPTH_MAX)]
    TooDeep,
    /// `{{` without `}}`.
    #[error("unclosed action")]
    UnclosedAction,
    /// `{{/*` without `*/}}`.
    #[error("unclosed comment")]
    UnclosedComment,
    /// A string without its closing quote.
    #[error("unterminated quoted string")]
    UnclosedString,
    /// An escape that Go does not have.
    #[error("invalid escape sequence in a string")]
    Escape,
    /// Not a number.
    #[error("bad number syntax: `{0}`")]
    Number(String),
    /// A character that starts nothing.
    #[error("unexpected `{0}` in command")]
    Character(char),
    /// Something in the wrong place.
    #[error("unexpected {found}{}", expected.map(|e| format!(", expected {e}")).unwrap_or_default())]
    Unexpected {
        /// What was found.
        found: String,
        /// What would be right.
        expected: Option<&'static str>,
    },
    /// `{{}}`, or nothing where a value must be.
    #[error("missing value for {0}")]
    Missing(&'static str),
    /// A function rbuild does not have.
    #[error("function \"{0}\" not defined")]
    Function(String),
    /// A variable nobody declared.
    #[error("undefined variable \"${0}\"")]
    Variable(String),
    /// A keyword of Go's templates that rbuild does not have.
    #[error("{{{{{0}}}}} is not supported")]
    Keyword(&'static str),
    /// `{{if}}`, `{{with}}` or `{{range}}` without `{{end}}`.
    #[error("unexpected end of the template: {0} has no {{{{end}}}}")]
    Unclosed(&'static str),
}

/// What does not fit between template and data.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DataProblem {
    /// No such field.
    #[error("there is no field .{name}{}", fields(known))]
    Field {
        /// As written.
        name: String,
        /// Those that exist.
        known: Vec<&'static str>,
    },
    /// A field of something without fields.
    #[error("can't evaluate field {name} in {kind}")]
    NoFields {
        /// The field.
        name: String,
        /// What it was asked of.
        kind: &'static str,
    },
    /// Something that takes no arguments got some.
    #[error("{0} is not a function but has arguments")]
    NotAFunction(String),
    /// Too few or too many.
    #[error("wrong number of arguments for {function}: want {want}, got {got}")]
    ArgumentCount {
        /// Its name.
        function: &'static str,
        /// How many it takes.
        want: &'static str,
        /// How many it got.
        got: usize,
    },
    /// An argument of the wrong kind.
    #[error("{function}: expected {want}, got {got}")]
    Argument {
        /// Its name.
        function: &'static str,
        /// What it takes.
        want: &'static str,
        /// What it got.
        got: &'static str,
    },
    /// Beyond the end of a list or text.
    #[error("index {index} is out of range: there are {count} elements")]
    OutOfRange {
        /// As asked.
        index: i64,
        /// How many there are.
        count: usize,
    },
    /// Things that cannot be compared.
    #[error("incompatible types for comparison: {0} and {1}")]
    Comparison(&'static str, &'static str),
    /// `range` over something else than a list or map.
    #[error("range can't iterate over {0}")]
    Range(&'static str),
    /// A field of a struct that is not there.
    #[error("there is nothing to take field .{0} of: guard it with {{{{with}}}}")]
    Nothing(String),
    /// A wider column than allowed.
    #[error("a width of more than {}", limits::WIDTH_MAX)]
    TooWide,
    /// More text than allowed.
    #[error("the result has more than {} bytes", limits::OUTPUT_BYTES_MAX)]
    TooLong,
    /// More work than allowed.
    #[error("the template takes more than {} steps", limits::STEPS_MAX)]
    TooManySteps,
}

fn fields(known: &[&str]) -> String {
    if known.is_empty() { String::new() } else { format!(" (known: .{})", known.join(" .")) }
}

impl Template {
    /// Parses a template.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        Ok(Self { nodes: parse::parse(text, str::to_owned)? })
    }

    /// Parses a template for rows: `\t` and `\n` in its text become a tab and a line end.
    fn parse_row(text: &str) -> Result<Self, TemplateError> {
        Ok(Self { nodes: parse::parse(text, |plain| plain.replace("\\t", "\t").replace("\\n", "\n"))? })
    }

    /// The text for one value of this shape.
    pub fn render(&self, data: &Value, shape: &'static Shape) -> Result<String, TemplateError> {
        eval::render(&self.nodes, data, shape, eval::Mode::Data)
    }

    /// The header of a table: fields stand for their headings, and functions that shape text leave it alone.
    fn render_header(&self, headings: &Value) -> Result<String, TemplateError> {
        eval::render(&self.nodes, headings, &Shape::Any, eval::Mode::Header)
    }
}

impl TemplateError {
    /// True when the template itself is wrong, whatever the data.
    pub fn is_syntax(&self) -> bool {
        matches!(self, Self::Syntax { .. })
    }
}
