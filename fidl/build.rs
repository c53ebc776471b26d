//! The build script of every library crate here: compiles the `.fidl` files of the crate's folder,
//! and of the folders of the libraries it uses, to Rust bindings.

use std::path::PathBuf;

fn main() {
    println!("cargo::rerun-if-changed=../build.rs");
    let folder = |variable: &str| std::env::var_os(variable).map(PathBuf::from);
    // Cargo sets both for every build script.
    let (Some(manifest_dir), Some(out_dir)) = (folder("CARGO_MANIFEST_DIR"), folder("OUT_DIR"))
    else {
        println!("cargo::error=this is a Cargo build script");
        return;
    };
    if let Err(error) = fidl_compiler::cargo::build(&manifest_dir, &out_dir) {
        // A diagnostic has several lines, and Cargo shows one an instruction.
        for line in error.to_string().lines() {
            println!("cargo::error={line}");
        }
        std::process::exit(1);
    }
}
