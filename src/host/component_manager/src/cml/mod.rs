//! Component manifests: reads `.cml` with its shards, checks it, and makes a [`ComponentDecl`] of it.
//!
//! What is wrong is reported with file, line and column, all of it in one run. Kinds of capability that this component manager
//! does not route (services, dictionaries, event streams, resolvers) are understood and carried along, so that a manifest written for
//! Fuchsia loads; using one fails when it is routed, not when it is read.

mod clauses;
mod compile;
mod config;
mod dependencies;
mod diagnostic;
mod document;
mod locate;

pub use diagnostic::{Diagnostic, Diagnostics, Position};

use crate::decl::ComponentDecl;
use document::Document;
use locate::Places;

/// The largest manifest or shard, in bytes.
pub const MAX_FILE_SIZE: usize = 1 << 20;
/// The most files that a manifest may pull in, itself included.
pub const MAX_FILES: usize = 64;

/// Where shards come from.
pub trait Includes {
    /// The text of the shard that `path` names in an `include` of the file `from`, with the name to show for it; `None` where there is none.
    fn load(&self, path: &str, from: &str) -> Option<(String, String)>;
}

/// No shards.
#[derive(Debug, Clone, Copy)]
pub struct NoIncludes;

impl Includes for NoIncludes {
    fn load(&self, _path: &str, _from: &str) -> Option<(String, String)> {
        None
    }
}

/// A file that was read: its name, what it says and where it says it.
struct Loaded {
    file: String,
    document: Document,
    places: Places,
}

/// Reads the manifest `text`, called `file`, and all that it includes.
///
/// # Errors
/// [`Diagnostics`]: everything that is wrong with it.
pub fn compile(
    file: &str,
    text: &str,
    includes: &dyn Includes,
) -> Result<ComponentDecl, Diagnostics> {
    let mut files = Vec::new();
    let mut problems = Vec::new();
    load(file, text, includes, &mut files, &mut problems);
    if !problems.is_empty() {
        return Err(Diagnostics(problems));
    }
    compile::compile(&files)
}

fn load(
    file: &str,
    text: &str,
    includes: &dyn Includes,
    files: &mut Vec<Loaded>,
    problems: &mut Vec<Diagnostic>,
) {
    if files.len() >= MAX_FILES {
        let message = format!("More than {MAX_FILES} files are included");
        problems.push(Diagnostic {
            file: file.to_owned(),
            position: None,
            message,
            help: String::new(),
        });
        return;
    }
    match parse(file, text) {
        Err(problem) => problems.push(problem),
        Ok(loaded) => {
            let wanted = loaded.document.include.clone();
            let here = files.len();
            files.push(loaded);
            for (index, path) in wanted.iter().enumerate() {
                let Some((name, text)) = includes.load(path, file) else {
                    problems.push(Diagnostic {
                        file: file.to_owned(),
                        position: files.get(here).and_then(|loaded| loaded.places.find(&format!("include[{index}]"))),
                        message: format!("The shard {path:?} does not exist"),
                        help: "A shard is looked for beside the manifest, then among the system's shards".to_owned(),
                    });
                    continue;
                };
                // A shard that two files include counts once, and a cycle ends here.
                if !files.iter().any(|loaded| loaded.file == name) {
                    load(&name, &text, includes, files, problems);
                }
            }
        }
    }
}

fn parse(file: &str, text: &str) -> Result<Loaded, Diagnostic> {
    let problem = |position, message, help: &str| Diagnostic {
        file: file.to_owned(),
        position,
        message,
        help: help.to_owned(),
    };
    if text.len() > MAX_FILE_SIZE {
        return Err(problem(
            None,
            format!("The file has {} bytes, and {MAX_FILE_SIZE} are the most", text.len()),
            "",
        ));
    }
    if let Some(position) = locate::too_deep(text) {
        return Err(problem(
            Some(position),
            format!("More than {} levels of brackets", locate::MAX_DEPTH),
            "",
        ));
    }
    match serde_json5::from_str::<Document>(text) {
        Ok(document) => {
            Ok(Loaded { file: file.to_owned(), document, places: locate::places(text) })
        }
        Err(serde_json5::Error::Message { msg, location }) => {
            let position = location.map(|at| Position { line: at.line, column: at.column });
            // A syntax error comes as a drawing of several lines whose last says what was expected.
            let message =
                msg.lines().last().map_or(msg.as_str(), |line| line.trim_start_matches([' ', '=']));
            Err(problem(position, capitalized(message), ""))
        }
    }
}

fn capitalized(message: &str) -> String {
    let mut chars = message.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

#[cfg(test)]
mod tests;
