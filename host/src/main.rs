//! nearwire
fn main() {}
