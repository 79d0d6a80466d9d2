//! nearwire

pub mod front;
pub mod kv;
pub mod resp;
