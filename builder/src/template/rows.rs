//! `--format` of commands that list: a table, JSON lines, or one line per row.

use serde_json::{Map, Value};
use unicode_width::UnicodeWidthStr;

use super::{Shape, Template, TemplateError};

/// Least width of a column, and blanks after its longest cell: the docker CLI's.
const COLUMN_WIDTH_MIN: usize = 10;
const PADDING: usize = 3;

/// A field of the rows and its heading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Column {
    /// Name in templates.
    pub field: &'static str,
    /// Heading in tables.
    pub heading: &'static str,
}

/// How rows are printed.
#[derive(Debug, Clone)]
pub enum Format {
    /// With a header, columns aligned.
    Table(Template),
    /// One JSON object a line.
    Json,
    /// One line per row.
    Lines(Template),
}

impl Format {
    /// Parses the argument of `--format`; `table` alone (or nothing) is the default table.
    pub fn parse(text: &str, table: &str) -> Result<Self, TemplateError> {
        match text {
            "" | "table" => Ok(Self::Table(Template::parse_row(table)?)),
            "json" => Ok(Self::Json),
            _ => match text.strip_prefix("table ") {
                Some(columns) => Ok(Self::Table(Template::parse_row(columns.trim_start())?)),
                None => Ok(Self::Lines(Template::parse_row(text)?)),
            },
        }
    }

    /// The whole text. `shape` is the struct of a row.
    pub fn render(
        &self,
        columns: &[Column],
        rows: &[Value],
        shape: &'static Shape,
    ) -> Result<String, TemplateError> {
        let mut text = String::new();
        match self {
            Self::Json => {
                for row in rows {
                    text.push_str(&row.to_string());
                    text.push('\n');
                }
            }
            Self::Lines(template) => {
                for row in rows {
                    text.push_str(&template.render(row, shape)?);
                    text.push('\n');
                }
            }
            Self::Table(template) => {
                let headings: Map<String, Value> =
                    columns.iter().map(|column| (column.field.to_owned(), column.heading.into())).collect();
                // Rows first: an unknown field is an error even when there is no row to ask.
                let mut lines = vec![template.render_header(&Value::Object(headings))?];
                for row in rows {
                    lines.push(template.render(row, shape)?);
                }
                return Ok(align(&lines.join("\n")));
            }
        }
        Ok(text)
    }
}

/// Aligns cells that end in a tab, as Go's `tabwriter` does: a cell has its width whatever follows, and what follows the
/// last tab of a line is no cell. A column is a run of lines that have it.
fn align(text: &str) -> String {
    let lines: Vec<Vec<&str>> = text.split('\n').map(|line| line.split('\t').collect()).collect();
    let mut widths: Vec<Vec<usize>> =
        lines.iter().map(|cells| vec![0; cells.len().saturating_sub(1)]).collect();
    let count = widths.iter().map(Vec::len).max().unwrap_or(0);
    for column in 0..count {
        let mut at = 0;
        while at < lines.len() {
            let run = widths[at..].iter().take_while(|widths| widths.len() > column).count();
            let widest = lines[at..at + run].iter().map(|cells| cells[column].width()).max().unwrap_or(0);
            for width in &mut widths[at..at + run] {
                width[column] = (widest + PADDING).max(COLUMN_WIDTH_MIN);
            }
            at += run.max(1);
        }
    }
    let mut out = String::new();
    for (cells, widths) in lines.iter().zip(&widths) {
        for (at, cell) in cells.iter().enumerate() {
            out.push_str(cell);
            if let Some(width) = widths.get(at) {
                out.extend(std::iter::repeat_n(' ', width.saturating_sub(cell.width())));
            }
        }
        out.push('\n');
    }
    out
}
