//! The inner loops of a DERP relay in Rust: TLS records and the walk over frames.
//!
//! `frames`, `session`, `config` and `errors` do not use Python and have no `unsafe`. `python` is
//! the module that CPython loads, and `buffers` gives it access to Python's buffers.

pub mod config;
pub mod errors;
pub mod frames;
pub mod session;

#[cfg(feature = "python")]
mod buffers;
#[cfg(feature = "python")]
mod python;
