//! Reading a journal back: where its records end, and the records.

use super::disk::{Access, Blocks, Disk, DiskFile};
use super::format::{self, BLOCK_BYTES, BatchHeader, Seal, Start, Superheader};
use super::{JournalError, Lsn};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A write that the last life did not finish: nothing in it had been reported flushed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TornTail {
    /// The file in which the records end.
    pub file: PathBuf,
    /// The byte at which they end.
    pub offset: u64,
    /// The first record that is not there.
    pub lsn: Lsn,
    /// The last record of which a trace was found.
    pub seen: Lsn,
}

/// What a journal held when it was opened.
pub struct Recovery {
    pub(super) parts: Vec<Part>,
    pub(super) first: Lsn,
    pub(super) last: Lsn,
    pub(super) torn: Option<TornTail>,
    /// While this lives, no segment is given back.
    pub(super) _hold: Arc<()>,
}

/// The live records of one segment.
pub(super) struct Part {
    path: PathBuf,
    pub(super) number: u64,
    life: u64,
    first: Lsn,
    /// One past the last live record.
    pub(super) end: Lsn,
    bytes: u64,
    file: Arc<dyn DiskFile>,
}

impl Recovery {
    /// The oldest record that is kept; above [`Recovery::last`] if there is none.
    #[must_use]
    pub fn first(&self) -> Lsn {
        self.first
    }

    /// The newest record, durable by now; the record before [`Recovery::first`] if there is none.
    #[must_use]
    pub fn last(&self) -> Lsn {
        self.last
    }

    /// Whether the records end in an unfinished write, which has been cut off.
    #[must_use]
    pub fn torn(&self) -> Option<&TornTail> {
        self.torn.as_ref()
    }

    /// Calls `each` with every record in order.
    ///
    /// # Errors
    /// A file cannot be read, or is no longer what it was when the journal was opened.
    pub fn replay(self, mut each: impl FnMut(Lsn, &[u8])) -> Result<(), JournalError> {
        for part in self.parts.iter().filter(|part| part.end > part.first) {
            let bytes = read(&part.path, part.file.as_ref(), part.bytes)?;
            let walk = Walk {
                bytes: bytes.as_slice(),
                number: part.number,
                limit: part.end,
            };
            let stop = walk.records(part.life, part.first, &mut each);
            if stop.lsn != part.end {
                return Err(JournalError::Damaged {
                    file: part.path.clone(),
                    offset: stop.offset as u64,
                    lsn: stop.lsn,
                    proof: part.path.clone(),
                    proof_offset: stop.offset as u64,
                });
            }
        }
        Ok(())
    }
}

/// The name of segment `number`.
pub(super) fn segment_path(directory: &Path, number: u64) -> PathBuf {
    directory.join(format!("segment-{number:016x}"))
}

/// The name of the file that was segment `number` and waits to become another.
pub(super) fn spare_path(directory: &Path, number: u64) -> PathBuf {
    directory.join(format!("spare-{number:016x}"))
}

/// What was found on the disk.
pub(super) struct Found {
    pub(super) parts: Vec<Part>,
    /// Segments without live records; they may be given back once a new one is begun.
    pub(super) dead: Vec<u64>,
    /// The segment that was ready when the last life ended.
    pub(super) unbegun: Option<u64>,
    pub(super) spares: Vec<u64>,
    /// Files that were being made.
    pub(super) unfinished: Vec<PathBuf>,
    pub(super) first: Lsn,
    /// The next record to be written.
    pub(super) next: Lsn,
    pub(super) torn: Option<TornTail>,
    /// Above every number that any file ever had.
    pub(super) next_number: u64,
}

/// Reads every segment in `directory` and decides where the records end.
pub(super) fn scan(
    disk: &dyn Disk,
    directory: &Path,
    identity: u64,
) -> Result<Found, JournalError> {
    let mut numbers = Vec::new();
    let mut spares = Vec::new();
    let mut unfinished = Vec::new();
    let names = disk
        .list(directory)
        .map_err(JournalError::disk("list journal", directory))?;
    for name in names.iter().filter_map(|name| name.to_str()) {
        if name.ends_with(".tmp") {
            unfinished.push(directory.join(name));
        } else if let Some(number) = number_of(name, "segment-") {
            numbers.push(number);
        } else if let Some(number) = number_of(name, "spare-") {
            spares.push(number);
        }
    }
    numbers.sort_unstable();
    spares.sort_unstable();
    let next_number = numbers
        .iter()
        .chain(&spares)
        .max()
        .map_or(1, |highest| highest + 1);

    let mut segments = Vec::with_capacity(numbers.len());
    for &number in &numbers {
        segments.push(Segment::open(disk, directory, identity, number)?);
    }
    let unbegun = take_unbegun(&mut segments)?;
    let mut found = Found {
        parts: Vec::with_capacity(segments.len()),
        dead: Vec::new(),
        unbegun: None,
        spares,
        unfinished,
        first: Lsn(1),
        next: Lsn(1),
        torn: None,
        next_number,
    };
    walk_all(segments, unbegun, &mut found)?;
    Ok(found)
}

fn number_of(name: &str, prefix: &str) -> Option<u64> {
    let digits = name.strip_prefix(prefix)?;
    (digits.len() == 16)
        .then(|| u64::from_str_radix(digits, 16).ok())
        .flatten()
}

fn read(path: &Path, file: &dyn DiskFile, bytes: u64) -> Result<Blocks, JournalError> {
    let length = usize::try_from(bytes).unwrap_or(usize::MAX);
    let mut blocks = Blocks::new(length);
    file.read_at(0, blocks.as_mut_slice())
        .map_err(JournalError::disk("read journal", path))?;
    Ok(blocks)
}

struct Segment {
    path: PathBuf,
    number: u64,
    /// `None` if the file was given its number but nothing readable was written at its start.
    begun: Option<Superheader>,
    bytes: u64,
    file: Arc<dyn DiskFile>,
}

impl Segment {
    fn open(
        disk: &dyn Disk,
        directory: &Path,
        identity: u64,
        number: u64,
    ) -> Result<Self, JournalError> {
        let path = segment_path(directory, number);
        let file = disk
            .open(&path, Access::Read)
            .map_err(JournalError::disk("open journal", &path))?;
        // What the last life wrote may sit in a cache. It must not be handed out as remembered
        // before it is certain to stay.
        file.flush()
            .map_err(JournalError::disk("flush journal", &path))?;
        let bytes = file
            .bytes()
            .map_err(JournalError::disk("measure journal", &path))?;
        let bytes = bytes - bytes % BLOCK_BYTES as u64;
        let mut begun = None;
        if bytes > 0 {
            let block = read(&path, file.as_ref(), BLOCK_BYTES as u64)?;
            match Superheader::decode(block.as_slice(), number) {
                Start::Begun(header) if header.identity.get() != identity => {
                    let found = header.identity.get();
                    return Err(JournalError::Foreign {
                        file: path,
                        found,
                        expected: identity,
                    });
                }
                Start::Begun(header) => begun = Some(header),
                Start::NotBegun => {}
                Start::Version(found) => return Err(JournalError::Version { file: path, found }),
            }
        }
        Ok(Self {
            path,
            number,
            begun,
            bytes,
            file,
        })
    }
}

/// Only the newest segment can be without a start: the next one gets its name after this one's
/// first write is durable.
fn take_unbegun(segments: &mut Vec<Segment>) -> Result<Option<Segment>, JournalError> {
    let unbegun = segments.pop_if(|newest| newest.begun.is_none());
    match segments.iter().find(|segment| segment.begun.is_none()) {
        Some(segment) => Err(JournalError::DamagedStart {
            file: segment.path.clone(),
        }),
        None => Ok(unbegun),
    }
}

/// Where a walk through a segment ended.
#[derive(Clone, Copy)]
struct Stop {
    offset: usize,
    /// The first record that was not read.
    lsn: Lsn,
}

struct Walk<'a> {
    bytes: &'a [u8],
    number: u64,
    /// Records from here on belong to later segments.
    limit: Lsn,
}

impl Walk<'_> {
    fn records(&self, life: u64, first: Lsn, each: &mut impl FnMut(Lsn, &[u8])) -> Stop {
        let seal = Seal {
            life,
            segment: self.number,
        };
        let mut stop = Stop {
            offset: BLOCK_BYTES,
            lsn: first,
        };
        while stop.lsn < self.limit {
            let rest = self.bytes.get(stop.offset..).unwrap_or_default();
            let header = BatchHeader::decode(rest, self.number)
                .filter(|header| header.seal() == seal && header.first() == stop.lsn);
            let Some(header) = header else {
                return stop;
            };
            let mut offset = BatchHeader::BYTES;
            for _ in 0..header.records() {
                if stop.lsn == self.limit {
                    return stop;
                }
                let Some((payload, length)) =
                    format::decode_record(&rest[offset..], seal, stop.lsn)
                else {
                    return stop;
                };
                each(stop.lsn, payload);
                stop.lsn = stop.lsn.next();
                offset += length;
            }
            stop.offset += header.stride();
        }
        stop
    }

    /// Every batch header from `offset` on, whether or not the batches before it can be read.
    fn headers(&self, offset: usize) -> impl Iterator<Item = (u64, BatchHeader)> {
        (offset..self.bytes.len())
            .step_by(BLOCK_BYTES)
            .filter_map(|offset| {
                let header = BatchHeader::decode(&self.bytes[offset..], self.number)?;
                Some((offset as u64, header))
            })
    }
}

/// The records end at the first one that cannot be read. What is found after it decides what that
/// means: a later batch that says "flushed up to here" beyond it proves damage; without such proof
/// it is a write that was never finished.
struct Verdict {
    file: PathBuf,
    offset: u64,
    lsn: Lsn,
    seen: Option<Lsn>,
}

impl Verdict {
    fn weigh(
        &mut self,
        path: &Path,
        offset: u64,
        header: &BatchHeader,
    ) -> Result<(), JournalError> {
        if header.durable() >= self.lsn {
            return Err(JournalError::Damaged {
                file: self.file.clone(),
                offset: self.offset,
                lsn: self.lsn,
                proof: path.to_owned(),
                proof_offset: offset,
            });
        }
        if header.records() > 0 {
            self.seen = self.seen.max(Some(header.last()));
        }
        Ok(())
    }
}

fn walk_all(
    segments: Vec<Segment>,
    unbegun: Option<Segment>,
    found: &mut Found,
) -> Result<(), JournalError> {
    let mut limits = Vec::with_capacity(segments.len());
    let mut limit = Lsn(u64::MAX);
    for segment in segments.iter().rev() {
        limits.push(limit);
        limit = limit.min(segment.first());
    }
    limits.reverse();
    // The lowest first record of all is where the kept log begins.
    found.next = if segments.is_empty() { Lsn(1) } else { limit };
    found.first = found.next;

    let mut verdict: Option<Verdict> = None;
    for (segment, limit) in segments.into_iter().zip(limits) {
        let (Some(header), first) = (segment.begun, segment.first()) else {
            continue;
        };
        let life = header.life.get();
        if first > limit {
            // A later life cut the records off before this segment.
            found.dead.push(segment.number);
            continue;
        }
        let bytes = read(&segment.path, segment.file.as_ref(), segment.bytes)?;
        let walk = Walk {
            bytes: bytes.as_slice(),
            number: segment.number,
            limit,
        };
        let mut from = BLOCK_BYTES;
        if verdict.is_none() && first > found.next {
            verdict = Some(Verdict {
                file: segment.path.clone(),
                offset: 0,
                lsn: found.next,
                seen: None,
            });
        }
        if verdict.is_none() {
            let stop = walk.records(life, first, &mut |_, _| {});
            found.next = stop.lsn;
            from = stop.offset;
            if stop.lsn != limit {
                verdict = Some(Verdict {
                    file: segment.path.clone(),
                    offset: stop.offset as u64,
                    lsn: stop.lsn,
                    seen: None,
                });
            }
        }
        if let Some(verdict) = &mut verdict {
            let ours = |(_, header): &(u64, BatchHeader)| header.seal().life == life;
            for (offset, header) in walk.headers(from).filter(ours) {
                verdict.weigh(&segment.path, offset, &header)?;
            }
        }
        let end = found.next.min(limit).max(first);
        if end == first {
            found.dead.push(segment.number);
        } else {
            found.parts.push(Part {
                path: segment.path,
                number: segment.number,
                life,
                first,
                end,
                bytes: segment.bytes,
                file: segment.file,
            });
        }
    }
    if let Some(segment) = unbegun {
        weigh_unbegun(&segment, found.next, &mut verdict)?;
        found.unbegun = Some(segment.number);
    }
    found.torn = verdict.and_then(|verdict| {
        let Verdict {
            file,
            offset,
            lsn,
            seen,
        } = verdict;
        seen.filter(|seen| *seen >= lsn).map(|seen| TornTail {
            file,
            offset,
            lsn,
            seen,
        })
    });
    Ok(())
}

/// The first write of a segment may be torn at its first block. A batch that was written after
/// that first write was flushed proves that it was not.
fn weigh_unbegun(
    segment: &Segment,
    next: Lsn,
    verdict: &mut Option<Verdict>,
) -> Result<(), JournalError> {
    let bytes = read(&segment.path, segment.file.as_ref(), segment.bytes)?;
    let walk = Walk {
        bytes: bytes.as_slice(),
        number: segment.number,
        limit: Lsn(u64::MAX),
    };
    let verdict = verdict.get_or_insert_with(|| Verdict {
        file: segment.path.clone(),
        offset: 0,
        lsn: next,
        seen: None,
    });
    for (offset, header) in walk.headers(BLOCK_BYTES) {
        if header.segment_flushed() {
            return Err(JournalError::DamagedStart {
                file: segment.path.clone(),
            });
        }
        verdict.weigh(&segment.path, offset, &header)?;
    }
    Ok(())
}

impl Segment {
    /// The first record, or the next one that was to come; irrelevant while not begun.
    fn first(&self) -> Lsn {
        self.begun
            .map_or(Lsn(u64::MAX), |header| Lsn(header.first.get()))
    }
}
