//! Leaders that duel in the kernel on every processor, and who watches them.

use super::duel::{self, Flaw};
use super::{PORT, Twin, skip};
use consensus::conformance::Shape;
use consensus::memory::Memory as _;
use consensus::region::{Region, entry, group, vote};
use consensus::sync::AtomicU64;
use consensus::wire::{DEFAULT_PORT, Kind};
use consensus::{GroupId, Slot};
use nearwire::mapping::Mapping;
use nearwire::xdp::Loaded;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::ScopedJoinHandle;

/// Few slots, so that the leaders meet.
pub const SHAPE: Shape = Shape {
    window: 4,
    value_bytes: 128,
    lease_ns: 1,
    epoch: 1,
    is_narrow: false,
    key: None,
};
const GROUPS: u16 = 4;
/// Requests between two looks at how far it is.
const BATCH: u32 = 20_000;
/// A frame to begin with: the leaders write their requests over it.
const FRAME: [u8; 128] = [0; 128];

const _: () = assert!(PORT == DEFAULT_PORT);
const _: () = assert!(GROUPS as usize <= duel::GROUPS && GROUPS.is_power_of_two());
const _: () = assert!(GROUPS as usize * SHAPE.window as usize <= duel::ENTRIES);

/// How a duel ended.
#[derive(Debug, Default)]
pub struct Ended {
    /// Votes that were stored, as the sequence words count them.
    pub votes: u64,
    /// Requests.
    pub asked: u64,
    /// Requests that found a record busy, and Decides that wanted no answer.
    pub silent: u64,
    /// Answers by kind.
    pub answers: Vec<(Kind, u64)>,
    /// Looks at the region from user space.
    pub looks: u64,
    /// What was wrong.
    pub flaws: Vec<String>,
}

/// Has all processors duel over a fresh region until so many votes are stored, or something is
/// wrong, or `most` requests were made.
pub fn fight(object: &[u8], votes: u64, most: u64) -> Ended {
    let mut settings = Twin::settings(SHAPE);
    settings.layout =
        consensus::region::Layout::new(GROUPS, SHAPE.window, SHAPE.value_bytes).expect("a layout");
    let loaded = Loaded::load(object, &settings).unwrap_or_else(|error| panic!("{error}"));
    let region = loaded.region();
    let processors = processors();
    let share = most / processors.len() as u64;
    let is_over = AtomicBool::new(false);
    let watched = std::thread::scope(|scope| {
        let is_over = &is_over;
        let watcher = scope.spawn(move || watch(region, is_over));
        let leaders: Vec<_> = processors
            .iter()
            .map(|processor| {
                let loaded = &loaded;
                scope.spawn(move || {
                    pin(*processor);
                    let mut asked = 0;
                    while asked < share && stored(region) < votes && flaws(region).is_empty() {
                        let ran = loaded.run_repeatedly(&FRAME, BATCH);
                        ran.unwrap_or_else(|error| panic!("{error}"));
                        asked += u64::from(BATCH);
                    }
                    asked
                })
            })
            .collect();
        let asked: Vec<_> = leaders.into_iter().map(ScopedJoinHandle::join).collect();
        is_over.store(true, Ordering::Release);
        let watched = watcher.join().expect("the watcher does not panic");
        let asked = asked.into_iter().map(|asked| asked.expect("no panic"));
        (asked.sum::<u64>(), watched)
    });
    let (asked, (looks, mut flawed)) = watched;
    flawed.extend(flaws(region));
    if flawed.is_empty() {
        flawed.extend(left(region));
    }
    let tally = |what: usize| {
        let of = |cpu| duel::TALLY + cpu * duel::TALLY_WORDS + what;
        (0..duel::PROCESSORS)
            .map(|cpu| region.load(0, of(cpu)))
            .sum()
    };
    let kinds = Kind::ALL.iter().map(|kind| (*kind, *kind as usize));
    let kinds = kinds.filter(|(_, code)| *code < duel::TALLY_WORDS - 1);
    let answers = kinds.map(|(kind, code)| (kind, tally(code)));
    Ended {
        votes: stored(region),
        asked,
        silent: tally(duel::TALLY_WORDS - 1),
        answers: answers.filter(|(_, times)| *times > 0).collect(),
        looks,
        flaws: flawed,
    }
}

/// Whether nobody could overlap here, which is printed.
pub fn are_alone(test: &str) -> bool {
    let is_alone = processors().len() < 2;
    if is_alone {
        skip(test, "leaders duel on two processors at least");
    }
    is_alone
}

fn processors() -> Vec<usize> {
    let set = sched_getaffinity(Pid::from_raw(0)).expect("the kernel says where we may run");
    let all = (0..CpuSet::count()).filter(|cpu| set.is_set(*cpu).unwrap_or(false));
    // A leader's node is its processor's number.
    all.filter(|cpu| *cpu < 8).collect()
}

fn pin(processor: usize) {
    let mut set = CpuSet::new();
    set.set(processor).expect("a processor");
    sched_setaffinity(Pid::from_raw(0), &set).expect("a processor of ours");
}

fn entries() -> impl Iterator<Item = u64> {
    0..u64::from(GROUPS) * SHAPE.window
}

fn groups() -> impl Iterator<Item = GroupId> {
    (0..GROUPS).map(GroupId)
}

/// Every publication adds two to a sequence word.
fn stored(region: &Region<Mapping>) -> u64 {
    let word = |index| region.load(region.entry(index).expect("an entry"), entry::LOCK);
    entries().map(|index| word(index) / 2).sum()
}

/// What the leaders found wrong.
fn flaws(region: &Region<Mapping>) -> Vec<String> {
    let times = |flaw: Flaw| region.load(0, duel::FLAWS + flaw as usize);
    let all = Flaw::ALL.into_iter().filter(|flaw| times(*flaw) > 0);
    let mut told: Vec<_> = all
        .map(|flaw| format!("{flaw:?} {} times", times(flaw)))
        .collect();
    if !told.is_empty() {
        let first: Vec<_> = (0..8)
            .map(|word| region.load(0, duel::FIRST + word))
            .collect();
        told.push(format!("the first: {first:#x?}"));
    }
    told
}

/// Reads the region without its locks until it is told to stop: how often, and what was wrong.
fn watch(region: &Region<Mapping>, is_over: &AtomicBool) -> (u64, Vec<String>) {
    let mut looks = 0;
    let mut raised = vec![[0; 3]; usize::from(GROUPS)];
    let mut newest = vec![0; entries().count()];
    let mut flaws = Vec::new();
    while !is_over.load(Ordering::Acquire) && flaws.len() < 10 {
        for id in groups() {
            let at = region.group(id).expect("a group");
            let before = &mut raised[usize::from(id.0)];
            // The trim is read last: the highest slot is within the window of an earlier one.
            for (word, value) in [group::PROMISED, group::HIGHEST, group::TRIM]
                .into_iter()
                .zip(before.iter_mut())
            {
                let now = region.load(at, word);
                if now < *value {
                    flaws.push(format!(
                        "word {word} of {id:?} went back from {value:#x} to {now:#x}"
                    ));
                }
                *value = now;
            }
            let [promised, highest, trim] = *before;
            if highest >= trim + SHAPE.window {
                flaws.push(format!(
                    "{id:?}: slot {highest} was touched above a trim of {trim}"
                ));
            }
            for slot in (trim.saturating_sub(SHAPE.window)..trim + SHAPE.window).map(Slot) {
                let Some(key) = seen(region, id, slot, &mut flaws) else {
                    continue;
                };
                let index = u64::from(id.0) * SHAPE.window + slot.0 % SHAPE.window;
                let known = &mut newest[index as usize];
                let is_other = key | duel::VARIANTS == *known | duel::VARIANTS && key != *known;
                if key < *known || is_other {
                    flaws.push(format!("{id:?}: {key:#x} after {known:#x}"));
                }
                *known = key;
                let now = region.load(at, group::PROMISED);
                if (key >> 12 & 0x0fff_ffff) > now >> 16 {
                    flaws.push(format!(
                        "{id:?}: {key:#x} above the promise {now:#x}, before {promised:#x}"
                    ));
                }
                looks += 1;
            }
        }
    }
    (looks, flaws)
}

/// The vote in a slot as a key, by the reader without the lock.
fn seen(region: &Region<Mapping>, id: GroupId, slot: Slot, flaws: &mut Vec<String>) -> Option<u64> {
    let mut out = [0; SHAPE.value_bytes];
    let (ballot, length) = vote(region, id, slot, out.len(), &mut out)?;
    let words: Vec<_> = out
        .as_chunks::<8>()
        .0
        .iter()
        .map(|word| u64::from_ne_bytes(*word))
        .collect();
    let key = duel::key(slot.0, ballot.0, words[0]);
    let seed = duel::seed(id.0.into(), key);
    let expected = duel::length(seed, SHAPE.value_bytes as u64);
    let mut value = [0; SHAPE.value_bytes];
    for (index, word) in (0..expected.div_ceil(8)).zip(value.as_chunks_mut::<8>().0) {
        *word = duel::word(seed, key, expected, index).to_ne_bytes();
    }
    if length as u64 != expected || out[..length] != value[..length] {
        flaws.push(format!("{id:?} {slot:?} {ballot:?}: a torn value"));
    }
    Some(key)
}

/// What the region is left as: whole, unlocked, and with all that anybody was told.
fn left(region: &Region<Mapping>) -> Vec<String> {
    let mut flaws = Vec::new();
    for id in groups() {
        let at = region.group(id).expect("a group");
        if region.load(at, group::LOCK) & 1 != 0 {
            flaws.push(format!("{id:?} is left locked"));
        }
        let told = region.load(0, duel::PROMISED + usize::from(id.0));
        if region.load(at, group::PROMISED) < told {
            flaws.push(format!("{id:?} forgot the promise of {told:#x}"));
        }
    }
    for index in entries() {
        let at = region.entry(index).expect("an entry");
        if region.load(at, entry::LOCK) & 1 != 0 {
            flaws.push(format!("entry {index} is left locked"));
        }
        let told = region.load(0, duel::NEWEST + index as usize);
        let id = GroupId((index / SHAPE.window) as u16);
        let found = seen(region, id, Slot(told >> 40), &mut flaws);
        // Only a later slot may stand there instead.
        if told != 0 && found.is_some_and(|key| key < told) {
            flaws.push(format!("entry {index} lost {told:#x}"));
        }
    }
    // Opening tells what contradicts itself.
    let words = 0..region.layout().words();
    let copy = words
        .map(|word| AtomicU64::new(region.load(0, word)))
        .collect::<Vec<_>>();
    if let Err(error) = Region::open(copy, *region.layout(), Twin::settings(SHAPE).birth) {
        flaws.push(error.to_string());
    }
    flaws
}
