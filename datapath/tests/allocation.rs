//! Nothing is allocated per packet.
#![allow(unsafe_code)]

use nearwire_datapath::queue::{self, Receiver};
use nearwire_datapath::{Datapath, Received, Service, Transmit, Udp, Wait, Worker};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::net::SocketAddr;
use std::time::Duration;

const ROUNDS: usize = 200;
const BURST: usize = 64;

struct Counting;

thread_local! {
    /// Allocations of this thread: the harness has its own.
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: every call goes to the system's allocator unchanged, and counting allocates nothing: the
// cell needs neither a lazy start nor a destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Answers packets, and sends what its queue says.
struct Echo {
    orders: Receiver<SocketAddr>,
}

impl Service for Echo {
    fn packet<T: Transmit>(&mut self, _: u64, from: SocketAddr, datagram: &[u8], tx: &mut T) {
        tx.send(from, &datagram[..8], &datagram[8..]);
    }

    fn turn<T: Transmit>(&mut self, _: u64, tx: &mut T) -> Duration {
        while let Some(to) = self.orders.pop() {
            tx.send(to, b"order", b"");
        }
        Duration::from_secs(1)
    }

    fn stopping(&self) -> bool {
        false
    }
}

#[test]
fn nothing_is_allocated_per_packet() {
    let bind = || Udp::bind("127.0.0.1:0".parse().unwrap(), Wait::Blocking).unwrap();
    let (mut client, server) = (bind(), bind());
    let (to, me) = (server.local_addr(), client.local_addr());
    let (mut sender, orders) = queue::channel(8, server.waker());
    let mut worker = Worker::new(server, Echo { orders });

    let before = ALLOCATIONS.get();
    let mut answers = 0;
    for _ in 0..ROUNDS {
        for number in 0..BURST {
            client
                .halves()
                .1
                .send(to, &number.to_be_bytes(), &[7; 1000]);
        }
        client.flush().unwrap();
        sender.push(me).unwrap();
        let mut expected = BURST + 1;
        while expected > 0 {
            worker.step(nearwire_datapath::clock::monotonic_ns).unwrap();
            client.wait(Duration::from_millis(1)).unwrap();
            let count = client.receive().unwrap();
            for index in 0..count {
                answers += client.halves().0.packet(index).1.len().min(1);
            }
            expected -= count;
        }
    }
    let allocated = ALLOCATIONS.get() - before;
    assert_eq!(answers, ROUNDS * (BURST + 1));
    assert_eq!(
        allocated, 0,
        "allocations for {answers} packets and their answers"
    );
}
