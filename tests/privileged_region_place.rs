//! Votes that move between a file and the kernel's maps, and what a crash on the way leaves.

mod common;

use common::skip;
use consensus::acceptor::{Acceptor, Effect, Step};
use consensus::memory::Buffers;
use consensus::region::{Birth, Layout, Region, view, vote};
use consensus::wire::{Header, Kind};
use consensus::{Ballot, Epoch, GroupId, NodeId, Slot};
use datapath::netns::private_bpffs;
use nearwire::config::Durability;
use nearwire::data_directory::{DataDirectory, Expectation};
use nearwire::mapping::Mapping;
use nearwire::region_place::{self, InKernel, Opened, RegionError, Terms};
use nearwire::xdp::{self, Attach, BPFFS, Mode, OBJECT, OnHostDeath, Pinned, Pins, Seat, Settings};
use std::path::Path;

const NODE: NodeId = NodeId(1);
const LEADER: NodeId = NodeId(2);
const GROUP: GroupId = GroupId(0);

/// A data directory beside a bpffs that only this test sees.
struct Scene {
    directory: DataDirectory,
    terms: Terms,
    kernel: InKernel,
    _parent: tempfile::TempDir,
}

impl Scene {
    fn new() -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            skip("region_place", "needs root");
            return None;
        }
        assert!(
            OBJECT.is_some(),
            "no XDP object is embedded: run `cargo xtask ebpf`"
        );
        private_bpffs().expect("root may mount");
        let parent = tempfile::tempdir().expect("a directory");
        let expectation = Expectation {
            cluster: "test".into(),
            node: NODE,
            durability: Durability::Volatile,
        };
        let directory = DataDirectory::open(parent.path().join("data"), &expectation);
        let directory = directory.expect("a new directory");
        let layout = Layout::new(1, 16, 64).expect("a valid layout");
        let birth = Birth {
            cluster: 1,
            node: NODE,
            nonce: directory.identity().region_nonce,
            boot: 7,
        };
        let settings = Settings {
            port: 4747,
            own: xdp::own("lo", [127, 0, 0, 1].into()).expect("loopback is up"),
            layout,
            birth,
            epoch: Epoch(1),
            lease_ns: 0,
            key: None,
            is_rehearsal: false,
        };
        Some(Self {
            directory,
            terms: Terms {
                layout,
                birth,
                epoch: Epoch(1),
                lease_ns: 0,
            },
            kernel: InKernel {
                bpffs: BPFFS.into(),
                settings,
                seat: Seat {
                    interface: "lo".into(),
                    mode: Mode::Generic,
                    attach: Attach::Link,
                    on_host_death: OnHostDeath::KeepVoting,
                },
            },
            _parent: parent,
        })
    }

    fn make(&mut self, in_kernel: bool) -> Opened {
        let kernel = in_kernel.then_some(&self.kernel);
        region_place::make(&mut self.directory, &self.terms, kernel).expect("a fresh region")
    }

    fn try_open(&mut self, in_kernel: bool) -> Result<Opened, RegionError> {
        let kernel = in_kernel.then_some(&self.kernel);
        region_place::open(&mut self.directory, &self.terms, kernel)
    }

    fn open(&mut self, in_kernel: bool) -> Opened {
        let opened = self.try_open(in_kernel);
        opened.unwrap_or_else(|error| panic!("{error}"))
    }

    fn accept(&self, region: &Region<Mapping>, slot: u64) {
        let acceptor = Acceptor {
            node: NODE,
            incarnation: self.terms.birth.incarnation(),
            layout: self.terms.layout,
        };
        let header = Header {
            ballot: Ballot::new(1, LEADER),
            slot: Slot(slot),
            epoch: Epoch(1),
            length: 8,
            ..Header::new(Kind::Accept, GROUP, LEADER)
        };
        let mut buffers = Buffers {
            request: &[slot as u8; 8],
            reply: &mut [0; 64],
        };
        let step = acceptor.step(region, 0, &header, &mut buffers);
        assert!(matches!(step, Step::Reply(_, Effect::Voted)), "{step:?}");
    }

    fn pins(&self) -> Pins {
        Pins::new(Path::new(BPFFS), self.terms.birth.nonce).expect("a bpffs")
    }

    fn has_file(&self) -> bool {
        self.directory.path().join("region").exists()
    }
}

#[track_caller]
fn assert_votes(region: &Region<Mapping>, slots: std::ops::RangeInclusive<u64>) {
    for slot in slots {
        let mut value = [0; 64];
        let found = vote(region, GROUP, Slot(slot), 64, &mut value);
        assert_eq!(found, Some((Ballot::new(1, LEADER), 8)), "slot {slot}");
        assert_eq!(value[..8], [slot as u8; 8]);
    }
}

#[track_caller]
fn assert_lost(opened: Result<Opened, RegionError>, why: &str) {
    match opened {
        Err(RegionError::Lost(text)) => assert!(text.contains(why), "{text}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn votes_move_into_the_kernel_and_back() {
    let Some(mut scene) = Scene::new() else {
        return;
    };
    let opened = scene.make(false);
    scene.accept(&opened.region, 1);
    drop(opened);
    let mut slots = 1;
    for (generation, in_kernel) in (1..).zip([true, false, true, true, false]) {
        let generation = generation - u64::from(slots > 3);
        let opened = scene.open(in_kernel);
        assert_eq!(opened.pinned.is_some(), in_kernel);
        assert_eq!(opened.region.generation(), generation);
        assert_eq!(scene.directory.identity().generation, generation);
        assert_eq!(scene.has_file(), !in_kernel);
        assert_eq!(scene.pins().are_complete().ok(), Some(in_kernel));
        assert_votes(&opened.region, 1..=slots);
        slots += 1;
        scene.accept(&opened.region, slots);
    }
}

#[test]
fn a_copy_that_no_identity_names_is_made_again() {
    let Some(mut scene) = Scene::new() else {
        return;
    };
    let opened = scene.make(false);
    scene.accept(&opened.region, 1);
    opened.region.seal().expect("nobody holds a lock");
    drop(opened);
    let file = scene.directory.path().join("region");
    let sealed = std::fs::read(&file).expect("a region");
    let before = scene.directory.identity().clone();
    let opened = scene.open(true);
    scene.accept(&opened.region, 2);
    drop(opened);
    // As if it had died before the identity named the copy, in which nobody has voted then.
    let restored = scene.directory.update(|identity| *identity = before);
    restored.expect("it can be written");
    std::fs::write(&file, sealed).expect("it was removed");
    let opened = scene.open(true);
    assert_eq!(opened.region.generation(), 1);
    assert_votes(&opened.region, 1..=1);
    let highest = view(&opened.region, GROUP).expect("a group").highest;
    assert_eq!(highest, Slot(1));
}

#[test]
fn a_hand_over_that_died_after_the_seal_goes_on_where_it_was() {
    let Some(mut scene) = Scene::new() else {
        return;
    };
    let opened = scene.make(false);
    scene.accept(&opened.region, 1);
    opened.region.seal().expect("nobody holds a lock");
    drop(opened);
    let opened = scene.open(false);
    assert!(!opened.region.is_sealed());
    assert_votes(&opened.region, 1..=1);
    scene.accept(&opened.region, 2);
    drop(opened);
    let opened = scene.open(true);
    assert_votes(&opened.region, 1..=2);
}

#[test]
fn votes_of_an_earlier_generation_are_refused() {
    let Some(mut scene) = Scene::new() else {
        return;
    };
    let opened = scene.make(false);
    scene.accept(&opened.region, 1);
    drop(opened);
    let file = scene.directory.path().join("region");
    let old = std::fs::read(&file).expect("a region");
    drop(scene.open(true));
    let opened = scene.open(false);
    scene.accept(&opened.region, 2);
    drop(opened);
    std::fs::write(&file, old).expect("somebody restores a copy");
    assert_lost(scene.try_open(false), "generation 2 counts");
}

#[test]
fn maps_that_are_gone_are_a_lost_memory() {
    let Some(mut scene) = Scene::new() else {
        return;
    };
    drop(scene.make(true));
    std::fs::remove_file(scene.pins().directory().join("entry")).expect("it was pinned");
    assert_lost(scene.try_open(true), "not pinned");
    assert_lost(scene.try_open(false), "not pinned");
}

#[test]
fn a_directory_that_is_no_bpffs_is_named_with_the_command_that_mends_it() {
    let Some(mut scene) = Scene::new() else {
        return;
    };
    scene.kernel.bpffs = "/tmp".into();
    let refused = region_place::make(&mut scene.directory, &scene.terms, Some(&scene.kernel));
    let said = refused.expect_err("no bpffs").to_string();
    assert!(said.contains("mount -t bpf bpf /tmp"), "{said}");
}

#[test]
fn maps_of_another_layout_are_refused() {
    let Some(mut scene) = Scene::new() else {
        return;
    };
    drop(scene.make(true));
    let layout = Layout::new(1, 32, 64).expect("a valid layout");
    scene.terms.layout = layout;
    scene.kernel.settings.layout = layout;
    let said = scene
        .try_open(true)
        .expect_err("another layout")
        .to_string();
    assert!(said.contains("restore [region]"), "{said}");
}

#[test]
fn a_first_start_that_died_before_it_was_written_down_is_begun_again() {
    let Some(mut scene) = Scene::new() else {
        return;
    };
    let before = scene.directory.identity().clone();
    drop(scene.make(true));
    let restored = scene.directory.update(|identity| *identity = before);
    restored.expect("it can be written");
    let opened = scene.make(true);
    scene.accept(&opened.region, 1);
}

#[test]
fn pins_that_another_process_has_are_left_alone() {
    let Some(mut scene) = Scene::new() else {
        return;
    };
    drop(scene.make(true));
    let hold = scene.pins().hold().expect("nobody has them");
    for in_kernel in [true, false] {
        let refused = scene.try_open(in_kernel).expect_err("somebody has them");
        assert!(refused.to_string().contains("process"), "{refused}");
    }
    assert_eq!(scene.pins().are_complete().ok(), Some(true));
    drop(hold);
    drop(scene.open(false));
}

#[test]
fn the_same_bpffs_by_another_path_is_no_other_place() {
    let Some(mut scene) = Scene::new() else {
        return;
    };
    let opened = scene.make(true);
    scene.accept(&opened.region, 1);
    drop(opened);
    let alias = scene.directory.path().join("bpf");
    std::os::unix::fs::symlink(BPFFS, &alias).expect("a link");
    scene.kernel.bpffs = alias;
    let opened = scene.open(true);
    assert_eq!(opened.region.generation(), 0);
    assert_votes(&opened.region, 1..=1);
    drop(opened);
    assert_votes(&scene.open(true).region, 1..=1);
}

#[test]
fn pins_that_were_left_are_removed_by_the_next_start() {
    let Some(mut scene) = Scene::new() else {
        return;
    };
    let opened = scene.make(true);
    scene.accept(&opened.region, 1);
    drop(opened);
    drop(scene.open(false));
    // As if it had died after it had written down the new place.
    let object = OBJECT.expect("an object");
    let seat = scene.kernel.seat.clone();
    let left = Pinned::load(object, &scene.kernel.settings, scene.pins(), seat);
    drop(left.expect("maps"));
    let leaving = scene
        .directory
        .update(|identity| identity.leaving = Some(BPFFS.into()));
    leaving.expect("it can be written");
    assert_votes(&scene.open(false).region, 1..=1);
    assert!(!scene.pins().directory().exists());
    assert_eq!(scene.directory.identity().leaving, None);
}
