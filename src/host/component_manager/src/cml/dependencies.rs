//! No component may wait for itself: strong dependencies between a component and its children must not form a circle, because they
//! decide the order in which things stop.

use super::compile::{At, Compiler};
use crate::decl::{OfferTarget, RunnerRegistration, Source};
use crate::name::Name;
use std::collections::{BTreeMap, BTreeSet};

/// Who waits for whom. `from` depends on `to`.
#[derive(Debug, Default)]
pub(super) struct Dependencies(BTreeMap<Node, BTreeSet<Node>>);

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Node {
    Itself,
    Child(String),
    Environment(String),
}

impl std::fmt::Display for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Itself => f.write_str("self"),
            Self::Child(name) => write!(f, "#{name}"),
            Self::Environment(name) => write!(f, "environment {name}"),
        }
    }
}

fn node(source: &Source) -> Option<Node> {
    match source {
        Source::Itself => Some(Node::Itself),
        Source::Child(child) => Some(Node::Child(child.name.to_string())),
        Source::Collection(name) => Some(Node::Child(name.to_string())),
        _ => None,
    }
}

impl Dependencies {
    fn add(&mut self, from: Node, to: Node) {
        self.0.entry(from).or_default().insert(to);
    }

    /// A circle, first and last node the same.
    fn circle(&self) -> Option<Vec<Node>> {
        let mut done = BTreeSet::new();
        self.0.keys().find_map(|start| self.walk(start, &mut Vec::new(), &mut done))
    }

    fn walk(
        &self,
        at: &Node,
        path: &mut Vec<Node>,
        done: &mut BTreeSet<Node>,
    ) -> Option<Vec<Node>> {
        if let Some(start) = path.iter().position(|seen| seen == at) {
            let mut circle: Vec<_> = path.get(start..)?.to_vec();
            circle.push(at.clone());
            return Some(circle);
        }
        if done.contains(at) {
            return None;
        }
        path.push(at.clone());
        let found =
            self.0.get(at).into_iter().flatten().find_map(|next| self.walk(next, path, done));
        path.pop();
        done.insert(at.clone());
        found
    }
}

/// The component uses something of `source`.
pub(super) fn note_use(compiler: &mut Compiler, source: &Source) {
    // What a component uses of itself makes nothing wait.
    if let Some(to) = node(source).filter(|to| *to != Node::Itself) {
        compiler.dependencies.add(Node::Itself, to);
    }
}

/// `target` gets something of `source`.
pub(super) fn note_offer(compiler: &mut Compiler, source: &Source, target: &OfferTarget) {
    let (OfferTarget::Child(name) | OfferTarget::Collection(name)) = target else { return };
    if let Some(to) = node(source) {
        compiler.dependencies.add(Node::Child(name.to_string()), to);
    }
}

/// Children in the environment `name` are started by `runners`.
pub(super) fn note_environment(
    compiler: &mut Compiler,
    name: &Name,
    runners: &[RunnerRegistration],
) {
    for runner in runners {
        if let Some(to) = node(&runner.source) {
            compiler.dependencies.add(Node::Environment(name.to_string()), to);
        }
    }
}

/// Reports a circle of strong dependencies.
pub(super) fn check(compiler: &mut Compiler, at: &At<'_>) {
    let children = compiler.decl.children.iter().map(|child| (&child.name, &child.environment));
    let collections = compiler
        .decl
        .collections
        .iter()
        .map(|collection| (&collection.name, &collection.environment));
    let in_environments: Vec<_> = children
        .chain(collections)
        .filter_map(|(name, environment)| {
            Some((name.to_string(), environment.as_ref()?.to_string()))
        })
        .collect();
    for (name, environment) in in_environments {
        compiler.dependencies.add(Node::Child(name), Node::Environment(environment));
    }
    if let Some(circle) = compiler.dependencies.circle() {
        let names: Vec<_> = circle.iter().map(ToString::to_string).collect();
        compiler.problem(
            at,
            format!("These depend on each other in a circle: {}", names.join(" -> ")),
            "Mark one of the uses or offers with dependency: \"weak\"",
        );
    }
}
