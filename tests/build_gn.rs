//! `BUILD.gn` against the tree: every source is listed, every listed file exists; and `gn` understands it, with stubs in
//! place of Fuchsia's templates that take what those take and no more; every suite with guests is a package for the
//! emulator, with a manifest that holds together. Only for the host, where the tree and `gn` are.
#![cfg(target_os = "linux")]

use component_manager::cml::{self, Includes};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

/// The stubs: a path from the source root, and what is there. A parameter that a template does not forward has no effect,
/// which `gn` reports as an error; so these lists are what the templates take.
const STUBS: &[(&str, &str)] = &[
    (".gn", r#"buildconfig = "//build/BUILDCONFIG.gn""#),
    (
        "build/BUILDCONFIG.gn",
        r#"
        set_default_toolchain("//build/toolchain:default")
        # As in Fuchsia's, for what runs on the machine that builds.
        host_toolchain = "//build/toolchain:host"
        if (current_os == "") {
          current_os = "fuchsia"
        }
        is_fuchsia = current_os == "fuchsia"
        "#,
    ),
    (
        "build/toolchain/BUILD.gn",
        r#"
        toolchain("default") {
          tool("stamp") {
            command = "touch {{output}}"
          }
          tool("copy") {
            command = "cp {{source}} {{output}}"
          }
        }
        toolchain("host") {
          toolchain_args = {
            current_os = "linux"
          }
          tool("stamp") {
            command = "touch {{output}}"
          }
          tool("copy") {
            command = "cp {{source}} {{output}}"
          }
        }
        "#,
    ),
    (
        "src/lib/fuchsia-component-test/realm_builder_server/BUILD.gn",
        r#"
        group("realm_builder_server_component") {
        }
        "#,
    ),
    (
        "build/stub.gni",
        r#"
        # A target with inputs that exist, and dependencies that have to be targets.
        template("stub") {
          group(target_name) {
            forward_variables_from(invoker, [ "testonly" ])
            public_deps = []
            if (defined(invoker.deps)) {
              public_deps += invoker.deps
            }
            if (defined(invoker.public_deps)) {
              public_deps += invoker.public_deps
            }
            if (defined(invoker.test_deps)) {
              public_deps += invoker.test_deps
            }
            if (defined(invoker.non_rust_deps)) {
              public_deps += invoker.non_rust_deps
            }
            if (defined(invoker.subpackages)) {
              public_deps += invoker.subpackages
            }
            if (defined(invoker.test_components)) {
              public_deps += invoker.test_components
            }
          }
        }
        "#,
    ),
    (
        "build/fidl/fidl.gni",
        r#"
        import("//build/stub.gni")
        template("fidl") {
          assert(defined(invoker.sources))
          not_needed(invoker, [ "sources" ])
          stub(target_name) {
            forward_variables_from(invoker, [ "public_deps", "testonly" ])
          }
          stub("${target_name}_rust") {
            public_deps = []
            if (defined(invoker.public_deps)) {
              foreach(dep, invoker.public_deps) {
                public_deps += [ "${dep}_rust" ]
              }
            }
          }
        }
        "#,
    ),
    (
        "build/rust/stub_rust.gni",
        r#"
        import("//build/stub.gni")
        template("stub_rust") {
          assert(defined(invoker.edition) && defined(invoker.sources) && defined(invoker.source_root))
          assert(filter_include(invoker.sources, [ invoker.source_root ]) != [], "the root is not a source")
          not_needed(invoker, [ "edition", "name", "output_name", "rustflags", "inputs", "configs" ])
          stub(target_name) {
            forward_variables_from(invoker, [ "deps", "non_rust_deps", "testonly" ])
          }
          if (defined(invoker.with_unit_tests) && invoker.with_unit_tests) {
            stub("${target_name}_test") {
              testonly = true
              forward_variables_from(invoker, [ "deps", "test_deps" ])
            }
          }
        }
        "#,
    ),
    (
        "build/rust/rustc_library.gni",
        r#"
        import("//build/rust/stub_rust.gni")
        template("rustc_library") {
          stub_rust(target_name) {
            forward_variables_from(invoker, "*")
          }
        }
        "#,
    ),
    (
        "build/rust/rustc_macro.gni",
        r#"
        import("//build/rust/stub_rust.gni")
        template("rustc_macro") {
          stub_rust(target_name) {
            forward_variables_from(invoker, "*")
          }
        }
        "#,
    ),
    (
        "build/rust/rustc_binary.gni",
        r#"
        import("//build/rust/stub_rust.gni")
        template("rustc_binary") {
          stub_rust(target_name) {
            forward_variables_from(invoker, "*")
          }
        }
        "#,
    ),
    (
        "build/rust/rustc_test.gni",
        r#"
        import("//build/rust/stub_rust.gni")
        template("rustc_test") {
          stub_rust(target_name) {
            testonly = true
            forward_variables_from(invoker, "*")
          }
        }
        "#,
    ),
    (
        "build/components.gni",
        r#"
        import("//build/stub.gni")
        guest_envs = []
        template("resource") {
          assert(defined(invoker.sources) && defined(invoker.outputs))
          not_needed(invoker, [ "sources", "outputs" ])
          stub(target_name) {
            forward_variables_from(invoker, [ "deps", "testonly" ])
          }
        }
        template("fuchsia_component") {
          assert(defined(invoker.manifest))
          not_needed(invoker, [ "manifest", "component_name", "restricted_features" ])
          stub(target_name) {
            forward_variables_from(invoker, [ "deps", "testonly" ])
          }
        }
        template("fuchsia_package") {
          not_needed(invoker, [ "package_name" ])
          stub(target_name) {
            forward_variables_from(invoker, [ "deps", "subpackages", "testonly" ])
          }
        }
        template("fuchsia_test_component") {
          assert(defined(invoker.manifest))
          not_needed(invoker, [ "manifest", "component_name", "test_type" ])
          stub(target_name) {
            testonly = true
            forward_variables_from(invoker, [ "deps" ])
          }
        }
        template("fuchsia_test_package") {
          assert(defined(invoker.test_components))
          not_needed(invoker, [ "package_name", "test_specs" ])
          stub(target_name) {
            testonly = true
            forward_variables_from(invoker, [ "deps", "subpackages", "test_components" ])
          }
        }
        template("fuchsia_unittest_package") {
          not_needed(invoker, [ "package_name", "component_name", "manifest", "test_specs" ])
          stub(target_name) {
            testonly = true
            forward_variables_from(invoker, [ "deps" ])
          }
        }
        "#,
    ),
];

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

/// What is in quotes and ends like one of these.
fn listed(build: &str, endings: &[&str]) -> BTreeSet<String> {
    let quoted = build.split('"').skip(1).step_by(2);
    let files = quoted.filter(|text| endings.iter().any(|ending| text.ends_with(ending)));
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
    // Fuzz targets and build scripts are Cargo's alone, and the FIDL crates' bindings stand for what Fuchsia's templates
    // do.
    found.retain(|path| !path.starts_with("tests/fuzz/") && !path.ends_with("/build.rs"));
    found.retain(|path| path != "fidl/bindings.rs");
    let mut other = listed(&build, &[".cfg", ".cml", ".ld", ".s"]);
    // Paths in packages.
    other.retain(|path| !path.starts_with("data/"));
    let listed = listed(&build, &[".rs", ".fidl"]);
    let missing: Vec<_> = found.difference(&listed).collect();
    assert!(missing.is_empty(), "not in BUILD.gn: {missing:#?}");
    let stale: Vec<_> = listed.difference(&found).collect();
    assert!(stale.is_empty(), "in BUILD.gn and not in the tree: {stale:#?}");
    let stale: Vec<_> = other.iter().filter(|path| !root.join(path).is_file()).collect();
    assert!(!other.is_empty() && stale.is_empty(), "in BUILD.gn and not in the tree: {stale:#?}");
}

/// Fuchsia's shards that the suites include, as far as their own manifests build on them.
const SHARDS: &[(&str, &str)] = &[
    (
        "src/sys/test_runners/rust/default.shard.cml",
        r#"{
            program: { runner: "rust_test_runner" },
            use: [ { runner: "rust_test_runner" } ],
            capabilities: [ { protocol: "fuchsia.test.Suite" } ],
            expose: [ { protocol: "fuchsia.test.Suite", from: "self" } ],
        }"#,
    ),
    (
        "sys/component/realm_builder.shard.cml",
        r##"{
            children: [ { name: "realm_builder_server", url: "#meta/realm_builder_server.cm" } ],
            collections: [ { name: "realm_builder", durability: "transient" } ],
            use: [ { protocol: "fuchsia.component.Realm", from: "framework" } ],
        }"##,
    ),
    ("sys/testing/system-test.shard.cml", r#"{ facets: { "fuchsia.test": { type: "system" } } }"#),
];

/// Shards beside the manifest, those of the Linux build in place of Fuchsia's, and [`SHARDS`].
struct Tree<'a>(&'a Path);

impl Includes for Tree<'_> {
    fn load(&self, path: &str, from: &str) -> Option<(String, String)> {
        let path = path.trim_start_matches('/');
        let beside = Path::new(from).with_file_name(path);
        for file in [self.0.join(beside), self.0.join("meta/linux/include").join(path)] {
            if let Ok(text) = fs::read_to_string(&file) {
                let name = file.strip_prefix(self.0).unwrap();
                return Some((name.to_str().unwrap().to_owned(), text));
            }
        }
        let (name, text) = SHARDS.iter().find(|(name, _)| *name == path)?;
        Some(((*name).to_owned(), (*text).to_owned()))
    }
}

/// The text between the braces of a target.
fn target<'a>(build: &'a str, head: &str) -> &'a str {
    let (_, rest) =
        build.split_once(&format!("\n{head} {{\n")).unwrap_or_else(|| panic!("no {head}"));
    rest.split_once("\n}\n").unwrap().0
}

#[test]
fn every_suite_with_guests_is_a_package_for_the_emulator() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let build = fs::read_to_string(root.join("BUILD.gn")).unwrap();
    let tests = target(&build, "group(\"tests\")");
    let mut suites = Vec::new();
    for entry in fs::read_dir(root.join("tests")).unwrap() {
        let path = entry.unwrap().path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".rs"))
        else {
            continue;
        };
        let text = fs::read_to_string(&path).unwrap();
        if !text.contains("use enclosed_guest::") || text.contains("#![cfg(target_os = \"linux\")]")
        {
            continue;
        }
        let package = target(&build, &format!("guest_suite(\"virtualization_{name}_tests\")"));
        let manifest = format!("tests/meta/{name}.cml");
        assert!(package.contains(&format!("manifest = \"{manifest}\"")), "{name}: {package}");
        assert!(package.contains(&format!("\":guest_{name}_test\"")), "{name}: {package}");
        let test = target(&build, &format!("rustc_test(\"guest_{name}_test\")"));
        assert!(test.contains(&format!("source_root = \"tests/{name}.rs\"")), "{name}: {test}");
        assert!(tests.contains(&format!("\":virtualization_{name}_tests\"")), "{name}: {tests}");
        let text = fs::read_to_string(root.join(&manifest)).unwrap();
        let decl = cml::compile(&manifest, &text, &Tree(root)).unwrap_or_else(|e| panic!("{e}"));
        let program = decl.program.unwrap();
        assert_eq!(program.str("binary"), Some(format!("bin/guest_{name}_test").as_str()));
        assert!(decl.offers.len() > 4, "{name}: {:?}", decl.offers);
        suites.push(name.to_owned());
    }
    for suite in ["balloon", "block", "core", "lifecycle", "net", "runner", "shutdown", "vsock"] {
        assert!(suites.iter().any(|name| name == suite), "{suite} is not for Fuchsia: {suites:?}");
    }
}

/// The crates of others that the workspace has, which are all that `BUILD.gn` may name.
fn third_party_crates(manifest: &str) -> impl Iterator<Item = &str> {
    let section = manifest.split_once("# Others'.\n").unwrap().1;
    let lines = section.lines().take_while(|line| !line.is_empty());
    lines.map(|line| line.split_once(' ').unwrap().0)
}

#[test]
fn gn_understands_build_gn() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let stage = tempfile::tempdir().unwrap();
    let put = |path: &str, text: &str| {
        let path = stage.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    for (path, text) in STUBS {
        put(path, text);
    }
    let manifest = fs::read_to_string(root.join("Cargo.toml")).unwrap();
    let crates = third_party_crates(&manifest);
    let groups: String = crates.map(|name| format!("group(\"{name}\") {{\n}}\n")).collect();
    put("third_party/rust_crates/BUILD.gn", &groups);
    put("BUILD.gn", &fs::read_to_string(root.join("BUILD.gn")).unwrap());
    let mut command = Command::new("gn");
    command.arg("gen").arg("out").arg("--fail-on-unused-args").current_dir(stage.path());
    let output = command.output().expect("gn does not run; it is in Debian's generate-ninja");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
}
