//! A region that moves between a file and maps, in namespaces of its own.
#![allow(dead_code, reason = "each test file takes what it needs")]

use crate::common::skip;
use consensus::acceptor::{Acceptor, Effect, Step};
use consensus::memory::Buffers;
use consensus::region::{Birth, Layout, Region, vote};
use consensus::wire::{Header, Kind};
use consensus::{Ballot, Epoch, GroupId, NodeId, Slot};
use datapath::netns::private_bpffs;
use nearwire::config::Durability;
use nearwire::data_directory::{DataDirectory, Expectation};
use nearwire::mapping::Mapping;
use nearwire::region_place::{self, InKernel, Opened, RegionError, Terms};
use nearwire::xdp::{self, Attach, BPFFS, Mode, OBJECT, OnHostDeath, Pins, Seat, Settings};
use nix::sched::{CloneFlags, unshare};
use std::path::Path;
use std::process::Command;

pub(crate) const NODE: NodeId = NodeId(1);
pub(crate) const LEADER: NodeId = NodeId(2);
pub(crate) const GROUP: GroupId = GroupId(0);
pub(crate) const PORT: u16 = 4747;

/// Moves this thread into a network namespace of its own, which has loopback alone.
pub(crate) fn enter_network() {
    unshare(CloneFlags::CLONE_NEWNET).expect("root may unshare");
    let ip = Command::new("ip")
        .args(["link", "set", "lo", "up"])
        .status();
    assert!(ip.expect("iproute2 is there").success());
}

/// A data directory beside a bpffs that only this test sees, in a network of its own.
pub(crate) struct Scene {
    pub(crate) directory: DataDirectory,
    pub(crate) terms: Terms,
    pub(crate) kernel: InKernel,
    _parent: tempfile::TempDir,
}

impl Scene {
    pub(crate) fn new() -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            skip("region_place", "needs root");
            return None;
        }
        assert!(
            OBJECT.is_some(),
            "no XDP object is embedded: run `cargo xtask ebpf`"
        );
        private_bpffs().expect("root may mount");
        enter_network();
        let parent = tempfile::tempdir().expect("a directory");
        let directory = DataDirectory::open(parent.path().join("data"), &Self::expectation());
        let directory = directory.expect("a new directory");
        let layout = Layout::new(1, 16, 64).expect("a valid layout");
        let birth = Birth {
            cluster: 1,
            node: NODE,
            nonce: directory.identity().region_nonce,
            boot: 7,
        };
        let settings = Settings {
            port: PORT,
            own: xdp::own("lo", [127, 0, 0, 1].into()).expect("loopback is up"),
            layout,
            birth,
            epoch: Epoch(1),
            lease_ns: 0,
            keys: None,
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

    /// One whose region is in a place, with a vote in slot 1.
    pub(crate) fn with_a_vote(in_kernel: bool) -> Option<Self> {
        let mut scene = Self::new()?;
        let opened = scene.make(in_kernel);
        scene.accept(&opened.region, 1);
        Some(scene)
    }

    pub(crate) fn expectation() -> Expectation {
        Expectation {
            cluster: "test".into(),
            node: NODE,
            durability: Durability::Volatile,
            origin: 0,
        }
    }

    pub(crate) fn make(&mut self, in_kernel: bool) -> Opened {
        let kernel = in_kernel.then_some(&self.kernel);
        region_place::make(&mut self.directory, &self.terms, kernel).expect("a fresh region")
    }

    pub(crate) fn try_open(&mut self, in_kernel: bool) -> Result<Opened, RegionError> {
        let kernel = in_kernel.then_some(&self.kernel);
        region_place::open(&mut self.directory, &self.terms, kernel)
    }

    pub(crate) fn open(&mut self, in_kernel: bool) -> Opened {
        let opened = self.try_open(in_kernel);
        opened.unwrap_or_else(|error| panic!("{error}"))
    }

    pub(crate) fn accept(&self, region: &Region<Mapping>, slot: u64) {
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

    pub(crate) fn pins(&self) -> Pins {
        Pins::new(Path::new(BPFFS), self.terms.birth.nonce).expect("a bpffs")
    }

    pub(crate) fn has_file(&self) -> bool {
        self.directory.path().join("region").exists()
    }
}

#[track_caller]
pub(crate) fn assert_votes(region: &Region<Mapping>, slots: std::ops::RangeInclusive<u64>) {
    for slot in slots {
        let mut value = [0; 64];
        let found = vote(region, GROUP, Slot(slot), 64, &mut value);
        assert_eq!(found, Some((Ballot::new(1, LEADER), 8)), "slot {slot}");
        assert_eq!(value[..8], [slot as u8; 8]);
    }
}
