//! Where a node's region is: in a file of its data directory, or in maps of the kernel.
//!
//! The identity says where, and which generation of the votes it is. Votes that move are sealed,
//! copied as the next generation, and only then, durably, what the identity names; until then the
//! old place holds them, from then on the new one does, and what is left of the other is removed.

use crate::data_directory::{DataDirectory, DataDirectoryError};
use crate::kill_point::kill_point;
use crate::mapping::Mapping;
use crate::xdp::{self, Pinned, Pins, Seat, Settings, XdpError};
use consensus::Epoch;
use consensus::region::{Birth, Layout, Locked, OpenError, Region};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// The region cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RegionError {
    /// The system refuses.
    #[error("{doing} {}: {source}", path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// It is not this acceptor's region.
    #[error("{}: {source}", path.display())]
    Open {
        /// The file, or the directory of its maps.
        path: PathBuf,
        /// Why.
        source: OpenError,
    },
    /// Its votes cannot be moved.
    #[error(transparent)]
    Locked(#[from] Locked),
    /// The kernel refuses its maps or their program.
    #[error(transparent)]
    Xdp(#[from] XdpError),
    /// Where it is cannot be written down.
    #[error(transparent)]
    Directory(#[from] DataDirectoryError),
    /// This build has no program for the kernel.
    #[error(
        "put the acceptor into the kernel: this build embeds no XDP object; build it where \
         `cargo xtask ebpf` works, or remove [offload]"
    )]
    NoObject,
    /// The memory is gone, and why one can tell.
    #[error("{0}")]
    Lost(String),
}

/// What a region is made with, or must have been made with.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// Its dimensions.
    pub layout: Layout,
    /// Whose it is.
    pub birth: Birth,
    /// The first membership.
    pub epoch: Epoch,
    /// How long leases last, in nanoseconds.
    pub lease_ns: u64,
}

/// The kernel's part, where there is one.
#[derive(Clone, Debug)]
pub struct InKernel {
    /// The bpffs that its maps are pinned in.
    pub bpffs: PathBuf,
    /// What the program is told.
    pub settings: Settings,
    /// Where it sits.
    pub seat: Seat,
}

/// A region that was opened or made.
#[derive(Debug)]
pub struct Opened {
    /// It.
    pub region: Region<Mapping>,
    /// Torn records that were restored.
    pub restored: u64,
    /// The program over it, which does not vote yet.
    pub pinned: Option<Pinned>,
}

/// Makes a fresh region in the place that is wanted. Whatever was in either place is gone.
///
/// # Errors
/// The system refuses.
pub fn make(
    directory: &mut DataDirectory,
    terms: &Terms,
    kernel: Option<&InKernel>,
) -> Result<Opened, RegionError> {
    let nonce = terms.birth.nonce;
    if kernel.is_some() {
        xdp::refuse_other_clock()?;
    }
    remove_left(directory, nonce)?;
    let named = directory.identity().bpffs.clone();
    // What a start left behind that died before it had written down where the region is.
    let wanted = kernel.map(|kernel| kernel.bpffs.clone());
    for bpffs in named.iter().chain(&wanted) {
        Pins::new(bpffs, nonce)?.discard()?;
    }
    let (mapping, pinned) = blank(directory, terms, kernel)?;
    let path = path_of(directory, kernel);
    let Terms {
        layout,
        birth,
        epoch,
        lease_ns,
    } = *terms;
    let region = Region::create(mapping, layout, birth, epoch, lease_ns)
        .map_err(|source| RegionError::Open { path, source })?;
    kill_point("region_place.made");
    directory.update(|identity| {
        identity.generation = 0;
        identity.bpffs = wanted;
        identity.leaving = None;
    })?;
    kill_point("region_place.named");
    Ok(Opened {
        region,
        restored: 0,
        pinned,
    })
}

/// Opens the region that an earlier life left, and moves it if it is to be elsewhere. The data
/// directory's lock, and that on the pins, prove that no other process steps it, and nothing in the
/// kernel does when this returns.
///
/// # Errors
/// [`RegionError::Lost`] if there is none any more; others if it is another's or damaged, or the
/// system refuses.
pub fn open(
    directory: &mut DataDirectory,
    terms: &Terms,
    kernel: Option<&InKernel>,
) -> Result<Opened, RegionError> {
    let nonce = terms.birth.nonce;
    let named = directory.identity().bpffs.clone();
    let wanted = kernel.map(|kernel| kernel.bpffs.as_path());
    // Leases and heartbeats in it are times of the clock that the process had before.
    xdp::refuse_other_clock()?;
    remove_left(directory, nonce)?;
    if is_same_place(named.as_deref(), wanted) {
        let opened = open_at_home(directory, terms, kernel)?;
        remove_file(directory, kernel)?;
        return Ok(opened);
    }
    // Held until the old words are gone: another process may have a copy of the data directory.
    let old = named.as_deref().map(|bpffs| Pins::new(bpffs, nonce));
    let old = old.transpose()?;
    let (mapping, _hold) = match &old {
        None => (open_file(&file_path(directory), &terms.layout)?, None),
        Some(pins) => {
            refuse_incomplete(pins)?;
            let hold = pins.hold()?;
            refuse_other(directory, terms, pins)?;
            pins.detach()?;
            kill_point("region_place.detached");
            (pins.mapping(&terms.layout)?, Some(hold))
        }
    };
    let path = named.unwrap_or_else(|| file_path(directory));
    let (region, restored) = checked(directory, terms, mapping, &path)?;
    region.seal()?;
    kill_point("region_place.sealed");
    if let Some(kernel) = kernel {
        // A copy that no identity names.
        Pins::new(&kernel.bpffs, nonce)?.discard()?;
    }
    let (mapping, pinned) = blank(directory, terms, kernel)?;
    kill_point("region_place.blank");
    let path = path_of(directory, kernel);
    let moved = region
        .copy_into(mapping)
        .map_err(|source| RegionError::Open { path, source })?;
    kill_point("region_place.copied");
    let wanted = wanted.map(Path::to_owned);
    directory.update(|identity| {
        identity.generation = moved.generation();
        identity.leaving = std::mem::replace(&mut identity.bpffs, wanted);
    })?;
    kill_point("region_place.named");
    drop(region);
    if let Some(pins) = &old {
        pins.remove()?;
        kill_point("region_place.removed");
        directory.update(|identity| identity.leaving = None)?;
    }
    remove_file(directory, kernel)?;
    kill_point("region_place.moved");
    Ok(Opened {
        region: moved,
        restored,
        pinned,
    })
}

/// Opens the region where it is and is to be.
fn open_at_home(
    directory: &DataDirectory,
    terms: &Terms,
    kernel: Option<&InKernel>,
) -> Result<Opened, RegionError> {
    let path = path_of(directory, kernel);
    let (mapping, pinned) = match kernel {
        None => (open_file(&path, &terms.layout)?, None),
        Some(kernel) => {
            let pins = Pins::new(&kernel.bpffs, terms.birth.nonce)?;
            refuse_incomplete(&pins)?;
            refuse_other(directory, terms, &pins)?;
            let loaded = load(kernel, pins)?;
            (loaded.mapping(&terms.layout)?, Some(loaded))
        }
    };
    let (region, restored) = checked(directory, terms, mapping, &path)?;
    if region.is_sealed() {
        // A hand-over that did not come to its end.
        region.resume();
    }
    Ok(Opened {
        region,
        restored,
        pinned,
    })
}

/// The region that the identity names, with how many torn records were restored.
fn checked(
    directory: &DataDirectory,
    terms: &Terms,
    mapping: Mapping,
    path: &Path,
) -> Result<(Region<Mapping>, u64), RegionError> {
    let (region, restored) =
        Region::open(mapping, terms.layout, terms.birth).map_err(|source| match source {
            OpenError::Blank | OpenError::OtherIncarnation { .. } => {
                RegionError::Lost(source.to_string())
            }
            source => RegionError::Open {
                path: path.to_owned(),
                source,
            },
        })?;
    refuse_generation(directory, &region, path)?;
    Ok((region, restored.entries + restored.groups))
}

/// Refuses votes that were handed over since.
fn refuse_generation(
    directory: &DataDirectory,
    region: &Region<Mapping>,
    path: &Path,
) -> Result<(), RegionError> {
    let (found, wanted) = (region.generation(), directory.identity().generation);
    if found == wanted {
        return Ok(());
    }
    Err(RegionError::Lost(format!(
        "{} holds generation {found} of its votes, but they were handed over: generation {wanted} \
         counts",
        path.display()
    )))
}

fn refuse_incomplete(pins: &Pins) -> Result<(), RegionError> {
    if pins.are_complete()? {
        return Ok(());
    }
    let directory = pins.directory().display();
    Err(RegionError::Lost(format!(
        "its maps are not pinned in {directory} any more"
    )))
}

/// Refuses maps that hold another region than is wanted, before what votes on them is disturbed.
fn refuse_other(directory: &DataDirectory, terms: &Terms, pins: &Pins) -> Result<(), RegionError> {
    let words = || pins.mapping(&terms.layout);
    match Region::beside(words()?) {
        Ok(region) if (region.layout(), region.birth()) == (&terms.layout, &terms.birth) => {
            refuse_generation(directory, &region, pins.directory())
        }
        // Who opens another's region is told why before anything is written.
        _ => checked(directory, terms, words()?, pins.directory()).map(drop),
    }
}

/// Whether both are files, or the same bpffs by whatever path.
fn is_same_place(one: Option<&Path>, other: Option<&Path>) -> bool {
    let (Some(one), Some(other)) = (one, other) else {
        return one.is_none() && other.is_none();
    };
    let number = |path: &Path| {
        let metadata = fs::metadata(path).ok()?;
        Some((metadata.dev(), metadata.ino()))
    };
    one == other || number(one).is_some_and(|found| Some(found) == number(other))
}

/// Removes the pins of votes that were handed over, or of a copy that was being made, which an
/// earlier start did not come to.
fn remove_left(directory: &mut DataDirectory, nonce: u64) -> Result<(), RegionError> {
    let Some(bpffs) = directory.identity().leaving.clone() else {
        return Ok(());
    };
    Pins::new(&bpffs, nonce)?.discard()?;
    directory.update(|identity| identity.leaving = None)?;
    Ok(())
}

/// Words for a new region.
fn blank(
    directory: &mut DataDirectory,
    terms: &Terms,
    kernel: Option<&InKernel>,
) -> Result<(Mapping, Option<Pinned>), RegionError> {
    match kernel {
        None => Ok((make_file(&file_path(directory), &terms.layout)?, None)),
        Some(kernel) => {
            let pins = Pins::new(&kernel.bpffs, terms.birth.nonce)?;
            // Until the region is there: what comes after a crash may want it elsewhere.
            directory.update(|identity| identity.leaving = Some(kernel.bpffs.clone()))?;
            let loaded = load(kernel, pins)?;
            Ok((loaded.mapping(&terms.layout)?, Some(loaded)))
        }
    }
}

fn load(kernel: &InKernel, pins: Pins) -> Result<Pinned, RegionError> {
    let object = xdp::OBJECT.ok_or(RegionError::NoObject)?;
    let seat = kernel.seat.clone();
    Ok(Pinned::load(object, &kernel.settings, pins, seat)?)
}

/// A file beside pinned maps is what was copied into them.
fn remove_file(directory: &DataDirectory, kernel: Option<&InKernel>) -> Result<(), RegionError> {
    let path = file_path(directory);
    if kernel.is_none() || !path.exists() {
        return Ok(());
    }
    fs::remove_file(&path).map_err(refused("remove region", &path))
}

fn file_path(directory: &DataDirectory) -> PathBuf {
    directory.path().join("region")
}

fn path_of(directory: &DataDirectory, kernel: Option<&InKernel>) -> PathBuf {
    kernel.map_or_else(|| file_path(directory), |kernel| kernel.bpffs.clone())
}

fn make_file(path: &Path, layout: &Layout) -> Result<Mapping, RegionError> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(true);
    let file = options.open(path).map_err(refused("make region", path))?;
    // Every byte is allocated now: a full disk is an error here, not a SIGBUS later.
    let bytes = layout.bytes();
    nix::fcntl::posix_fallocate(&file, 0, bytes as i64)
        .map_err(|error| refused("allocate region", path)(error.into()))?;
    map_file(&file, path, bytes)
}

fn open_file(path: &Path, layout: &Layout) -> Result<Mapping, RegionError> {
    let mut options = OpenOptions::new();
    let file = match options.read(true).write(true).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(RegionError::Lost("its region is missing".into()));
        }
        file => file.map_err(refused("open region", path))?,
    };
    let length = file
        .metadata()
        .map_err(refused("look at region", path))?
        .len();
    // Less than a page has no header to say more of.
    if length != layout.bytes() as u64 && length < 4096 {
        let source = OpenError::Size {
            found: length as usize,
            wanted: layout.bytes(),
        };
        let path = path.to_owned();
        return Err(RegionError::Open { path, source });
    }
    map_file(&file, path, length as usize)
}

fn map_file(file: &File, path: &Path, bytes: usize) -> Result<Mapping, RegionError> {
    Mapping::of_file(file, bytes).map_err(refused("map region", path))
}

fn refused(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RegionError {
    let path = path.to_owned();
    move |source| RegionError::Io {
        doing,
        path,
        source,
    }
}
