//! Checks that need the whole program: values that would contain themselves, handles in value
//! types, and types that are too large.

use crate::diagnostic::Diagnostics;
use crate::ir::{DeclId, DeclarationKind, Program, Type};
use crate::layout::Layouts;
use crate::source::Span;
use std::collections::HashMap;

/// Structs and unions inside each other deeper than this are refused.
const MAX_INCLUSION: usize = 128;

/// The largest inline size of a type; a message is 64 KiB.
const MAX_INLINE_SIZE: u64 = 65535;

/// Checks a program whose types are all resolved.
pub(crate) fn check(program: &Program, diagnostics: &mut Diagnostics) {
    check_inclusion(program, diagnostics);
    if !diagnostics.is_empty() {
        // Sizes are not defined then.
        return;
    }
    let layouts = Layouts::new(program);
    for library in &program.libraries {
        for declaration in &library.declarations {
            check_resources(program, declaration, diagnostics);
            check_size(&layouts, declaration, diagnostics);
        }
    }
}

/// The types a value of `id` always contains, with the place that says so. What is behind a box, an
/// optional, a vector or a table may be absent or empty, and ends a chain.
fn included(program: &Program, id: DeclId) -> Vec<(DeclId, Span)> {
    fn add(ty: &Type, span: Span, out: &mut Vec<(DeclId, Span)>) {
        match ty {
            Type::Declared { id, optional: false } => out.push((*id, span)),
            Type::Array { element, .. } => add(element, span, out),
            _ => {}
        }
    }
    let mut out = Vec::new();
    match &program.declaration(id).kind {
        DeclarationKind::Struct(s) => {
            for member in &s.members {
                add(&member.ty, member.span, &mut out);
            }
        }
        DeclarationKind::Union(u) => {
            for member in &u.members {
                add(&member.ty, member.span, &mut out);
            }
        }
        _ => {}
    }
    out
}

fn check_inclusion(program: &Program, diagnostics: &mut Diagnostics) {
    /// Whether a declaration is on the path that is being walked, or done.
    #[derive(PartialEq)]
    enum State {
        OnPath,
        Done,
    }
    let mut states: HashMap<DeclId, State> = HashMap::new();
    for (library, declarations) in program.libraries.iter().enumerate() {
        for index in 0..declarations.declarations.len() {
            let start = DeclId { library, index };
            if states.contains_key(&start) {
                continue;
            }
            states.insert(start, State::OnPath);
            let mut path = vec![(start, included(program, start).into_iter())];
            while let Some((at, rest)) = path.last_mut() {
                let Some((next, span)) = rest.next() else {
                    states.insert(*at, State::Done);
                    path.pop();
                    continue;
                };
                match states.get(&next) {
                    Some(State::Done) => {}
                    Some(State::OnPath) => {
                        let name = &program.declaration(next).name;
                        diagnostics.error(
                            span,
                            format!("`{name}` contains itself; put a `box`, an `:optional` or a vector in between"),
                        );
                    }
                    None if path.len() >= MAX_INCLUSION => {
                        diagnostics.error(
                            span,
                            format!("more than {MAX_INCLUSION} types inside each other"),
                        );
                    }
                    None => {
                        states.insert(next, State::OnPath);
                        path.push((next, included(program, next).into_iter()));
                    }
                }
            }
        }
    }
}

fn check_resources(
    program: &Program,
    declaration: &crate::ir::Declaration,
    diagnostics: &mut Diagnostics,
) {
    let members: Vec<(&str, Span, &Type)> = match &declaration.kind {
        DeclarationKind::Struct(s) if !s.resource => {
            s.members.iter().map(|m| (m.name.as_str(), m.span, &m.ty)).collect()
        }
        DeclarationKind::Table(t) if !t.resource => {
            t.members.iter().map(|m| (m.name.as_str(), m.span, &m.ty)).collect()
        }
        DeclarationKind::Union(u) if !u.resource => {
            u.members.iter().map(|m| (m.name.as_str(), m.span, &m.ty)).collect()
        }
        _ => return,
    };
    for (member, span, ty) in members {
        if program.is_resource(ty) {
            diagnostics.error_with_note(
                span,
                format!(
                    "`{}` may hold handles because of its member `{member}`, so it must be a `resource` type",
                    declaration.name
                ),
                declaration.span,
                "declared here",
            );
        }
    }
}

fn check_size(
    layouts: &Layouts<'_>,
    declaration: &crate::ir::Declaration,
    diagnostics: &mut Diagnostics,
) {
    let mut check = |ty: &Type, span: Span| {
        let size = layouts.inline(ty).size;
        if size > MAX_INLINE_SIZE {
            diagnostics.error(
                span,
                format!("{size} bytes are more than the {MAX_INLINE_SIZE} a message can hold"),
            );
        }
    };
    match &declaration.kind {
        DeclarationKind::Struct(s) => {
            for member in &s.members {
                check(&member.ty, member.span);
            }
            let size = layouts.fields(s).size;
            if size > MAX_INLINE_SIZE {
                diagnostics.error(
                    declaration.span,
                    format!("{size} bytes are more than the {MAX_INLINE_SIZE} a message can hold"),
                );
            }
        }
        DeclarationKind::Table(t) => t.members.iter().for_each(|m| check(&m.ty, m.span)),
        DeclarationKind::Union(u) => u.members.iter().for_each(|m| check(&m.ty, m.span)),
        _ => {}
    }
}
