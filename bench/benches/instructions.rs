//! Instruction counts of the core under valgrind, which a busy machine does not disturb:
//! `cargo bench -p nearwire-bench --features instruction-counts --bench instructions`.
//! Needs valgrind and `cargo install gungraun-runner --version 0.20.0`.
#![allow(missing_docs)]

mod subjects;

use consensus::acceptor::Step;
use gungraun::{library_benchmark, library_benchmark_group, main};
use std::hint::black_box;
use subjects::{Accepting, Talking, VALUE_BYTES};

#[library_benchmark]
#[bench::batch(subjects::packet())]
fn parse(packet: Vec<u8>) -> usize {
    black_box(subjects::parse(black_box(&packet)))
}

#[library_benchmark]
fn write() -> [u8; 64] {
    black_box(subjects::write(black_box(9)))
}

#[library_benchmark]
#[bench::batch(subjects::batch())]
fn walk(batch: Vec<u8>) -> usize {
    black_box(subjects::walk(black_box(&batch)))
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
