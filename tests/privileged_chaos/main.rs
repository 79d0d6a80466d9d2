//! Faults on purpose: clusters of processes in namespaces, with acceptors in the kernel and in
//! software, whose network, disks and machines fail while clients record what they are told.
//!
//! A run is a sequence of clusters. The seed says how each is set up and which faults befall it in
//! which order; when they strike is up to the machine. In the middle of each a machine loses its
//! memory and its node is put back as a new one, and in the end every key is read back; then two
//! judges look for an order of all that its clients saw.

#[path = "../common/mod.rs"]
mod common;
mod faults;
mod judges;
mod network;
#[path = "../recording/mod.rs"]
mod recording;
mod report;
mod world;

use consensus::random::Random;
use faults::{FAULTS, Fault};
use nearwire::config::Durability;
use nearwire::history::Operation;
use network::Weather;
use report::{Chapter, Report};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use world::{Defect, Mark, Setting, Trouble, World};

/// How long faults befall one cluster.
const CHAPTER: Duration = Duration::from_secs(40);
/// The same where a defect is to be found.
const SHORT_CHAPTER: Duration = Duration::from_secs(12);
/// One fault of so many strikes on a network that is bad before, during and after.
const BAD_WEATHER: u64 = 3;
/// How long clusters follow one another until a defect has shown itself.
const DEFECT_LIMIT: Duration = Duration::from_secs(240);

/// Where the acceptors are.
#[derive(Clone, Copy, Debug)]
enum Engines {
    Mixed,
    Software,
    Xdp,
}

/// What a run is to be.
#[derive(Clone, Debug)]
struct Plan {
    seed: u64,
    length: Duration,
    chapter: Duration,
    engines: Engines,
    /// None: each cluster has another.
    durability: Option<Durability>,
    /// Whether leaders have leases. None: by turns.
    leases: Option<bool>,
    defect: Option<Defect>,
    /// Where logs, histories and pictures go.
    directory: PathBuf,
}

impl Plan {
    fn new(name: &str) -> Self {
        let seed = variable("SEED").map_or_else(
            || getrandom::u64().expect("the system has randomness") >> 32,
            |text| text.parse().expect("NEARWIRE_CHAOS_SEED is a number"),
        );
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("chaos");
        Self {
            seed,
            length: Duration::from_secs(50),
            chapter: CHAPTER,
            engines: Engines::Mixed,
            durability: None,
            leases: None,
            defect: None,
            directory: target.join(format!("{name}-{seed}")),
        }
    }

    /// What `cargo xtask chaos` was told.
    fn from_environment() -> Self {
        let mut plan = Self::new("run");
        if let Some(text) = variable("SECONDS") {
            let seconds = text.parse().expect("NEARWIRE_CHAOS_SECONDS is a number");
            plan.length = Duration::from_secs(seconds);
        }
        plan.engines = match variable("ENGINE").as_deref() {
            None | Some("mixed") => Engines::Mixed,
            Some("software") => Engines::Software,
            Some("xdp") => Engines::Xdp,
            Some(other) => panic!("NEARWIRE_CHAOS_ENGINE: there is no {other}"),
        };
        plan.durability = match variable("DURABILITY").as_deref() {
            None | Some("mixed") => None,
            Some("volatile") => Some(Durability::Volatile),
            Some("async") => Some(Durability::Async),
            Some("sync") => Some(Durability::Sync),
            Some(other) => panic!("NEARWIRE_CHAOS_DURABILITY: there is no {other}"),
        };
        plan.defect = variable("DEFECT").map(|name| {
            plan.chapter = SHORT_CHAPTER;
            Defect::from_name(&name).unwrap_or_else(|| panic!("there is no defect {name}"))
        });
        plan.leases = match variable("READS").as_deref() {
            None | Some("mixed") => None,
            Some("lease") => Some(true),
            Some("barrier") => Some(false),
            Some(other) => panic!("NEARWIRE_CHAOS_READS: there is no {other}"),
        };
        plan
    }

    /// The set-up of the cluster of this number.
    fn setting(&self, number: u64, random: &mut Random) -> Setting {
        // In turn, so that a short run has seen more than one.
        let turn = [Durability::Async, Durability::Sync, Durability::Volatile];
        let of_turn = turn[((number + self.seed) % 3) as usize];
        let durability = self.durability.unwrap_or(match self.engines {
            Engines::Xdp if of_turn == Durability::Sync => Durability::Async,
            Engines::Mixed | Engines::Software | Engines::Xdp => of_turn,
        });
        let in_kernel = match self.engines {
            // The kernel's acceptors do not wait for a disk.
            _ if durability == Durability::Sync => [false; 3],
            Engines::Software => [false; 3],
            Engines::Xdp => [true; 3],
            Engines::Mixed => {
                let other = random.below(3) as usize;
                let one_in_kernel = random.below(2) == 0;
                [0, 1, 2].map(|node| (node == other) == one_in_kernel)
            }
        };
        Setting {
            durability,
            leases: self
                .leases
                .unwrap_or((number + self.seed).is_multiple_of(2)),
            in_kernel,
            defect: self.defect,
        }
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var(format!("NEARWIRE_CHAOS_{name}")).ok()
}

/// Runs a plan to its end, or to the first cluster that is not as it should be.
fn run(plan: &Plan) -> Report {
    println!(
        "chaos: seed {}, logs and pictures in {}",
        plan.seed,
        plan.directory.display()
    );
    let mut report = Report::new(plan.seed);
    let begin = Instant::now();
    let mut random = Random::new(plan.seed);
    for number in 1.. {
        let setting = plan.setting(number, &mut random);
        let directory = plan.directory.join(format!("cluster-{number}"));
        let _ = std::fs::remove_dir_all(&directory);
        std::fs::create_dir_all(&directory).expect("a directory");
        let seed = random.next();
        let rest = plan.length.saturating_sub(begin.elapsed());
        let length = plan.chapter.min(rest.max(SHORT_CHAPTER));
        // Its thread goes into the namespaces of the cluster and does not come back.
        let name = format!("{number}x{}", plan.seed % 997);
        let chapter = std::thread::scope(|scope| {
            let work = || chapter(&name, &directory, setting, seed, length);
            scope.spawn(work).join()
        });
        let chapter = chapter.unwrap_or_else(|panic| {
            println!("chaos: seed {}, cluster {number}", plan.seed);
            std::panic::resume_unwind(panic)
        });
        let failed = chapter.failed();
        report.add(number, &chapter, &directory);
        if failed || begin.elapsed() >= plan.length {
            break;
        }
    }
    report
}

/// One cluster from its first process to the judges.
fn chapter(name: &str, directory: &Path, setting: Setting, seed: u64, length: Duration) -> Chapter {
    let mut world = World::start(name, directory, setting.clone(), seed);
    let mut marks = Vec::new();
    let ended = befall(&mut world, length, &mut marks);
    let (history, trouble): (Vec<Operation>, Option<Trouble>) =
        match ended.and_then(|()| world.finish()) {
            Ok(history) => (history, None),
            Err(trouble) => {
                let story = format!("{trouble}\n{}", world.describe());
                (world.abandon(), Some(story))
            }
        };
    let fates = world.switch.fates();
    drop(world);
    let judgement = judges::judge(&history);
    Chapter {
        setting,
        marks,
        history,
        judgement,
        trouble,
        fates,
    }
}

/// Draws faults until the time is over; the one in the middle costs a node its memory.
fn befall(world: &mut World, length: Duration, marks: &mut Vec<Mark>) -> Result<(), Trouble> {
    world.load()?;
    let begin = Instant::now();
    for until in [length / 2, length] {
        while begin.elapsed() < until {
            let fault = draw(world, |fault| fault.weight);
            strike(world, fault, marks)?;
        }
        if until < length {
            let loss = draw(world, |fault| fault.weight.is_none().then_some(1));
            strike(world, loss, marks)?;
        }
    }
    Ok(())
}

fn draw(world: &mut World, weight: fn(&Fault) -> Option<u64>) -> &'static Fault {
    let weights: Vec<(u64, &Fault)> = FAULTS
        .iter()
        .filter(|fault| (fault.fits)(world))
        .filter_map(|fault| Some((weight(fault)?, fault)))
        .collect();
    let sum = weights.iter().map(|(weight, _)| weight).sum();
    let mut at = world.random.below(sum);
    for (weight, fault) in weights {
        match at.checked_sub(weight) {
            Some(rest) => at = rest,
            None => return fault,
        }
    }
    unreachable!("a number below the sum is within it")
}

/// Has a fault befall the cluster, in bad weather or good, and waits until all have caught up.
fn strike(world: &mut World, fault: &'static Fault, marks: &mut Vec<Mark>) -> Result<(), Trouble> {
    let is_bad = world.random.below(BAD_WEATHER) == 0;
    world.live_with(if is_bad {
        Weather::BAD
    } else {
        Weather::default()
    });
    if is_bad {
        world.note("bad weather");
    }
    let from_ns = world.now_ns();
    let struck = (fault.strike)(world);
    marks.push(Mark {
        fault: fault.name,
        details: std::mem::take(&mut world.details),
        from_ns,
        to_ns: world.now_ns(),
    });
    let mended = struck.and_then(|()| world.settle());
    mended.map_err(|trouble| format!("{}: {trouble}", fault.name))
}

#[test]
fn nothing_that_befalls_a_cluster_takes_the_order_from_what_its_clients_see() {
    let report = run(&Plan::from_environment());
    println!("{report}");
    assert!(report.is_clean(), "see above");
}

/// Runs with a defect until it is reported.
fn must_be_reported(name: &str, durability: Durability, leases: bool) {
    let defect = Defect::from_name(name).expect("there is such a defect");
    let plan = Plan {
        length: DEFECT_LIMIT,
        chapter: SHORT_CHAPTER,
        durability: Some(durability),
        leases: Some(leases),
        defect: Some(defect),
        ..Plan::new(name)
    };
    let report = run(&plan);
    println!("{report}");
    assert!(report.has_violation(), "{name} was not reported");
}

#[test]
fn a_stale_read_of_a_leader_that_was_replaced_is_reported() {
    must_be_reported("read-unconfirmed", Durability::Async, false);
}

#[test]
fn a_stale_read_of_a_leader_whose_lease_has_run_out_is_reported() {
    must_be_reported("lease-outlived", Durability::Async, true);
}

#[test]
fn an_acceptor_that_lost_its_memory_and_is_counted_is_reported() {
    must_be_reported("lost-memory-counted", Durability::Volatile, false);
}
