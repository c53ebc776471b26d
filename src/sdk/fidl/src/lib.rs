//! The FIDL runtime: wire format v2, endpoints, clients and request streams.
