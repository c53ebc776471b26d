//! Component manager for Linux: manifests, routing, runners and lifecycles.
