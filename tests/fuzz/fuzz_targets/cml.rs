//! Manifests: any text becomes a declaration or diagnostics with a message each.

#![no_main]

use component_manager::cml::{NoIncludes, compile};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Err(problems) = compile("fuzz.cml", text, &NoIncludes) {
        assert!(!problems.0.is_empty());
        assert!(problems.0.iter().all(|problem| !problem.message.is_empty()));
    }
});
