//! Frames that nobody should send, shown to the program by the million: what it makes of each is
//! what the software does, and only valid requests reach the region.

mod xdp_twin;

use consensus::auth::Key;
use consensus::conformance::Shape;
use consensus::frame::ETHERNET_BYTES;
use consensus::memory::Memory as _;
use consensus::random::Random;
use consensus::region::Region;
use consensus::sync::AtomicU64;
use consensus::tally::Count;
use nearwire::xdp::Verdict;
use std::num::NonZero;
use std::thread;
use xdp_twin::conversation::{disturb, message, wrapped};
use xdp_twin::objects::tell;
use xdp_twin::{IPS, Twin, setting};

/// Frames to be shown.
const VARIABLE: &str = "NEARWIRE_FRAMES";
const FRAMES: u64 = 4_000_000;
/// Longest random frame in bytes.
const LONGEST: u64 = 1514;

/// Random bytes, or a frame that was valid before something happened to it.
fn frame(random: &mut Random, twin: &Twin) -> Vec<u8> {
    let least = ETHERNET_BYTES as u64;
    if random.below(8) == 0 {
        let length = least + random.below(LONGEST - least);
        return (0..length).map(|_| random.next() as u8).collect();
    }
    let datagram = message(random, twin);
    let mut frame = wrapped(random, twin.own.ip, &datagram);
    for _ in 0..random.below(3) {
        let length = frame.len() as u64;
        match random.below(8) {
            0 => frame.truncate((least + random.below(length - least + 1)) as usize),
            1 => frame.extend((0..random.below(64)).map(|_| random.next() as u8)),
            // Where an address, a length, a kind or a ballot may be.
            2 => {
                let at = random.below(length) as usize;
                frame[at] = [0, 1, 0x7f, 0x80, 0xff][random.below(5) as usize];
            }
            3 => {
                let (from, to) = (random.below(length) as usize, random.below(length) as usize);
                frame[to] = frame[from];
            }
            _ => {
                let at = random.below(length) as usize;
                frame[at] ^= 1 << random.below(8);
            }
        }
    }
    frame
}

/// Shows a twin so many frames: how often each thing came of one, and how often the stack got it.
fn flood(twin: &mut Twin, random: &mut Random, frames: u64) -> Result<u64, String> {
    let mut passed = 0;
    for _ in 0..frames {
        if random.below(300) == 0 {
            twin.clear();
        }
        if random.below(50) == 0 {
            disturb(random, twin);
        }
        twin.now_ns += random.below(200_000);
        let frame = frame(random, twin);
        // Both verdicts and both regions are compared: the software's is not touched by what is no
        // valid request.
        let shown = twin.show(&frame)?;
        passed += u64::from(shown.verdict == Verdict::Passed && shown.count.is_none());
    }
    twin.compare_counters()?;
    let region = twin.region();
    let words = (0..region.layout().words()).map(|word| AtomicU64::new(region.load(0, word)));
    let opened = Region::open(words.collect::<Vec<_>>(), *region.layout(), *region.birth());
    opened.map(|_| passed).map_err(|error| error.to_string())
}

#[test]
fn only_valid_requests_reach_the_region() {
    let test = "only_valid_requests_reach_the_region";
    let (frames, seed) = (setting(VARIABLE, FRAMES), setting("NEARWIRE_SEED", 1));
    let processors = thread::available_parallelism().map_or(1, NonZero::get) as u64;
    tell(&format!(
        "REPRODUCE WITH: NEARWIRE_SEED={seed} NEARWIRE_FRAMES={frames} \
         cargo test --test privileged_xdp_frames"
    ));
    let keyed = Shape {
        key: Some(Key([1, 2])),
        ..Shape::SMALL
    };
    let ended: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = (0..processors)
            .map(|thread| {
                scope.spawn(move || {
                    let shape = if thread % 2 == 0 { Shape::SMALL } else { keyed };
                    let ip = IPS[(thread / 2 % 2) as usize];
                    let mut twin = Twin::at(test, shape, ip)?;
                    let mut random = Random::new(seed.wrapping_mul(1 + thread));
                    let passed = flood(&mut twin, &mut random, frames / processors);
                    let passed = passed.unwrap_or_else(|difference| panic!("{difference}"));
                    let counts = Count::all().map(|count| twin.count(count));
                    Some((passed, counts.collect::<Vec<_>>()))
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("no difference"))
            .collect()
    });
    let mut sums = [0; Count::COUNT];
    let mut passed = 0;
    for ended in ended {
        let Some((of_thread, counts)) = ended else {
            return;
        };
        passed += of_thread;
        for (sum, count) in sums.iter_mut().zip(counts) {
            *sum += count;
        }
    }
    tell(&format!("{passed:9} not ours"));
    for count in Count::all() {
        tell(&format!("{:9} {}", sums[count.index()], count.name()));
    }
    assert_eq!(
        passed + sums.iter().sum::<u64>(),
        frames / processors * processors
    );
}
