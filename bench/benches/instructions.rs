//! Instruction counts of the core under valgrind, which a busy machine does not disturb:
//! `cargo bench -p nearwire-bench --features instruction-counts --bench instructions`.
//! Needs valgrind and `cargo install gungraun-runner --version 0.20.0`.
//!
//! What was made for a measurement is given back, so that freeing it is not counted.
// The macros' expansion is public, undocumented and qualifies everything.
#![allow(missing_docs, unreachable_pub, unused_qualifications)]

mod subjects;

use consensus::acceptor::Step;
use gungraun::{library_benchmark, library_benchmark_group, main};
use std::hint::black_box;
use subjects::{Accepting, Talking, VALUE_BYTES};

#[library_benchmark]
#[bench::batch(subjects::packet())]
fn parse(packet: Vec<u8>) -> (usize, Vec<u8>) {
    (subjects::parse(black_box(&packet)), packet)
}

#[library_benchmark]
fn write() -> [u8; 64] {
    black_box(subjects::write(black_box(9)))
}

#[library_benchmark]
#[bench::batch(subjects::batch())]
fn walk(batch: Vec<u8>) -> (usize, Vec<u8>) {
    (subjects::walk(black_box(&batch)), batch)
}

#[library_benchmark]
#[bench::batch(subjects::batch())]
fn pack(mut out: Vec<u8>) -> Vec<u8> {
    subjects::pack(black_box(&mut out));
    out
}

#[library_benchmark]
fn tag() -> u64 {
    black_box(subjects::tag(black_box(&[7; VALUE_BYTES])))
}

#[library_benchmark]
#[bench::empty_region(Accepting::new())]
fn accept(mut accepting: Accepting) -> (Accepting, Step) {
    let step = black_box(accepting.accept());
    (accepting, step)
}

#[library_benchmark]
#[bench::open_session(Talking::new())]
fn client(mut talking: Talking) -> (Talking, usize) {
    let done = black_box(talking.batch());
    (talking, done)
}

library_benchmark_group!(
    name = codec;
    benchmarks = parse, write, walk, pack, tag
);
library_benchmark_group!(
    name = core;
    benchmarks = accept, client
);
main!(library_benchmark_groups = codec, core);
