//! Keeps a node's offload as it is wanted, and says what became of it.

use crate::offload::{Offload, Refusal};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

/// Between two looks, in nanoseconds: so long packets may come up that the offload should have had.
const LOOK_NS: u64 = 100_000_000;
/// After a failed try, in nanoseconds.
const RETRY_NS: u64 = 1_000_000_000;
/// Between two readings of the counters for whom nobody asks, in nanoseconds.
const COUNT_NS: u64 = 1_000_000_000;
/// In the data directory: while it is there, the software engine serves alone.
const SOFTWARE_ONLY: &str = "software-only";

/// Whether the operator wants the offload of the node with this data directory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Wish {
    file: PathBuf,
}

impl Wish {
    /// The one in this data directory.
    pub fn of(data_directory: &Path) -> Self {
        Self {
            file: data_directory.join(SOFTWARE_ONLY),
        }
    }

    /// Whether the offload is to vote.
    pub fn is_offload(&self) -> bool {
        !self.file.exists()
    }

    /// Writes down that the offload is to vote, or is not. A node that runs sees it soon.
    ///
    /// # Errors
    /// The system refuses.
    pub fn set(&self, is_offload: bool) -> io::Result<()> {
        if !is_offload {
            return File::create(&self.file).map(drop);
        }
        match std::fs::remove_file(&self.file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

/// What the offload does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// The cluster has not formed, and nobody votes before.
    Waiting,
    /// It votes.
    Voting,
    /// It is not wanted.
    Removed,
    /// Somebody else has detached it, or its interface is gone.
    Detached,
    /// It cannot vote; the error says why.
    Refused,
}

impl State {
    /// A stable name for reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Voting => "voting",
            Self::Removed => "removed",
            Self::Detached => "detached",
            Self::Refused => "refused",
        }
    }
}

/// An offload under supervision.
#[derive(Debug)]
pub struct Supervision {
    offload: Box<dyn Offload>,
    wish: Wish,
    state: State,
    hand_overs: u64,
    error: Option<String>,
    due_ns: u64,
    /// As they were when [`Supervision::count`] was last called.
    counters: Vec<(&'static str, u64)>,
    count_due_ns: u64,
}

impl Supervision {
    /// Of an offload that does not vote yet.
    pub fn new(offload: Box<dyn Offload>, wish: Wish) -> Self {
        Self {
            offload,
            wish,
            state: State::Waiting,
            hand_overs: 0,
            error: None,
            due_ns: 0,
            counters: Vec::new(),
            count_due_ns: 0,
        }
    }

    /// Reads the counters, which takes a system call each.
    pub fn count(&mut self) {
        self.counters = self.offload.counters();
    }

    /// Reads the counters if that was long ago.
    pub fn count_at_times(&mut self, now_ns: u64) {
        if now_ns >= self.count_due_ns {
            self.count_due_ns = now_ns + COUNT_NS;
            self.count();
        }
    }

    /// Installs, removes or misses the offload, if it is time to look.
    pub fn poll(&mut self, now_ns: u64, is_formed: bool) {
        if now_ns < self.due_ns {
            return;
        }
        self.due_ns = now_ns + LOOK_NS;
        if self.state == State::Voting && !self.offload.is_installed() {
            self.becomes(State::Detached);
            tracing::warn!(
                interface = self.offload.interface(),
                "somebody detached the acceptor; the software engine serves"
            );
            // Whoever did it may be about to put something else there.
            self.due_ns = now_ns + RETRY_NS;
            return;
        }
        let is_wanted = is_formed && self.wish.is_offload();
        match (is_wanted, self.state) {
            (true, State::Voting) => {}
            (true, _) => match self.offload.install() {
                Ok(()) => {
                    self.error = None;
                    self.becomes(State::Voting);
                }
                Err(error) => {
                    self.refused(now_ns, &error);
                    self.becomes(State::Refused);
                }
            },
            (false, State::Removed) => {}
            // Even if it does not vote: an earlier life may have left it attached.
            (false, _) if is_formed => match self.offload.remove() {
                Ok(()) => {
                    self.error = None;
                    self.becomes(State::Removed);
                }
                Err(error) => self.refused(now_ns, &error),
            },
            (false, _) => {}
        }
    }

    /// Tells once why, and tries again later.
    fn refused(&mut self, now_ns: u64, error: &Refusal) {
        let error = error.to_string();
        if self.error.as_ref() != Some(&error) {
            tracing::warn!(interface = self.offload.interface(), "{error}");
        }
        self.error = Some(error);
        self.due_ns = now_ns + RETRY_NS;
    }

    fn becomes(&mut self, state: State) {
        self.hand_overs += u64::from((self.state == State::Voting) != (state == State::Voting));
        self.state = state;
    }

    /// Which engine answers for the acceptor: a stable name for reports.
    pub fn engine(&self) -> &'static str {
        match self.state {
            State::Voting => self.offload.engine(),
            _ => "software",
        }
    }

    /// Whether packets are answered that never come here.
    pub fn votes(&self) -> bool {
        self.state == State::Voting
    }

    /// For reports, with the counters that were last read.
    pub fn describe(&self) -> serde_json::Value {
        let counters = self.counters.iter().filter(|(_, count)| *count > 0);
        let counters: serde_json::Map<_, _> = counters
            .map(|&(name, count)| (name.to_owned(), count.into()))
            .collect();
        serde_json::json!({
            "engine": self.offload.engine(),
            "interface": self.offload.interface(),
            "mode": self.offload.mode(),
            "attach": self.offload.attach(),
            "state": self.state.name(),
            "on_host_death": self.offload.on_host_death(),
            "hand_overs": self.hand_overs,
            "error": self.error,
            "counters": counters,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

    /// An offload that somebody else can take away, and that may be refused.
    #[derive(Debug, Default)]
    struct Stage {
        is_there: Arc<AtomicBool>,
        is_refused: Arc<AtomicBool>,
        /// How often the counters were read.
        readings: Arc<AtomicU64>,
    }

    impl Offload for Stage {
        fn engine(&self) -> &'static str {
            "stage"
        }

        fn mode(&self) -> &'static str {
            "native"
        }

        fn interface(&self) -> &str {
            "eth0"
        }

        fn attach(&self) -> &'static str {
            "link"
        }

        fn on_host_death(&self) -> &'static str {
            "keep-voting"
        }

        fn install(&mut self) -> Result<(), Refusal> {
            if self.is_refused.load(Ordering::Relaxed) {
                return Err("no driver".into());
            }
            self.is_there.store(true, Ordering::Relaxed);
            Ok(())
        }

        fn is_installed(&self) -> bool {
            self.is_there.load(Ordering::Relaxed)
        }

        fn remove(&mut self) -> Result<(), Refusal> {
            self.is_there.store(false, Ordering::Relaxed);
            Ok(())
        }

        fn counters(&self) -> Vec<(&'static str, u64)> {
            let readings = self.readings.fetch_add(1, Ordering::Relaxed) + 1;
            vec![("answered", 0), ("taken", readings)]
        }
    }

    struct Scene {
        is_there: Arc<AtomicBool>,
        is_refused: Arc<AtomicBool>,
        readings: Arc<AtomicU64>,
        wish: Wish,
        supervision: Supervision,
        now_ns: u64,
        _directory: tempfile::TempDir,
    }

    fn scene() -> Scene {
        let directory = tempfile::tempdir().expect("a directory");
        let wish = Wish::of(directory.path());
        let stage = Stage::default();
        let (is_there, is_refused) = (Arc::clone(&stage.is_there), Arc::clone(&stage.is_refused));
        Scene {
            is_there,
            is_refused,
            readings: Arc::clone(&stage.readings),
            supervision: Supervision::new(Box::new(stage), wish.clone()),
            wish,
            now_ns: 0,
            _directory: directory,
        }
    }

    impl Scene {
        fn poll(&mut self, is_formed: bool) -> (State, u64) {
            self.now_ns += RETRY_NS;
            self.supervision.poll(self.now_ns, is_formed);
            (self.supervision.state, self.supervision.hand_overs)
        }
    }

    #[test]
    fn nothing_votes_before_the_cluster_has_formed() {
        let mut scene = scene();
        assert_eq!(scene.poll(false), (State::Waiting, 0));
        assert!(!scene.is_there.load(Ordering::Relaxed));
        assert_eq!(scene.poll(true), (State::Voting, 1));
        assert_eq!(scene.supervision.engine(), "stage");
    }

    #[test]
    fn a_wish_removes_and_installs() {
        let mut scene = scene();
        scene.poll(true);
        scene.wish.set(false).expect("a file");
        assert_eq!(scene.poll(true), (State::Removed, 2));
        assert!(!scene.is_there.load(Ordering::Relaxed));
        assert_eq!(scene.supervision.engine(), "software");
        scene.wish.set(true).expect("no file");
        assert_eq!(scene.poll(true), (State::Voting, 3));
    }

    #[test]
    fn what_others_detached_is_told_and_comes_back() {
        let mut scene = scene();
        scene.poll(true);
        scene.is_there.store(false, Ordering::Relaxed);
        assert_eq!(scene.poll(true), (State::Detached, 2));
        assert_eq!(scene.supervision.engine(), "software");
        assert_eq!(scene.poll(true), (State::Voting, 3));
    }

    #[test]
    fn a_refusal_is_told_and_tried_again() {
        let mut scene = scene();
        scene.is_refused.store(true, Ordering::Relaxed);
        assert_eq!(scene.poll(true), (State::Refused, 0));
        assert_eq!(scene.supervision.describe()["error"], "no driver");
        scene.is_refused.store(false, Ordering::Relaxed);
        assert_eq!(scene.poll(true), (State::Voting, 1));
        assert!(scene.supervision.describe()["error"].is_null());
    }

    #[test]
    fn counters_are_read_when_asked_or_once_a_second_and_by_no_report() {
        let mut scene = scene();
        for tenth in 0..30 {
            scene.supervision.poll(tenth * LOOK_NS, true);
            scene.supervision.count_at_times(tenth * LOOK_NS);
            scene.supervision.describe();
        }
        assert_eq!(scene.readings.load(Ordering::Relaxed), 3);
        scene.supervision.count();
        let told = scene.supervision.describe();
        assert_eq!(told["counters"], serde_json::json!({"taken": 4}));
    }
}
