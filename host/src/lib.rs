//! The control side of nearwire.

pub mod data_directory;
pub mod journal;
pub mod kill_point;
pub mod snapshot_file;
