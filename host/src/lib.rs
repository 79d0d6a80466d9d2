//! nearwire
