//! Load generation, latency reports and benchmarks of nearwire.
//!
//! A [`run`](run::run) measures a [`Target`](run::Target), the cluster that somebody else starts,
//! and in turns with it the [echo] that the same packets cost when nobody agrees on anything.
//! Both are loaded by the same [generator](load) in the same worker loop; a number without the
//! floor of its own run says more about the machine than about the system.

pub mod cluster;
pub mod echo;
pub mod hgrm;
pub mod load;
pub mod machine;
pub mod plot;
pub mod process;
pub mod report;
pub mod resp;
pub mod rounds;
pub mod row;
pub mod run;
pub mod site;
pub mod spread;
pub mod step;

/// A run cannot be carried out.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The datapath, a namespace or a placement is not to be had.
    #[error(transparent)]
    Datapath(#[from] datapath::Error),
    /// The cluster's description makes no client.
    #[error(transparent)]
    Client(#[from] consensus::client::ConfigError),
    /// The cluster does not do as it is told.
    #[error("{doing} the cluster: {source}")]
    Target {
        /// What it was told.
        doing: &'static str,
        /// Its answer.
        source: run::TargetError,
    },
    /// The cluster takes no values of this length.
    #[error("write values of {value_bytes} bytes: a request of this cluster carries {max_value}")]
    TooLarge {
        /// The length asked for.
        value_bytes: usize,
        /// Longest value of a Request in bytes.
        max_value: usize,
    },
    /// A server that speaks RESP is not there, or has gone.
    #[error("speak RESP with {targets:?}: {source}")]
    Redis {
        /// Whom.
        targets: Vec<std::net::SocketAddr>,
        /// The system's answer.
        source: std::io::Error,
    },
    /// Somebody wants it to end.
    #[error("interrupted")]
    Interrupted,
    /// The system has no thread left.
    #[error("start the thread {name}: {source}")]
    Thread {
        /// The thread's name.
        name: &'static str,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A thread ended without a word.
    #[error("the thread {name} ended early")]
    Ended {
        /// The thread's name.
        name: &'static str,
    },
}
