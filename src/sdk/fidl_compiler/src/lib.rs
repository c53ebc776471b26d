//! The FIDL compiler: .fidl source to diagnostics, JSON summary and Rust bindings.
