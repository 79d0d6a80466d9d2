//! `docs/protocol.md` says what the code does.
#![cfg(not(loom))]

use nearwire_consensus::acceptor::{Drop, MAX_SLOT};
use nearwire_consensus::envelope::{self, Entry, EntryKind, Outcome, Status};
use nearwire_consensus::wire::{self, Flags, HEADER_BYTES, Header, Kind, Malformed};
use nearwire_consensus::{
    Ballot, Epoch, GroupId, Incarnation, NodeId, Sequence, SessionId, Slot, applied, catch_up,
    leader, local, matchmaker, memory, quorum, session,
};

const TEXT: &str = include_str!("../../docs/protocol.md");

/// The rows of the table whose head begins with these cells.
fn table(head: &str) -> Vec<Vec<&'static str>> {
    let mut lines = TEXT.lines();
    lines
        .by_ref()
        .find(|line| line.starts_with(head))
        .unwrap_or_else(|| panic!("no table {head}"));
    let rows = lines.skip(1).take_while(|line| line.starts_with('|'));
    rows.map(|line| {
        let cells = line.trim_matches('|').split('|');
        cells.map(str::trim).collect()
    })
    .collect()
}

fn number<T: std::str::FromStr>(cell: &str) -> T {
    let parsed = cell.parse().ok();
    parsed.unwrap_or_else(|| panic!("{cell:?} is no number"))
}

#[test]
fn every_kind_stands_under_its_code() {
    let rows = table("| Code | Kind |");
    let written: Vec<(u8, &str)> = rows.iter().map(|row| (number(row[0]), row[1])).collect();
    let names: Vec<String> = Kind::ALL.iter().map(|kind| format!("{kind:?}")).collect();
    let code: Vec<(u8, &str)> = Kind::ALL
        .iter()
        .zip(&names)
        .map(|(kind, name)| (*kind as u8, name.as_str()))
        .collect();
    assert_eq!(written, code);
    assert!(rows.iter().all(|row| row.len() == 9), "nine columns");
}

#[test]
fn every_refusal_has_its_name() {
    let names = |head| -> Vec<&str> { table(head).iter().map(|row| row[0]).collect() };
    assert_eq!(names("| Malformed |"), Malformed::ALL.map(Malformed::name));
    assert_eq!(names("| Drop |"), Drop::ALL.map(Drop::name));
}

/// Where a field of the header stands, found by writing a header that has nothing else.
fn place(header: &Header) -> (usize, usize) {
    let blank = Header::new(Kind::Prepare, GroupId(0), NodeId(0)).to_bytes();
    let bytes = header.to_bytes();
    let differs = |at: &usize| bytes[*at] != blank[*at];
    let at: Vec<usize> = (0..HEADER_BYTES).filter(differs).collect();
    (at[0], at.len())
}

#[test]
fn every_field_stands_at_its_offset() {
    let blank = Header::new(Kind::Prepare, GroupId(0), NodeId(0));
    let all = u64::MAX;
    let fields = [
        (
            "group",
            place(&Header {
                group: GroupId(u16::MAX),
                ..blank
            }),
        ),
        (
            "sender",
            place(&Header {
                sender: NodeId(u16::MAX),
                ..blank
            }),
        ),
        (
            "incarnation",
            place(&Header {
                incarnation: Incarnation(u32::MAX),
                ..blank
            }),
        ),
        (
            "epoch",
            place(&Header {
                epoch: Epoch(u32::MAX),
                ..blank
            }),
        ),
        (
            "slot",
            place(&Header {
                slot: Slot(all),
                ..blank
            }),
        ),
        (
            "ballot",
            place(&Header {
                ballot: Ballot(all),
                ..blank
            }),
        ),
        (
            "vote_ballot",
            place(&Header {
                vote_ballot: Ballot(all),
                ..blank
            }),
        ),
        (
            "watermark",
            place(&Header {
                watermark: all,
                ..blank
            }),
        ),
        (
            "length",
            place(&Header {
                length: u16::MAX,
                ..blank
            }),
        ),
        (
            "flags",
            place(&Header {
                flags: Flags(u16::MAX),
                ..blank
            }),
        ),
        (
            "nonce",
            place(&Header {
                nonce: u32::MAX,
                ..blank
            }),
        ),
        ("tag", place(&Header { tag: all, ..blank })),
    ];
    let rows = table("| Offset | Size | Field |");
    let mut end = 0;
    for row in &rows {
        assert_eq!(number::<usize>(row[0]), end, "no gap before {row:?}");
        end += number::<usize>(row[1]);
    }
    assert_eq!(end, HEADER_BYTES);
    let written: Vec<(&str, (usize, usize))> = rows[3..]
        .iter()
        .map(|row| (row[2], (number(row[0]), number(row[1]))))
        .collect();
    assert_eq!(written, fields);
    assert_eq!(blank.to_bytes()[..4], [0x4e, 0x57, 1, Kind::Prepare as u8]);
    assert!(rows[0][3].contains("0x4e57") && rows[1][3] == "1.");
    assert_eq!((wire::MAGIC, wire::VERSION), (0x4e57, 1));
}

#[test]
fn every_flag_has_its_bit() {
    let flags = [
        ("ACK_WANTED", Flags::ACK_WANTED),
        ("LEASE", Flags::LEASE),
        ("RELEASE", Flags::RELEASE),
        ("QUERY", Flags::QUERY),
        ("NOW", Flags::NOW),
    ];
    let rows = table("| Flag | Bit |");
    let written: Vec<_> = rows
        .iter()
        .map(|row| (row[0], Flags(1 << number::<u16>(row[1]))))
        .collect();
    assert_eq!(written, flags);
    let known = flags.iter().fold(0, |known, (_, flag)| known | flag.0);
    assert_eq!(known, Flags::KNOWN.0);
}

#[test]
fn every_limit_is_the_one_in_the_code() {
    let limits = [
        ("HEADER_BYTES", HEADER_BYTES as u64),
        ("TAG_OFFSET", wire::TAG_OFFSET as u64),
        ("DEFAULT_PORT", u64::from(wire::DEFAULT_PORT)),
        ("MTU_VALUE_BYTES", wire::MTU_VALUE_BYTES as u64),
        ("MAX_VALUE_BYTES", wire::MAX_VALUE_BYTES as u64),
        ("MAX_NODE", u64::from(NodeId::MAX)),
        ("MAX_MEMBERS", quorum::MAX_MEMBERS as u64),
        ("MAX_SLOT", MAX_SLOT),
        ("RAISE_TRIES", memory::RAISE_TRIES as u64),
        ("ENTRY_BYTES", envelope::ENTRY_BYTES as u64),
        ("OUTCOME_BYTES", envelope::OUTCOME_BYTES as u64),
        ("MAX_REPLY_BYTES", envelope::MAX_REPLY_BYTES as u64),
        ("SESSION_WINDOW", envelope::SESSION_WINDOW),
        ("MAX_SESSIONS", session::MAX_SESSIONS as u64),
        ("SESSION_TTL_MS", session::SESSION_TTL_MS),
        (
            "MAX_SESSION_REPLY_BYTES",
            session::MAX_SESSION_REPLY_BYTES as u64,
        ),
        ("MAX_REPLIES_BYTES", session::MAX_REPLIES_BYTES as u64),
        ("MAX_IN_FLIGHT", leader::MAX_IN_FLIGHT as u64),
        ("MAX_READY", leader::MAX_READY as u64),
        ("MAX_CONFIGURATIONS", matchmaker::MAX_CONFIGURATIONS as u64),
        ("MAX_HANDED_OVER", matchmaker::MAX_HANDED_OVER as u64),
        ("MAX_HELD", local::MAX_HELD as u64),
        ("KEPT_SLOTS", applied::KEPT_SLOTS as u64),
        ("KEPT_BYTES", applied::KEPT_BYTES as u64),
        ("TAUGHT_SLOTS", applied::TAUGHT_SLOTS as u64),
        ("TAUGHT_BYTES", applied::TAUGHT_BYTES as u64),
        ("LEARN_SLOTS", catch_up::LEARN_SLOTS),
        ("SNAPSHOT_CHUNKS", catch_up::SNAPSHOT_CHUNKS),
        ("CHUNK_BYTES", catch_up::CHUNK_BYTES as u64),
        ("MAX_SNAPSHOT_BYTES", catch_up::MAX_SNAPSHOT_BYTES),
    ];
    let rows = table("| Constant | Value |");
    let written: Vec<(&str, u64)> = rows.iter().map(|row| (row[0], number(row[1]))).collect();
    assert_eq!(written, limits);
}

#[test]
fn entries_and_outcomes_carry_the_codes_that_are_written() {
    let mut bytes = [0; 64];
    for row in table("| Entry kind | Code |") {
        let kind = match row[0] {
            "Command" => EntryKind::Command,
            "Open" => EntryKind::Open,
            "Clock" => EntryKind::Clock,
            "Query" => EntryKind::Query,
            other => panic!("no entry kind {other}"),
        };
        let entry = Entry {
            kind,
            session: SessionId(0),
            sequence: Sequence(0),
            behind: 0,
            body: b"",
        };
        assert_eq!(entry.encode(&mut bytes), Some(envelope::ENTRY_BYTES));
        assert_eq!(bytes[18], number::<u8>(row[1]), "{kind:?}");
    }
    let statuses = [
        Status::Done,
        Status::OutOfOrder,
        Status::UnknownSession,
        Status::TooLarge,
        Status::Opened,
        Status::TooManySessions,
        Status::ReplyForgotten,
    ];
    let rows = table("| Status | Code |");
    assert_eq!(rows.len(), statuses.len());
    for (row, status) in rows.iter().zip(statuses) {
        let outcome = Outcome {
            sequence: Sequence(0),
            status,
            body: b"",
        };
        assert_eq!(outcome.encode(&mut bytes), Some(envelope::OUTCOME_BYTES));
        assert_eq!(row[0], format!("{status:?}"));
        assert_eq!(bytes[10], number::<u8>(row[1]), "{status:?}");
    }
}
