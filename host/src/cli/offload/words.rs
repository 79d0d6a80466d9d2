//! The words of a region by their names in `docs/region.md`, and which of them changed.

use crate::cli::output;
use consensus::Ballot;
use consensus::region::{Layout, entry, group, header};

/// A word that is another than before.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Changed {
    /// Its place in the region.
    pub(super) at: usize,
    /// Its record and its name.
    pub(super) name: String,
    /// What it was, written as such words are.
    pub(super) before: String,
    /// What it is.
    pub(super) after: String,
}

const HEADER: [&str; 14] = [
    "magic",
    "version",
    "cluster",
    "node",
    "groups",
    "window",
    "value_bytes",
    "nonce",
    "boot_high",
    "boot_low",
    "incarnation",
    "lease_ns",
    "checksum",
    "generation",
];
const GROUP: [&str; group::BODIES] = [
    "lock", "state", "promised", "highest", "trim", "window", "base", "lease_ns",
];
const DECIDED: [&str; 5] = ["ballot", "from", "upto", "lease_ballot", "lease_until"];
const VOTE: [&str; entry::VALUE] = ["slot", "ballot", "length"];

const _: () = assert!(HEADER.len() == header::GENERATION + 1);
const _: () = assert!(DECIDED.len() == group::LEASE_UNTIL + 1);

/// The words that differ, in their order.
pub(super) fn changed(layout: &Layout, before: &[u64], after: &[u64]) -> Vec<Changed> {
    let pairs = before.iter().zip(after).enumerate();
    pairs
        .filter(|(_, (before, after))| before != after)
        .map(|(at, (before, after))| {
            let (record, field) = name(layout, at);
            Changed {
                at,
                before: written(&field, *before),
                after: written(&field, *after),
                name: format!("{record} {field}"),
            }
        })
        .collect()
}

fn written(field: &str, word: u64) -> String {
    let last = field.split(' ').next_back().unwrap_or_default();
    match last {
        "promised" | "saved" | "ballot" | "lease_ballot" => Ballot(word).to_string(),
        last if last.starts_with("value[") => format!("{word:016x}"),
        _ => word.to_string(),
    }
}

/// The record that a word is in, and its name there.
fn name(layout: &Layout, at: usize) -> (String, String) {
    let start = |place: Option<usize>| place.unwrap_or(usize::MAX);
    let peers = start(layout.peer_at(consensus::NodeId(0)));
    let groups = start(layout.group_at(consensus::GroupId(0)));
    let entries = start(layout.entry_at(0));
    if at < peers {
        return ("header".into(), named(&HEADER, at));
    }
    if at < groups {
        return (format!("peer {}", at - peers), "seen_ns".into());
    }
    if at < entries {
        let (number, word) = ((at - groups) / group::WORDS, (at - groups) % group::WORDS);
        let field = match word {
            group::SAVED => "saved".into(),
            word if word < group::BODIES => named(&GROUP, word),
            word => {
                let (body, word) = (
                    (word - group::BODIES) / group::BODY_WORDS,
                    (word - group::BODIES) % group::BODY_WORDS,
                );
                format!("decided {body} {}", named(&DECIDED, word))
            }
        };
        return (format!("group {number}"), field);
    }
    let (number, word) = (
        (at - entries) / layout.entry_words(),
        (at - entries) % layout.entry_words(),
    );
    let body_words = entry::VALUE + layout.value_bytes() / 8;
    let field = match word.checked_sub(entry::BODIES) {
        None => "lock".into(),
        Some(word) => {
            let (body, word) = (word / body_words, word % body_words);
            let field = match word.checked_sub(entry::VALUE) {
                Some(index) => format!("value[{index}]"),
                None => named(&VOTE, word),
            };
            format!("vote {body} {field}")
        }
    };
    (format!("entry {number}"), field)
}

fn named(names: &[&str], word: usize) -> String {
    let name = names.get(word);
    name.map_or_else(|| format!("word {word}"), |name| (*name).to_owned())
}

/// For people: the words of a value take one line together.
pub(super) fn table(changed: &[Changed]) -> String {
    let is_value = |word: &&Changed| word.name.contains(" value[");
    let values = changed.iter().filter(is_value).count();
    let rows = changed
        .iter()
        .filter(|word| !is_value(word))
        .map(|word| [word.name.clone(), word.before.clone(), word.after.clone()]);
    let mut text = output::table(["word", "before", "after"], rows);
    if values > 0 {
        text.push_str(&format!("\nand {values} words of a value"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use consensus::{GroupId, NodeId};

    #[test]
    fn a_word_is_named_by_its_place() {
        let layout = Layout::new(2, 4, 64).expect("a layout");
        let group = layout.group_at(GroupId(1)).expect("the second");
        let entry = layout.entry_at(5).expect("the second of the second group");
        let peer = layout.peer_at(NodeId(7)).expect("a peer");
        for (at, wanted) in [
            (header::NONCE, "header nonce"),
            (header::GENERATION, "header generation"),
            (peer, "peer 7 seen_ns"),
            (group + group::PROMISED, "group 1 promised"),
            (group + group::SAVED, "group 1 saved"),
            (
                group + group::BODIES + group::BODY_WORDS + group::UPTO,
                "group 1 decided 1 upto",
            ),
            (entry + entry::LOCK, "entry 5 lock"),
            (
                entry + entry::BODIES + entry::BALLOT,
                "entry 5 vote 0 ballot",
            ),
            (
                entry + entry::BODIES + entry::VALUE + 8 + entry::VALUE + 2,
                "entry 5 vote 1 value[2]",
            ),
        ] {
            let (record, field) = name(&layout, at);
            assert_eq!(format!("{record} {field}"), wanted);
        }
    }

    #[test]
    fn only_what_differs_is_told() {
        let layout = Layout::new(1, 2, 64).expect("a layout");
        let before = vec![0; layout.words()];
        let mut after = before.clone();
        let group = layout.group_at(GroupId(0)).expect("one");
        after[group + group::PROMISED] = Ballot::new(3, NodeId(2)).0;
        let found = changed(&layout, &before, &after);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].name, "group 0 promised");
        assert_eq!((&*found[0].before, &*found[0].after), ("0.0", "3.2"));
    }
}
