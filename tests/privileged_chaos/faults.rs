//! The faults: a row each.
//!
//! A fault does its damage, lets time pass, and mends what can be mended; what follows is that all
//! nodes that are left catch up while the load goes on. None lets more nodes than one be without
//! their memory at a time, for nothing could be promised then.

use crate::network::Weather;
use crate::world::{CLIENTS, Defect, NODES, Trouble, World};
use nearwire::config::Durability;
use nix::sys::signal::Signal;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

/// Something that goes wrong.
pub(crate) struct Fault {
    pub(crate) name: &'static str,
    /// What it does, in a few words.
    pub(crate) what: &'static str,
    /// How often it is drawn, compared with the others. None: it befalls each cluster once, because
    /// it costs a matchmaker, of which a majority has to be left.
    pub(crate) weight: Option<u64>,
    /// Where it makes sense.
    pub(crate) fits: fn(&World) -> bool,
    pub(crate) strike: fn(&mut World) -> Result<(), Trouble>,
}

const ANYWHERE: fn(&World) -> bool = |_| true;

/// Every fault.
pub(crate) const FAULTS: &[Fault] = &[
    Fault {
        name: "partition",
        what: "a node and the two others do not hear each other",
        weight: Some(4),
        fits: ANYWHERE,
        strike: partition,
    },
    Fault {
        name: "one-way",
        what: "a node hears the others, or they hear it, not both",
        weight: Some(3),
        fits: ANYWHERE,
        strike: one_way,
    },
    Fault {
        name: "bridge",
        what: "two nodes that do not hear each other both hear the third",
        weight: Some(3),
        fits: ANYWHERE,
        strike: bridge,
    },
    Fault {
        name: "all-apart",
        what: "no node hears another",
        weight: Some(1),
        fits: ANYWHERE,
        strike: all_apart,
    },
    Fault {
        name: "clients-cut",
        what: "a node and the clients do not hear each other",
        weight: Some(1),
        fits: ANYWHERE,
        strike: clients_cut,
    },
    Fault {
        name: "loss",
        what: "frames are lost",
        weight: Some(2),
        fits: ANYWHERE,
        strike: loss,
    },
    Fault {
        name: "duplication",
        what: "frames come again, up to 0.2 s later",
        weight: Some(2),
        fits: ANYWHERE,
        strike: duplication,
    },
    Fault {
        name: "reordering",
        what: "frames are overtaken by later ones",
        weight: Some(2),
        fits: ANYWHERE,
        strike: reordering,
    },
    Fault {
        name: "SIGKILL",
        what: "a process is killed",
        weight: Some(4),
        fits: ANYWHERE,
        strike: killed,
    },
    Fault {
        name: "all-killed",
        what: "all processes are killed at once",
        weight: Some(1),
        fits: |world| world.setting.durability != Durability::Volatile,
        strike: all_killed,
    },
    Fault {
        name: "SIGTERM",
        what: "a process is stopped in order",
        weight: Some(1),
        fits: ANYWHERE,
        strike: stopped,
    },
    Fault {
        name: "SIGSTOP",
        what: "a process stands still, and goes on",
        weight: Some(4),
        fits: ANYWHERE,
        strike: frozen,
    },
    Fault {
        name: "power-loss",
        what: "a machine loses its memory, and what its disk had not flushed",
        weight: Some(2),
        fits: |world| world.setting.durability == Durability::Sync,
        strike: power_loss,
    },
    Fault {
        name: "disk-full",
        what: "the file system of a node is full",
        weight: Some(2),
        fits: |world| world.setting.durability != Durability::Volatile,
        strike: disk_full,
    },
    Fault {
        name: "slow-disk",
        what: "each flush of a node takes 30 ms",
        weight: Some(2),
        fits: |world| world.setting.durability == Durability::Sync,
        strike: slow_disk,
    },
    Fault {
        name: "corrupt-journal",
        what: "a bit of a stopped node's journal is another",
        weight: Some(2),
        fits: |world| world.setting.durability != Durability::Volatile,
        strike: corrupt_journal,
    },
    Fault {
        name: "detached",
        what: "a node that runs has its program taken off, and put back",
        weight: Some(2),
        fits: any_in_kernel,
        strike: detached,
    },
    Fault {
        name: "unpinned",
        what: "the program of a node that is down vanishes",
        weight: Some(2),
        fits: any_in_kernel,
        strike: unpinned,
    },
    Fault {
        name: "members-changed",
        what: "a node votes no more, and votes again, while others die or are cut off",
        weight: Some(4),
        fits: ANYWHERE,
        strike: members_changed,
    },
    Fault {
        name: "memory-lost",
        what: "a machine restarts without its memory: it is refused, and put back",
        weight: None,
        fits: |world| world.setting.durability != Durability::Sync,
        strike: |world| machine_lost(world, Loss::Memory),
    },
    Fault {
        name: "machine-lost",
        what: "a machine comes back with nothing: it does not count, and is put back",
        weight: None,
        // Without its data directory it takes itself for no member, whatever it forgets.
        fits: |world| world.setting.defect != Some(Defect::LostMemoryCounted),
        strike: |world| machine_lost(world, Loss::Everything),
    },
];

fn any_in_kernel(world: &World) -> bool {
    NODES.into_iter().any(|node| world.is_in_kernel(node))
}

/// Lets a change of the weather last for a while.
fn under(world: &mut World, most_ms: u64, change: impl FnOnce(&mut Weather)) {
    let before = world.switch.fates();
    world.switch.change(change);
    world.dwell(500, most_ms);
    world.clear_up();
    let befallen = world.switch.fates().befallen() - before.befallen();
    world.note(format!("{befallen} frames"));
}

fn partition(world: &mut World) -> Result<(), Trouble> {
    let node = world.target();
    world.note(format!("node {node}"));
    let others = world.others(node);
    under(world, 3000, |weather| {
        others.iter().for_each(|other| weather.part(node, *other));
    });
    Ok(())
}

fn one_way(world: &mut World) -> Result<(), Trouble> {
    let node = world.target();
    let deaf = world.random.below(2) == 0;
    let way = if deaf { "hears nobody" } else { "is not heard" };
    world.note(format!("node {node} {way}"));
    let others = world.others(node);
    under(world, 3000, |weather| {
        for other in others {
            match deaf {
                true => weather.block(other, node),
                false => weather.block(node, other),
            }
        }
    });
    Ok(())
}

fn bridge(world: &mut World) -> Result<(), Trouble> {
    let node = world.target();
    let others = world.others(node);
    world.note(format!("by node {node}"));
    under(world, 3000, |weather| weather.part(others[0], others[1]));
    Ok(())
}

fn all_apart(world: &mut World) -> Result<(), Trouble> {
    under(world, 1500, |weather| {
        NODES.iter().for_each(|one| {
            NODES.iter().for_each(|other| weather.block(*one, *other));
        });
    });
    Ok(())
}

fn clients_cut(world: &mut World) -> Result<(), Trouble> {
    let node = world.target();
    world.note(format!("node {node}"));
    under(world, 1500, |weather| weather.part(node, CLIENTS));
    Ok(())
}

fn loss(world: &mut World) -> Result<(), Trouble> {
    let lost = 20 + world.random.below(180);
    world.note(format!("{lost} of 1000"));
    under(world, 3000, |weather| weather.lost = lost);
    Ok(())
}

fn duplication(world: &mut World) -> Result<(), Trouble> {
    let doubled = 50 + world.random.below(450);
    world.note(format!("{doubled} of 1000"));
    under(world, 3000, |weather| weather.doubled = doubled);
    Ok(())
}

fn reordering(world: &mut World) -> Result<(), Trouble> {
    let delayed = 50 + world.random.below(450);
    world.note(format!("{delayed} of 1000"));
    under(world, 3000, |weather| weather.delayed = delayed);
    Ok(())
}

fn killed(world: &mut World) -> Result<(), Trouble> {
    let node = world.target();
    world.note(format!("node {node}"));
    world.cluster.kill(node);
    world.dwell(50, 2000);
    world.start_node(node);
    Ok(())
}

fn all_killed(world: &mut World) -> Result<(), Trouble> {
    for node in NODES {
        world.signal(node, Signal::SIGKILL);
    }
    for node in NODES {
        world.cluster.kill(node);
    }
    for node in NODES {
        world.dwell(1, 300);
        world.start_node(node);
    }
    Ok(())
}

fn stop_in_order(world: &mut World, node: u16) -> Result<(), Trouble> {
    let status = world.cluster.stop(node);
    match status {
        Some(status) if status.success() => Ok(()),
        status => Err(format!("node {node} was stopped in order: {status:?}")),
    }
}

fn stopped(world: &mut World) -> Result<(), Trouble> {
    let node = world.target();
    world.note(format!("node {node}"));
    stop_in_order(world, node)?;
    world.dwell(50, 1500);
    world.start_node(node);
    Ok(())
}

fn frozen(world: &mut World) -> Result<(), Trouble> {
    let node = world.target();
    world.note(format!("node {node}"));
    world.signal(node, Signal::SIGSTOP);
    world.dwell(20, 3000);
    world.signal(node, Signal::SIGCONT);
    Ok(())
}

fn power_loss(world: &mut World) -> Result<(), Trouble> {
    let node = world.target();
    // From its next start on the disk forgets what was not flushed; so it is started first.
    world.note(format!("node {node}"));
    stop_in_order(world, node)?;
    world.rehearse(node, ",discarding");
    world.start_node(node);
    world.settle()?;
    world.cluster.kill(node);
    forget_memory(world, node)?;
    world.dwell(50, 1500);
    world.rehearse(node, "");
    world.start_node(node);
    Ok(())
}

/// What a machine that restarts has no more.
fn forget_memory(world: &mut World, node: u16) -> Result<(), Trouble> {
    world.next_boot(node);
    if world.is_in_kernel(node) {
        world.run_at(node, "rm", &["-rf", "/sys/fs/bpf/nearwire"])?;
    }
    let region = world.data(node).join("region");
    match fs::remove_file(&region) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(format!("remove {}: {error}", region.display()))
        }
        _ => Ok(()),
    }
}

/// Writes until there is no room, and says how that was put.
fn fill(path: &Path) -> std::io::Result<std::io::Error> {
    let mut file = fs::File::create(path)?;
    loop {
        if let Err(error) = file.write_all(&[0; 4096]) {
            return Ok(error);
        }
    }
}

fn disk_full(world: &mut World) -> Result<(), Trouble> {
    let node = world.target();
    let ballast = world.data(node).join("ballast");
    let failed = |error: std::io::Error| format!("fill {}: {error}", ballast.display());
    let full = fill(&ballast).map_err(failed)?;
    if full.kind() != std::io::ErrorKind::StorageFull {
        return Err(failed(full));
    }
    world.dwell(1000, 4000);
    let ended = world.has_ended(node);
    fs::remove_file(&ballast).map_err(failed)?;
    world.note(format!(
        "node {node} {}",
        if ended { "ended" } else { "went on" }
    ));
    // It may have been about to.
    world.dwell(300, 301);
    if world.has_ended(node) {
        world.cluster.wait(node);
        world.start_node(node);
    }
    Ok(())
}

fn slow_disk(world: &mut World) -> Result<(), Trouble> {
    let node = world.target();
    world.note(format!("node {node}"));
    stop_in_order(world, node)?;
    world.rehearse(node, ",flush_delay_us=30000");
    world.start_node(node);
    world.dwell(2000, 5000);
    world.cluster.kill(node);
    world.rehearse(node, "");
    world.start_node(node);
    Ok(())
}

/// A node that is stopped in order has all its records covered: damage to any of them is seen.
fn corrupt_journal(world: &mut World) -> Result<(), Trouble> {
    let node = world.target();
    stop_in_order(world, node)?;
    let journal = world.data(node).join("journal");
    let flipped = flip(world, &journal).map_err(|error| format!("damage {journal:?}: {error}"))?;
    world.start_node(node);
    let refused = world.wait_for("a node that starts over a damaged journal", |world| {
        if world.has_ended(node) {
            return Some(true);
        }
        world.report(node).map(|_| false)
    })?;
    world.note(format!(
        "node {node}, byte {} of {}: {}",
        flipped.at,
        flipped.file.display(),
        if refused { "refused" } else { "recovered" }
    ));
    if refused {
        let status = world.cluster.wait(node);
        if status.and_then(|status| status.code()) != Some(1) {
            return Err(format!(
                "a damaged journal: node {node} ended with {status:?}"
            ));
        }
        flipped
            .again()
            .map_err(|error| format!("mend {journal:?}: {error}"))?;
        world.start_node(node);
    }
    Ok(())
}

struct Flipped {
    file: std::path::PathBuf,
    at: u64,
    bit: u8,
}

impl Flipped {
    fn again(&self) -> std::io::Result<()> {
        let file = OpenOptions::new().read(true).write(true).open(&self.file)?;
        let mut byte = [0];
        file.read_exact_at(&mut byte, self.at)?;
        byte[0] ^= self.bit;
        file.write_all_at(&byte, self.at)
    }
}

/// Flips a bit of what is written in any segment.
fn flip(world: &mut World, journal: &Path) -> std::io::Result<Flipped> {
    let mut segments = Vec::new();
    for entry in fs::read_dir(journal)? {
        let path = entry?.path();
        if path
            .file_name()
            .is_some_and(|name| name.as_encoded_bytes().starts_with(b"segment-"))
        {
            let bytes = fs::read(&path)?;
            let written: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at] != 0).collect();
            // One that was made ahead has nothing in it.
            if !written.is_empty() {
                segments.push((path, written));
            }
        }
    }
    segments.sort();
    let (file, written) = segments.remove(world.random.below(segments.len() as u64) as usize);
    let at = written[world.random.below(written.len() as u64) as usize] as u64;
    let flipped = Flipped {
        file,
        at,
        bit: 1 << world.random.below(8),
    };
    flipped.again()?;
    Ok(flipped)
}

/// Any node whose acceptor is in the kernel.
fn of_kernel(world: &mut World) -> u16 {
    let nodes: Vec<u16> = NODES
        .into_iter()
        .filter(|node| world.is_in_kernel(*node))
        .collect();
    nodes[world.random.below(nodes.len() as u64) as usize]
}

fn detached(world: &mut World) -> Result<(), Trouble> {
    let node = of_kernel(world);
    world.note(format!("node {node}"));
    world.offload(node, "remove")?;
    world.dwell(300, 2000);
    world.offload(node, "install")?;
    Ok(())
}

fn unpinned(world: &mut World) -> Result<(), Trouble> {
    let node = of_kernel(world);
    world.note(format!("node {node}"));
    world.cluster.kill(node);
    world.dwell(50, 1000);
    let links = "find /sys/fs/bpf/nearwire -name 'link*' -type f -print -delete";
    let removed = world.run_at(node, "sh", &["-c", links])?;
    if removed.trim().is_empty() {
        return Err(format!("node {node} left no link of its program"));
    }
    world.dwell(50, 1000);
    world.start_node(node);
    Ok(())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Loss {
    /// The disk is still there, and says that there was a memory.
    Memory,
    /// Somebody removed the data directory, too.
    Everything,
}

/// A node that has voted loses its votes. What it voted for is known to one other, which is away
/// when the forgetful one meets the third, which has missed it all.
fn machine_lost(world: &mut World, loss: Loss) -> Result<(), Trouble> {
    let leader = world.wait_for("a leader", World::leader)?;
    let others = world.others(leader);
    let first = world.random.below(2) as usize;
    let (forgetful, third) = (others[first], others[1 - first]);
    world.note(format!(
        "node {forgetful}, node {leader} led, node {third} had missed it"
    ));
    world.switch.change(|weather| {
        weather.part(third, leader);
        weather.part(third, forgetful);
    });
    world.dwell(500, 1500);
    world.advance(500)?;
    world.lost = Some(forgetful);
    world.cluster.kill(forgetful);
    forget_memory(world, forgetful)?;
    if loss == Loss::Everything {
        empty(&world.data(forgetful))?;
    }
    world.clear_up();
    world.switch.change(|weather| {
        weather.part(leader, third);
        weather.part(leader, forgetful);
    });
    world.start_node(forgetful);
    world.dwell(2500, 4000);
    world.clear_up();
    let refused = world.has_ended(forgetful);
    if refused {
        let status = world.end_of(forgetful)?;
        world.note(format!("ended with {status}"));
        if status.code() != Some(3) {
            return Err(format!(
                "node {forgetful} has lost its memory, and ended with {status}"
            ));
        }
    }
    if !refused && world.setting.defect == Some(Defect::LostMemoryCounted) {
        // It shall show in what clients see.
        world.lost = None;
        return Ok(());
    }
    // Whoever has no disk either does not know what it has forgotten, and asks to be let in.
    if loss == Loss::Memory && !refused {
        return Err(format!(
            "node {forgetful} has lost its memory, and goes on as if it had not"
        ));
    }
    put_back(world, forgetful)
}

/// Removes everything in a directory that is a mount.
fn empty(directory: &Path) -> Result<(), Trouble> {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        let removed = match path.is_dir() {
            true => fs::remove_dir_all(&path),
            false => fs::remove_file(&path),
        };
        removed.map_err(|error| format!("remove {}: {error}", path.display()))?;
    }
    Ok(())
}

/// Has a node that lost its memory take its former place, as another.
fn put_back(world: &mut World, node: u16) -> Result<(), Trouble> {
    world.cluster.kill(node);
    forget_memory(world, node)?;
    empty(&world.data(node))?;
    world.start_stranger(node);
    let at = world.others(node)[0];
    let name = node.to_string();
    world
        .change_members(at, &["replace", "--lost", &name])?
        .end()?;
    world.lost = None;
    world.note(format!("node {node} is put back"));
    Ok(())
}

/// One node votes no more and then again. Meanwhile another dies or is cut off: what was begun is
/// ended by whoever leads then.
fn members_changed(world: &mut World) -> Result<(), Trouble> {
    let node = world.target();
    let name = node.to_string();
    world.note(format!("node {node}"));
    for word in ["demote", "promote"] {
        let at = world.any();
        let change = world.change_members(at, &[word, &name])?;
        let victim = world.target();
        match world.random.below(4) {
            0 => {
                world.dwell(0, 30);
                world.note(format!("node {victim} dies at {word}"));
                world.cluster.kill(victim);
                world.dwell(50, 1000);
                world.start_node(victim);
            }
            1 => {
                world.note(format!("node {victim} is cut off at {word}"));
                let others = world.others(victim);
                under(world, 1500, |weather| {
                    others.iter().for_each(|other| weather.part(victim, *other));
                });
            }
            _ => {}
        }
        change.end()?;
    }
    Ok(())
}
