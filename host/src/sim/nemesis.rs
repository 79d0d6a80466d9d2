//! What goes wrong in a world, and how it is mended.

use super::bare::Bare;
use super::fault::FaultKind;
use super::machine::{Machine, Post, Standing, address};
use super::network::exponential;
use super::world::{World, place_name};
use consensus::configuration::{Configuration, Matchmakers};
use consensus::local::Durability;
use consensus::matchmaker::Register;
use consensus::quorum::{Member, MemberRole, Membership, Quorums};
use consensus::session::SESSION_TTL_MS;
use consensus::wire::{Flags, Header, Kind};
use consensus::{Ballot, GroupId, NodeId};

const MS: u64 = 1_000_000;
/// Shortest and longest stop of a process.
const PAUSE_NS: (u64, u64) = (10 * MS, 2_000 * MS);

/// Mean time between two followers that take over.
const USURP_NS: u64 = MS / 2;
/// Mean time until whoever replaces matchmakers is hit, if it is.
const INTERRUPT_NS: u64 = MS;

/// The machine that a member is.
fn at(member: &Member) -> usize {
    usize::from(member.node.0) - 1
}

/// Something that is due later.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Action {
    /// The process starts again.
    Start(usize),
    /// The process goes on.
    Resume(usize),
    /// The disk is as it was.
    MendDisk(usize),
    /// A follower is made to take over a group.
    Usurp(usize, u16),
    /// A node that lost its memory comes back as a new one under its old number.
    Rejoin(usize),
    /// A process asks one that has died for a connection, and again after so many nanoseconds.
    Reconnect(usize, usize, u64),
    /// Whoever replaces matchmakers dies, stops or is cut off.
    Interrupt(usize, FaultKind),
}

/// A kind of fault, and how often it is drawn.
const WEIGHTS: &[(FaultKind, u64)] = &[
    (FaultKind::Partition, 6),
    (FaultKind::Pause, 4),
    (FaultKind::Kill, 6),
    (FaultKind::TornStep, 4),
    (FaultKind::PowerLoss, 6),
    (FaultKind::Blackout, 1),
    (FaultKind::MemoryLoss, 1),
    (FaultKind::DiskLoss, 1),
    (FaultKind::SlowDisk, 3),
    (FaultKind::FullDisk, 3),
    (FaultKind::DiskError, 2),
    (FaultKind::ClockStep, 2),
    (FaultKind::Transfer, 3),
    (FaultKind::Usurpation, 8),
    (FaultKind::ClientLoss, 1),
    (FaultKind::Reconfiguration, 8),
];

impl World {
    fn allows(&self, kind: FaultKind) -> bool {
        self.scenario.kinds.has(kind) && !self.without.has(kind)
    }

    /// Something goes wrong.
    pub(super) fn inject_fault(&mut self) {
        let timer = self.fault_timer();
        self.timers[timer] = self.now_ns() + exponential(&mut self.random, self.fault_ns) + 1;
        let sum: u64 = WEIGHTS.iter().map(|(_, weight)| weight).sum();
        let mut draw = self.random.below(sum);
        let mut drawn = FaultKind::Kill;
        for (kind, weight) in WEIGHTS {
            if draw < *weight {
                drawn = *kind;
                break;
            }
            draw -= weight;
        }
        // Leaders are hit as often as all others together.
        let any = self.random.below(self.machines.len() as u64) as usize;
        let wants_leader = self.random.below(2) == 0;
        let group = self.random.below(u64::from(self.scenario.groups)) as usize;
        let victim = self.leader(group).filter(|_| wants_leader).unwrap_or(any);
        if self.allows(drawn) {
            self.strike(drawn, victim);
        }
    }

    /// The machine whose replica leads `group`, if there is one.
    pub(super) fn leader(&self, group: usize) -> Option<usize> {
        self.machines.iter().position(|machine| {
            machine.process.as_ref().is_some_and(|node| {
                node.replicas()
                    .get(group)
                    .is_some_and(|replica| replica.role() == consensus::replica::Role::Leader)
            })
        })
    }

    /// Forces a change of leaders.
    pub(super) fn depose(&mut self) {
        let Some(leader) = self.leader(0) else {
            return;
        };
        let ways = [
            FaultKind::Kill,
            FaultKind::Pause,
            FaultKind::Partition,
            FaultKind::Transfer,
        ];
        let way = ways[self.random.below(4) as usize];
        let successor = (leader + 1 + self.random.below(self.machines.len() as u64 - 1) as usize)
            % self.machines.len();
        match way {
            // Where too many are lost for good, the rest cannot do without its leader.
            FaultKind::Transfer => self.transfer(successor, 0),
            FaultKind::Kill if self.may_lose_state(leader) => self.strike(way, leader),
            FaultKind::Partition => self.strike(way, leader),
            _ => self.pause(leader, self.scenario.election.timeout_ns * 4),
        }
    }

    fn say(&mut self, kind: FaultKind, place: usize, what: impl FnOnce() -> String) {
        self.ether.coverage.struck(kind);
        let now_ns = self.now_ns();
        self.ether.trace.tell(now_ns, place_name(place), || {
            format!("*** {}: {}", kind.name(), what())
        });
    }

    /// Whether `place` may lose its state and there are enough left that have theirs: of those that
    /// reported a slot before it was trimmed one has to be left.
    fn may_lose_state(&self, place: usize) -> bool {
        if self.scenario.durability != Durability::Volatile {
            return true;
        }
        let needed = self.needed();
        let matters = |place: usize| {
            let node = self.machines[place].node_id;
            needed.iter().any(|one| one.place(node).is_some())
        };
        let lost = (0..self.machines.len())
            .filter(|other| *other != place && matters(*other) && !self.is_whole(*other))
            .count();
        let spare = needed.iter().map(|one| one.voters().count() / 2).min();
        !matters(place) || lost < spare.unwrap_or(0)
    }

    /// Whether `place` may go for good.
    fn may_lose_acceptor(&self, place: usize) -> bool {
        let former = &self.machines[..self.scenario.nodes];
        let is_member = self.machines[place].standing == Standing::Member;
        // Whoever loses its memory while the cluster forms keeps it from ever forming.
        let has_formed = former.iter().all(|machine| machine.identity.formed);
        is_member
            && has_formed
            && self.rotten.is_none()
            && self
                .needed()
                .iter()
                .all(|one| self.can_do_without(one, place))
            && (0..self.scenario.groups).all(|group| self.matchmakers_can_do_without(group, place))
            && self.may_lose_state(place)
    }

    /// What each node has written down of a group's configurations.
    fn registers(&self, group: u16) -> Vec<Register> {
        let (phase1, phase2) = self.scenario.quorum_sizes();
        let Ok(quorums) = Quorums::flexible(self.scenario.nodes, phase1, phase2) else {
            return Vec::new();
        };
        let formed = |machine: &Machine| Membership {
            epoch: super::machine::EPOCH,
            members: (0..self.scenario.nodes)
                .map(|place| {
                    let member = self.as_member(place, MemberRole::Voter);
                    let pinned = machine.identity.pins.get(&member.node).copied();
                    let incarnation = pinned.unwrap_or(member.incarnation);
                    Member {
                        incarnation,
                        ..member
                    }
                })
                .collect(),
            quorums,
        };
        let registers = self.machines.iter().map(|machine| {
            let kept = machine.identity.registers.get(&GroupId(group));
            match kept.and_then(|kept| Register::read(kept)) {
                Some(kept) => kept,
                None if machine.identity.joins => Register::blank(),
                None => Register::formed(formed(machine)),
            }
        });
        registers.collect()
    }

    /// The newest matchmakers of which a majority knows, and all that may follow them: whoever may
    /// have to be asked.
    fn asked_matchmakers(&self, registers: &[Register]) -> Vec<Matchmakers> {
        let knows = |member: &&Member, generation| {
            let register = &registers[at(member)];
            self.is_alive(member) && register.newest.matchmakers.generation >= generation
        };
        let known = registers.iter().map(|one| &one.newest.matchmakers);
        let accepted = registers
            .iter()
            .filter_map(|one| one.matchmaker.accepted())
            .map(|(_, next)| next);
        let newest = known
            .clone()
            .filter(|set| {
                let members = set.members.iter();
                set.is_majority(members.filter(|one| knows(one, set.generation)).count())
            })
            .map(|set| set.generation)
            .max();
        let asked = known
            .chain(accepted)
            .filter(|set| Some(set.generation) >= newest);
        asked.filter(|set| set.generation > 0).cloned().collect()
    }

    fn matchmakers_can_do_without(&self, group: u16, place: usize) -> bool {
        let asked = self.asked_matchmakers(&self.registers(group));
        asked.iter().all(|set| {
            let members = set.members.iter();
            let left = members.filter(|member| self.is_alive(member) && at(member) != place);
            set.is_majority(left.count())
        })
    }

    /// Whether a configuration has its quorums, and enough to trim, if `place` is gone, too.
    fn can_do_without(&self, membership: &Membership, place: usize) -> bool {
        let has = |role: fn(MemberRole) -> bool| {
            let members = membership.members.iter().filter(|member| role(member.role));
            let mut left = 0;
            let mut all = 0;
            for member in members {
                all += 1;
                left += usize::from(self.is_alive(member) && at(member) != place);
            }
            (left, all)
        };
        let quorums = membership.quorums;
        let (acceptors, _) = has(|role| role != MemberRole::Learner);
        let (voters, all) = has(|role| role == MemberRole::Voter);
        acceptors >= quorums.phase1().max(quorums.phase2()) && voters > all / 2
    }

    /// Whether the life of its memory that a configuration names is not over.
    fn is_alive(&self, member: &Member) -> bool {
        let machine = &self.machines[at(member)];
        machine.standing == Standing::Member
            && machine.incarnation(&self.scenario) == member.incarnation
    }

    /// The memberships that some matchmaker still tells candidates of.
    fn needed(&self) -> Vec<Membership> {
        let mut needed: Vec<Membership> = Vec::new();
        for group in 0..self.scenario.groups {
            let registers = self.registers(group);
            let asked = self.asked_matchmakers(&registers);
            let oldest = asked.iter().map(|set| set.generation).min().unwrap_or(0);
            for register in &registers {
                let matchmaker = &register.matchmaker;
                let is_asked = matchmaker.generation() >= oldest;
                let handed_over = matchmaker.successor().map(|one| one.1.configurations());
                let told = matchmaker.configurations().iter().filter(|_| is_asked);
                let told = told.chain(handed_over.into_iter().flatten());
                for one in told.chain([&register.newest]) {
                    let membership = &one.membership;
                    if !membership.members.is_empty() && !needed.contains(membership) {
                        needed.push(membership.clone());
                    }
                }
            }
        }
        needed
    }

    fn as_member(&self, place: usize, role: MemberRole) -> Member {
        let machine = &self.machines[place];
        Member {
            node: machine.node_id,
            incarnation: machine.incarnation(&self.scenario),
            address: address(place),
            priority: 0,
            role,
        }
    }

    /// An operator has other members vote from now on.
    fn change_members(&mut self, group: u16) {
        let Some(leader) = self.leader(usize::from(group)) else {
            return;
        };
        let Some(node) = &self.machines[leader].process else {
            return;
        };
        let current = node.replicas()[usize::from(group)].configuration().clone();
        let alive = |member: &&Member| self.is_alive(member);
        let mut members: Vec<Member> = current
            .membership
            .members
            .iter()
            .filter(alive)
            .copied()
            .collect();
        let strangers: Vec<usize> = (0..self.machines.len())
            .filter(|place| {
                let machine = &self.machines[*place];
                let is_there = |member: &Member| member.node == machine.node_id;
                machine.standing == Standing::Member && !members.iter().any(is_there)
            })
            .collect();
        let of = |members: &[Member], role: MemberRole| {
            let places = members.iter().enumerate();
            let places = places.filter(|(_, member)| member.role == role);
            places.map(|(place, _)| place).collect::<Vec<_>>()
        };
        let learners = of(&members, MemberRole::Learner);
        let draw = self.random.below(6);
        let what = match draw {
            // Learners come first.
            0 | 1 => {
                members.extend(
                    strangers
                        .iter()
                        .map(|place| self.as_member(*place, MemberRole::Learner)),
                );
                "more learners"
            }
            // All that can be replaced are, or one is; now and then nobody leaves.
            2..5 if !learners.is_empty() => {
                let promoted = if draw == 2 { learners.len() } else { 1 };
                for place in learners.into_iter().take(promoted) {
                    members[place].role = MemberRole::Voter;
                }
                let mut leavers = of(&current.membership.members, MemberRole::Voter);
                let count = leavers.len();
                let first = self.random.below(count.max(1) as u64) as usize;
                leavers.rotate_left(first.min(count));
                for place in leavers {
                    let node = current.membership.members[place].node;
                    let voters = of(&members, MemberRole::Voter).len();
                    if voters > self.scenario.nodes
                        && draw != 4
                        && let Some(at) = members.iter().position(|member| member.node == node)
                    {
                        members[at].role = MemberRole::Learner;
                    }
                }
                "learners vote"
            }
            // Those that do not vote go.
            5 => {
                let leads = |member: &Member| at(member) == leader;
                members.retain(|member| member.role == MemberRole::Voter || leads(member));
                "no learners"
            }
            _ => {
                let voters = of(&members, MemberRole::Voter);
                if let Some(place) = voters
                    .first()
                    .filter(|_| voters.len() > self.scenario.nodes)
                {
                    members[*place].role = MemberRole::Learner;
                }
                "one voter less"
            }
        };
        let voters = of(&members, MemberRole::Voter).len();
        let quorums = match self.scenario.quorums {
            Some((phase1, phase2)) if voters == self.scenario.nodes => {
                Quorums::flexible(voters, phase1, phase2)
            }
            _ => Quorums::majority(voters),
        };
        let Ok(quorums) = quorums else { return };
        if voters + 1 < self.scenario.nodes {
            return;
        }
        self.say(FaultKind::Reconfiguration, leader, || {
            let names = members
                .iter()
                .map(|one| format!("{} {}", one.node, one.role.name()));
            format!(
                "group {group}, {what}: {}",
                names.collect::<Vec<_>>().join(", ")
            )
        });
        let wish = Configuration {
            version: current.version,
            membership: Membership {
                epoch: current.membership.epoch,
                members,
                quorums,
            },
            matchmakers: Matchmakers::NONE,
        };
        let value = wish.to_bytes();
        let header = Header {
            vote_ballot: current.version,
            length: value.len() as u16,
            ..Header::new(Kind::Reconfigure, GroupId(group), NodeId::NONE)
        };
        self.post_as_operator(leader, header, &value);
    }

    /// A node that lost its memory is a new one: with a new data directory, in another life.
    fn rejoin(&mut self, place: usize) {
        if self.machines[place].standing != Standing::Refused {
            return;
        }
        self.lose_disk(place);
        self.machines[place].identity.joins = true;
        self.machines[place].standing = Standing::Member;
        self.machines[place].reborn = None;
        let life = self.machines[place].incarnation(&self.scenario);
        self.ether.checker.reborn(place, life);
        self.say(FaultKind::Reconfiguration, place, || {
            format!("comes back as a new node, {life}")
        });
        self.start(place);
    }

    pub(super) fn plan_rejoining(&mut self, place: usize) {
        if self.allows(FaultKind::Reconfiguration) {
            let election_ns = self.scenario.election.timeout_ns;
            let away_ns = exponential(&mut self.random, 4 * election_ns) + MS;
            self.plan(self.now_ns() + away_ns, Action::Rejoin(place));
        }
    }

    /// Half of those that replace matchmakers do not get to the end of it at once.
    pub(super) fn interrupt(&mut self, place: usize) {
        let kinds = [FaultKind::Kill, FaultKind::Pause, FaultKind::Partition];
        let drawn = self.interrupts.below(2 * kinds.len() as u64) as usize;
        let at_ns = self.now_ns() + exponential(&mut self.interrupts, INTERRUPT_NS);
        if let Some(kind) = kinds.get(drawn).filter(|kind| self.allows(**kind)) {
            self.plan(at_ns, Action::Interrupt(place, *kind));
        }
    }

    fn plan_start(&mut self, place: usize) {
        let election_ns = self.scenario.election.timeout_ns;
        let down_ns = exponential(&mut self.random, election_ns) + MS;
        self.plan(self.now_ns() + down_ns, Action::Start(place));
    }

    fn strike(&mut self, kind: FaultKind, place: usize) {
        let is_up = self.machines[place].process.is_some();
        match kind {
            FaultKind::Partition => self.part(place),
            FaultKind::Pause if is_up => {
                let (least, most) = PAUSE_NS;
                let pause_ns = least + exponential(&mut self.random, 4 * least).min(most - least);
                self.pause(place, pause_ns);
            }
            FaultKind::Kill if is_up && self.may_lose_state(place) => {
                self.say(kind, place, || "the process dies".into());
                self.die(place);
                self.plan_start(place);
            }
            FaultKind::TornStep if is_up && self.may_lose_state(place) => {
                let writes = self.random.below(40) as u32;
                self.machines[place].life.light_fuse(writes);
            }
            FaultKind::PowerLoss => {
                self.say(kind, place, || "the machine loses power".into());
                self.lose_power(place);
                self.plan_start(place);
            }
            FaultKind::Blackout => {
                self.say(kind, place, || "all machines lose power".into());
                for place in 0..self.machines.len() {
                    self.lose_power(place);
                    self.plan_start(place);
                }
            }
            FaultKind::MemoryLoss if self.may_lose_acceptor(place) => {
                self.say(kind, place, || {
                    "the machine loses power and its votes".into()
                });
                self.machines[place].standing = Standing::Doomed;
                self.lose_power(place);
                self.plan_start(place);
            }
            FaultKind::DiskLoss if self.may_lose_acceptor(place) => {
                self.say(kind, place, || "the data directory is lost".into());
                self.lose_disk(place);
                if place < self.scenario.nodes {
                    self.machines[place].standing = Standing::Doomed;
                    self.plan_start(place);
                } else {
                    // Its configuration has it join: nobody takes it for its former self.
                    self.machines[place].standing = Standing::Refused;
                    self.plan_rejoining(place);
                }
            }
            FaultKind::SlowDisk => {
                let slow_ns = MS * (1 + self.random.below(60));
                self.machines[place].flush_ns = slow_ns;
                self.say(kind, place, || format!("a flush takes {} ms", slow_ns / MS));
                self.plan_mending(place);
            }
            FaultKind::FullDisk => {
                self.machines[place].log.borrow_mut().is_full = true;
                self.say(kind, place, || "the disk is full".into());
                self.plan_mending(place);
            }
            FaultKind::DiskError if is_up => {
                self.machines[place].log.borrow_mut().is_failing = true;
                self.say(kind, place, || "the disk returns errors".into());
                self.plan_mending(place);
            }
            FaultKind::ClockStep => {
                // Now and then so far that sessions expire by the log's clock.
                let leaps = self.random.below(16) == 0;
                let by_ms = if leaps {
                    2 * SESSION_TTL_MS as i64
                } else {
                    self.random.below(10_000) as i64 - 5_000
                };
                self.machines[place].clock.step_wall(by_ms);
                self.say(kind, place, || {
                    format!("its wall clock is set by {by_ms} ms")
                });
            }
            FaultKind::Transfer => {
                let group = self.random.below(u64::from(self.scenario.groups)) as u16;
                self.transfer(place, group);
            }
            FaultKind::Usurpation => {
                let group = self.random.below(u64::from(self.scenario.groups)) as u16;
                let mut at_ns = self.now_ns();
                for _ in 0..=self.random.below(6) {
                    at_ns += exponential(&mut self.random, USURP_NS);
                    let usurper = self.random.below(self.machines.len() as u64) as usize;
                    self.plan(at_ns, Action::Usurp(usurper, group));
                }
            }
            FaultKind::Reconfiguration => {
                let group = self.random.below(u64::from(self.scenario.groups)) as u16;
                self.change_members(group);
            }
            FaultKind::ClientLoss => {
                let number = self.random.below(self.clients.len() as u64) as usize;
                self.clients[number].begin_anew(&self.scenario);
                let timer = self.client_timer(number);
                self.timers[timer] = self.now_ns();
                self.ether.coverage.struck(kind);
            }
            _ => {}
        }
    }

    fn plan_mending(&mut self, place: usize) {
        let election_ns = self.scenario.election.timeout_ns;
        let ill_ns = exponential(&mut self.random, 2 * election_ns) + MS;
        self.plan(self.now_ns() + ill_ns, Action::MendDisk(place));
    }

    fn keeps_some(&self) -> bool {
        self.allows(FaultKind::TornTail)
    }

    fn die(&mut self, place: usize) {
        self.cease(place);
        self.end_lifelines(place);
    }

    fn cease(&mut self, place: usize) {
        let keeps_some = self.keeps_some();
        if keeps_some && self.machines[place].log.borrow().has_unflushed() {
            self.ether.coverage.struck(FaultKind::TornTail);
        }
        self.end_process(place, keeps_some);
        self.rot(place);
    }

    /// The newest snapshot may turn out to be damaged: the one before it and the journal remain. They
    /// lead less far, since a snapshot may hold what no record says was chosen. No mode covers that,
    /// so it happens to one machine of a world that has all others.
    fn rot(&mut self, place: usize) {
        if !self.allows(FaultKind::SnapshotRot) || self.random.below(4) > 0 {
            return;
        }
        let is_first = self.rotten.is_none_or(|rotten| rotten == place);
        let all_member = |machine: &Machine| machine.standing == Standing::Member;
        if !is_first || !self.machines.iter().all(all_member) {
            return;
        }
        let shelves = &mut self.machines[place].shelves;
        let mut has_rotted = false;
        for shelf in shelves.iter_mut().filter(|shelf| shelf.kept.len() > 1) {
            shelf.kept.pop_back();
            has_rotted = true;
        }
        if has_rotted {
            self.rotten = Some(place);
            self.ether.checker.disk_damaged(place);
            self.say(FaultKind::SnapshotRot, place, || {
                "its newest snapshot is damaged".into()
            });
        }
    }

    fn lose_power(&mut self, place: usize) {
        self.cease(place);
        let now_ns = self.now_ns();
        let boot = u128::from(self.random.next() | 1);
        let machine = &mut self.machines[place];
        machine.boot = boot;
        machine.clock.boot(now_ns);
        machine.words = super::memory::blank(0);
        machine.kernel = None;
    }

    /// Something blank may answer in the stead of a node that was refused.
    pub(super) fn give_birth(&mut self, place: usize) {
        let nonce = self.random.next();
        if self.allows(FaultKind::Reborn) {
            let node = self.machines[place].node_id;
            self.machines[place].reborn = Bare::reborn(node, nonce, &self.scenario);
            self.say(FaultKind::Reborn, place, || {
                "a blank acceptor answers".into()
            });
        }
    }

    fn lose_disk(&mut self, place: usize) {
        self.lose_power(place);
        let nonce = self.random.next();
        let machine = &mut self.machines[place];
        machine.identity = super::machine::Identity::new(nonce, false);
        *machine.log.borrow_mut() = super::disk::Log::default();
        machine.parts.fill(None);
        for shelf in &mut machine.shelves {
            shelf.kept.clear();
        }
    }

    fn pause(&mut self, place: usize, pause_ns: u64) {
        if !self.machines[place].is_running() {
            return;
        }
        self.machines[place].is_paused = true;
        self.timers[place] = u64::MAX;
        self.say(FaultKind::Pause, place, || {
            format!("stops for {} ms", pause_ns / MS)
        });
        self.plan(self.now_ns() + pause_ns, Action::Resume(place));
    }

    /// Cuts links: one node off, in one direction or both, or the cluster in two.
    fn part(&mut self, place: usize) {
        let places = self.machines.len() + self.clients.len();
        let shape = self.random.below(4);
        let election_ns = self.scenario.election.timeout_ns;
        let cut_ns = exponential(&mut self.random, 2 * election_ns) + MS;
        let until_ns = self.now_ns() + cut_ns;
        let side: Vec<bool> = (0..places).map(|_| self.random.below(2) == 0).collect();
        for other in (0..places).filter(|other| *other != place) {
            match shape {
                // Mute, deaf, or both.
                0 => self.ether.network.cut(place, other, until_ns),
                1 => self.ether.network.cut(other, place, until_ns),
                2 => {
                    self.ether.network.cut(place, other, until_ns);
                    self.ether.network.cut(other, place, until_ns);
                }
                _ => {
                    for third in (0..places).filter(|third| side[*third] != side[other]) {
                        self.ether.network.cut(other, third, until_ns);
                        self.ether.network.cut(third, other, until_ns);
                    }
                }
            }
        }
        let name = ["mute", "deaf", "cut off", "on one of two sides"][shape as usize];
        self.say(FaultKind::Partition, place, || {
            format!("is {name} for {} ms", cut_ns / MS)
        });
    }

    fn transfer(&mut self, place: usize, group: u16) {
        let Some(leader) = self.leader(usize::from(group)) else {
            return;
        };
        self.say(FaultKind::Transfer, place, || {
            format!("is to lead group {group}")
        });
        let header = Header {
            vote_ballot: Ballot(place as u64 + 1),
            ..Header::new(Kind::Transfer, GroupId(group), NodeId::NONE)
        };
        self.post_as_operator(leader, header, &[]);
    }

    /// Makes a follower campaign as if its leader handed over to it.
    fn usurp(&mut self, place: usize, group: u16) {
        let machine = &self.machines[place];
        let Some(node) = &machine.process else {
            return;
        };
        let local_ns = machine.clock.monotonic_ns(self.now_ns());
        let replica = node.replicas().get(usize::from(group));
        let Some(leader) = replica.and_then(|replica| replica.leader(local_ns, node.local()))
        else {
            return;
        };
        self.say(FaultKind::Usurpation, place, || {
            format!("is to take over group {group}")
        });
        let header = Header {
            vote_ballot: Ballot(place as u64 + 1),
            flags: Flags::NOW,
            ..Header::new(Kind::Transfer, GroupId(group), leader)
        };
        self.post_as_operator(place, header, &[]);
    }

    fn post_as_operator(&mut self, to: usize, mut header: Header, value: &[u8]) {
        if let Some(key) = self.scenario.key {
            header.tag = consensus::auth::tag(key, &header, value);
        }
        let operator = self.machines.len() + self.clients.len();
        self.ether.post(operator, address(to), &header, value);
    }

    /// The process died between two writes of a step.
    pub(super) fn torn(&mut self, place: usize) {
        self.say(FaultKind::TornStep, place, || {
            "the process dies in the middle of a step".into()
        });
        self.die(place);
        self.plan_start(place);
    }

    /// The process saw that its journal can no longer be written.
    pub(super) fn died_of_its_disk(&mut self, place: usize) {
        let now_ns = self.now_ns();
        self.ether.trace.tell(now_ns, place_name(place), || {
            "ends: its disk returned an error".into()
        });
        self.die(place);
        self.plan_start(place);
    }

    /// Something that was planned happens.
    pub(super) fn act(&mut self, action: Action) {
        match action {
            // A process that has something to write when it starts waits for room.
            Action::Start(place) if self.machines[place].log.borrow().is_full => {
                self.plan_start(place);
            }
            Action::Start(place) => self.start(place),
            Action::Resume(place) => self.resume(place),
            Action::MendDisk(place) => self.mend_disk(place),
            Action::Usurp(place, group) => self.usurp(place, group),
            Action::Rejoin(place) => self.rejoin(place),
            Action::Reconnect(to, place, again_ns) => self.reconnect(to, place, again_ns),
            Action::Interrupt(place, kind) => self.strike(kind, place),
        }
    }

    fn resume(&mut self, place: usize) {
        if !self.machines[place].is_paused {
            return;
        }
        let now_ns = self.now_ns();
        self.ether
            .trace
            .tell(now_ns, place_name(place), || "goes on".into());
        self.machines[place].is_paused = false;
        self.timers[place] = now_ns;
        for index in std::mem::take(&mut self.machines[place].inbox) {
            self.deliver(index);
        }
    }

    fn mend_disk(&mut self, place: usize) {
        let machine = &mut self.machines[place];
        machine.flush_ns = self.scenario.flush_ns;
        let mut log = machine.log.borrow_mut();
        log.is_full = false;
        log.is_failing = false;
    }

    /// The end of all faults.
    pub(super) fn mend_everything(&mut self) {
        self.ether.network.heal();
        for place in 0..self.machines.len() {
            self.mend_disk(place);
            self.machines[place].life.put_out_fuse();
            self.resume(place);
            self.start(place);
        }
    }
}
