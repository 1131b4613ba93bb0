//! The inner loops of a DERP relay in Rust: TLS records and the walk over frames.
//!
//! `frames`, `session`, `config` and `errors` know nothing of Python and hold no `unsafe`;
//! `python` is the module that CPython loads, `buffers` its borders.

pub mod config;
pub mod errors;
pub mod frames;
pub mod session;

#[cfg(feature = "python")]
mod buffers;
#[cfg(feature = "python")]
mod python;
