//! Whole runs against a stand-in for a cluster: threads that answer as replicas would.

use consensus::client::encode_address;
use consensus::envelope::{self, EntryKind, Outcome, Status};
use consensus::wire::{self, Header, Kind, Parsed};
use consensus::{Ballot, Epoch, GroupId, NodeId, Sequence};
use datapath::{Datapath, Service, Transmit, Wait, Waker, Worker};
use nearwire_bench::cluster::Command;
use nearwire_bench::load::Load;
use nearwire_bench::process::Subject;
use nearwire_bench::report::{Row, Waiting, to_json, to_table};
use nearwire_bench::run::{Cluster, Description, Options, Progress, Target, TargetError, run};
use nearwire_bench::site::{Site, Where};
use nearwire_bench::{Error, hgrm, plot};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A replica without a log: applies each session's commands in order, or sends clients away.
struct StandIn {
    leader: Option<SocketAddr>,
    sessions: BTreeMap<u64, u64>,
    stop: Arc<AtomicBool>,
}

impl StandIn {
    fn apply(&mut self, value: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        for entry in envelope::entries(value).flatten() {
            let id = self.sessions.len() as u64 + 1;
            let name = id.to_be_bytes();
            let (sequence, status, body) = if entry.kind == EntryKind::Open {
                self.sessions.insert(id, 1);
                (entry.session.0, Status::Opened, &name[..])
            } else {
                let next = self
                    .sessions
                    .get_mut(&entry.session.0)
                    .expect("opened here");
                if entry.sequence.0 > *next {
                    (*next, Status::OutOfOrder, &[][..])
                } else {
                    *next = (*next).max(entry.sequence.0 + 1);
                    (entry.sequence.0, Status::Done, &b"OK"[..])
                }
            };
            Outcome {
                sequence: Sequence(sequence),
                status,
                body,
            }
            .append(&mut out);
        }
        out
    }
}

impl Service for StandIn {
    fn packet<T: Transmit>(&mut self, _: u64, from: SocketAddr, datagram: &[u8], tx: &mut T) {
        let Parsed::Ours(header, value) = wire::parse(datagram, 1400) else {
            return;
        };
        let (kind, value) = match self.leader {
            Some(leader) => (Kind::Redirect, encode_address(leader).to_vec()),
            None => (Kind::Response, self.apply(value)),
        };
        let reply = Header {
            slot: header.slot,
            vote_ballot: Ballot(u64::from(kind == Kind::Redirect)),
            nonce: header.nonce,
            length: value.len() as u16,
            ..Header::new(kind, header.group, NodeId(1))
        };
        tx.send(from, &reply.to_bytes(), &value);
    }

    fn turn<T: Transmit>(&mut self, _: u64, _: &mut T) -> Duration {
        Duration::from_secs(1)
    }

    fn stopping(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

struct Replica {
    address: SocketAddr,
    thread: Subject,
    waker: Waker,
    handle: JoinHandle<()>,
}

/// Three stand-ins; the first leads.
struct StandInCluster {
    wait: Wait,
    linger: Duration,
    stop: Arc<AtomicBool>,
    replicas: Vec<Replica>,
    starts: usize,
}

impl StandInCluster {
    fn new(wait: Wait) -> Self {
        Self {
            wait,
            linger: Duration::ZERO,
            stop: Arc::default(),
            replicas: Vec::new(),
            starts: 0,
        }
    }

    fn lingering(linger: Duration) -> Self {
        Self {
            linger,
            ..Self::new(Wait::Blocking)
        }
    }

    fn start_replica(&self, site: &Site, index: usize) -> Replica {
        let place = site.replicas()[index].clone();
        let service = StandIn {
            leader: self.replicas.first().map(|leader| leader.address),
            sessions: BTreeMap::new(),
            stop: Arc::clone(&self.stop),
        };
        let (wait, linger) = (self.wait, self.linger);
        let (ready, started) = mpsc::sync_channel(1);
        let handle = std::thread::spawn(move || {
            place.enter().expect("the site is there");
            let datapath = place.bind(wait).expect("a free port");
            let me = (
                datapath.local_addr(),
                Subject::this_thread(),
                datapath.waker(),
            );
            ready.send(me).expect("the test waits");
            let mut worker = Worker::new(datapath, service).lingering(linger);
            worker.run().expect("UDP works");
        });
        let (address, thread, waker) = started.recv().expect("the replica starts");
        Replica {
            address,
            thread,
            waker,
            handle,
        }
    }
}

impl Target for StandInCluster {
    fn description(&self) -> Description {
        Description {
            engine: "stand-in".into(),
            mode: "recvmmsg/sendmmsg".into(),
            durability: "volatile".into(),
            replicas: 3,
            leader_wait: self.wait.into(),
            acceptor_wait: self.wait.into(),
            linger: self.linger,
            auth: false,
            unsupported: None,
        }
    }

    fn start(&mut self, site: &Site) -> Result<Cluster, TargetError> {
        self.stop.store(false, Ordering::Relaxed);
        self.starts += 1;
        for index in 0..3 {
            self.replicas.push(self.start_replica(site, index));
        }
        Ok(Cluster {
            members: (1..)
                .map(NodeId)
                .zip(self.replicas.iter().map(|r| r.address))
                .collect(),
            // Wrong, so that the client has to follow a redirect.
            leader: 2,
            group: GroupId(0),
            epoch: Epoch(1),
            key: None,
            max_value: 1376,
            processes: self.replicas.iter().map(|replica| replica.thread).collect(),
            xdp_echo: None,
        })
    }

    fn stop(&mut self) -> Result<(), TargetError> {
        self.stop.store(true, Ordering::Relaxed);
        for replica in self.replicas.drain(..) {
            replica.waker.wake();
            replica.handle.join().map_err(|_| "a stand-in panicked")?;
        }
        Ok(())
    }

    fn commands(&self, value_bytes: usize) -> Command {
        Box::new(move |_, out| out.resize(value_bytes, 7))
    }
}

fn quick(options: Options) -> Options {
    Options {
        rounds: 2,
        warmup: Duration::from_millis(50),
        measure: Duration::from_millis(200),
        ..options
    }
}

#[test]
fn a_run_measures_system_and_floor_and_stops_the_cluster() {
    let mut target = StandInCluster::new(Wait::Blocking);
    let mut seen = Vec::new();
    let options = quick(Options::rate(Where::Loopback));
    let outcome = run(&mut target, &options, &mut |progress: Progress| {
        seen.push(progress);
    });
    let outcome = outcome.expect("loopback works");
    println!("{}", to_table(std::slice::from_ref(&outcome.row)));
    assert!(target.replicas.is_empty() && target.starts == 1);
    let measured = &outcome.row.measured;
    assert_eq!(
        (measured.lost, outcome.row.unsupported.as_ref()),
        (Some(0), None)
    );
    for (name, value) in [
        ("p50", measured.p50_us),
        ("p99.99", measured.p9999_us),
        ("rate", measured.ops_per_s),
        ("ratio", measured.ratio_p50),
        ("floor", measured.floors.udp_echo_p50_us),
        ("floor's CPU", measured.floors.udp_echo_cpu_us_per_op),
        ("CPU", measured.cpu_us_per_op),
        ("machine's CPU", measured.machine_cpu_us_per_commit),
        (
            "floor's machine's CPU",
            measured.floors.udp_echo_machine_cpu_us_per_op,
        ),
    ] {
        assert!(value.is_some_and(|value| value >= 0.0), "{name}: {value:?}");
    }
    // What is answered together is asked together.
    assert!(
        measured.requests_per_datagram.is_some_and(|n| n > 1.5),
        "{measured:?}"
    );
    assert!(seen.iter().any(|p| p.what == "system" && p.round == 2));
    assert!(seen.iter().any(|p| p.what == "UDP echo" && p.round == 1));
    let mut text = Vec::new();
    hgrm::write(&outcome.latencies, &mut text).expect("memory");
    assert!(outcome.latencies.len() > 100 && text.starts_with(b"       Value"));
    let series = [plot::Series {
        name: "stand-in",
        latencies: &outcome.latencies,
    }];
    assert!(plot::percentiles("", &series).is_some());
    assert!(serde_json::from_str::<serde_json::Value>(&to_json(&[outcome.row])).is_ok());
}

/// What a row has of an echo that waits as the cluster does.
fn alike(row: &Row) -> [Option<f64>; 4] {
    let row: serde_json::Value =
        serde_json::from_str(&to_json(std::slice::from_ref(row))).expect("JSON");
    let floors = &row["floors"];
    [
        floors["udp_echo_alike_p50_us"].as_f64(),
        floors["udp_echo_alike_ops_per_s"].as_f64(),
        row["ratio_p50_alike"].as_f64(),
        row["ratio_rate_alike"].as_f64(),
    ]
}

#[test]
fn a_lingering_cluster_is_compared_with_an_echo_that_lingers_too() {
    let options = quick(Options::latency(Where::Loopback));
    let mut target = StandInCluster::lingering(Duration::from_micros(100));
    let outcome = run(&mut target, &options, &mut |_| {}).expect("loopback works");
    // What lingers sleeps in the end, so it need not rest while the floor is measured.
    assert_eq!((target.starts, outcome.row.setting.linger_us), (1, 100));
    assert_eq!(outcome.row.setting.floor_wait, Waiting::Blocking);
    let found = alike(&outcome.row);
    let is_measured = |value: &Option<f64>| value.is_some_and(|value| value > 0.0);
    assert!(found.iter().all(is_measured), "{found:?}");
    let floors = outcome.rounds.iter().map(|round| &round.floors.alike);
    for floor in floors {
        let floor = floor.as_ref().expect("in every round");
        assert!(!floor.sample.latencies.is_empty());
    }
    let text = to_table(std::slice::from_ref(&outcome.row));
    assert!(text.contains("UDP echo, alike"), "{text}");

    let mut target = StandInCluster::new(Wait::Blocking);
    let outcome = run(&mut target, &options, &mut |_| {}).expect("loopback works");
    assert_eq!(
        alike(&outcome.row),
        [None; 4],
        "its only floor waits like it"
    );
    assert!(
        outcome
            .rounds
            .iter()
            .all(|round| round.floors.alike.is_none())
    );
}

#[test]
fn an_open_loop_offers_its_rate() {
    let load = Load::Open { per_s: 2000.0 };
    let options = Options {
        load,
        ..quick(Options::latency(Where::Loopback))
    };
    let outcome = run(
        &mut StandInCluster::new(Wait::Blocking),
        &options,
        &mut |_| {},
    );
    let outcome = outcome.expect("loopback works");
    let lost = outcome.row.measured.lost.expect("measured");
    assert_eq!(outcome.latencies.len() + lost, 2 * 400);
    let setting = &outcome.row.setting;
    assert_eq!(
        (setting.load, setting.offered_per_s),
        ("open", Some(2000.0))
    );
}

#[test]
fn a_polling_cluster_with_a_blocking_client_is_a_row_that_says_so() {
    let mut target = StandInCluster::new(Wait::Polling);
    let options = quick(Options::latency(Where::Loopback));
    let outcome = run(&mut target, &options, &mut |_| {}).expect("a row");
    let reason = outcome.row.unsupported.expect("a reason");
    assert!(reason.contains("--wait polling"), "{reason}");
    assert_eq!(
        (outcome.row.setting.leader_wait, target.starts),
        (Waiting::Polling, 0)
    );
}

#[test]
fn polling_replicas_rest_while_the_floor_is_measured() {
    let mut target = StandInCluster::new(Wait::Polling);
    let client_wait = Wait::Polling;
    let options = Options {
        client_wait,
        ..quick(Options::latency(Where::Loopback))
    };
    let outcome = run(&mut target, &options, &mut |_| {}).expect("a row");
    if let Some(reason) = outcome.row.unsupported {
        assert!(reason.starts_with("polling needs 4 CPUs"), "{reason}");
        return;
    }
    // The start tells who leads, hence where the floor stands; then floor, system, system, floor.
    assert_eq!(target.starts, 2);
    assert!(outcome.row.measured.floors.udp_echo_alike_p50_us.is_some());
    assert_eq!(outcome.row.setting.floor_wait, Waiting::Blocking);
}

#[test]
fn a_value_that_no_request_carries_is_an_error_and_the_cluster_is_stopped() {
    let mut target = StandInCluster::new(Wait::Blocking);
    let options = Options {
        value_bytes: 1400,
        ..quick(Options::latency(Where::Loopback))
    };
    let error = run(&mut target, &options, &mut |_| {}).expect_err("too long");
    assert!(
        matches!(
            error,
            Error::TooLarge {
                value_bytes: 1400,
                max_value: 1376
            }
        ),
        "{error}"
    );
    assert!(target.replicas.is_empty());
}

#[test]
fn a_run_in_namespaces_measures_both_sides_there() {
    let options = quick(Options::latency(Where::Netns));
    let deadline = Instant::now() + Duration::from_secs(120);
    let outcome = loop {
        match run(
            &mut StandInCluster::new(Wait::Blocking),
            &options,
            &mut |_| {},
        ) {
            // Another benchmark runs on this machine; it will end.
            Err(Error::Datapath(datapath::Error::InUse { .. })) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(200));
            }
            outcome => break outcome,
        }
    };
    match outcome {
        Ok(outcome) => {
            println!("{}", to_table(std::slice::from_ref(&outcome.row)));
            assert_eq!(outcome.row.setting.site, "netns");
            assert!(
                outcome.row.measured.ratio_p50.is_some(),
                "{:?}",
                outcome.row.measured
            );
        }
        Err(Error::Datapath(datapath::Error::Unsupported { feature, needs })) => {
            eprintln!("skipped: {feature} is not available: {needs}");
        }
        Err(error) => panic!("{error}"),
    }
}
