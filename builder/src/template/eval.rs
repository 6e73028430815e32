//! Nodes and data to text.

use std::borrow::Cow;

use serde_json::Value;

use super::functions::{self, Function};
use super::limits::{OUTPUT_BYTES_MAX, STEPS_MAX};
use super::parse::{Base, Branch, Command, Node, Operand, Pipeline};
use super::print::print;
use super::{DataProblem, Place, Shape, TemplateError};

/// A value on its way through a template.
#[derive(Debug, Clone)]
pub(super) struct Val<'a> {
    pub(super) data: Cow<'a, Value>,
    pub(super) shape: &'static Shape,
}

impl Val<'_> {
    pub(super) fn text(text: impl Into<String>) -> Self {
        Self { data: Cow::Owned(Value::String(text.into())), shape: &Shape::Text }
    }

    pub(super) fn bool(value: bool) -> Self {
        Self { data: Cow::Owned(Value::Bool(value)), shape: &Shape::Bool }
    }

    pub(super) fn integer(number: i64) -> Self {
        Self { data: Cow::Owned(number.into()), shape: &Shape::Number }
    }

    /// Go's truth: everything but zero, empty and nil.
    pub(super) fn is_true(&self) -> bool {
        match &*self.data {
            Value::Null => false,
            Value::Bool(value) => *value,
            Value::Number(number) => number.as_f64() != Some(0.0),
            Value::String(text) => !text.is_empty(),
            Value::Array(items) => !items.is_empty(),
            Value::Object(map) => matches!(self.shape, Shape::Struct(_)) || !map.is_empty(),
        }
    }

    /// The kind in words, for messages.
    pub(super) fn kind(&self) -> &'static str {
        match (&*self.data, self.shape) {
            (Value::Null, Shape::Any) => "nothing",
            (Value::Bool(_), _) | (Value::Null, Shape::Bool) => "a truth value",
            (Value::Number(_), _) | (Value::Null, Shape::Number | Shape::Duration) => "a number",
            (Value::String(_), _) | (Value::Null, Shape::Text) => "a string",
            (Value::Array(_), _) | (Value::Null, Shape::List(_)) => "a list",
            (Value::Object(_) | Value::Null, Shape::Struct(_)) => "an object",
            (Value::Object(_), _) | (Value::Null, Shape::Map(_)) => "a map",
        }
    }
}

/// What the data are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    Data,
    /// Headings of a table: functions that shape text hand it through.
    Header,
}

pub(super) fn render(
    nodes: &[Node],
    data: &Value,
    shape: &'static Shape,
    mode: Mode,
) -> Result<String, TemplateError> {
    let root = Val { data: Cow::Borrowed(data), shape };
    let mut eval = Eval { out: String::new(), variables: vec![("", root.clone())], steps: 0, mode };
    eval.nodes(nodes, &root)?;
    Ok(eval.out)
}

/// Whether the nodes after this one are evaluated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flow {
    On,
    Break,
    Continue,
}

struct Eval<'a> {
    out: String,
    /// In scope, innermost last. The first is `$`.
    variables: Vec<(&'a str, Val<'a>)>,
    steps: usize,
    mode: Mode,
}

fn problem<T>(at: Place, problem: DataProblem) -> Result<T, TemplateError> {
    Err(TemplateError::Data { at, problem })
}

impl<'a> Eval<'a> {
    fn step(&mut self, at: Place) -> Result<(), TemplateError> {
        self.steps += 1;
        if self.steps > STEPS_MAX { problem(at, DataProblem::TooManySteps) } else { Ok(()) }
    }

    fn nodes(&mut self, nodes: &'a [Node], dot: &Val<'a>) -> Result<Flow, TemplateError> {
        for node in nodes {
            let flow = match node {
                Node::Text(text) => {
                    self.write(text, Place { line: 1, column: 1 })?;
                    Flow::On
                }
                Node::Pipeline(pipeline) => {
                    let value = self.pipeline(pipeline, dot)?;
                    if pipeline.variables.is_empty() {
                        self.write(&print(&value), pipeline.at)?;
                    }
                    Flow::On
                }
                Node::If(branch) => self.branch(branch, dot, false)?,
                Node::With(branch) => self.branch(branch, dot, true)?,
                Node::Range(branch) => self.range(branch, dot)?,
                Node::Break => Flow::Break,
                Node::Continue => Flow::Continue,
            };
            if flow != Flow::On {
                return Ok(flow);
            }
        }
        Ok(Flow::On)
    }

    fn write(&mut self, text: &str, at: Place) -> Result<(), TemplateError> {
        self.step(at)?;
        if self.out.len() + text.len() > OUTPUT_BYTES_MAX {
            return problem(at, DataProblem::TooLong);
        }
        self.out.push_str(text);
        Ok(())
    }

    fn branch(&mut self, branch: &'a Branch, dot: &Val<'a>, is_with: bool) -> Result<Flow, TemplateError> {
        let scope = self.variables.len();
        let value = self.pipeline(&branch.pipeline, dot)?;
        let flow = match (value.is_true(), is_with) {
            (true, true) => self.nodes(&branch.then, &value)?,
            (true, false) => self.nodes(&branch.then, dot)?,
            (false, _) => self.nodes(&branch.otherwise, dot)?,
        };
        self.variables.truncate(scope);
        Ok(flow)
    }

    fn range(&mut self, branch: &'a Branch, dot: &Val<'a>) -> Result<Flow, TemplateError> {
        let scope = self.variables.len();
        let at = branch.pipeline.at;
        // The variables stand for the elements, not for the list.
        let over = self.commands(&branch.pipeline, dot)?;
        let element = over.shape.element();
        let mut entries: Vec<(Val<'a>, Val<'a>)> = Vec::new();
        let mut add = |key: Val<'a>, data: Cow<'a, Value>, shape| entries.push((key, Val { data, shape }));
        match over.data {
            Cow::Borrowed(Value::Array(items)) => items
                .iter()
                .enumerate()
                .for_each(|(i, item)| add(Val::integer(i as i64), Cow::Borrowed(item), element)),
            Cow::Owned(Value::Array(items)) => items
                .into_iter()
                .enumerate()
                .for_each(|(i, item)| add(Val::integer(i as i64), Cow::Owned(item), element)),
            Cow::Borrowed(Value::Object(map)) => {
                let mut sorted: Vec<_> = map.iter().collect();
                sorted.sort_by_key(|(key, _)| *key);
                for (key, item) in sorted {
                    add(Val::text(key), Cow::Borrowed(item), over.shape.field(key).unwrap_or(element));
                }
            }
            Cow::Owned(Value::Object(map)) => {
                let mut sorted: Vec<_> = map.into_iter().collect();
                sorted.sort_by(|a, b| a.0.cmp(&b.0));
                for (key, item) in sorted {
                    let shape = over.shape.field(&key).unwrap_or(element);
                    add(Val::text(key), Cow::Owned(item), shape);
                }
            }
            Cow::Borrowed(Value::Null) | Cow::Owned(Value::Null)
                if matches!(over.shape, Shape::Any | Shape::List(_) | Shape::Map(_)) => {}
            data => return problem(at, DataProblem::Range(Val { data, shape: over.shape }.kind())),
        }
        if entries.is_empty() {
            let flow = self.nodes(&branch.otherwise, dot)?;
            self.variables.truncate(scope);
            return Ok(flow);
        }
        for (key, item) in entries {
            self.step(at)?;
            match branch.pipeline.variables.as_slice() {
                [one] => self.set(one, item.clone(), branch.pipeline.assigns),
                [first, second] => {
                    self.set(first, key, branch.pipeline.assigns);
                    self.set(second, item.clone(), branch.pipeline.assigns);
                }
                _ => {}
            }
            let flow = self.nodes(&branch.then, &item)?;
            self.variables.truncate(scope);
            if flow == Flow::Break {
                break;
            }
        }
        Ok(Flow::On)
    }

    fn set(&mut self, name: &'a str, value: Val<'a>, assigns: bool) {
        let known = self.variables.iter_mut().rev().find(|(known, _)| assigns && *known == name);
        match known {
            Some((_, slot)) => *slot = value,
            None => self.variables.push((name, value)),
        }
    }

    fn pipeline(&mut self, pipeline: &'a Pipeline, dot: &Val<'a>) -> Result<Val<'a>, TemplateError> {
        let value = self.commands(pipeline, dot)?;
        if let [name] = pipeline.variables.as_slice() {
            self.set(name, value.clone(), pipeline.assigns);
        }
        Ok(value)
    }

    fn commands(&mut self, pipeline: &'a Pipeline, dot: &Val<'a>) -> Result<Val<'a>, TemplateError> {
        let mut value = None;
        for command in &pipeline.commands {
            value = Some(self.command(command, value, dot)?);
        }
        Ok(value.expect("the parser makes no empty pipeline"))
    }

    /// `piped` is the last argument.
    fn command(
        &mut self,
        command: &'a Command,
        piped: Option<Val<'a>>,
        dot: &Val<'a>,
    ) -> Result<Val<'a>, TemplateError> {
        let (first, rest) = command.operands.split_first().expect("the parser makes no empty command");
        self.step(first.at)?;
        if let Base::Function(function) = first.base {
            if let Function::And | Function::Or = function {
                return self.short_circuit(function, first, rest, piped, dot);
            }
            let mut arguments = Vec::with_capacity(rest.len() + 1);
            for operand in rest {
                arguments.push(self.operand(operand, dot)?);
            }
            arguments.extend(piped);
            return functions::call(function, arguments, self.mode)
                .map_err(|problem| TemplateError::Data { at: first.at, problem });
        }
        if !rest.is_empty() || piped.is_some() {
            let name = match (&first.base, first.fields.last()) {
                (_, Some(name)) => format!(".{name}"),
                (Base::Variable(name), None) => format!("${name}"),
                (Base::Dot, None) => "`.`".to_owned(),
                _ => "the value".to_owned(),
            };
            return problem(first.at, DataProblem::NotAFunction(name));
        }
        self.operand(first, dot)
    }

    /// `and` and `or` evaluate no more arguments than decide.
    fn short_circuit(
        &mut self,
        function: Function,
        first: &'a Operand,
        rest: &'a [Operand],
        piped: Option<Val<'a>>,
        dot: &Val<'a>,
    ) -> Result<Val<'a>, TemplateError> {
        let mut last = None;
        for operand in rest {
            let value = self.operand(operand, dot)?;
            if value.is_true() == (function == Function::Or) {
                return Ok(value);
            }
            last = Some(value);
        }
        match piped.or(last) {
            Some(value) => Ok(value),
            None => {
                let function = if function == Function::And { "and" } else { "or" };
                problem(first.at, DataProblem::ArgumentCount { function, want: "at least 1", got: 0 })
            }
        }
    }

    fn operand(&mut self, operand: &'a Operand, dot: &Val<'a>) -> Result<Val<'a>, TemplateError> {
        self.step(operand.at)?;
        let mut value = match &operand.base {
            Base::Dot => dot.clone(),
            Base::Variable(name) => {
                let known = self.variables.iter().rev().find(|(known, _)| known == name);
                known.expect("the parser checks that variables are declared").1.clone()
            }
            Base::Text(text) => Val::text(text),
            Base::Integer(number) => Val::integer(*number),
            Base::Float(number) => Val { data: Cow::Owned((*number).into()), shape: &Shape::Number },
            Base::Bool(value) => Val::bool(*value),
            Base::Nil => Val { data: Cow::Owned(Value::Null), shape: &Shape::Any },
            // A function without arguments, as an argument.
            Base::Function(function) => functions::call(*function, Vec::new(), self.mode)
                .map_err(|problem| TemplateError::Data { at: operand.at, problem })?,
            Base::Group(pipeline) => {
                let scope = self.variables.len();
                let value = self.pipeline(pipeline, dot)?;
                self.variables.truncate(scope);
                value
            }
        };
        for name in &operand.fields {
            value = field(value, name).or_else(|found| problem(operand.at, found))?;
        }
        Ok(value)
    }
}

fn field<'a>(value: Val<'a>, name: &str) -> Result<Val<'a>, DataProblem> {
    let absent = |shape| Ok(Val { data: Cow::Owned(Value::Null), shape });
    let (kind, shape) = (value.kind(), value.shape);
    let element = match shape {
        Shape::Struct(fields) => shape.field(name).ok_or_else(|| DataProblem::Field {
            name: name.to_owned(),
            known: fields.iter().map(|(known, _)| *known).collect(),
        })?,
        _ => shape.element(),
    };
    match value.data {
        Cow::Borrowed(Value::Object(map)) => match map.get(name) {
            Some(data) => Ok(Val { data: Cow::Borrowed(data), shape: element }),
            None => absent(if matches!(shape, Shape::Struct(_)) { element } else { &Shape::Any }),
        },
        Cow::Owned(Value::Object(mut map)) => match map.remove(name) {
            Some(data) => Ok(Val { data: Cow::Owned(data), shape: element }),
            None => absent(if matches!(shape, Shape::Struct(_)) { element } else { &Shape::Any }),
        },
        Cow::Borrowed(Value::Null) | Cow::Owned(Value::Null)
            if matches!(shape, Shape::Map(_) | Shape::Any) =>
        {
            absent(&Shape::Any)
        }
        Cow::Borrowed(Value::Null) | Cow::Owned(Value::Null) => Err(DataProblem::Nothing(name.to_owned())),
        _ => Err(DataProblem::NoFields { name: name.to_owned(), kind }),
    }
}
