//! `docs/region.md` says what the code does.
#![cfg(not(loom))]

use nearwire_consensus::region::{Layout, entry, group, header};
use nearwire_consensus::{GroupId, NodeId};

const TEXT: &str = include_str!("../../docs/region.md");

/// The rows of table `number` (from 0) behind a heading, without the table's head.
fn table(heading: &str, number: usize) -> Vec<Vec<String>> {
    let section = TEXT
        .split("\n## ")
        .find(|section| section.starts_with(heading))
        .expect("a section of this name");
    let mut tables: Vec<Vec<Vec<String>>> = Vec::new();
    let mut inside = false;
    for line in section.lines() {
        let is_row = line.starts_with('|');
        if is_row && !inside {
            tables.push(Vec::new());
        }
        inside = is_row;
        if let (true, Some(table)) = (is_row, tables.last_mut()) {
            let cells = line.trim_matches('|').split('|');
            table.push(cells.map(|cell| cell.trim().replace('`', "")).collect());
        }
    }
    tables[number][2..].to_vec()
}

/// The named rows of a table of offsets, each with its offset in words.
fn offsets(heading: &str, number: usize) -> Vec<(String, usize)> {
    let rows = table(heading, number);
    let mut end = Some(0);
    for row in &rows {
        let (offset, size) = (row[0].parse::<usize>().ok(), row[1].parse::<usize>().ok());
        if let (Some(offset), Some(end)) = (offset, end) {
            assert_eq!(offset, end, "no gap before {row:?}");
        }
        end = offset.zip(size).map(|(offset, size)| offset + size);
    }
    rows.iter()
        .filter(|row| !row[2].is_empty())
        .map(|row| {
            let offset: usize = row[0].parse().expect("a number");
            assert_eq!(offset % 8, 0);
            (row[2].clone(), offset / 8)
        })
        .collect()
}

fn assert_table(heading: &str, number: usize, code: &[(&str, usize)]) {
    let code: Vec<_> = code
        .iter()
        .map(|(name, word)| ((*name).to_string(), *word))
        .collect();
    assert_eq!(offsets(heading, number), code, "{heading}");
}

macro_rules! words {
    ($module:ident: $($name:ident)*) => { &[$((stringify!($name), $module::$name)),*] };
}

#[test]
fn every_offset_is_the_one_in_the_code() {
    assert_table(
        "Header",
        0,
        words!(header: MAGIC VERSION CLUSTER NODE GROUPS WINDOW VALUE_BYTES NONCE BOOT_HIGH
            BOOT_LOW INCARNATION LEASE_NS CHECKSUM GENERATION),
    );
    assert_table(
        "Groups",
        0,
        words!(group: LOCK STATE PROMISED HIGHEST TRIM WINDOW BASE LEASE_NS BODIES SAVED),
    );
    assert_table(
        "Groups",
        1,
        words!(group: BALLOT FROM UPTO LEASE_BALLOT LEASE_UNTIL),
    );
    assert_table("Ring entries", 0, words!(entry: LOCK BODIES));
    assert_table("Ring entries", 1, words!(entry: SLOT BALLOT LENGTH VALUE));
}

#[test]
fn the_bodies_of_a_group_fill_it_as_written() {
    let rows = table("Groups", 0);
    let body = (group::BODY_WORDS * 8).to_string();
    let second = ((group::BODIES + group::BODY_WORDS) * 8).to_string();
    assert_eq!(rows[8][1], body);
    assert_eq!((&rows[9][0], &rows[9][1]), (&second, &body));
    let (start, size): (usize, usize) = (
        rows[11][0].parse().expect("a number"),
        rows[11][1].parse().expect("a number"),
    );
    assert_eq!(start + size, group::WORDS * 8);
}

fn layout(groups: u16, window: u64, value_bytes: usize) -> Layout {
    Layout::new(groups, window, value_bytes).expect("valid layout")
}

#[test]
fn the_sections_begin_where_the_code_has_them() {
    let rows = table("Sections", 0);
    let layout = layout(4096, 2, 64);
    let byte = |cell: &str| cell.parse::<usize>().expect("a number");
    assert_eq!(
        layout.peer_at(NodeId(0)).map(|at| at * 8),
        Some(byte(&rows[1][1]))
    );
    assert_eq!(
        layout.peer_at(NodeId(1)).map(|at| at * 8),
        Some(byte(&rows[1][1]) + byte(&rows[1][3]))
    );
    assert_eq!(usize::from(NodeId::MAX) + 1, byte(&rows[1][2]));
    assert_eq!(
        layout.group_at(GroupId(0)).map(|at| at * 8),
        Some(byte(&rows[2][1]))
    );
    assert_eq!(
        layout.group_at(GroupId(1)).map(|at| at * 8),
        Some(byte(&rows[2][1]) + byte(&rows[2][3]))
    );
}

#[test]
fn the_worked_examples_are_right() {
    for row in table("Sections", 1) {
        let [groups, window, value, group_at, entry_at, stride, whole] = row
            .iter()
            .map(|cell| cell.parse::<usize>().expect("a number"))
            .collect::<Vec<_>>()[..]
        else {
            panic!("seven columns");
        };
        let layout = layout(groups as u16, window as u64, value);
        assert_eq!(layout.group_at(GroupId(0)).map(|at| at * 8), Some(group_at));
        assert_eq!(layout.entry_at(0).map(|at| at * 8), Some(entry_at));
        assert_eq!(layout.entry_words() * 8, stride);
        assert_eq!(layout.bytes(), whole);
        // The formulas of the text.
        assert_eq!((12_288 + 256 * groups).next_multiple_of(4_096), entry_at);
        assert_eq!((8 + 2 * (24 + value)).next_multiple_of(64), stride);
        let end = entry_at + groups * window * stride;
        assert_eq!(end.next_multiple_of(4_096), whole);
    }
}

#[test]
fn the_second_body_of_an_entry_follows_the_first() {
    // 32 + V: behind the lock and a body of 24 + V bytes.
    for value in [64, 1384] {
        let body = entry::VALUE * 8 + value;
        assert_eq!(entry::BODIES * 8 + body, 32 + value);
        assert_eq!(body, 24 + value);
    }
}
