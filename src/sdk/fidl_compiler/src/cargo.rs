//! Cargo's side: a crate a library, whose folder is the library's name and holds its `.fidl` files,
//! beside the folders of the libraries it uses.

use crate::diagnostic::Diagnostics;
use crate::source::SourceMap;
use crate::{ir, parser};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Why a folder could not be compiled.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The source is wrong; the text is the rendered diagnostics.
    #[error("{0}")]
    Source(String),
    /// The folder has no `.fidl` file, or one of another library.
    #[error("{0}: the folder must hold .fidl files of the library it is named after")]
    NotALibrary(PathBuf),
}

/// The files of a library and of those it uses.
#[derive(Debug)]
pub struct LibraryFiles {
    /// All files.
    pub sources: SourceMap,
    /// Their paths, for Cargo to watch.
    pub paths: Vec<PathBuf>,
    /// The library's name.
    pub name: String,
}

fn io_error(path: &Path, source: std::io::Error) -> Error {
    Error::Io { path: path.to_owned(), source }
}

/// The `.fidl` files of a folder, sorted by name.
fn fidl_files(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(|e| io_error(folder, e))? {
        let path = entry.map_err(|e| io_error(folder, e))?.path();
        if path.extension().is_some_and(|extension| extension == "fidl") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Reads the library in `folder` and, from the folders beside it, those it uses, directly or not.
///
/// # Errors
///
/// [`Error::Io`], or [`Error::NotALibrary`]. A used library that has no folder is left to the
/// compiler, which can say where it is used.
pub fn read_library(folder: &Path) -> Result<LibraryFiles, Error> {
    let not_a_library = || Error::NotALibrary(folder.to_owned());
    let name = folder.file_name().and_then(|name| name.to_str()).ok_or_else(not_a_library)?;
    let beside = folder.parent().unwrap_or(Path::new(""));
    let mut found =
        LibraryFiles { sources: SourceMap::new(), paths: Vec::new(), name: name.to_owned() };
    let mut seen: BTreeSet<String> = BTreeSet::from([name.to_owned()]);
    let mut queue = vec![(name.to_owned(), folder.to_owned())];
    while let Some((library, folder)) = queue.pop() {
        let files = fidl_files(&folder)?;
        let mut of_library = false;
        for path in files {
            let text = std::fs::read_to_string(&path).map_err(|e| io_error(&path, e))?;
            let id = found.sources.add(path.display().to_string(), text);
            found.paths.push(path);
            // What is wrong with the file is reported when all are compiled.
            let parsed = parser::parse(id, found.sources.file(id), &mut Diagnostics::default());
            let Some(parsed) = parsed else {
                of_library = true;
                continue;
            };
            of_library |= parsed.library.text() == library;
            for using in parsed.usings {
                let used = using.library.text();
                let folder = beside.join(&used);
                if folder.is_dir() && seen.insert(used.clone()) {
                    queue.push((used, folder));
                }
            }
        }
        if !of_library {
            return Err(Error::NotALibrary(folder));
        }
    }
    Ok(found)
}

/// Compiles what [`read_library`] found.
///
/// # Errors
///
/// [`Error::Source`] with every diagnostic.
pub fn compile_library(files: &LibraryFiles) -> Result<ir::Program, Error> {
    let program = crate::compile(&files.sources).map_err(|diagnostics| {
        let mut text = String::new();
        for diagnostic in diagnostics {
            text.push('\n');
            text.push_str(&diagnostic.render(&files.sources));
        }
        Error::Source(text)
    })?;
    if program.library(&files.name).is_none() {
        return Err(Error::NotALibrary(PathBuf::from(&files.name)));
    }
    Ok(program)
}

/// What the build script of a library crate does: compiles the library in the crate's folder and
/// writes `bindings.rs` and `library.md`, its documentation, to `OUT_DIR`.
///
/// # Errors
///
/// As of [`read_library`] and [`compile_library`], or [`Error::Io`] for the output.
pub fn build(manifest_dir: &Path, out_dir: &Path) -> Result<(), Error> {
    println!("cargo::rerun-if-changed={}", manifest_dir.display());
    let files = read_library(manifest_dir)?;
    for path in &files.paths {
        println!("cargo::rerun-if-changed={}", path.display());
    }
    let program = compile_library(&files)?;
    let Some(library) = program.library(&files.name) else {
        return Err(Error::NotALibrary(manifest_dir.to_owned()));
    };
    let bindings = crate::rust::bindings(&program, library);
    let mut doc = format!("Bindings of the FIDL library `{}`.\n", library.name);
    if !library.doc.is_empty() {
        doc = format!("{doc}\n{}\n", library.doc.join("\n"));
    }
    for (name, text) in [("bindings.rs", bindings), ("library.md", doc)] {
        let path = out_dir.join(name);
        std::fs::write(&path, text).map_err(|e| io_error(&path, e))?;
    }
    Ok(())
}
