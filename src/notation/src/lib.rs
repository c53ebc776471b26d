//! How people write what `guest.cfg` and the command line both take: sizes and forwarded ports. What may enter is a text
//! form that both share, and nothing that acts on it.

#![forbid(unsafe_code)]

pub mod net_forward;
pub mod size;
