//! `BUILD.gn` against the tree: every source is listed, every listed file exists.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Every Rust and FIDL source below `directory`, as a path from the root.
fn sources(root: &Path, directory: &str, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(root.join(directory)).unwrap() {
        let entry = entry.unwrap();
        let path = format!("{directory}/{}", entry.file_name().to_str().unwrap());
        if entry.file_type().unwrap().is_dir() {
            sources(root, &path, found);
        } else if path.ends_with(".rs") || path.ends_with(".fidl") {
            found.insert(path);
        }
    }
}

/// What is in quotes and ends like a source.
fn listed(build: &str) -> BTreeSet<String> {
    let quoted = build.split('"').skip(1).step_by(2);
    let files = quoted.filter(|text| text.ends_with(".rs") || text.ends_with(".fidl"));
    files.map(str::to_owned).collect()
}

#[test]
fn build_gn_lists_every_source_and_nothing_else() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let build = fs::read_to_string(root.join("BUILD.gn")).unwrap();
    let mut found = BTreeSet::new();
    for directory in ["fidl", "src", "tests"] {
        sources(root, directory, &mut found);
    }
    // Fuzz targets are Cargo's alone, and the FIDL crates' two shared files stand for what Fuchsia's templates do.
    found.retain(|path| !path.starts_with("tests/fuzz/"));
    found.retain(|path| path != "fidl/build.rs" && path != "fidl/bindings.rs");
    let listed = listed(&build);
    let missing: Vec<_> = found.difference(&listed).collect();
    assert!(missing.is_empty(), "not in BUILD.gn: {missing:#?}");
    let stale: Vec<_> = listed.difference(&found).collect();
    assert!(stale.is_empty(), "in BUILD.gn and not in the tree: {stale:#?}");
}
