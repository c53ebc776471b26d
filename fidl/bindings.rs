#![doc = include_str!(concat!(env!("OUT_DIR"), "/library.md"))]
#![forbid(unsafe_code)]
#![allow(
    clippy::all,
    clippy::needless_pass_by_value,
    clippy::semicolon_if_nothing_returned,
    clippy::uninlined_format_args,
    deprecated,
    unused,
    rustdoc::broken_intra_doc_links,
    rustdoc::bare_urls,
    rustdoc::invalid_html_tags,
    reason = "the code is generated, and its documentation is written for FIDL"
)]

include!(concat!(env!("OUT_DIR"), "/bindings.rs"));
