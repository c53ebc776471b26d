//! Markers in generated types.

/// Stands in every table, so that a literal needs `..Default::default()` and a pattern `..`, and a
/// new member breaks neither.
#[derive(Debug, Default, Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceBreaking;
