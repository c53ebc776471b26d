//! The FIDL compiler: `.fidl` source to diagnostics, a JSON summary and Rust bindings. It knows the
//! language of the libraries in `fidl/` and nothing about any of them; whatever turns `.fidl` text
//! into something else belongs here, and what runs with the result belongs in the crate `fidl`.
//!
//! The passes, each in its module: [`lexer`], [`parser`], name and type resolution to the program
//! ([`ir`]), checks over the whole program, wire [`layout`], and the two outputs [`json`] and [`rust`].
//! [`cargo`] is what the build script of the library crates calls.

#![forbid(unsafe_code)]

pub mod ast;
mod availability;
pub mod cargo;
mod check;
pub mod diagnostic;
pub mod ir;
pub mod json;
pub mod layout;
pub mod lexer;
pub mod names;
pub mod ordinal;
pub mod parser;
mod resolve;
pub mod rust;
pub mod source;

#[cfg(test)]
mod compiler_test;

use diagnostic::{Diagnostic, Diagnostics};
use source::SourceMap;

/// Compiles the libraries of all files, each library being all files that name it.
///
/// # Errors
///
/// What is wrong with the source, in source order. Syntax errors end the run before names are
/// looked up, as what they skip would be missed elsewhere.
pub fn compile(sources: &SourceMap) -> Result<ir::Program, Vec<Diagnostic>> {
    let mut diagnostics = Diagnostics::default();
    let files: Vec<ast::File> = sources
        .files()
        .filter_map(|(id, file)| parser::parse(id, file, &mut diagnostics))
        .collect();
    if !diagnostics.is_empty() {
        return Err(diagnostics.into_sorted());
    }
    let program = resolve::resolve(&files, &mut diagnostics);
    // The checks need every type to be known.
    if diagnostics.is_empty() {
        check::check(&program, &mut diagnostics);
    }
    if diagnostics.is_empty() { Ok(program) } else { Err(diagnostics.into_sorted()) }
}
