//! Looking names up.

use super::{Resolver, Scope};
use crate::ast::{CompoundIdentifier, Identifier};
use crate::ir::DeclId;

/// What a name means.
#[derive(Debug, Clone)]
pub(super) enum Named {
    /// A declaration.
    Declaration(DeclId),
    /// A member of an enum or bits.
    Member(DeclId, Identifier),
}

impl Resolver<'_, '_> {
    fn declared(&self, library: usize, name: &str) -> Option<DeclId> {
        let index = self.libraries[library].by_name.get(name)?;
        Some(DeclId { library, index: *index })
    }

    /// What a name means in a scope: a declaration of this library, a member of one, or the same in
    /// an imported library. `None` if nothing has the name; nothing is reported.
    pub(super) fn lookup(&self, scope: Scope, name: &CompoundIdentifier) -> Option<Named> {
        let parts = &name.parts;
        let local = match parts.as_slice() {
            [one] => self.declared(scope.library, &one.text).map(Named::Declaration),
            [owner, member] => self
                .declared(scope.library, &owner.text)
                .map(|id| Named::Member(id, member.clone())),
            _ => None,
        };
        if local.is_some() {
            return local;
        }
        // The longest prefix that is a library, so that `a.b` wins over `a` in `a.b.C`.
        for split in (1..parts.len()).rev() {
            let (prefix, rest) = parts.split_at(split);
            let prefix = prefix.iter().map(|p| p.text.as_str()).collect::<Vec<_>>().join(".");
            let Some(library) = self.library_called(scope, &prefix) else { continue };
            let found = match rest {
                [one] => self.declared(library, &one.text).map(Named::Declaration),
                [owner, member] => {
                    self.declared(library, &owner.text).map(|id| Named::Member(id, member.clone()))
                }
                _ => None,
            };
            if found.is_some() {
                return found;
            }
        }
        None
    }

    fn library_called(&self, scope: Scope, name: &str) -> Option<usize> {
        if self.libraries[scope.library].name == name {
            return Some(scope.library);
        }
        let import = self.imports.get(&scope.file)?.iter().find(|import| import.name == name)?;
        self.used_imports.borrow_mut().insert(import.span);
        Some(import.library)
    }

    /// Like [`Self::lookup`] for a name that must be a declaration; reports if it is not.
    pub(super) fn expect_declaration(
        &mut self,
        scope: Scope,
        name: &CompoundIdentifier,
    ) -> Option<DeclId> {
        match self.lookup(scope, name) {
            Some(Named::Declaration(id)) => Some(id),
            Some(Named::Member(..)) => {
                self.diagnostics
                    .error(name.span, format!("`{}` is a member, not a declaration", name.text()));
                None
            }
            None => {
                self.unknown_name(scope, name);
                None
            }
        }
    }

    /// Reports a name that nothing has.
    pub(super) fn unknown_name(&mut self, scope: Scope, name: &CompoundIdentifier) {
        let text = name.text();
        let unimported = (1..name.parts.len()).rev().find_map(|split| {
            let prefix = name.parts[..split].iter().map(|p| p.text.as_str());
            let prefix = prefix.collect::<Vec<_>>().join(".");
            let exists = self.libraries.iter().any(|library| library.name == prefix);
            (exists && self.library_called(scope, &prefix).is_none()).then_some(prefix)
        });
        let message = match unimported {
            Some(library) => format!("unknown name `{text}`; is `using {library};` missing?"),
            None => format!("unknown name `{text}`"),
        };
        self.diagnostics.error(name.span, message);
    }
}
