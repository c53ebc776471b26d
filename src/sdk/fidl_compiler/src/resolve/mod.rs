//! Syntax trees to the resolved program: collects the declarations of every library, then resolves
//! names, constants and types on demand.

mod attributes;
mod collect;
mod constants;
mod declarations;
mod protocols;
mod scope;
mod types;

use crate::ast;
use crate::diagnostic::Diagnostics;
use crate::ir::{DeclId, Declaration, Library, Program, Type, Value};
use crate::source::{FileId, Span};
use std::cell::RefCell;
use std::collections::{HashMap, HashSet};

/// How deep constants and aliases may refer to each other. More is no real library, and would
/// overflow the stack.
const MAX_REFERENCES: usize = 128;

/// A declaration that is not resolved yet.
pub(crate) struct Raw<'a> {
    name: String,
    span: Span,
    file: FileId,
    attributes: &'a ast::Attributes,
    kind: RawKind<'a>,
    anonymous: bool,
}

#[derive(Clone, Copy)]
enum RawKind<'a> {
    Const(&'a ast::TypeConstructor, &'a ast::Constant),
    Alias(&'a ast::TypeConstructor),
    Layout(&'a ast::Layout),
    Protocol(&'a ast::ProtocolDeclaration),
    Service(&'a [ast::ServiceMember]),
    Resource(&'a [ast::ResourceProperty]),
}

struct RawLibrary<'a> {
    name: String,
    doc: Vec<String>,
    declarations: Vec<Raw<'a>>,
    by_name: HashMap<String, usize>,
}

struct Import {
    /// The name in this file.
    name: String,
    library: usize,
    span: Span,
}

/// A result that is computed once; `Running` finds cycles.
enum Memo<T> {
    Running,
    Done(Option<T>),
}

/// Where a name is used.
#[derive(Clone, Copy)]
struct Scope {
    library: usize,
    file: FileId,
}

struct Resolver<'a, 'd> {
    libraries: Vec<RawLibrary<'a>>,
    imports: HashMap<FileId, Vec<Import>>,
    used_imports: RefCell<HashSet<Span>>,
    inline: HashMap<Span, DeclId>,
    constants: HashMap<DeclId, Memo<Value>>,
    aliases: HashMap<DeclId, Memo<Type>>,
    references: usize,
    diagnostics: &'d mut Diagnostics,
}

/// Resolves the files of some libraries. The program is complete only if nothing was reported.
pub(crate) fn resolve(files: &[ast::File], diagnostics: &mut Diagnostics) -> Program {
    let mut resolver = Resolver {
        libraries: Vec::new(),
        imports: HashMap::new(),
        used_imports: RefCell::new(HashSet::new()),
        inline: HashMap::new(),
        constants: HashMap::new(),
        aliases: HashMap::new(),
        references: 0,
        diagnostics,
    };
    resolver.collect(files);
    let mut program = Program::default();
    for library in 0..resolver.libraries.len() {
        let resolved = resolver.library(library);
        program.libraries.push(resolved);
    }
    resolver.report_unused_imports();
    program
}

impl<'a> Resolver<'a, '_> {
    fn raw(&self, id: DeclId) -> &Raw<'a> {
        &self.libraries[id.library].declarations[id.index]
    }

    fn scope_of(&self, id: DeclId) -> Scope {
        Scope { library: id.library, file: self.raw(id).file }
    }

    fn qualified_name(&self, id: DeclId) -> String {
        format!("{}/{}", self.libraries[id.library].name, self.raw(id).name)
    }

    fn library(&mut self, library: usize) -> Library {
        let count = self.libraries[library].declarations.len();
        let mut declarations = Vec::with_capacity(count);
        for index in 0..count {
            let id = DeclId { library, index };
            let kind = self.declaration(id);
            let raw = self.raw(id);
            declarations.push(Declaration {
                name: raw.name.clone(),
                span: raw.span,
                doc: raw.attributes.doc.clone(),
                anonymous: raw.anonymous,
                kind,
            });
        }
        let dependencies = self.dependencies(library);
        let raw = &self.libraries[library];
        Library { name: raw.name.clone(), doc: raw.doc.clone(), dependencies, declarations }
    }

    fn dependencies(&self, library: usize) -> Vec<usize> {
        let files: HashSet<FileId> =
            self.libraries[library].declarations.iter().map(|raw| raw.file).collect();
        let mut used: Vec<usize> = files
            .iter()
            .filter_map(|file| self.imports.get(file))
            .flatten()
            .map(|import| import.library)
            .collect();
        used.sort_unstable();
        used.dedup();
        used
    }

    fn report_unused_imports(&mut self) {
        let used = self.used_imports.borrow();
        for import in self.imports.values().flatten() {
            if !used.contains(&import.span) {
                let name = &self.libraries[import.library].name;
                self.diagnostics
                    .error(import.span, format!("library `{name}` is imported but not used"));
            }
        }
    }
}
