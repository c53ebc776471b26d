//! The tree of instances and the ways between them, as data: nothing here runs or talks.

mod route;
mod tree;

pub use route::{Route, RouteError, RouteSource, StorageRoute};
pub use tree::{Instance, InstanceId, Tree, TreeError};

#[cfg(test)]
mod tests;
