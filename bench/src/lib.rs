//! Load generation, latency reports and benchmarks of nearwire.

pub mod cluster;
pub mod echo;
pub mod hgrm;
pub mod load;
pub mod machine;
pub mod plot;
pub mod process;
pub mod report;
