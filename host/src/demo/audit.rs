//! Reads every write back and counts what is missing.

use super::values::{KEYS_PER_QUERY, Values};
use crate::client::{Client, ClientError, Options};
use crate::resp::reply;
use consensus::NodeId;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Queries under way.
const QUERIES: usize = 16;
/// How long one look at the answers takes at the most.
const LOOK: Duration = Duration::from_millis(200);
/// How long the cluster may answer nothing at all.
const SILENCE: Duration = Duration::from_secs(15);

/// What was found.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Audit {
    /// Writes that the cluster holds, acknowledged or not.
    pub(super) held: u64,
    /// Acknowledged writes that it does not hold, or not as they were written.
    pub(super) lost: u64,
}

impl Audit {
    /// Counts the values in the reply to the query for writes from `first` to `end`; `None` if it
    /// is no array of so many values.
    fn count(
        &mut self,
        values: Values,
        (first, end): (u64, u64),
        unknown: &BTreeSet<u64>,
        found: &[u8],
    ) -> Option<()> {
        let mut wanted = Vec::with_capacity(found.len());
        reply::array(&mut wanted, (end - first) as usize);
        let mut rest = found.strip_prefix(wanted.as_slice())?;
        for index in first..end {
            let (value, behind) = rest.split_at(reply::value_bytes(rest)?);
            rest = behind;
            wanted.clear();
            reply::bulk(&mut wanted, &values.value(index));
            if value == wanted {
                self.held += 1;
            } else if !unknown.contains(&index) {
                self.lost += 1;
            }
        }
        rest.is_empty().then_some(())
    }
}

/// Reads writes 0 to `submitted` back through linearizable queries. `watch` is called now and then
/// with the number of those that were looked at, and may end the audit.
pub(super) fn audit<E: From<ClientError> + From<String>>(
    members: &[(NodeId, SocketAddr)],
    values: Values,
    submitted: u64,
    unknown: &BTreeSet<u64>,
    mut watch: impl FnMut(u64) -> Result<(), E>,
) -> Result<Audit, E> {
    let options = Options {
        timeout: LOOK,
        max_in_flight: QUERIES,
        ..Options::default()
    };
    let mut client = Client::connect(members, options)?;
    let mut audit = Audit::default();
    let mut under_way = BTreeMap::new();
    let (mut next, mut looked_at) = (0, 0);
    let mut heard = Instant::now();
    let mut watched = None::<Instant>;
    while looked_at < submitted {
        while next < submitted && under_way.len() < QUERIES {
            let end = submitted.min(next + KEYS_PER_QUERY);
            client.submit_query(next, &Values::query(next, end))?;
            under_way.insert(next, end);
            next = end;
        }
        match client.poll() {
            Ok(done) => {
                heard = Instant::now();
                let first = done.token;
                let Some(end) = under_way.remove(&first) else {
                    continue;
                };
                let reply = done.result.map_err(ClientError::from)?;
                audit
                    .count(values, (first, end), unknown, &reply)
                    .ok_or_else(|| {
                        let reply =
                            String::from_utf8_lossy(&reply[..reply.len().min(80)]).into_owned();
                        format!(
                            "read writes {first} to {}: the answer is {reply:?}",
                            end - 1
                        )
                    })?;
                looked_at += end - first;
            }
            Err(ClientError::TimedOut { .. }) if heard.elapsed() < SILENCE => {}
            Err(error) => return Err(error.into()),
        }
        if watched.is_none_or(|watched| watched.elapsed() >= LOOK) {
            watched = Some(Instant::now());
            watch(looked_at)?;
        }
    }
    Ok(audit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply_with(values: &[Option<Vec<u8>>]) -> Vec<u8> {
        let mut out = Vec::new();
        reply::array(&mut out, values.len());
        for value in values {
            match value {
                Some(value) => reply::bulk(&mut out, value),
                None => reply::null(&mut out),
            }
        }
        out
    }

    #[test]
    fn only_what_was_acknowledged_can_be_lost() {
        let values = Values { seed: 3 };
        let written = |index| Some(values.value(index).to_vec());
        let unknown = BTreeSet::from([7, 8]);
        let found = reply_with(&[
            written(5),
            None,
            None,
            written(8),
            written(5),
            Some(b"x".to_vec()),
        ]);
        let mut audit = Audit::default();
        assert_eq!(audit.count(values, (5, 11), &unknown, &found), Some(()));
        assert_eq!(audit, Audit { held: 2, lost: 3 });
    }

    #[test]
    fn an_answer_that_is_no_array_of_the_values_is_none() {
        let values = Values { seed: 3 };
        let none = BTreeSet::new();
        let whole = reply_with(&[Some(values.value(0).to_vec()), None]);
        for bad in [
            b"-ERR no\r\n".as_slice(),
            &whole[..whole.len() - 1],
            &[&whole[..], b"_\r\n"].concat(),
        ] {
            assert_eq!(Audit::default().count(values, (0, 2), &none, bad), None);
        }
    }
}
