//! Segment and descriptor loads.
