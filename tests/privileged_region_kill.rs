//! A node is killed at each point of a move of its votes between a file and the kernel's maps.
#![cfg(any(debug_assertions, feature = "kill-points"))]

mod common;
mod region_scene;

use consensus::region::{Birth, Layout};
use consensus::{Incarnation, NodeId};
use nearwire::data_directory::DataDirectory;
use nearwire::inspect::{Inspector, Report};
use nearwire::kill_point;
use nearwire::run::parse_boot_id;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use region_scene::{LEADER, NODE, PORT, Scene, assert_votes};
use std::fs;
use std::mem;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
/// What a process passes that moves votes into the kernel, or makes its first region there.
const INTO_KERNEL: &[&str] = &["sealed", "blank", "copied", "named", "moved"];
/// What it passes that moves them into a file.
const INTO_FILE: &[&str] = &[
    "detached", "sealed", "blank", "copied", "named", "removed", "moved",
];
/// What a first start passes.
const FIRST: &[&str] = &["made", "named"];

/// The scene's node as `nearwire run`, which has the data directory while it runs.
struct Runs<'a> {
    scene: &'a mut Scene,
    child: Child,
}

impl Scene {
    /// What `nearwire run` makes its regions with.
    fn run_alike(&mut self) {
        let identity = self.directory.identity();
        let birth = Birth {
            cluster: self.directory.fingerprint() >> 32,
            boot: parse_boot_id(&identity.boot_id),
            ..self.terms.birth
        };
        let layout = Layout::new(1, 64, 64).expect("a valid layout");
        (self.terms.birth, self.terms.layout) = (birth, layout);
        let settings = &mut self.kernel.settings;
        (settings.birth, settings.layout) = (birth, layout);
    }

    /// Writes down that the cluster has formed, whose other members never answer.
    fn form(&mut self) {
        let own = self.terms.birth.incarnation();
        let update = self.directory.update(|identity| {
            let others = [(LEADER, Incarnation(2)), (NodeId(3), Incarnation(3))];
            identity.pins = others.into_iter().chain([(NODE, own)]).collect();
            identity.formed = true;
        });
        update.expect("it can be written");
    }

    /// Starts the node, which dies at a point, if one is named.
    fn run(&mut self, in_kernel: bool, point: Option<&str>) -> Runs<'_> {
        let path = self.directory.path().to_owned();
        let config = path.with_extension("toml");
        let mut text = format!(
            "cluster = \"test\"\nnode = 1\ndata_directory = {path:?}\n\
             durability = \"volatile\"\n\
             [region]\nwindow_slots = 64\nvalue_bytes = 64\n"
        );
        if in_kernel {
            text += "[offload]\nengine = \"xdp\"\ninterface = \"lo\"\nmode = \"generic\"\n";
        }
        for node in 1..=3 {
            let port = PORT - 1 + node;
            text += &format!("[[peer]]\nnode = {node}\naddress = \"127.0.0.1:{port}\"\n");
        }
        fs::write(&config, text).expect("it is written");
        let mut command = Command::new(env!("CARGO_BIN_EXE_nearwire"));
        command.arg("run").arg("--config").arg(config);
        command
            .stderr(Stdio::null())
            .env_remove(kill_point::VARIABLE);
        if let Some(point) = point {
            command.env(kill_point::VARIABLE, format!("region_place.{point}"));
        }
        // As long as this process has the directory, no other may.
        let idle = DataDirectory::open(path.with_extension("idle"), &Self::expectation());
        drop(mem::replace(
            &mut self.directory,
            idle.expect("a new directory"),
        ));
        let child = command.spawn().expect("it starts");
        Runs { scene: self, child }
    }
}

impl Runs<'_> {
    /// Waits until it has come to its end at the point.
    fn await_death(mut self) {
        let status = self.child.wait().expect("it was started");
        assert!(common::was_killed(status), "{status}");
    }

    /// Waits until it says that this engine serves, and stops it.
    fn await_engine(mut self, engine: &str) {
        let address = [SocketAddr::from(([127, 0, 0, 1], PORT))];
        let mut inspector = Inspector::new(&address, None).expect("a socket");
        common::eventually(engine, || {
            let ended = self.child.try_wait().expect("it was started");
            assert_eq!(ended, None, "{engine}");
            let second = Duration::from_secs(1);
            let mut reports = inspector.inspect(&address, second, |_| true).ok()?;
            let Report(report) = reports.pop()??;
            (report["engine"] == engine).then_some(())
        });
        let process = Pid::from_raw(self.child.id() as i32);
        kill(process, Signal::SIGTERM).expect("it runs");
        let status = self.child.wait().expect("it was started");
        assert!(status.success(), "{status}");
    }
}

impl Drop for Runs<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let path = self.scene.directory.path().with_extension("");
        let directory = DataDirectory::open(path, &Scene::expectation());
        self.scene.directory = directory.expect("nobody has it any more");
    }
}

fn engine_of(in_kernel: bool) -> &'static str {
    if in_kernel { "xdp" } else { "software" }
}

/// Kills the node at each point of a move, and starts it again, to go on with the move or to go back.
#[test]
fn a_node_killed_at_any_point_of_a_move_loses_no_vote() {
    let Some(mut scene) = Scene::new() else {
        return;
    };
    scene.run_alike();
    let opened = scene.make(false);
    scene.accept(&opened.region, 1);
    drop(opened);
    scene.form();
    let mut slots = 1;
    for (into_kernel, points) in [(true, INTO_KERNEL), (false, INTO_FILE)] {
        for (point, goes_on) in points
            .iter()
            .flat_map(|point| [(point, true), (point, false)])
        {
            let at = format!("{point} into the kernel: {into_kernel}, goes on: {goes_on}");
            let opened = scene.open(!into_kernel);
            assert_votes(&opened.region, 1..=slots);
            slots += 1;
            scene.accept(&opened.region, slots);
            drop(opened);
            scene.run(into_kernel, Some(point)).await_death();
            let in_kernel = into_kernel == goes_on;
            scene
                .run(in_kernel, None)
                .await_engine(engine_of(in_kernel));
            assert_eq!(scene.has_file(), !in_kernel, "{at}");
            assert_eq!(scene.pins().directory().exists(), in_kernel, "{at}");
            assert_votes(&scene.open(in_kernel).region, 1..=slots);
        }
    }
}

/// The same before the cluster has formed, when there are no votes yet.
#[test]
fn a_first_start_killed_at_any_point_is_begun_again() {
    let Some(mut scene) = Scene::new() else {
        return;
    };
    scene.run_alike();
    for (in_kernel, point) in FIRST
        .iter()
        .flat_map(|point| [(true, point), (false, point)])
    {
        for then in [true, false] {
            scene.run(in_kernel, Some(point)).await_death();
            // A program does not vote before the cluster has formed.
            scene.run(then, None).await_engine("software");
            assert_eq!(scene.pins().directory().exists(), then, "{point}");
        }
    }
}
