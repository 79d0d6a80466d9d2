//! Votes that move between a file and the kernel's maps, and what a crash on the way leaves.

mod common;
mod region_scene;

use common::eventually;
use consensus::Slot;
use consensus::region::{Birth, Layout, view};
use nearwire::offload::Offload as _;
use nearwire::region_place::{self, Opened, RegionError};
use nearwire::xdp::{BPFFS, Bystander, Mode, OBJECT, Occupant, Pinned};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns};
use nix::unistd::{Uid, setfsuid};
use region_scene::{GROUP, Scene, assert_votes, enter_network};
use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt as _;

/// The acceptor over a region that was opened, attached and voting.
fn installed(opened: Opened) -> Pinned {
    let mut pinned = opened.pinned.expect("it is in the kernel");
    pinned.install().expect("nobody sits there");
    pinned
}

/// The program on loopback.
fn sitting() -> Option<Occupant> {
    let found = Occupant::on("lo").expect("netlink answers everybody");
    found.into_iter().next()
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
    let Some(mut scene) = Scene::with_a_vote(false) else {
        return;
    };
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
    let sealed = fs::read(&file).expect("a region");
    let before = scene.directory.identity().clone();
    let opened = scene.open(true);
    scene.accept(&opened.region, 2);
    drop(opened);
    // As if it had died before the identity named the copy, in which nobody has voted then.
    let restored = scene.directory.update(|identity| *identity = before);
    restored.expect("it can be written");
    fs::write(&file, sealed).expect("it was removed");
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
    let Some(mut scene) = Scene::with_a_vote(false) else {
        return;
    };
    let file = scene.directory.path().join("region");
    let old = fs::read(&file).expect("a region");
    drop(scene.open(true));
    let opened = scene.open(false);
    scene.accept(&opened.region, 2);
    drop(opened);
    fs::write(&file, old).expect("somebody restores a copy");
    assert_lost(scene.try_open(false), "generation 2 counts");
}

#[test]
fn maps_that_are_gone_are_a_lost_memory() {
    let Some(mut scene) = Scene::new() else {
        return;
    };
    drop(scene.make(true));
    fs::remove_file(scene.pins().directory().join("entry")).expect("it was pinned");
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
    let Some(mut scene) = Scene::with_a_vote(true) else {
        return;
    };
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
    let Some(mut scene) = Scene::with_a_vote(true) else {
        return;
    };
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

#[test]
fn what_cannot_be_pinned_is_not_attached() {
    let Some(mut scene) = Scene::new() else {
        return;
    };
    let mut pinned = scene.make(true).pinned.expect("it is in the kernel");
    let mut refused = || pinned.install().expect_err("it cannot").to_string();
    let object = OBJECT.expect("an object");
    let bystander = Bystander::attach(object, "lo", Mode::Generic).expect("nobody sits there");
    // Who tries to attach it is told this.
    assert!(refused().contains("sits there"), "{}", refused());

    let remount = |flags| {
        let (none, flags): (Option<&str>, _) = (None, MsFlags::MS_REMOUNT | flags);
        mount(none, BPFFS, none, flags, none).expect("root may mount");
    };
    remount(MsFlags::MS_RDONLY);
    assert!(refused().contains("`mount -o remount,rw`"), "{}", refused());
    remount(MsFlags::empty());

    // A process that is root no more, but has kept what programs take.
    for directory in scene.pins().directory().ancestors().take(2) {
        fs::set_permissions(directory, Permissions::from_mode(0o755)).expect("it is ours");
    }
    setfsuid(Uid::from_raw(65534));
    let said = refused();
    let directory = scene.pins().directory().display().to_string();
    setfsuid(Uid::from_raw(0));
    let begins = format!("pin the program's link in {directory}: ");
    assert!(said.starts_with(&begins), "{said}");
    assert!(said.contains("`chown -R`"), "{said}");

    drop(bystander);
    // A child that another test is starting keeps it until it is another program.
    eventually("nobody sits there", || sitting().is_none().then_some(()));
    pinned.install().expect("it can be pinned again");
    assert!(pinned.is_installed());
    assert!(!scene.pins().directory().join("trial").exists());
}

#[test]
fn what_votes_is_not_disturbed_by_who_must_not_have_it() {
    let Some(mut scene) = Scene::new() else {
        return;
    };
    drop(installed(scene.make(true)));
    let voting = sitting().expect("its link is pinned");
    assert_eq!(voting.name.as_deref(), Some("acceptor"));
    let terms = scene.terms;
    let identity = scene.directory.identity().clone();
    let layout = Layout::new(1, 16, 128).expect("a valid layout");
    for in_kernel in [true, false] {
        scene.terms.layout = layout;
        scene.kernel.settings.layout = layout;
        let error = scene.try_open(in_kernel).expect_err("another layout");
        assert!(error.to_string().contains("restore [region]"), "{error}");
        scene.terms = terms;
        scene.kernel.settings.layout = terms.layout;
        scene.terms.birth.boot = 8;
        assert_lost(scene.try_open(in_kernel), "another incarnation");
        scene.terms.birth = Birth {
            cluster: 2,
            ..terms.birth
        };
        let error = scene.try_open(in_kernel).expect_err("another cluster's");
        assert!(error.to_string().contains("another cluster"), "{error}");
        scene.terms = terms;
        let moved = |generation| {
            move |identity: &mut nearwire::data_directory::Identity| {
                identity.generation = generation;
            }
        };
        let update = scene.directory.update(moved(1));
        update.expect("it can be written");
        assert_lost(scene.try_open(in_kernel), "generation 1 counts");
        let update = scene.directory.update(moved(identity.generation));
        update.expect("it can be written");
        assert_eq!(sitting().as_ref(), Some(&voting), "{in_kernel}");
    }
    drop(scene.open(true));
    let passing = sitting().expect("it is still attached");
    assert_eq!(passing.name.as_deref(), Some("pass"));
}

#[test]
fn a_link_in_another_network_is_not_taken_for_this_ones() {
    let Some(mut scene) = Scene::new() else {
        return;
    };
    drop(installed(scene.make(true)));
    let first = File::open("/proc/thread-self/ns/net").expect("it is this thread's");
    // Whose loopback has the same number.
    enter_network();
    let pinned = installed(scene.open(true));
    let name = sitting().and_then(|occupant| occupant.name);
    assert_eq!(name.as_deref(), Some("acceptor"));
    assert!(pinned.is_installed());
    setns(&first, CloneFlags::CLONE_NEWNET).expect("root may enter");
    assert_eq!(sitting(), None, "what an earlier life left elsewhere");
    assert!(!pinned.is_installed());
}
