//! The Redis protocol: what clients of the key-value machine speak.

pub mod reply;
