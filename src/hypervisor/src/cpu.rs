//! One vCPU as Rust code sees it.
