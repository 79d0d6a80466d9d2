//! The consensus core of nearwire.
//!
//! An acceptor is a pure step over a plain memory [`region`]; every engine (software, XDP, AF_XDP,
//! DPDK, RDMA, P4, RTL) computes that step. So this crate has no clock, socket, heap (outside
//! feature `alloc`), float or unsafe code: time, randomness and packets come in as arguments and
//! replies go out as values. The protocol is written down in `docs/protocol.md`, the memory layout
//! in `docs/region.md`.
#![no_std]
#![cfg_attr(not(feature = "mutations"), forbid(unsafe_code))]

#[cfg(feature = "alloc")]
extern crate alloc;
#[cfg(any(feature = "std", test, loom))]
extern crate std;

pub mod acceptor;
#[cfg(feature = "alloc")]
mod agenda;
#[cfg(feature = "alloc")]
pub mod applied;
pub mod auth;
#[cfg(feature = "alloc")]
pub mod catch_up;
#[cfg(feature = "alloc")]
pub mod client;
#[cfg(feature = "alloc")]
pub mod configuration;
#[cfg(all(feature = "std", not(loom)))]
pub mod conformance;
#[cfg(feature = "alloc")]
pub mod election;
pub mod envelope;
#[cfg(feature = "alloc")]
pub mod formation;
pub mod frame;
mod ident;
#[cfg(feature = "alloc")]
pub mod leader;
#[cfg(feature = "alloc")]
pub mod local;
#[cfg(feature = "alloc")]
pub mod matchmaker;
pub mod memory;
#[cfg(feature = "alloc")]
pub mod node;
pub mod pieces;
#[cfg(feature = "alloc")]
pub mod quorum;
pub mod random;
#[cfg(feature = "alloc")]
pub mod recover;
pub mod region;
#[cfg(feature = "alloc")]
pub mod replica;
#[cfg(feature = "alloc")]
pub mod responses;
#[cfg(feature = "alloc")]
pub mod session;
pub mod simulation;
#[cfg(feature = "alloc")]
mod standing;
#[cfg(feature = "alloc")]
pub mod state_machine;
pub mod sync;
pub mod tally;
pub mod wire;

pub use ident::{Ballot, Epoch, GroupId, Incarnation, NodeId, Sequence, SessionId, Slot};
