//! Wall-clock time of the core: `cargo bench -p nearwire-bench --bench core`.
#![allow(missing_docs)]

mod subjects;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use subjects::{Accepting, BATCH, Talking, VALUE_BYTES};

fn codec(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("codec");
    let (packet, batch) = (subjects::packet(), subjects::batch());
    group.bench_function("parse", |bencher| {
        bencher.iter(|| subjects::parse(black_box(&packet)));
    });
    group.bench_function("write", |bencher| {
        bencher.iter(|| subjects::write(black_box(9)));
    });
    group.bench_function("tag", |bencher| {
        bencher.iter(|| subjects::tag(black_box(&[7; VALUE_BYTES])));
    });
    group.throughput(Throughput::Elements(BATCH as u64));
    group.bench_function("walk", |bencher| {
        bencher.iter(|| subjects::walk(black_box(&batch)));
    });
    group.bench_function("pack", |bencher| {
        let mut out = subjects::batch();
        bencher.iter(|| subjects::pack(black_box(&mut out)));
    });
}

fn step(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("step");
    let mut accepting = Accepting::new();
    group.bench_function("accept", |bencher| bencher.iter(|| accepting.accept()));
}

fn client(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("client");
    group.throughput(Throughput::Elements(BATCH as u64));
    let mut talking = Talking::new();
    group.bench_function("batch", |bencher| bencher.iter(|| talking.batch()));
}

criterion_group!(benches, codec, step, client);
criterion_main!(benches);
