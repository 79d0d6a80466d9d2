//! A world: machines, clients and a network in virtual time.

use super::client::SimClient;
use super::coverage::Coverage;
use super::fault::{FaultKind, FaultKinds};
use super::invariants::{Checker, Invariant};
use super::machine::{Machine, NoStart, Post, SimNode, Standing, address, place_of, write_packet};
use super::memory::{Life, Words};
use super::nemesis::Action;
use super::network::{Network, exponential};
use super::scenario::{Phase, Scenario};
use super::trace::Trace;
use super::{Options, Outcome};
use crate::xdp::OnHostDeath;
use consensus::auth;
use consensus::formation::Conflict;
use consensus::local::Durability;
use consensus::random::Random;
use consensus::replica::{Replica, Role};
use consensus::simulation::{self, Fault, Faults};
use consensus::wire::{Header, Kind, Parsed, parse};
use consensus::{GroupId, Slot};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::SocketAddr;

const MS: u64 = 1_000_000;
/// A worker comes by so often at least, as in the host.
const MAX_SLEEP_NS: u64 = 100 * MS;
/// Where the kernel votes it has to look for itself, as in the host.
const WATCH_NS: u64 = MS;
/// Who was connected to a process that has died asks for another connection, and is refused, at
/// intervals that double from this one, as in the datapath.
const AGAIN_NS: u64 = MS;
const MAX_AGAIN_NS: u64 = 100 * MS;
/// And not more often than this on its own account.
const LEAST_SLEEP_NS: u64 = 2_000;
/// Packets that wait for a stopped process; its socket's buffer drops the rest.
const INBOX: usize = 128;
/// What each seed goes through at least.
const LEAST_DELIVERIES: u64 = 10_000;
const LEAST_COMMITS: u64 = 100;
const LEAST_LEADER_CHANGES: u64 = 1;
/// Phases after which a world that still has not is left alone.
const MAX_PHASES: usize = 400;
/// Events after which a world counts as one that does not end: most take some ten thousand.
const MAX_EVENTS: u64 = 20_000_000;
/// Longest time from the end of all faults to the next commit of each group, and from there to
/// equal states.
pub(super) const LIVENESS_NS: u64 = 10_000 * MS;

/// Where a world stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    Storm,
    /// Faults have stopped; every group is to commit again.
    Calm {
        since_ns: u64,
    },
    /// Clients have stopped; everything is to become equal.
    Settling {
        since_ns: u64,
    },
    Done,
}

/// The network and everybody who watches it.
pub(super) struct Ether {
    pub(super) network: Network,
    pub(super) checker: Checker,
    pub(super) coverage: Coverage,
    pub(super) trace: Trace,
    pub(super) now_ns: u64,
    /// Machines; whoever is beyond them is no node.
    nodes: usize,
    touched: Vec<usize>,
    /// Who has just asked matchmakers to stop.
    replaces: Option<usize>,
    /// Stands for everything that was sent, and when.
    hash: u64,
}

impl Ether {
    fn note(&mut self, what: u64) {
        self.hash = (self.hash.rotate_left(9) ^ what).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

impl Post for Ether {
    fn look(&mut self, place: usize, words: &Words, life: &Life) {
        life.take_touched(&mut self.touched);
        if !self.touched.is_empty() {
            self.touched.sort_unstable();
            self.touched.dedup();
            self.checker.touched(place, words, &self.touched);
            self.touched.clear();
        }
    }

    fn kept(&mut self, place: usize, group: GroupId, register: &[u8]) {
        if self.checker.kept(place, group, register) {
            self.coverage.feature("matchmakers replaced");
        }
    }

    fn post(&mut self, from: usize, to: SocketAddr, header: &Header, value: &[u8]) {
        if from < self.nodes {
            self.checker.sent(from, header, value);
            if header.kind == Kind::Stop {
                self.replaces = Some(from);
            }
        }
        let index = self.network.buffer();
        let packet = self.network.packet_mut(index);
        (packet.from, packet.to) = (from, place_of(to));
        write_packet(header, value, &mut packet.bytes);
        let digest = super::invariants::digest(&packet.bytes);
        self.note(digest);
        let fate = self.network.send(self.now_ns, index);
        self.coverage.fate(fate);
    }
}

/// See the module's text.
pub(super) struct World {
    pub(super) seed: u64,
    pub(super) scenario: Scenario,
    pub(super) quorums: Option<(usize, usize)>,
    pub(super) random: Random,
    pub(super) machines: Vec<Machine>,
    pub(super) clients: Vec<SimClient>,
    pub(super) ether: Ether,
    /// When machines take their turns, flush, and have written snapshots; when clients take
    /// theirs; when the next fault is due.
    pub(super) timers: Vec<u64>,
    agenda: BinaryHeap<Reverse<(u64, u64, Action)>>,
    agenda_number: u64,
    stage: Stage,
    phase: usize,
    phase_until_ns: u64,
    pub(super) fault_ns: u64,
    pub(super) without: FaultKinds,
    /// Whether the fault points inside the code strike.
    has_fault_points: bool,
    faults: Faults,
    /// For what strikes while others follow the matchmakers.
    pub(super) interrupts: Random,
    /// The machine whose snapshots were damaged.
    pub(super) rotten: Option<usize>,
    events: u64,
    deliveries: u64,
    /// Slots that a `volatile` node must have applied to count as whole again.
    pub(super) wanted: Vec<Vec<Slot>>,
}

impl World {
    pub(super) fn new(seed: u64, options: &Options) -> Self {
        let mut scenario = Scenario::draw(seed);
        scenario.leave_out(options.without);
        let mut random = Random::new(seed ^ 0x776f_726c_6400_0000);
        let nodes = scenario.machines();
        let machines: Vec<_> = (0..nodes)
            .map(|place| Machine::new(place, &scenario, &mut random))
            .collect();
        let count = usize::from(scenario.groups) * scenario.clients;
        let clients: Vec<_> = (0..count)
            .map(|number| {
                let group = GroupId((number % usize::from(scenario.groups)) as u16);
                SimClient::new(number, group, &scenario, random.next())
            })
            .collect();
        // The last place is an operator's.
        let network = Network::new(nodes + count + 1, random.next());
        let mut coverage = Coverage::default();
        coverage.scenario(&scenario);
        let groups = usize::from(scenario.groups);
        let mut world = Self {
            seed,
            quorums: scenario.quorums,
            ether: Ether {
                network,
                checker: Checker::new(&scenario, options.only),
                coverage,
                trace: Trace::new(options.trace),
                now_ns: 0,
                nodes,
                touched: Vec::new(),
                replaces: None,
                hash: seed,
            },
            timers: vec![u64::MAX; 3 * nodes + count + 1],
            agenda: BinaryHeap::new(),
            agenda_number: 0,
            stage: Stage::Storm,
            phase: 0,
            phase_until_ns: 0,
            fault_ns: 0,
            without: options.without,
            has_fault_points: options.fault_points,
            faults: Faults::default(),
            interrupts: Random::new(seed ^ 0x7265_706c_6163_6500),
            rotten: None,
            events: 0,
            deliveries: 0,
            wanted: vec![vec![Slot::NONE; groups]; nodes],
            machines,
            clients,
            random,
            scenario,
        };
        world.begin();
        world
    }

    fn begin(&mut self) {
        let drawn = format!("{:?}", self.scenario);
        self.ether.trace.tell(0, "world", || drawn);
        simulation::inject(&Faults::new(self.seed));
        if let Some(unsound) = self.scenario.unsound {
            let seed = self.random.next();
            let started =
                self.machines[0].start(&self.scenario, Some(unsound), self.ether.now_ns, seed);
            self.machines[0].process = None;
            if started.is_ok() {
                self.quorums = Some(unsound);
            }
        }
        let sizes = self.quorums.unwrap_or_else(|| self.scenario.quorum_sizes());
        self.ether.checker.configured(self.scenario.nodes, sizes);
        for place in 0..self.machines.len() {
            let incarnation = self.machines[place].incarnation(&self.scenario);
            self.ether.checker.chronicle.pinned[place] = incarnation;
            self.start(place);
        }
        for number in 0..self.clients.len() {
            let at = self.client_timer(number);
            self.timers[at] = 0;
        }
        self.enter_phase();
    }

    // Timers.

    pub(super) const fn flush_timer(&self, place: usize) -> usize {
        self.scenario.machines() + place
    }

    pub(super) const fn snapshot_timer(&self, place: usize) -> usize {
        2 * self.scenario.machines() + place
    }

    pub(super) const fn client_timer(&self, number: usize) -> usize {
        3 * self.scenario.machines() + number
    }

    pub(super) fn fault_timer(&self) -> usize {
        self.timers.len() - 1
    }

    pub(super) fn plan(&mut self, at_ns: u64, action: Action) {
        self.agenda_number += 1;
        self.agenda
            .push(Reverse((at_ns, self.agenda_number, action)));
    }

    pub(super) const fn now_ns(&self) -> u64 {
        self.ether.now_ns
    }

    /// Runs to the end, or to the first violation.
    pub(super) fn run(mut self) -> Outcome {
        while self.stage != Stage::Done && self.ether.checker.violation().is_none() {
            self.step();
            if self.events == MAX_EVENTS {
                let what = format!("does not end: {}", self.levels());
                self.ether.checker.judge(Invariant::Liveness, Err(what));
            }
        }
        self.outcome()
    }

    fn outcome(mut self) -> Outcome {
        self.end_faults();
        let violation = self.ether.checker.violation().cloned();
        if let Some(violation) = &violation {
            let what = violation.what.clone();
            let now_ns = self.ether.now_ns;
            self.ether
                .trace
                .tell(now_ns, violation.invariant.name(), || what);
        }
        Outcome {
            seed: self.seed,
            events: self.events,
            deliveries: self.deliveries,
            commits: self.commits(),
            leader_changes: self.leader_changes(),
            simulated_ns: self.ether.now_ns,
            hash: self.ether.hash,
            violation,
            coverage: self.ether.coverage,
        }
    }

    fn commits(&self) -> u64 {
        let groups = &self.ether.checker.chronicle.groups;
        groups.iter().map(|group| group.chosen).sum()
    }

    fn leader_changes(&self) -> u64 {
        let groups = self.ether.checker.chronicle.groups.iter();
        groups.map(|group| group.leader_changes).sum()
    }

    /// One event: the earliest.
    fn step(&mut self) {
        let (mut timer, mut timer_ns) = (0, u64::MAX);
        for (index, due_ns) in self.timers.iter().enumerate() {
            if *due_ns < timer_ns {
                (timer, timer_ns) = (index, *due_ns);
            }
        }
        let air_ns = self.ether.network.next_ns();
        let agenda_ns = self.agenda.peek().map_or(u64::MAX, |Reverse((at, ..))| *at);
        let next_ns = timer_ns.min(air_ns).min(agenda_ns).min(self.phase_until_ns);
        debug_assert!(next_ns >= self.ether.now_ns);
        self.ether.now_ns = next_ns.max(self.ether.now_ns);
        self.events += 1;
        self.ether.note(next_ns);
        if air_ns == next_ns {
            self.arrive();
        } else if agenda_ns == next_ns {
            if let Some(Reverse((_, _, action))) = self.agenda.pop() {
                self.act(action);
            }
        } else if timer_ns == next_ns {
            self.on_timer(timer);
        } else {
            self.end_phase();
        }
    }

    fn on_timer(&mut self, timer: usize) {
        let nodes = self.scenario.machines();
        self.timers[timer] = u64::MAX;
        match timer {
            _ if timer < nodes => self.turn(timer),
            _ if timer < 2 * nodes => self.flushed(timer - nodes),
            _ if timer < 3 * nodes => self.snapshot_written(timer - 2 * nodes),
            _ if timer == self.fault_timer() => self.inject_fault(),
            _ => {
                self.serve_client(timer - 3 * nodes);
                self.check_calm();
            }
        }
    }

    // Packets.

    fn arrive(&mut self) {
        let Some(index) = self.ether.network.arrive() else {
            return;
        };
        let packet = self.ether.network.packet_mut(index);
        let to = packet.to;
        if to < self.machines.len()
            && self.machines[to].is_paused
            && !(self.machines[to].kernel.is_some() && is_for_acceptor(&packet.bytes))
        {
            let inbox = &mut self.machines[to].inbox;
            if inbox.len() < INBOX {
                inbox.push_back(index);
            } else {
                let packet = self.ether.network.take(index);
                self.ether.network.put_back(index, packet);
            }
            return;
        }
        self.deliver(index);
    }

    pub(super) fn deliver(&mut self, index: usize) {
        let packet = self.ether.network.take(index);
        let nodes = self.machines.len();
        self.deliveries += 1;
        self.ether
            .coverage
            .delivered(packet.bytes.get(3).copied().unwrap_or(0));
        if packet.to < nodes {
            self.ether.trace.arrival(self.ether.now_ns, &packet, nodes);
            self.handle(packet.to, packet.from, &packet.bytes);
        } else if packet.to - nodes < self.clients.len() {
            self.ether.trace.arrival(self.ether.now_ns, &packet, nodes);
            let number = packet.to - nodes;
            let parsed = parse(&packet.bytes, usize::from(u16::MAX));
            if let Parsed::Ours(header, value) = parsed
                && self
                    .scenario
                    .key
                    .is_none_or(|key| auth::is_authentic(key, &header, value))
            {
                let client = &mut self.clients[number];
                let from = address(packet.from);
                client
                    .session
                    .handle_datagram(self.ether.now_ns, from, &header, value);
                self.serve_client(number);
                self.check_calm();
            }
        }
        self.ether.network.put_back(index, packet);
    }

    fn handle(&mut self, place: usize, from: usize, bytes: &[u8]) {
        let now_ns = self.ether.now_ns;
        let machine = &mut self.machines[place];
        if let Some(reborn) = &mut machine.reborn {
            if let Some(Some((header, value))) = reborn.take(now_ns, bytes) {
                self.ether.post(place, address(from), &header, value);
            }
            return;
        }
        let local_ns = machine.clock.monotonic_ns(now_ns);
        if let Some(kernel) = &mut machine.kernel
            && let Some(taken) = kernel.take(local_ns, bytes)
        {
            let answer = taken.map(|(header, value)| (header, value.to_vec()));
            self.ether.look(place, &machine.words, &kernel.life);
            self.ether.checker.event_over();
            if let Some((header, value)) = answer {
                self.ether.post(place, address(from), &header, &value);
            }
            return;
        }
        let post = &mut self.ether;
        let handled = machine.run(now_ns, post, |node, local_ns, unix_ms, io| {
            node.handle(local_ns, unix_ms, address(from), bytes, io);
        });
        if handled.is_none() {
            return;
        }
        self.timers[place] = self.timers[place].min(now_ns + self.scenario.batch_ns);
        self.after(place);
    }

    /// The process at `to` finds its connection to the one at `place` ended, and asks for another.
    pub(super) fn reconnect(&mut self, to: usize, place: usize, again_ns: u64) {
        let now_ns = self.ether.now_ns;
        if self.machines[place].process.is_some() || self.machines[to].process.is_none() {
            return;
        }
        let again = Action::Reconnect(to, place, (again_ns * 2).min(MAX_AGAIN_NS));
        self.plan(now_ns + again_ns, again);
        if self.machines[to].is_paused || self.ether.network.is_cut(now_ns, to, place) {
            return;
        }
        let machine = &mut self.machines[to];
        let post = &mut self.ether;
        let told = machine.run(now_ns, post, |node, local_ns, unix_ms, io| {
            node.refused_at(local_ns, unix_ms, (local_ns, address(place)), io);
        });
        if told.is_some() {
            self.timers[to] = self.timers[to].min(now_ns + self.scenario.batch_ns);
            self.after(to);
        }
    }

    /// A node does what is due.
    fn turn(&mut self, place: usize) {
        let now_ns = self.ether.now_ns;
        let sleep_ns = match self.scenario.offload {
            Some(_) => WATCH_NS,
            None => MAX_SLEEP_NS,
        };
        let machine = &mut self.machines[place];
        let post = &mut self.ether;
        let turned = machine.run(now_ns, post, |node, local_ns, unix_ms, io| {
            node.turn(local_ns, unix_ms, io).min(local_ns + sleep_ns)
        });
        let Some(due_ns) = turned else {
            return;
        };
        let due_ns = machine.clock.when(due_ns);
        self.timers[place] = due_ns.max(now_ns + LEAST_SLEEP_NS);
        self.after(place);
    }

    /// Looks at what an event of a node has done.
    pub(super) fn after(&mut self, place: usize) {
        if let Some(place) = self.ether.replaces.take()
            && self.stage == Stage::Storm
        {
            self.interrupt(place);
        }
        let machine = &mut self.machines[place];
        self.ether.look(place, &machine.words, &machine.life);
        if machine.life.is_dead() {
            // What the dead seem to have applied is nobody's.
            self.ether.checker.event_cut_off();
            return self.torn(place);
        }
        if let Some(node) = &machine.process {
            for (group, replica) in node.replicas().iter().enumerate() {
                self.ether.checker.applied(place, group, replica.applied());
            }
        }
        self.ether.checker.event_over();
        let failed = {
            let mut log = machine.log.borrow_mut();
            let timer = self.scenario.machines() + place;
            if self.timers[timer] == u64::MAX && log.begin_flush() {
                let flush_ns = exponential(&mut self.random, machine.flush_ns);
                self.timers[timer] = self.ether.now_ns + flush_ns;
            }
            log.has_failed()
        };
        if failed {
            return self.died_of_its_disk(place);
        }
        if let Some(node) = &machine.process {
            if node.formation().is_formed() {
                if machine.standing == Standing::Doomed {
                    let what = format!("node {} has lost its memory, and is a member", place + 1);
                    self.ether.checker.judge(Invariant::Durability, Err(what));
                }
            } else if let Some(Conflict::Disowned { .. }) = node.conflict() {
                return self.refuse(place, "the others know it as another");
            }
        }
        self.keep_state(place);
        self.hand_over(place);
    }

    /// Who votes is changed between phases, and once a cluster has formed.
    fn hand_over(&mut self, place: usize) {
        let machine = &mut self.machines[place];
        let is_wanted = self.scenario.offload.is_some()
            && machine.identity.in_maps
            && machine.standing == Standing::Member
            && is_offloaded(self.seed, self.phase, place);
        let has_formed = |node: &SimNode| !node.replicas().is_empty();
        match (is_wanted, &machine.kernel) {
            (true, None) if machine.process.as_ref().is_some_and(has_formed) => {
                machine.attach(&self.scenario);
                self.ether.coverage.feature("hand-overs");
            }
            (false, Some(_)) => {
                machine.kernel = None;
                self.ether.coverage.feature("hand-overs");
            }
            _ => {}
        }
    }

    // Processes.

    /// Starts a process over what the machine has, or finds that it must not be.
    pub(super) fn start(&mut self, place: usize) {
        let seed = self.random.next();
        let now_ns = self.ether.now_ns;
        let machine = &mut self.machines[place];
        if machine.standing == Standing::Refused || machine.process.is_some() {
            return;
        }
        let moves = machine.moves();
        // Nobody else steps a region that is being restored.
        let faults = simulation::faults();
        let started = machine.start(&self.scenario, self.quorums, now_ns, seed);
        simulation::inject(&faults);
        match started {
            Ok(()) => {
                self.timers[place] = now_ns;
                let recovered = machine.recovered.clone();
                let highest = self.highest_applied();
                self.wanted[place] = highest;
                let machine = &self.machines[place];
                if machine.moves() > moves {
                    self.ether
                        .coverage
                        .feature("votes moved between file and maps");
                }
                let incarnation = machine.incarnation(&self.scenario);
                let checker = &mut self.ether.checker;
                if checker.reads_disks() {
                    // Recovery makes certain what it found.
                    let log = machine.log.borrow();
                    for record in log.numbers().filter_map(|number| log.record(number)) {
                        checker.flushed(place, record);
                    }
                }
                checker.opened(place, incarnation, &machine.words, &machine.recovered);
                self.ether.trace.tell(now_ns, place_name(place), || {
                    format!("starts, recovered up to {recovered:?}")
                });
                // What a start wrote to the region and the journal.
                self.after(place);
            }
            Err(NoStart::LostMemory(why)) => self.refuse(place, &why),
            Err(NoStart::Damaged(why) | NoStart::Config(why)) => {
                let node = place + 1;
                let what = format!("node {node} cannot start from what it wrote itself: {why}");
                self.ether.checker.judge(Invariant::Durability, Err(what));
            }
        }
    }

    /// The last slot of each group that any process has applied.
    fn highest_applied(&self) -> Vec<Slot> {
        let groups = usize::from(self.scenario.groups);
        let mut highest = vec![Slot::NONE; groups];
        for node in self
            .machines
            .iter()
            .filter_map(|machine| machine.process.as_ref())
        {
            for (slot, replica) in highest.iter_mut().zip(node.replicas()) {
                *slot = (*slot).max(replica.applied().slot());
            }
        }
        highest
    }

    /// The connections to a process that has died end, where its machine is up.
    pub(super) fn end_lifelines(&mut self, place: usize) {
        for to in (0..self.machines.len()).filter(|to| *to != place) {
            let trip_ns = exponential(&mut self.random, MS / 10);
            let at_ns = self.now_ns() + trip_ns;
            self.plan(at_ns, Action::Reconnect(to, place, AGAIN_NS));
        }
    }

    /// Ends the process at once. What it had not flushed may be lost, what it had not written is.
    pub(super) fn end_process(&mut self, place: usize, keeps_some: bool) {
        let machine = &mut self.machines[place];
        machine.process = None;
        if self.scenario.offload == Some(OnHostDeath::Seal) {
            machine.kernel = None;
        }
        machine.is_paused = false;
        machine.writing.clear();
        for index in std::mem::take(&mut machine.inbox) {
            let packet = self.ether.network.take(index);
            self.ether.network.put_back(index, packet);
        }
        machine.log.borrow_mut().die(&mut self.random, keeps_some);
        self.timers[place] = u64::MAX;
        for timer in [self.flush_timer(place), self.snapshot_timer(place)] {
            self.timers[timer] = u64::MAX;
        }
    }

    /// The node must stay out under its old name.
    fn refuse(&mut self, place: usize, why: &str) {
        let verdict = match self.machines[place].standing {
            Standing::Member => Err(format!(
                "node {} has lost nothing, and is refused: {why}",
                place + 1
            )),
            Standing::Doomed | Standing::Refused => Ok(()),
        };
        self.ether.checker.judge(Invariant::Durability, verdict);
        self.end_process(place, false);
        self.machines[place].kernel = None;
        self.machines[place].standing = Standing::Refused;
        self.ether.coverage.feature("nodes refused");
        let now_ns = self.ether.now_ns;
        self.ether
            .trace
            .tell(now_ns, place_name(place), || format!("is refused: {why}"));
        self.give_birth(place);
        self.plan_rejoining(place);
    }

    /// A flush is done.
    fn flushed(&mut self, place: usize) {
        let machine = &self.machines[place];
        let numbers = machine.log.borrow_mut().end_flush();
        if self.ether.checker.reads_disks() {
            let log = machine.log.borrow();
            for record in numbers.filter_map(|number| log.record(number)) {
                self.ether.checker.flushed(place, record);
            }
        }
        if !machine.is_paused && machine.process.is_some() {
            self.timers[place] = self.ether.now_ns;
        }
        self.after(place);
    }

    // Clients.

    fn serve_client(&mut self, number: usize) {
        let now_ns = self.ether.now_ns;
        let is_open = matches!(self.stage, Stage::Storm | Stage::Calm { .. });
        let place = self.machines.len() + number;
        let client = &mut self.clients[number];
        while let Some(event) = client.session.poll_event() {
            let verdict = client.answered(now_ns, event);
            self.ether.checker.judge(Invariant::ExactlyOnce, verdict);
        }
        client.turn(now_ns, is_open);
        while let Some(datagram) = client.session.poll_transmit(now_ns) {
            let mut header = datagram.header;
            if let Some(key) = self.scenario.key {
                header.tag = auth::tag(key, &header, datagram.value);
            }
            self.ether.post(place, datagram.to, &header, datagram.value);
        }
        let due_ns = client.due_ns(is_open).max(now_ns + 1);
        let timer = self.client_timer(number);
        self.timers[timer] = due_ns;
    }

    // Phases.

    fn enter_phase(&mut self) {
        if self.phase >= self.scenario.phases.len() {
            let election_ns = self.scenario.election.timeout_ns;
            let kinds = self.scenario.kinds;
            let mut phase = Phase::draw(&mut self.random, kinds, election_ns);
            // Worlds that have not seen enough by now get the time to elect and to commit.
            phase.fault_ns = phase.fault_ns.max(election_ns);
            phase.leave_out(self.without);
            self.scenario.phases.push(phase);
        }
        let phase = self.scenario.phases[self.phase];
        self.ether.network.weather = phase.weather;
        for (kind, is_on) in [
            (FaultKind::Reordering, phase.weather.reorders),
            (FaultKind::Corruption, phase.weather.corrupt_per_mille > 0),
            (
                FaultKind::ClockDrift,
                self.scenario.drift_ppm.iter().any(|ppm| *ppm != 0),
            ),
        ] {
            if is_on {
                self.ether.coverage.struck(kind);
            }
        }
        self.phase_until_ns = self.ether.now_ns + phase.length_ns;
        self.fault_ns = phase.fault_ns;
        self.inject(phase.fault_per_mille);
        let timer = self.fault_timer();
        self.timers[timer] = self.ether.now_ns + exponential(&mut self.random, phase.fault_ns);
        let now_ns = self.ether.now_ns;
        self.ether
            .trace
            .tell(now_ns, "world", || format!("phase: {phase:?}"));
    }

    fn inject(&mut self, per_mille: u16) {
        self.end_faults();
        let mut faults = Faults::new(self.random.next());
        if self.has_fault_points {
            for fault in Fault::ALL {
                faults = faults.with(*fault, per_mille);
            }
        }
        simulation::inject(&faults);
    }

    fn end_faults(&mut self) {
        self.faults = simulation::faults();
        self.ether.coverage.fault_points(&self.faults);
        if Fault::ALL
            .iter()
            .any(|one| self.faults.tally(*one).struck > 0)
        {
            self.ether.coverage.struck(FaultKind::FaultPoints);
        }
    }

    fn end_phase(&mut self) {
        match self.stage {
            Stage::Storm => {
                self.phase += 1;
                let is_planned = self.phase < self.scenario.phases.len();
                let is_enough = self.deliveries >= LEAST_DELIVERIES
                    && self.commits() >= LEAST_COMMITS
                    && self.leader_changes() >= LEAST_LEADER_CHANGES;
                if (is_planned || !is_enough) && self.phase < MAX_PHASES {
                    self.enter_phase();
                    if !is_planned && self.leader_changes() < LEAST_LEADER_CHANGES {
                        self.depose();
                    }
                } else {
                    self.calm();
                }
            }
            Stage::Calm { since_ns } => self.too_late(since_ns),
            Stage::Settling { since_ns } => {
                self.check_settled();
                if self.stage != Stage::Done {
                    self.phase_until_ns = self.ether.now_ns + MS;
                    if self.ether.now_ns > since_ns + LIVENESS_NS {
                        self.too_late(since_ns);
                    }
                }
            }
            Stage::Done => {}
        }
    }

    /// Faults stop: everything that can be mended is.
    fn calm(&mut self) {
        let now_ns = self.ether.now_ns;
        self.ether
            .trace
            .tell(now_ns, "world", || "faults stop".into());
        self.stage = Stage::Calm { since_ns: now_ns };
        self.phase_until_ns = now_ns + LIVENESS_NS;
        let timer = self.fault_timer();
        self.timers[timer] = u64::MAX;
        self.agenda.clear();
        self.inject(0);
        self.ether.network.weather = super::network::Weather::CALM;
        self.mend_everything();
    }

    fn too_late(&mut self, since_ns: u64) {
        let ms = (self.ether.now_ns - since_ns) / MS;
        let what = match self.stage {
            Stage::Settling { .. } => {
                format!(
                    "{ms} ms after the last fault not all replicas are level: {}",
                    self.levels()
                )
            }
            _ => {
                let idle: Vec<_> = (0..usize::from(self.scenario.groups))
                    .filter(|group| !self.commits_again(*group, since_ns))
                    .collect();
                format!(
                    "{ms} ms after the last fault groups {idle:?} have not committed: {}",
                    self.levels()
                )
            }
        };
        self.ether.checker.judge(Invariant::Liveness, Err(what));
        self.stage = Stage::Done;
    }

    fn levels(&self) -> String {
        let levels = self.machines.iter().map(|machine| match &machine.process {
            None => format!("node {}: {:?}", machine.place + 1, machine.standing),
            Some(node) => {
                let slots = node.replicas().iter().map(|replica| {
                    format!("{} {}", replica.role().name(), replica.applied().slot())
                });
                format!(
                    "node {}: {}",
                    machine.place + 1,
                    slots.collect::<Vec<_>>().join(", ")
                )
            }
        });
        levels.collect::<Vec<_>>().join("; ")
    }

    fn commits_again(&self, group: usize, since_ns: u64) -> bool {
        self.clients
            .iter()
            .filter(|client| usize::from(client.group.0) == group)
            .any(|client| client.answered_from_ns > since_ns)
    }

    fn check_calm(&mut self) {
        let Stage::Calm { since_ns } = self.stage else {
            return;
        };
        let groups = usize::from(self.scenario.groups);
        if (0..groups).all(|group| self.commits_again(group, since_ns)) {
            let now_ns = self.ether.now_ns;
            self.stage = Stage::Settling { since_ns: now_ns };
            self.phase_until_ns = now_ns + MS;
        }
    }

    /// Whether nobody waits for anything and all replicas are level; then their states are equal.
    fn check_settled(&mut self) {
        if !self.clients.iter().all(SimClient::is_idle) {
            return;
        }
        let mut level = Vec::new();
        for group in 0..usize::from(self.scenario.groups) {
            let Some(members) = self
                .members(group)
                .filter(|_| self.has_its_matchmakers(group))
            else {
                return;
            };
            let nodes = members.iter().map(|place| &self.machines[*place].process);
            let replicas = nodes.map(|node| node.as_ref()?.replicas().get(group));
            let mut slots = replicas.map(|replica| replica.map(|replica| replica.applied().slot()));
            let first = slots.next().flatten();
            let Some(slot) = first.filter(|_| slots.all(|slot| slot == first)) else {
                return;
            };
            level.push(slot);
        }
        for (group, slot) in level.into_iter().enumerate() {
            self.ether.checker.settled(group, slot);
        }
        self.compare_states();
        for group in 0..usize::from(self.scenario.groups) {
            let clients = self.clients.iter_mut();
            let operations: Vec<_> = clients
                .filter(|client| usize::from(client.group.0) == group)
                .flat_map(|client| std::mem::take(&mut client.history))
                .collect();
            self.ether.checker.histories(group, &operations);
        }
        self.stage = Stage::Done;
    }

    /// Whether those who vote are the matchmakers, by the word of whoever leads.
    fn has_its_matchmakers(&self, group: usize) -> bool {
        let leader = self.leader(group).map(|place| &self.machines[place]);
        let node = leader.and_then(|machine| machine.process.as_ref());
        node.is_some_and(|node| {
            let configuration = node.replicas()[group].configuration();
            configuration
                .matchmakers
                .are_those_of(&configuration.membership)
        })
    }

    /// The machines of those that are members by the word of a leader and not lost for good.
    fn members(&self, group: usize) -> Option<Vec<usize>> {
        let nodes = self
            .machines
            .iter()
            .filter_map(|machine| machine.process.as_ref());
        let replicas = nodes.filter_map(|node| node.replicas().get(group));
        let leaders = replicas.filter(|replica| replica.role() == Role::Leader);
        let configuration = leaders
            .map(Replica::configuration)
            .max_by_key(|configuration| configuration.version)?;
        let of = |machine: &&Machine| {
            let life = machine.incarnation(&self.scenario);
            machine.standing == Standing::Member
                && configuration.member(machine.node_id, life).is_some()
        };
        let members = self.machines.iter().filter(of);
        Some(members.map(|machine| machine.place).collect())
    }

    fn compare_states(&mut self) {
        for group in 0..usize::from(self.scenario.groups) {
            let mut first: Option<(usize, Vec<u8>)> = None;
            for place in self.members(group).unwrap_or_default() {
                let Some(node) = &self.machines[place].process else {
                    continue;
                };
                let mut frozen = node.replicas()[group].applied().freeze();
                let mut bytes = Vec::new();
                while frozen.next_chunk(&mut bytes) {}
                let digest = super::invariants::digest(&bytes);
                self.ether.note(digest);
                match &first {
                    None => {
                        let machine = node.replicas()[group].applied().machine();
                        self.ether.checker.ended(place, group, machine);
                        first = Some((place, bytes));
                    }
                    Some((other, theirs)) => {
                        let verdict = if *theirs == bytes {
                            Ok(())
                        } else {
                            Err(format!(
                                "group {group}: nodes {} and {} applied the same slots and differ",
                                other + 1,
                                place + 1
                            ))
                        };
                        self.ether
                            .checker
                            .judge(Invariant::StateMachineSafety, verdict);
                    }
                }
            }
        }
    }

    /// Whether the state of `place` is as good as before it was last lost.
    pub(super) fn is_whole(&self, place: usize) -> bool {
        let machine = &self.machines[place];
        let Some(node) = &machine.process else {
            return false;
        };
        let replicas = node.replicas().iter();
        self.scenario.durability != Durability::Volatile
            || !machine.life.is_doomed()
                && !node.replicas().is_empty()
                && replicas
                    .zip(&self.wanted[place])
                    .all(|(replica, wanted)| replica.applied().slot() >= *wanted)
    }
}

/// Whether a node's acceptor votes in the kernel during a phase.
fn is_offloaded(seed: u64, phase: usize, place: usize) -> bool {
    let drawn = Random::new(seed ^ (phase as u64) << 8 ^ place as u64).below(4);
    drawn > 0
}

fn is_for_acceptor(datagram: &[u8]) -> bool {
    match parse(datagram, usize::from(u16::MAX)) {
        Parsed::Ours(header, _) => header.kind.is_for_acceptor(),
        Parsed::NotOurs | Parsed::Malformed(_) => false,
    }
}

/// What stories call a machine.
pub(super) fn place_name(place: usize) -> &'static str {
    const NAMES: [&str; 6] = ["n1", "n2", "n3", "n4", "n5", "n6"];
    NAMES.get(place).copied().unwrap_or("client")
}
