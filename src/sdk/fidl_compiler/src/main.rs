//! `fidl_compiler`: checks a FIDL library and prints its JSON summary or its Rust bindings.

#![forbid(unsafe_code)]

use anyhow::{Context as _, bail};
use fidl_compiler::cargo::{compile_library, read_library};
use std::path::PathBuf;

/// Compile the FIDL library in a folder. The folder's name is the library's; the libraries it uses
/// are in folders beside it.
#[derive(argh::FromArgs)]
struct Arguments {
    /// print types, sizes, offsets and ordinals as JSON
    #[argh(switch)]
    json: bool,

    /// print the Rust bindings
    #[argh(switch)]
    rust: bool,

    /// the folder, e.g. fidl/fuchsia.io
    #[argh(positional)]
    folder: PathBuf,
}

fn main() -> anyhow::Result<()> {
    let arguments: Arguments = argh::from_env();
    let folder = std::path::absolute(&arguments.folder)
        .with_context(|| format!("bad path {}", arguments.folder.display()))?;
    let files = read_library(&folder)?;
    let program = match compile_library(&files) {
        Ok(program) => program,
        Err(fidl_compiler::cargo::Error::Source(text)) => {
            eprintln!("{}", text.trim_start());
            std::process::exit(1);
        }
        Err(other) => return Err(other.into()),
    };
    let Some(library) = program.library(&files.name) else {
        bail!("{} is not a FIDL library", folder.display());
    };
    if arguments.json {
        let summary = fidl_compiler::json::library(&program, library);
        println!("{}", serde_json::to_string_pretty(&summary)?);
    }
    if arguments.rust {
        print!("{}", fidl_compiler::rust::bindings(&program, library));
    }
    Ok(())
}
