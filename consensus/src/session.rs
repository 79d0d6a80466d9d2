//! Client sessions: each command is applied exactly once, in the session's order.
//!
//! A session is a FIFO: the log applies sequence `n + 1` only after `n`, whatever order the log
//! holds them in. Replies are kept until the client says that it has them, so that a retransmitted
//! command is answered, never applied again (RIFL, Lee et al. 2015, with order added).

use crate::envelope::{SESSION_WINDOW, Status};
use crate::simulation::{Mutation, mutated};
use crate::state_machine::RestoreError;
use crate::{Sequence, SessionId};
use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;

/// Most sessions that may be open at once.
pub const MAX_SESSIONS: usize = 65_536;
/// A session unused for so long by the log's clock is closed, in milliseconds.
pub const SESSION_TTL_MS: u64 = 3_600_000;
/// Bytes of replies that are kept for one session. The newest reply is kept in any case.
pub const MAX_SESSION_REPLY_BYTES: usize = 4 << 20;
/// Bytes of replies that are kept for all sessions of a group.
pub const MAX_REPLIES_BYTES: usize = 256 << 20;

#[derive(Clone, Debug, Default)]
struct Session {
    /// Next sequence to apply.
    next: u64,
    /// Replies to the sequences before `next`, newest last.
    replies: VecDeque<Vec<u8>>,
    /// Length of the replies in bytes.
    bytes: usize,
    used_ms: u64,
}

impl Session {
    /// The reply to a command that was applied before, if it is kept.
    fn kept(&self, sequence: Sequence) -> Option<&[u8]> {
        if mutated(Mutation::NewestReplyGiven) {
            return self.replies.back().map(Vec::as_slice);
        }
        let back = self.next.checked_sub(sequence.0)?;
        let at = (self.replies.len() as u64).checked_sub(back)?;
        self.replies.get(at as usize).map(Vec::as_slice)
    }

    /// Forgets the oldest replies until `enough` says so. Returns how many bytes that were.
    fn forget(&mut self, enough: impl Fn(&Self) -> bool) -> usize {
        let before = self.bytes;
        while !enough(self)
            && let Some(oldest) = self.replies.pop_front()
        {
            self.bytes -= oldest.len();
        }
        before - self.bytes
    }
}

/// What a session makes of a command.
#[derive(Debug, PartialEq, Eq)]
pub enum Admission<'a> {
    /// It is the next one: apply it and hand the reply to [`Sessions::replied`].
    Apply,
    /// It was applied before, with this reply.
    Replied(&'a [u8]),
    /// It is refused.
    Refused {
        /// Why.
        status: Status,
        /// What the outcome carries as sequence.
        sequence: Sequence,
    },
}

/// The sessions of a group. Part of the replicated state: everything here depends on the log only.
#[derive(Clone, Debug, Default)]
pub struct Sessions {
    open: BTreeMap<u64, Session>,
    /// Length of all replies in bytes.
    bytes: usize,
    /// No session was used before this time of the log, so that most ticks look at none.
    oldest_ms: u64,
}

impl Sessions {
    /// Opens the session `id`, named by its place in the log. False if too many are open.
    pub fn open(&mut self, id: SessionId, clock_ms: u64) -> bool {
        if self.open.len() >= MAX_SESSIONS {
            return false;
        }
        self.open.insert(
            id.0,
            Session {
                next: 1,
                used_ms: clock_ms,
                ..Session::default()
            },
        );
        true
    }

    /// What to do with command `sequence` of session `id`. The client has every reply before
    /// `sequence - behind`.
    pub fn admit(
        &mut self,
        id: SessionId,
        sequence: Sequence,
        behind: u32,
        clock_ms: u64,
    ) -> Admission<'_> {
        let Some(session) = self.open.get_mut(&id.0) else {
            return Admission::Refused {
                status: Status::UnknownSession,
                sequence,
            };
        };
        session.used_ms = clock_ms;
        if sequence.0 > session.next && !mutated(Mutation::GapApplied) {
            let sequence = Sequence(session.next);
            return Admission::Refused {
                status: Status::OutOfOrder,
                sequence,
            };
        }
        if sequence.0 < session.next && !mutated(Mutation::DuplicateApplied) {
            return match session.kept(sequence) {
                Some(reply) => Admission::Replied(reply),
                None => Admission::Refused {
                    status: Status::ReplyForgotten,
                    sequence,
                },
            };
        }
        let wanted = u64::from(behind).min(SESSION_WINDOW - 1);
        self.bytes -= session.forget(|session| session.replies.len() as u64 <= wanted);
        Admission::Apply
    }

    /// Keeps the reply of the command that was just admitted.
    pub fn replied(&mut self, id: SessionId, reply: &[u8]) {
        let Some(session) = self.open.get_mut(&id.0) else {
            return;
        };
        session.next += 1;
        session.replies.push_back(Vec::from(reply));
        session.bytes += reply.len();
        self.bytes += reply.len();
        self.bytes -= session.forget(|session| {
            session.bytes <= MAX_SESSION_REPLY_BYTES || session.replies.len() == 1
        });
        if self.bytes > MAX_REPLIES_BYTES {
            self.make_room();
        }
    }

    /// Forgets the replies of the sessions that were not used for the longest time, so many that
    /// there is room for a while.
    fn make_room(&mut self) {
        let mut sessions: Vec<&mut Session> = self.open.values_mut().collect();
        // Sessions of one age stay in the order of their numbers: all replicas forget the same.
        sessions.sort_by_key(|session| session.used_ms);
        for session in sessions {
            if self.bytes <= MAX_REPLIES_BYTES / 4 * 3 {
                return;
            }
            self.bytes -= session.forget(|_| false);
        }
    }

    /// The next sequence that session `id` takes, if it is open.
    pub fn next(&self, id: SessionId) -> Option<Sequence> {
        self.open.get(&id.0).map(|session| Sequence(session.next))
    }

    /// The kept reply to a command that was applied before.
    pub fn reply(&self, id: SessionId, sequence: Sequence) -> Option<&[u8]> {
        self.open.get(&id.0)?.kept(sequence)
    }

    /// Closes the sessions that were not used for [`SESSION_TTL_MS`].
    pub fn expire(&mut self, clock_ms: u64) {
        if clock_ms.saturating_sub(self.oldest_ms) < SESSION_TTL_MS {
            return;
        }
        self.open
            .retain(|_, session| clock_ms.saturating_sub(session.used_ms) < SESSION_TTL_MS);
        self.bytes = self.open.values().map(|session| session.bytes).sum();
        let used = self.open.values().map(|session| session.used_ms);
        self.oldest_ms = used.min().unwrap_or(clock_ms);
    }

    /// How many sessions are open.
    pub fn len(&self) -> usize {
        self.open.len()
    }

    /// Whether none is open.
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// Appends the sessions to a snapshot: a count, then per session id, next, used, the number of
    /// replies and each reply with its length, all big-endian.
    pub fn write(&self, out: &mut Vec<u8>) {
        let mut put = |number: u64| out.extend_from_slice(&number.to_be_bytes());
        put(self.open.len() as u64);
        for (id, session) in &self.open {
            for number in [
                *id,
                session.next,
                session.used_ms,
                session.replies.len() as u64,
            ] {
                out.extend_from_slice(&number.to_be_bytes());
            }
            for reply in &session.replies {
                out.extend_from_slice(&(reply.len() as u64).to_be_bytes());
                out.extend_from_slice(reply);
            }
        }
    }

    /// Reads what [`Sessions::write`] wrote from the front of `bytes`; returns the rest too.
    ///
    /// # Errors
    /// The bytes are cut off or contradict the limits.
    pub fn read(bytes: &[u8]) -> Result<(Self, &[u8]), RestoreError> {
        let mut rest = bytes;
        let mut number = || -> Result<u64, RestoreError> {
            let (head, tail) = rest
                .split_first_chunk::<8>()
                .ok_or(RestoreError("cut off"))?;
            rest = tail;
            Ok(u64::from_be_bytes(*head))
        };
        let count = number()?;
        if count > MAX_SESSIONS as u64 {
            return Err(RestoreError("too many sessions"));
        }
        let mut open = BTreeMap::new();
        for _ in 0..count {
            let mut field = || -> Result<u64, RestoreError> {
                let (head, tail) = rest
                    .split_first_chunk::<8>()
                    .ok_or(RestoreError("cut off"))?;
                rest = tail;
                Ok(u64::from_be_bytes(*head))
            };
            let (id, next, used_ms, kept) = (field()?, field()?, field()?, field()?);
            if next == 0 || next > u64::MAX / 2 {
                return Err(RestoreError("no such sequence"));
            }
            if kept > SESSION_WINDOW {
                return Err(RestoreError("too many replies in a session"));
            }
            let mut replies = VecDeque::new();
            for _ in 0..kept {
                let (head, tail) = rest
                    .split_first_chunk::<8>()
                    .ok_or(RestoreError("cut off"))?;
                let length = u64::from_be_bytes(*head) as usize;
                let (reply, tail) = tail
                    .split_at_checked(length)
                    .ok_or(RestoreError("cut off"))?;
                replies.push_back(Vec::from(reply));
                rest = tail;
            }
            let bytes = replies.iter().map(Vec::len).sum();
            open.insert(
                id,
                Session {
                    next,
                    replies,
                    bytes,
                    used_ms,
                },
            );
        }
        let bytes = open.values().map(|session| session.bytes).sum();
        let used = open.values().map(|session| session.used_ms);
        let oldest_ms = used.min().unwrap_or_default();
        let sessions = Self {
            open,
            bytes,
            oldest_ms,
        };
        Ok((sessions, rest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: SessionId = SessionId(9);

    fn applied(sessions: &mut Sessions, sequence: u64, behind: u32) {
        assert_eq!(
            sessions.admit(ID, Sequence(sequence), behind, 0),
            Admission::Apply
        );
        sessions.replied(ID, &[sequence as u8]);
    }

    #[test]
    fn a_command_is_applied_once_and_answered_again() {
        let mut sessions = Sessions::default();
        assert!(sessions.open(ID, 0));
        applied(&mut sessions, 1, 0);
        applied(&mut sessions, 2, 1);
        assert_eq!(
            sessions.admit(ID, Sequence(1), 0, 0),
            Admission::Replied(&[1])
        );
        assert_eq!(
            sessions.admit(ID, Sequence(2), 1, 0),
            Admission::Replied(&[2])
        );
    }

    #[test]
    fn a_gap_is_refused_with_the_next_sequence() {
        let mut sessions = Sessions::default();
        sessions.open(ID, 0);
        assert_eq!(
            sessions.admit(ID, Sequence(2), 0, 0),
            Admission::Refused {
                status: Status::OutOfOrder,
                sequence: Sequence(1)
            }
        );
    }

    #[test]
    fn replies_are_kept_until_the_client_has_them() {
        let mut sessions = Sessions::default();
        sessions.open(ID, 0);
        for sequence in 1..=4 {
            applied(&mut sessions, sequence, 3);
        }
        applied(&mut sessions, 5, 1);
        assert_eq!(sessions.reply(ID, Sequence(3)), None);
        assert_eq!(sessions.reply(ID, Sequence(4)), Some(&[4][..]));
        assert_eq!(
            sessions.admit(ID, Sequence(2), 0, 0),
            Admission::Refused {
                status: Status::ReplyForgotten,
                sequence: Sequence(2)
            }
        );
    }

    /// Applies the next command of a session, with a reply of so many bytes.
    fn fill(sessions: &mut Sessions, id: u64, bytes: usize, clock_ms: u64) {
        let id = SessionId(id);
        let next = sessions.next(id).expect("it is open");
        let admission = sessions.admit(id, next, u32::MAX, clock_ms);
        assert_eq!(admission, Admission::Apply);
        sessions.replied(id, &alloc::vec![0; bytes]);
    }

    #[test]
    fn what_a_session_has_kept_for_it_is_bounded_in_bytes() {
        let mut sessions = Sessions::default();
        sessions.open(ID, 0);
        let reply = MAX_SESSION_REPLY_BYTES / 4;
        for _ in 0..6 {
            fill(&mut sessions, ID.0, reply, 0);
        }
        assert_eq!(sessions.bytes, MAX_SESSION_REPLY_BYTES);
        assert_eq!(sessions.reply(ID, Sequence(2)), None);
        assert!(sessions.reply(ID, Sequence(3)).is_some());
        fill(&mut sessions, ID.0, 2 * MAX_SESSION_REPLY_BYTES, 0);
        assert_eq!(sessions.reply(ID, Sequence(6)), None);
        assert!(sessions.reply(ID, Sequence(7)).is_some(), "the newest");
    }

    #[test]
    fn what_all_sessions_have_kept_is_bounded_and_who_was_away_longest_loses_it() {
        let mut sessions = Sessions::default();
        let count = (MAX_REPLIES_BYTES / MAX_SESSION_REPLY_BYTES) as u64;
        for id in 0..=count {
            sessions.open(SessionId(id), 0);
        }
        for id in 0..count {
            fill(&mut sessions, id, MAX_SESSION_REPLY_BYTES, count - id);
        }
        let has = |sessions: &Sessions, id| sessions.reply(SessionId(id), Sequence(1)).is_some();
        assert!(has(&sessions, count - 1));
        fill(&mut sessions, count, 1, count);
        assert!(sessions.bytes <= MAX_REPLIES_BYTES / 4 * 3);
        assert!(!has(&sessions, count - 1) && has(&sessions, 0) && has(&sessions, count));
        // A replica that takes this over counts as those do that applied it.
        let mut bytes = Vec::new();
        sessions.write(&mut bytes);
        let (back, _) = Sessions::read(&bytes).expect("whole");
        assert_eq!(back.bytes, sessions.bytes);
        sessions.expire(SESSION_TTL_MS + 1);
        assert_eq!(sessions.len() as u64, count, "all but that of time 1");
    }

    #[test]
    fn sessions_survive_a_snapshot() {
        let mut sessions = Sessions::default();
        sessions.open(ID, 5);
        applied(&mut sessions, 1, 0);
        let mut bytes = Vec::new();
        sessions.write(&mut bytes);
        bytes.extend_from_slice(b"rest");
        let (mut back, rest) = Sessions::read(&bytes).expect("whole");
        assert_eq!(rest, b"rest");
        assert_eq!(back.admit(ID, Sequence(1), 0, 0), Admission::Replied(&[1]));
        for cut in 0..bytes.len() - 4 {
            assert!(Sessions::read(&bytes[..cut]).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn an_unused_session_expires_by_the_log_clock() {
        let mut sessions = Sessions::default();
        sessions.open(ID, 0);
        sessions.expire(SESSION_TTL_MS - 1);
        assert_eq!(sessions.len(), 1);
        sessions.expire(SESSION_TTL_MS);
        assert!(sessions.is_empty());
    }
}
