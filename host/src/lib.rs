//! The host side of nearwire: runs replicas, keeps what must outlive them, and serves clients.

pub mod bench_target;
pub mod client;
pub mod config;
pub mod conform;
pub mod cutting;
pub mod data_directory;
pub mod demo;
pub mod engine;
pub mod front;
pub mod history;
pub mod inspect;
pub mod journal;
pub mod kill_point;
pub mod kv;
pub mod local_cluster;
pub mod node;
pub mod rehearsal;
pub mod resp;
pub mod run;
mod run_directory;
pub mod sim;
pub mod snapshot_file;
pub mod snapshots;
pub mod step_trial;
pub mod wal;
pub mod xdp;
