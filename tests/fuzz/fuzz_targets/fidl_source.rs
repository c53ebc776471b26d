//! Any text as a `.fidl` file: compiling must not panic, hang or overflow the stack, every
//! diagnostic must be printable, and what compiles must have bindings and a summary.

#![no_main]

use fidl_compiler::source::SourceMap;
use libfuzzer_sys::fuzz_target;

const ZX: &str = include_str!("../../../fidl/zx/zx.fidl");

fuzz_target!(|text: &str| {
    let mut sources = SourceMap::new();
    sources.add("fuzz.fidl", text);
    sources.add("zx.fidl", ZX);
    match fidl_compiler::compile(&sources) {
        Ok(program) => {
            for library in &program.libraries {
                let _ = fidl_compiler::json::library(&program, library);
                let _ = fidl_compiler::rust::bindings(&program, library);
            }
        }
        Err(diagnostics) => {
            assert!(!diagnostics.is_empty());
            for diagnostic in diagnostics {
                let _ = diagnostic.render(&sources);
            }
        }
    }
});
