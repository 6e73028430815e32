//! Pieces to nodes.

use super::functions::Function;
use super::lex::{Piece, Spanned, Token, lex};
use super::limits::DEPTH_MAX;
use super::{Place, SyntaxProblem, TemplateError};

#[derive(Debug, Clone)]
pub(super) enum Node {
    Text(String),
    /// Prints, unless it sets a variable.
    Pipeline(Pipeline),
    If(Branch),
    With(Branch),
    Range(Branch),
    Break,
    Continue,
}

/// A condition or a list, and what follows from it.
#[derive(Debug, Clone)]
pub(super) struct Branch {
    pub(super) pipeline: Pipeline,
    pub(super) then: Vec<Node>,
    pub(super) otherwise: Vec<Node>,
}

#[derive(Debug, Clone)]
pub(super) struct Pipeline {
    pub(super) at: Place,
    /// Names without `$`.
    pub(super) variables: Vec<String>,
    /// True for `=`: the variables are there already.
    pub(super) assigns: bool,
    /// Never empty.
    pub(super) commands: Vec<Command>,
}

/// A value or a call: what is called, then its arguments.
#[derive(Debug, Clone)]
pub(super) struct Command {
    /// Never empty.
    pub(super) operands: Vec<Operand>,
}

#[derive(Debug, Clone)]
pub(super) struct Operand {
    pub(super) at: Place,
    pub(super) base: Base,
    /// `.A.B` behind it.
    pub(super) fields: Vec<String>,
}

#[derive(Debug, Clone)]
pub(super) enum Base {
    Dot,
    Variable(String),
    Text(String),
    Integer(i64),
    Float(f64),
    Bool(bool),
    Nil,
    Function(Function),
    Group(Box<Pipeline>),
}

/// What ended a list of nodes.
enum Stop {
    Template,
    End,
    /// `else` with what stands behind it.
    Else(Tokens),
}

pub(super) fn parse(text: &str, plain_text: fn(&str) -> String) -> Result<Vec<Node>, TemplateError> {
    let pieces = lex(text, plain_text)?;
    let mut parser = Parser { pieces: pieces.into_iter(), variables: Vec::new(), depth: 0, loops: 0 };
    let (nodes, end) = parser.nodes()?;
    match end {
        (Stop::Template, _) => Ok(nodes),
        (Stop::End, at) => wrong(at, unexpected("{{end}}")),
        (Stop::Else(_), at) => wrong(at, unexpected("{{else}}")),
    }
}

struct Parser {
    pieces: std::vec::IntoIter<Piece>,
    /// In scope, innermost last.
    variables: Vec<String>,
    depth: usize,
    /// Enclosing ranges.
    loops: usize,
}

/// The tokens of one action that are still to come.
struct Tokens {
    tokens: Vec<Spanned>,
    next: usize,
    end: Place,
}

impl Tokens {
    fn peek(&self) -> Option<&Spanned> {
        self.tokens.get(self.next)
    }

    fn next(&mut self) -> Option<Spanned> {
        let found = self.peek().cloned();
        self.next += usize::from(found.is_some());
        found
    }

    fn at(&self) -> Place {
        self.peek().map_or(self.end, |spanned| spanned.at)
    }

    fn word(&self) -> Option<&str> {
        match self.peek() {
            Some(Spanned { token: Token::Word(word), .. }) => Some(word),
            _ => None,
        }
    }

    fn finish(mut self) -> Result<(), TemplateError> {
        match self.next() {
            Some(found) => wrong(found.at, unexpected(&found.token.describe())),
            None => Ok(()),
        }
    }
}

fn wrong<T>(at: Place, problem: SyntaxProblem) -> Result<T, TemplateError> {
    Err(TemplateError::Syntax { at, problem })
}

fn unexpected(found: &str) -> SyntaxProblem {
    SyntaxProblem::Unexpected { found: found.to_owned(), expected: None }
}

impl Parser {
    /// Nodes up to an `end`, an `else` or the template's end.
    fn nodes(&mut self) -> Result<(Vec<Node>, (Stop, Place)), TemplateError> {
        let mut nodes = Vec::new();
        let mut last = Place { line: 1, column: 1 };
        while let Some(piece) = self.pieces.next() {
            let (tokens, end) = match piece {
                Piece::Text(text) => {
                    nodes.push(Node::Text(text));
                    continue;
                }
                Piece::Action(tokens, end) => (tokens, end),
            };
            last = end;
            let mut tokens = Tokens { tokens, next: 0, end };
            let at = tokens.at();
            let word = tokens.word().map(str::to_owned);
            let node = match word.as_deref() {
                Some("end") => {
                    tokens.next();
                    tokens.finish()?;
                    return Ok((nodes, (Stop::End, at)));
                }
                Some("else") => {
                    tokens.next();
                    return Ok((nodes, (Stop::Else(tokens), at)));
                }
                Some("if") => Node::If(self.block("if", tokens)?),
                Some("with") => Node::With(self.block("with", tokens)?),
                Some("range") => Node::Range(self.block("range", tokens)?),
                Some(word @ ("break" | "continue")) => {
                    tokens.next();
                    tokens.finish()?;
                    if self.loops == 0 {
                        return wrong(at, unexpected(&format!("{{{{{word}}}}} outside {{{{range}}}}")));
                    }
                    if word == "break" { Node::Break } else { Node::Continue }
                }
                Some("define") => return wrong(at, SyntaxProblem::Keyword("define")),
                Some("template") => return wrong(at, SyntaxProblem::Keyword("template")),
                Some("block") => return wrong(at, SyntaxProblem::Keyword("block")),
                _ => {
                    let pipeline = self.pipeline(&mut tokens, "command", 1)?;
                    tokens.finish()?;
                    Node::Pipeline(pipeline)
                }
            };
            nodes.push(node);
        }
        Ok((nodes, (Stop::Template, last)))
    }

    /// A block from its keyword on, with its branches, through its `end`.
    fn block(&mut self, keyword: &'static str, mut tokens: Tokens) -> Result<Branch, TemplateError> {
        let at = tokens.at();
        tokens.next();
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return wrong(at, SyntaxProblem::TooDeep);
        }
        let scope = self.variables.len();
        let pipeline = self.pipeline(&mut tokens, keyword, if keyword == "range" { 2 } else { 1 })?;
        tokens.finish()?;
        self.loops += usize::from(keyword == "range");
        let (then, end) = self.nodes()?;
        self.loops -= usize::from(keyword == "range");
        let otherwise = match end {
            (Stop::Template, _) => return wrong(at, SyntaxProblem::Unclosed(keyword)),
            (Stop::End, _) => Vec::new(),
            (Stop::Else(tokens), _) => self.otherwise(keyword, tokens, at)?,
        };
        self.variables.truncate(scope);
        self.depth -= 1;
        Ok(Branch { pipeline, then, otherwise })
    }

    fn otherwise(
        &mut self,
        keyword: &'static str,
        tokens: Tokens,
        at: Place,
    ) -> Result<Vec<Node>, TemplateError> {
        // `else if` shares the `end` of the `if` it belongs to.
        match (keyword, tokens.word()) {
            ("if", Some("if")) => return Ok(vec![Node::If(self.block("if", tokens)?)]),
            ("with", Some("with")) => return Ok(vec![Node::With(self.block("with", tokens)?)]),
            _ => tokens.finish()?,
        }
        match self.nodes()? {
            (nodes, (Stop::End, _)) => Ok(nodes),
            (_, (Stop::Else(_), at)) => wrong(at, unexpected("a second {{else}}")),
            (_, (Stop::Template, _)) => wrong(at, SyntaxProblem::Unclosed(keyword)),
        }
    }

    fn pipeline(
        &mut self,
        tokens: &mut Tokens,
        context: &'static str,
        variables_max: usize,
    ) -> Result<Pipeline, TemplateError> {
        let at = tokens.at();
        let (variables, assigns) = declared(tokens, variables_max)?;
        let mut commands = vec![self.command(tokens, context)?];
        while matches!(tokens.peek(), Some(Spanned { token: Token::Pipe, .. })) {
            tokens.next();
            let at = tokens.at();
            let command = self.command(tokens, "pipeline")?;
            // A pipeline hands its value to a call: there must be one.
            if !matches!(command.operands.first(), Some(Operand { base: Base::Function(_), .. })) {
                return wrong(at, SyntaxProblem::Missing("a function after `|`"));
            }
            commands.push(command);
        }
        if assigns {
            for name in &variables {
                self.check(name, at)?;
            }
        } else {
            self.variables.extend(variables.iter().cloned());
        }
        Ok(Pipeline { at, variables, assigns, commands })
    }

    fn check(&self, name: &str, at: Place) -> Result<(), TemplateError> {
        if name.is_empty() || self.variables.iter().any(|known| known == name) {
            Ok(())
        } else {
            wrong(at, SyntaxProblem::Variable(name.to_owned()))
        }
    }

    fn command(&mut self, tokens: &mut Tokens, context: &'static str) -> Result<Command, TemplateError> {
        let mut operands = Vec::new();
        loop {
            let end = match tokens.peek() {
                None => true,
                Some(spanned) => matches!(spanned.token, Token::Pipe | Token::Close),
            };
            if end {
                break;
            }
            operands.push(self.operand(tokens)?);
        }
        if operands.is_empty() {
            return wrong(tokens.at(), SyntaxProblem::Missing(context));
        }
        Ok(Command { operands })
    }

    fn operand(&mut self, tokens: &mut Tokens) -> Result<Operand, TemplateError> {
        let Some(Spanned { token, at, .. }) = tokens.next() else {
            return wrong(tokens.end, SyntaxProblem::Missing("command"));
        };
        let mut fields = Vec::new();
        let base = match token {
            Token::Dot => Base::Dot,
            Token::Field(name) => {
                fields.push(name);
                Base::Dot
            }
            Token::Variable(name) => {
                self.check(&name, at)?;
                Base::Variable(name)
            }
            Token::Text(text) => Base::Text(text),
            Token::Integer(number) => Base::Integer(number),
            Token::Float(number) => Base::Float(number),
            Token::Word(word) => match word.as_str() {
                "true" => Base::Bool(true),
                "false" => Base::Bool(false),
                "nil" => Base::Nil,
                name => match Function::named(name) {
                    Some(function) => Base::Function(function),
                    None => return wrong(at, SyntaxProblem::Function(name.to_owned())),
                },
            },
            Token::Open => {
                self.depth += 1;
                if self.depth > DEPTH_MAX {
                    return wrong(at, SyntaxProblem::TooDeep);
                }
                let pipeline = self.pipeline(tokens, "parenthesized pipeline", 0)?;
                self.depth -= 1;
                match tokens.next() {
                    Some(Spanned { token: Token::Close, .. }) => {}
                    Some(found) => {
                        let (found, at) = (found.token.describe(), found.at);
                        return wrong(at, SyntaxProblem::Unexpected { found, expected: Some("`)`") });
                    }
                    None => {
                        let found = "the end of the action".to_owned();
                        return wrong(tokens.end, SyntaxProblem::Unexpected { found, expected: Some("`)`") });
                    }
                }
                Base::Group(Box::new(pipeline))
            }
            other => return wrong(at, unexpected(&other.describe())),
        };
        while let Some(Spanned { token: Token::Field(name), joined: true, .. }) = tokens.peek() {
            fields.push(name.clone());
            tokens.next();
        }
        let takes_fields = matches!(base, Base::Dot | Base::Variable(_) | Base::Group(_));
        if !takes_fields && let Some(name) = fields.first() {
            return wrong(at, unexpected(&format!("`.{name}` behind a constant or function")));
        }
        Ok(Operand { at, base, fields })
    }
}

/// `$x :=`, `$x =`, `$i, $x :=`; nothing is taken when there is none.
fn declared(tokens: &mut Tokens, max: usize) -> Result<(Vec<String>, bool), TemplateError> {
    let mut ahead = tokens.tokens[tokens.next..].iter();
    let mut names = Vec::new();
    while let Some(Spanned { token: Token::Variable(name), .. }) = ahead.next() {
        names.push(name.clone());
        match ahead.next() {
            Some(Spanned { token: Token::Comma, .. }) => {}
            Some(Spanned { token: token @ (Token::Declare | Token::Assign), at, .. }) => {
                if names.len() > max {
                    return wrong(*at, unexpected("so many variables"));
                }
                if names.iter().any(String::is_empty) {
                    return wrong(*at, unexpected("`$` on the left"));
                }
                let assigns = *token == Token::Assign;
                tokens.next = tokens.tokens.len() - ahead.len();
                return Ok((names, assigns));
            }
            _ => break,
        }
    }
    Ok((Vec::new(), false))
}
