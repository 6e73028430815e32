//! The live view on a terminal.
//!
//! [`super::layout`] decides what is shown; one indicatif bar, whose message is the whole live part, draws it: each
//! frame is one write, and finished steps are real lines above it. Nothing hides the cursor and nothing switches modes, so an abrupt end
//! leaves the terminal usable. Builds that end within [`QUIET_TIME`] never draw a live part.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::Consumer;
use super::event::BuildEvent;
use super::layout::{Board, Line, Tint};

/// Builds shorter than this only print their permanent lines.
const QUIET_TIME: Duration = Duration::from_millis(100);
const FRAME: Duration = Duration::from_millis(100);

/// Draws on standard error.
pub(crate) struct Tty {
    board: Board,
    next_frame: Instant,
    color: bool,
    bar: Option<ProgressBar>,
}

impl Tty {
    pub(crate) fn new(color: bool) -> Self {
        let now = Instant::now();
        Self { board: Board::default(), next_frame: now + QUIET_TIME, color, bar: None }
    }

    /// Columns and rows. One column stays free: some terminals wrap when the last one is used.
    fn size() -> (usize, usize) {
        let size = rustix::termios::tcgetwinsize(std::io::stderr()).ok();
        let (columns, rows) =
            size.map_or((80, 24), |size| (usize::from(size.ws_col), usize::from(size.ws_row)));
        let columns = if columns == 0 { 80 } else { columns };
        let rows = if rows == 0 { 24 } else { rows };
        (columns.saturating_sub(1).max(1), rows.saturating_sub(1).max(1))
    }

    fn draw(&mut self, now: Instant) {
        let (width, height) = Self::size();
        let bar = self.bar.get_or_insert_with(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(30));
            bar.set_style(ProgressStyle::with_template("{msg}").expect("the template is constant and valid"));
            bar
        });
        let permanent = tinted(&self.board.take_permanent(width), self.color);
        let live = tinted(&self.board.live(now, width, height), self.color);
        bar.set_message(live);
        if !permanent.is_empty() {
            // Not `println`: it pads instead of ending lines, which copies and reflows badly.
            bar.suspend(|| print_lines(&permanent));
        }
    }
}

fn print_lines(text: &str) {
    let mut output = super::Output::new(std::io::stderr());
    output.line(text);
    output.flush();
}

fn tinted(lines: &[Line], color: bool) -> String {
    let lines = lines.iter().map(|line| {
        let code = match line.tint {
            _ if !color => "",
            Tint::Plain => "",
            Tint::Dim => "2",
            Tint::Good => "34",
            Tint::Bad => "31",
            Tint::Warn => "33",
        };
        if code.is_empty() { line.text.clone() } else { format!("\u{1b}[{code}m{}\u{1b}[0m", line.text) }
    });
    lines.collect::<Vec<_>>().join("\n")
}

impl Consumer for Tty {
    fn event(&mut self, event: BuildEvent) {
        self.board.apply(event, Instant::now());
    }

    fn tick(&mut self, now: Instant) {
        if now >= self.next_frame {
            self.next_frame = now + FRAME;
            self.draw(now);
        }
    }

    fn tick_every(&self) -> Option<Duration> {
        Some(FRAME / 2)
    }

    fn finish(&mut self, now: Instant) {
        self.board.close(now);
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        let (width, _) = Self::size();
        let mut lines = self.board.take_permanent(width);
        lines.push(Line { text: self.board.header(now, true, width), tint: Tint::Plain });
        print_lines(&tinted(&lines, self.color));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_are_added_around_whole_lines_or_not_at_all() {
        let line = |text: &str, tint| Line { text: text.to_owned(), tint };
        let lines = [line(" => ERROR x", Tint::Bad), line("[+]", Tint::Plain)];
        assert_eq!(tinted(&lines, false), " => ERROR x\n[+]");
        assert_eq!(tinted(&lines, true), "\u{1b}[31m => ERROR x\u{1b}[0m\n[+]");
    }
}
