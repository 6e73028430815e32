//! A graph for people and programs: text, DOT, JSON. The part that the target needs is marked.

use petgraph::graph::NodeIndex;
use petgraph::visit::{Dfs, Reversed};
use serde_json::{Value, json};

use super::{BuildGraph, Op, Role};

impl BuildGraph {
    /// Which nodes the targets need, by index.
    pub fn reached(&self) -> Vec<bool> {
        let mut reached = vec![false; self.dag.node_count()];
        for target in &self.targets {
            let mut walk = Dfs::new(Reversed(&self.dag), target.node);
            while let Some(node) = walk.next(Reversed(&self.dag)) {
                reached[node.index()] = true;
            }
        }
        reached
    }

    /// One line per node, inputs before what uses them: `*` when it is needed, number, name, inputs by role.
    pub fn to_text(&self) -> String {
        let reached = self.reached();
        let width = self.dag.node_count().saturating_sub(1).to_string().len();
        let mut text = String::new();
        for node in self.order() {
            let mark = if reached[node.index()] { '*' } else { ' ' };
            let inputs: Vec<String> = self
                .inputs(node)
                .into_iter()
                .map(|(input, from)| format!("{} {}", role(input.role), from.index()))
                .collect();
            let inputs =
                if inputs.is_empty() { String::new() } else { format!("  <- {}", inputs.join(", ")) };
            text.push_str(&format!(
                "{mark} {:>width$}  {}{inputs}\n",
                node.index(),
                one_line(self.name(node))
            ));
        }
        let reached = reached.iter().filter(|reached| **reached).count();
        for target in &self.targets {
            let platform = match self.targets.len() {
                1 => String::new(),
                _ => format!(" for {}", target.config.platform),
            };
            text.push_str(&format!(
                "target {}{platform} is node {}; {reached} of {} nodes are needed (*)\n",
                target.stage,
                target.node.index(),
                self.dag.node_count()
            ));
        }
        text
    }

    /// The graph in Graphviz's language; what is not needed is dashed, targets have a double frame.
    pub fn to_dot(&self) -> String {
        let reached = self.reached();
        let mut text = String::from("digraph build {\n  rankdir=LR;\n  node [shape=box];\n");
        for node in self.order() {
            let style = match (reached[node.index()], self.targets.iter().any(|t| t.node == node)) {
                (true, true) => ", peripheries=2",
                (true, false) => "",
                (false, _) => ", style=dashed",
            };
            let label = one_line(self.name(node)).replace('\\', "\\\\").replace('"', "\\\"");
            text.push_str(&format!("  n{} [label=\"{label}\"{style}];\n", node.index()));
        }
        for node in self.order() {
            for (input, from) in self.inputs(node) {
                let label = match input.role {
                    Role::Root => String::new(),
                    other => format!(" [label=\"{}\"]", role(other)),
                };
                text.push_str(&format!("  n{} -> n{}{label};\n", from.index(), node.index()));
            }
        }
        text.push_str("}\n");
        text
    }

    /// The graph as `{"targets": […], "nodes": […], "edges": […]}`.
    pub fn to_json(&self) -> Value {
        let reached = self.reached();
        let order = self.order();
        let nodes: Vec<Value> = order
            .iter()
            .map(|node| {
                let step = &self.dag[*node].step;
                json!({
                    "id": node.index(),
                    "kind": self.dag[*node].op.kind(),
                    "name": step.name,
                    "stage": step.stage,
                    "lines": step.lines.map(|lines| [lines.first, lines.last]),
                    "reached": reached[node.index()],
                })
            })
            .collect();
        let mut edges = Vec::new();
        for node in &order {
            for (input, from) in self.inputs(*node) {
                let role = role(input.role);
                edges.push(json!({ "from": from.index(), "to": node.index(), "role": role }));
            }
        }
        let targets: Vec<Value> = self
            .targets
            .iter()
            .map(|target| json!({ "stage": target.stage, "node": target.node.index() }))
            .collect();
        json!({ "targets": targets, "nodes": nodes, "edges": edges })
    }

    /// Nodes with inputs first, otherwise in the order of the file.
    fn order(&self) -> Vec<NodeIndex> {
        // Lowering adds a node after its inputs, so the order of making is topological.
        self.dag.node_indices().collect()
    }

    fn name(&self, node: NodeIndex) -> &str {
        match &self.dag[node].op {
            // Shown as what it is: a build never shows it as a step.
            Op::Scratch => "scratch",
            _ => &self.dag[node].step.name,
        }
    }
}

fn role(role: Role) -> String {
    match role {
        Role::Root => "root".to_owned(),
        Role::Source => "source".to_owned(),
        Role::Added => "added".to_owned(),
        Role::Mount(index) => format!("mount {index}"),
    }
}

/// Without line breaks and other control characters.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}
