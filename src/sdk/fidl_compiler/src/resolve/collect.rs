//! The first pass: which libraries there are, in which order, and what each declares.

use super::{Import, Raw, RawKind, RawLibrary, Resolver};
use crate::ast::{self, LayoutReference, MemberKind, TypeParameter};
use crate::availability;
use crate::ir::DeclId;
use crate::names::{lower_snake_case, upper_camel_case};
use crate::source::{FileId, Span};
use std::collections::HashMap;
use std::collections::hash_map::Entry;

impl<'a> Resolver<'a, '_> {
    pub(super) fn collect(&mut self, files: &'a [ast::File]) {
        let order = self.library_order(files);
        let index: HashMap<String, usize> =
            order.iter().enumerate().map(|(i, name)| (name.clone(), i)).collect();
        for name in order {
            self.libraries.push(RawLibrary {
                name,
                doc: Vec::new(),
                declarations: Vec::new(),
                by_name: HashMap::new(),
            });
        }
        for file in files {
            let Some(library) = index.get(&file.library.text()).copied() else { continue };
            self.check_library_name(&file.library);
            self.check_attributes(&file.attributes, super::attributes::Place::Library);
            self.libraries[library].doc.extend(file.attributes.doc.iter().cloned());
            self.imports_of(file, library, &index);
            for declaration in &file.declarations {
                availability::check(&declaration.attributes, self.diagnostics);
                if availability::exists_at_head(&declaration.attributes) {
                    self.collect_declaration(library, file.id, declaration);
                }
            }
        }
    }

    fn check_library_name(&mut self, name: &ast::CompoundIdentifier) {
        for part in &name.parts {
            if !part.text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit()) {
                self.diagnostics.error(
                    part.span,
                    format!(
                        "`{}` is not a part of a library name: lower case letters and digits only",
                        part.text
                    ),
                );
            }
        }
    }

    /// The libraries' names, each after those it uses. Reports unknown libraries and cycles.
    fn library_order(&mut self, files: &[ast::File]) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        let mut uses: HashMap<String, Vec<(String, Span)>> = HashMap::new();
        for file in files {
            let name = file.library.text();
            if !uses.contains_key(&name) {
                names.push(name.clone());
            }
            let used = file.usings.iter().map(|using| (using.library.text(), using.library.span));
            uses.entry(name).or_default().extend(used);
        }
        // Depth first without recursion: a stack of libraries and how many of their uses are done.
        let mut order: Vec<String> = Vec::new();
        let mut done: HashMap<String, bool> = HashMap::new();
        for start in names {
            let mut stack = vec![(start, 0usize)];
            while let Some((name, next)) = stack.last_mut() {
                if *next == 0 {
                    match done.get(name) {
                        Some(true) => {
                            stack.pop();
                            continue;
                        }
                        _ => {
                            done.insert(name.clone(), false);
                        }
                    }
                }
                let Some((used, span)) = uses.get(name).and_then(|used| used.get(*next)) else {
                    done.insert(name.clone(), true);
                    order.push(name.clone());
                    stack.pop();
                    continue;
                };
                *next += 1;
                if !uses.contains_key(used) {
                    self.diagnostics.error(*span, format!("library `{used}` was not found"));
                } else {
                    match done.get(used) {
                        None => stack.push((used.clone(), 0)),
                        Some(true) => {}
                        Some(false) if used == name => {
                            self.diagnostics.error(*span, "a library cannot import itself");
                        }
                        Some(false) => {
                            self.diagnostics.error(
                                *span,
                                format!(
                                    "libraries import each other in a cycle: `{name}` and `{used}`"
                                ),
                            );
                        }
                    }
                }
            }
        }
        order
    }

    fn imports_of(&mut self, file: &ast::File, library: usize, index: &HashMap<String, usize>) {
        let imports = self.imports.entry(file.id).or_default();
        for using in &file.usings {
            let Some(used) = index.get(&using.library.text()).copied() else { continue };
            if used == library {
                continue;
            }
            let name =
                using.alias.as_ref().map_or_else(|| using.library.text(), |a| a.text.clone());
            let span = using.library.span;
            if let Some(first) = imports.iter().find(|i| i.library == used || i.name == name) {
                self.diagnostics.error_with_note(
                    span,
                    format!(
                        "library `{}` is imported twice, or under a name in use",
                        using.library.text()
                    ),
                    first.span,
                    "first imported here",
                );
                continue;
            }
            imports.push(Import { name, library: used, span });
        }
    }

    fn collect_declaration(
        &mut self,
        library: usize,
        file: FileId,
        declared: &'a ast::Declaration,
    ) {
        let name = &declared.name.text;
        let kind = match &declared.kind {
            ast::DeclarationKind::Const(ty, value) => RawKind::Const(ty, value),
            ast::DeclarationKind::Alias(ty) => RawKind::Alias(ty),
            ast::DeclarationKind::Type(layout) => RawKind::Layout(layout),
            ast::DeclarationKind::Protocol(protocol) => RawKind::Protocol(protocol),
            ast::DeclarationKind::Service(members) => RawKind::Service(members),
            ast::DeclarationKind::Resource(_, properties) => RawKind::Resource(properties),
        };
        self.declare(
            library,
            Raw {
                name: name.clone(),
                span: declared.name.span,
                file,
                attributes: &declared.attributes,
                kind,
                anonymous: false,
            },
        );
        match &declared.kind {
            ast::DeclarationKind::Type(layout) => self.collect_members(library, file, layout),
            ast::DeclarationKind::Protocol(protocol) => {
                self.collect_payloads(library, file, name, protocol);
            }
            ast::DeclarationKind::Alias(ty) => {
                if let LayoutReference::Inline(layout) = &ty.layout {
                    self.diagnostics.error(
                        layout.span,
                        "an alias names a type; declare a new layout with `type`",
                    );
                }
                self.collect_inline(library, file, ty, name);
            }
            _ => {}
        }
    }

    fn collect_payloads(
        &mut self,
        library: usize,
        file: FileId,
        protocol: &str,
        declared: &'a ast::ProtocolDeclaration,
    ) {
        for method in &declared.methods {
            if !availability::exists_at_head(&method.attributes) {
                continue;
            }
            let name = upper_camel_case(&method.name.text);
            let strict = !method.modifiers.iter().any(|m| m.word.text == "flexible")
                && method.modifiers.iter().any(|m| m.word.text == "strict");
            if let Some(request) = method.request.as_ref().and_then(|p| p.layout.as_ref()) {
                self.collect_inline(library, file, request, &format!("{protocol}{name}Request"));
            }
            if let Some(response) = method.response.as_ref().and_then(|p| p.layout.as_ref()) {
                let name = if method.request.is_none() {
                    format!("{protocol}{name}Request")
                } else if method.error.is_some() || !strict {
                    format!("{protocol}_{name}_Response")
                } else {
                    format!("{protocol}{name}Response")
                };
                self.collect_inline(library, file, response, &name);
            }
            if let Some(error) = &method.error {
                self.collect_inline(library, file, error, &format!("{protocol}{name}Error"));
            }
        }
    }

    fn collect_members(&mut self, library: usize, file: FileId, layout: &'a ast::Layout) {
        for member in &layout.members {
            if !availability::exists_at_head(&member.attributes) {
                continue;
            }
            if let MemberKind::Field(ty, _) | MemberKind::Ordinaled(_, ty) = &member.kind {
                self.collect_inline(library, file, ty, &upper_camel_case(&member.name.text));
            }
        }
    }

    /// Declares the layouts written inside a type, under `name` unless `@generated_name` says
    /// otherwise.
    fn collect_inline(
        &mut self,
        library: usize,
        file: FileId,
        ty: &'a ast::TypeConstructor,
        name: &str,
    ) {
        if let LayoutReference::Inline(layout) = &ty.layout {
            let (name, span) =
                self.generated_name(&layout.attributes).unwrap_or((name.to_owned(), layout.span));
            let id = self.declare(
                library,
                Raw {
                    name,
                    span,
                    file,
                    attributes: &layout.attributes,
                    kind: RawKind::Layout(layout),
                    anonymous: true,
                },
            );
            self.inline.insert(layout.span, id);
            self.collect_members(library, file, layout);
        }
        for parameter in &ty.parameters {
            if let TypeParameter::Type(ty) = parameter {
                self.collect_inline(library, file, ty, name);
            }
        }
    }

    fn declare(&mut self, library: usize, raw: Raw<'a>) -> DeclId {
        let target = &mut self.libraries[library];
        let index = target.declarations.len();
        match target.by_name.entry(raw.name.clone()) {
            Entry::Vacant(entry) => {
                entry.insert(index);
            }
            Entry::Occupied(entry) => {
                let first = target.declarations[*entry.get()].span;
                let help = if raw.anonymous {
                    "; give the inline layout another name with `@generated_name`"
                } else {
                    ""
                };
                self.diagnostics.error_with_note(
                    raw.span,
                    format!("`{}` is declared twice{help}", raw.name),
                    first,
                    "first declared here",
                );
            }
        }
        target.declarations.push(raw);
        DeclId { library, index }
    }

    /// Reports names that differ but are one name in languages with other case conventions.
    pub(super) fn check_canonical_names<'n>(
        &mut self,
        what: &str,
        names: impl Iterator<Item = (&'n str, Span)>,
    ) {
        let mut seen: HashMap<String, (&str, Span)> = HashMap::new();
        for (name, span) in names {
            match seen.entry(lower_snake_case(name)) {
                Entry::Vacant(entry) => {
                    entry.insert((name, span));
                }
                Entry::Occupied(entry) => {
                    let (first, first_span) = *entry.get();
                    let message = if first == name {
                        format!("{what} `{name}` is declared twice")
                    } else {
                        format!(
                            "{what} `{name}` clashes with `{first}`: both are `{}` in canonical form",
                            entry.key()
                        )
                    };
                    self.diagnostics.error_with_note(
                        span,
                        message,
                        first_span,
                        "first declared here",
                    );
                }
            }
        }
    }

    pub(super) fn check_declaration_names(&mut self, library: usize) {
        let declared: Vec<(String, Span)> = {
            let raw = &self.libraries[library];
            let firsts = raw.by_name.iter();
            let mut firsts: Vec<_> =
                firsts.map(|(name, index)| (name.clone(), raw.declarations[*index].span)).collect();
            firsts.sort_by_key(|(_, span)| *span);
            firsts
        };
        self.check_canonical_names("declaration", declared.iter().map(|(n, s)| (n.as_str(), *s)));
    }
}
