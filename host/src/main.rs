//! nearwire
fn main(){}
