//! The acceptor in libxdp's dispatcher, beside other programs on its interface.
//!
//! libxdp has a protocol of its own for who joins and leaves, with locks, pins and a dispatcher that
//! is built anew each time. It is left to its tool: this writes the object, runs `xdp-loader`, and
//! looks at the pins that libxdp makes.

use super::libxdp_object::libxdp_object;
use super::pins::Pins;
use super::sight::programs_over;
use super::{
    ACCEPTOR, BPFFS, COUNTERS, ENTRY, GROUP, Mode, PEER, Settings, XdpError, globals, netlink,
    shapes,
};
use aya::programs::{ProgramError, ProgramInfo, ProgramType};
use aya::sys::is_program_supported;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::geteuid;
use std::env;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// libxdp's tool.
const LOADER: &str = "xdp-loader";
/// Where it often is and PATH does not lead.
const SYSTEM: [&str; 3] = ["/usr/sbin", "/sbin", "/usr/local/sbin"];
/// A file system in memory that root alone writes.
const RUN: &str = "/run";
/// libxdp looks for a bpffs there; for programs that run with more rights than their user, not.
const LIBXDP_BPFFS: &str = "LIBXDP_BPFFS";
/// What the program shares with others that step the region, and its counters. By these names the
/// maps are pinned.
const SHARED: [&str; 4] = [PEER, GROUP, ENTRY, COUNTERS];
/// A loader that takes longer waits for somebody. An emulated processor takes seconds to verify.
const LIMIT: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(2);
/// What is told of a loader's last words, in bytes: in front of them may be a verifier's log.
const WORDS_BYTES: usize = 1000;
/// How often one looks again at a dispatcher that was replaced meanwhile.
const TRIES: u32 = 5;

/// What is missing for a place in libxdp's dispatcher, and what mends it.
pub fn lacking() -> Option<String> {
    if !geteuid().is_root() {
        return Some(format!("{LOADER} works for root alone"));
    }
    // What takes the place of a function in another program.
    let refused = match is_program_supported(ProgramType::Extension) {
        Ok(true) => None,
        Ok(false) => Some("needs Linux 5.10".to_owned()),
        Err(ProgramError::SyscallError(error)) => Some(error.io_error.to_string()),
        Err(error) => Some(error.to_string()),
    };
    if let Some(refused) = refused {
        return Some(format!(
            "this kernel takes no programs of type EXT, which fill its places: {refused}"
        ));
    }
    if loader().is_none() {
        return Some(format!(
            "there is no {LOADER} in PATH; install xdp-tools, whose tool does it"
        ));
    }
    None
}

fn loader() -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(SYSTEM.map(PathBuf::from))
        .map(|directory| directory.join(LOADER))
        .find(|path| path.is_file())
}

/// The acceptor of `embedded` with these settings, as an object for libxdp.
pub(super) fn object(embedded: &[u8], settings: &Settings) -> Result<Vec<u8>, XdpError> {
    let shapes = shapes(&settings.layout)?;
    libxdp_object(embedded, ACCEPTOR, &globals(settings), &shapes, &SHARED)
}

/// Loads an object over the pinned maps, and has the dispatcher on `interface` call it. The loader
/// has `hold` for as long as it runs, should this process die before it.
pub(super) fn load(
    object: &[u8],
    pins: &Pins,
    hold: File,
    interface: &str,
    mode: Mode,
) -> Result<(), XdpError> {
    if let Some(lacking) = lacking() {
        return Err(XdpError::NoDispatcher(lacking));
    }
    const DOING: &str = "put the acceptor on";
    let refused = |error: io::Error| refused(DOING, interface, &error);
    let file = ForLoader::new(object, pins).map_err(refused)?;
    let mode = match mode {
        Mode::Native => "native",
        Mode::Generic => "skb",
    };
    let pinned: [&OsStr; 2] = ["--pin-path".as_ref(), pins.directory().as_ref()];
    let mut arguments: Vec<&OsStr> = ["load", "--mode", mode].map(OsStr::new).into();
    arguments.extend(pinned);
    arguments.extend([interface.as_ref(), file.path.as_os_str()]);
    run(DOING, interface, hold.into(), &arguments)?;
    if is_called(pins, interface)? {
        return Ok(());
    }
    // libxdp puts a program there alone if its dispatcher does not load.
    let over = programs_over(pins).unwrap_or_default();
    for (_, program) in on(interface)? {
        if over.contains(&program) {
            take_off(interface, program)?;
        }
    }
    let said = "libxdp attached it alone, and it is off again; `xdp-loader load -vv` tells why";
    Err(XdpError::NoDispatcher(said.into()))
}

/// A file that the loader is to read, until dropped. It holds the cluster's key: only root reads it,
/// and it never reaches a disk.
struct ForLoader {
    path: PathBuf,
}

impl ForLoader {
    fn new(object: &[u8], pins: &Pins) -> io::Result<Self> {
        let region = pins.directory().file_name().unwrap_or_default();
        let path = Path::new(RUN).join(region).with_extension("nearwire.o");
        let file = Self { path };
        // A process that was killed may have left one.
        match fs::remove_file(&file.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let mut options = OpenOptions::new();
        let mut opened = options
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&file.path)?;
        opened.write_all(object)?;
        Ok(file)
    }
}

impl Drop for ForLoader {
    fn drop(&mut self) {
        // What cannot be removed now is before the next one.
        let _ = fs::remove_file(&self.path);
    }
}

/// Has no dispatcher of this network namespace call a program over these maps. Gives the places that
/// are left: pinned, and called by no interface here.
pub(super) fn unload(pins: &Pins) -> Result<Vec<Place>, XdpError> {
    // Without them nothing was ever given to libxdp, whose pins are root's alone to see.
    if !pins.map(COUNTERS).exists() {
        return Ok(Vec::new());
    }
    let interfaces = netlink::interfaces().map_err(XdpError::Interfaces)?;
    let mut left = Vec::new();
    for place in places(pins)? {
        match interfaces.iter().find(|interface| place.is_on(interface)) {
            Some(interface) => take_off(&interface.name, place.program)?,
            None => left.push(place),
        }
    }
    Ok(left)
}

/// As [`unload`], for those who have to know that nothing steps the maps any more.
pub(super) fn clear(pins: &Pins) -> Result<(), XdpError> {
    match &*unload(pins)? {
        [] => super::pinned::unpin(&pins.map(COUNTERS)),
        [place, ..] => Err(XdpError::Elsewhere {
            program: place.program,
            path: place.directory.clone(),
        }),
    }
}

/// Whether the dispatcher on `interface` calls a program over these maps.
pub(super) fn is_called(pins: &Pins, interface: &str) -> Result<bool, XdpError> {
    let mut before = on(interface)?;
    for _ in 0..TRIES {
        let places = places(pins)?;
        let all = netlink::interfaces().map_err(XdpError::Interfaces)?;
        let found = all.iter().find(|found| found.name == interface);
        if let Some(found) = found
            && places.iter().any(|place| place.is_on(found))
        {
            return Ok(true);
        }
        let now = found.map_or_else(Vec::new, |found| found.programs.clone());
        if now == before {
            return Ok(false);
        }
        before = now;
    }
    // Somebody is at work on it, and our program is where it was.
    Ok(true)
}

/// The programs on an interface: how they are called, and their numbers.
fn on(interface: &str) -> Result<Vec<(&'static str, u32)>, XdpError> {
    let all = netlink::interfaces().map_err(XdpError::Interfaces)?;
    let found = all.into_iter().find(|found| found.name == interface);
    Ok(found.map_or_else(Vec::new, |found| found.programs))
}

fn take_off(interface: &str, program: u32) -> Result<(), XdpError> {
    let program = program.to_string();
    let arguments = ["unload", "--id", &program, interface].map(OsStr::new);
    run(
        "take the acceptor off",
        interface,
        Stdio::null(),
        &arguments,
    )
}

/// A program's place in a dispatcher, as libxdp pins it.
#[derive(Debug)]
pub(super) struct Place {
    directory: PathBuf,
    /// The interface's number, in its network namespace.
    interface: u32,
    /// The number of the dispatcher that calls the program.
    dispatcher: u32,
    pub(super) program: u32,
}

impl Place {
    /// How the interface calls the dispatcher, if it does.
    pub(super) fn mode_on(&self, interface: &netlink::Interface) -> Option<&'static str> {
        let mut programs = interface.programs.iter();
        let (mode, _) = programs.find(|(_, program)| *program == self.dispatcher)?;
        (interface.index == self.interface).then_some(mode)
    }

    fn is_on(&self, interface: &netlink::Interface) -> bool {
        self.mode_on(interface).is_some()
    }
}

/// The places that programs over these maps have: `xdp/dispatch-INTERFACE-DISPATCHER/prog…-prog` in
/// a bpffs (libxdp's protocol.org, "Locking and race conditions" and "Loading").
pub(super) fn places(pins: &Pins) -> Result<Vec<Place>, XdpError> {
    let bpffs = env::var_os(LIBXDP_BPFFS).map_or_else(|| BPFFS.into(), PathBuf::from);
    let map = pins.open(GROUP)?.info();
    let map = map.map_err(|source| XdpError::Map {
        name: GROUP,
        source,
    })?;
    let mut found = Vec::new();
    for directory in entries(&bpffs.join("xdp"))? {
        let numbers = directory.file_name().and_then(OsStr::to_str);
        let numbers = numbers.and_then(|name| name.strip_prefix("dispatch-")?.split_once('-'));
        let Some((interface, dispatcher)) =
            numbers.and_then(|(one, other)| Some((one.parse().ok()?, other.parse().ok()?)))
        else {
            continue;
        };
        for pin in entries(&directory)? {
            let name = pin.file_name().and_then(OsStr::to_str).unwrap_or_default();
            if !name.ends_with("-prog") {
                continue;
            }
            let Some(program) = program(&pin)? else {
                continue;
            };
            let maps = program.map_ids().ok().flatten().unwrap_or_default();
            if maps.contains(&map.id()) {
                found.push(Place {
                    directory: directory.clone(),
                    interface,
                    dispatcher,
                    program: program.id(),
                });
            }
        }
    }
    Ok(found)
}

/// What is in a directory; nothing, if it is gone.
fn entries(directory: &Path) -> Result<Vec<PathBuf>, XdpError> {
    let refused = |source| XdpError::Pins {
        doing: "list",
        path: directory.to_owned(),
        source,
    };
    let listed = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        listed => listed.map_err(refused)?,
    };
    let paths = listed.map(|entry| Ok(entry?.path()));
    paths.collect::<io::Result<_>>().map_err(refused)
}

/// A pinned program, unless it was unpinned meanwhile.
fn program(pin: &Path) -> Result<Option<ProgramInfo>, XdpError> {
    match ProgramInfo::from_pin(pin) {
        Ok(program) => Ok(Some(program)),
        Err(ProgramError::SyscallError(error))
            if error.io_error.kind() == io::ErrorKind::NotFound =>
        {
            Ok(None)
        }
        Err(error) => Err(XdpError::Pins {
            doing: "look at",
            path: pin.to_owned(),
            source: io::Error::other(error),
        }),
    }
}

/// Runs the loader to its end.
fn run(
    doing: &'static str,
    interface: &str,
    input: Stdio,
    arguments: &[&OsStr],
) -> Result<(), XdpError> {
    let refused = |error: io::Error| refused(doing, interface, &error);
    let loader = loader().ok_or_else(|| {
        let error = io::Error::new(io::ErrorKind::NotFound, "it is not in PATH");
        refused(error)
    })?;
    // No pipe: a verifier's log is longer than one holds.
    let said = memfd_create(c"said", MFdFlags::MFD_CLOEXEC).map(File::from);
    let mut said = said.map_err(|error| refused(error.into()))?;
    let mut child = Command::new(loader)
        .args(arguments)
        .stdin(input)
        .stdout(said.try_clone().map_err(refused)?)
        .stderr(said.try_clone().map_err(refused)?)
        .spawn()
        .map_err(refused)?;
    let began = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().map_err(refused)? {
            break Some(status);
        }
        if began.elapsed() > LIMIT {
            // It may end by itself just now.
            let _ = child.kill();
            child.wait().map_err(refused)?;
            break None;
        }
        thread::sleep(PAUSE);
    };
    if status.is_some_and(|status| status.success()) {
        return Ok(());
    }
    let mut words = Vec::new();
    said.rewind().map_err(refused)?;
    said.read_to_end(&mut words).map_err(refused)?;
    let last = words.len().saturating_sub(WORDS_BYTES);
    let words = String::from_utf8_lossy(&words[last..]);
    let how = status.map_or_else(
        || format!("it did not end within {} s", LIMIT.as_secs()),
        |status| status.to_string(),
    );
    Err(refused(io::Error::other(format!(
        "{how}: {}",
        words.trim()
    ))))
}

fn refused(doing: &'static str, interface: &str, error: &io::Error) -> XdpError {
    XdpError::Loader {
        doing,
        interface: interface.to_owned(),
        said: error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::OBJECT;
    use super::*;
    use consensus::auth::Key;
    use consensus::frame::{Mac, Own};
    use consensus::region::{Birth, Layout};
    use consensus::{Epoch, NodeId};
    use object::{File, Object as _, ObjectSection as _, ObjectSymbol as _, RelocationTarget};

    fn settings() -> Settings {
        Settings {
            port: 4747,
            own: Own {
                mac: Mac([2, 0, 0, 0, 0, 1]),
                vlan: None,
                ip: [10, 0, 0, 1].into(),
            },
            layout: Layout::new(3, 256, 64).expect("a layout"),
            birth: Birth {
                cluster: 1,
                node: NodeId(1),
                nonce: 5,
                boot: 7,
            },
            epoch: Epoch(1),
            lease_ns: 0,
            keys: Some(Key([1, 2]).into()),
            is_rehearsal: false,
        }
    }

    fn parsed<T>(object: &[u8], of: impl FnOnce(&File<'_>) -> T) -> T {
        of(&File::parse(object).expect("an object"))
    }

    fn section<'a>(file: &File<'a>, name: &str) -> &'a [u8] {
        let section = file.section_by_name(name);
        let section = section.unwrap_or_else(|| panic!("it has no section {name}"));
        section.data().expect("it is in the file")
    }

    #[test]
    fn the_settings_of_the_node_are_in_the_object() {
        let object = object(OBJECT.expect("an object"), &settings()).expect("it can be written");
        parsed(&object, |file| {
            let value = |name: &str| {
                let symbol = file.symbol_by_name(name).expect("a setting");
                let at = symbol.address() as usize;
                section(file, ".rodata")[at..at + symbol.size() as usize].to_vec()
            };
            assert_eq!(value("PORT"), 4747_u16.to_le_bytes());
            assert_eq!(value("OWN_MAC"), [2, 0, 0, 0, 0, 1, 0, 0]);
            assert_eq!(value("KEY")[8..], 2_u64.to_le_bytes());
            assert_eq!(value("IS_KEYED"), [1]);
            assert_eq!(value("WINDOW"), 256_u64.to_le_bytes());
        });
    }

    #[test]
    fn the_instructions_are_the_embedded_ones_and_mean_the_same() {
        let embedded = OBJECT.expect("an object");
        let object = object(embedded, &settings()).expect("it can be written");
        let meant = |file: &File<'_>, bytes: u64| {
            let section = file.section_by_name("xdp").expect("programs");
            let relocations = section.relocations().filter(|(at, _)| *at < bytes);
            let meant = relocations.map(|(at, relocation)| {
                let RelocationTarget::Symbol(index) = relocation.target() else {
                    panic!("{relocation:?}");
                };
                let symbol = file.symbol_by_index(index).expect("a symbol");
                (at, symbol.name().expect("a name").to_ascii_lowercase())
            });
            meant.collect::<Vec<_>>()
        };
        let (code, after) = parsed(&object, |file| {
            let code = section(file, "xdp").to_vec();
            let after = meant(file, code.len() as u64);
            (code, after)
        });
        parsed(embedded, |file| {
            let symbol = file.symbol_by_name(ACCEPTOR).expect("the program");
            assert_eq!(symbol.size(), code.len() as u64);
            let at = symbol.address() as usize;
            assert_eq!(section(file, "xdp")[at..at + code.len()], code);
            // The acceptor is the first of its section, which both count from.
            assert_eq!(at, 0);
            assert_eq!(meant(file, symbol.size()), after);
        });
    }

    #[test]
    fn types_are_read_by_another_reader() {
        let object = object(OBJECT.expect("an object"), &settings()).expect("it can be written");
        let (types, functions) = parsed(&object, |file| {
            let of = |name| section(file, name).to_vec();
            (of(".BTF"), of(".BTF.ext"))
        });
        aya::Btf::parse(&types, aya::Endianness::Little).expect("BTF");
        let has = |name: &str| {
            types
                .windows(name.len())
                .any(|found| found == name.as_bytes())
        };
        let names = [
            "\0_acceptor\0",
            "\0priority\0",
            "\0.xdp_run_config\0",
            "\0entry\0",
        ];
        assert!(names.iter().all(|name| has(name)));
        // Lines are not there, and functions are as long as the header says.
        assert_eq!(functions[20..24], [0; 4]);
        assert_eq!(
            u32::from_le_bytes([functions[12], functions[13], 0, 0]),
            functions.len() as u32 - 24
        );
    }

    #[test]
    fn an_object_that_lacks_a_setting_is_refused() {
        let mut globals = globals(&settings()).to_vec();
        globals.push(("PROT", vec![0; 2]));
        let shapes = shapes(&settings().layout).expect("they fit");
        let embedded = OBJECT.expect("an object");
        let error = libxdp_object(embedded, ACCEPTOR, &globals, &shapes, &SHARED);
        let error = error.expect_err("nobody reads it").to_string();
        assert_eq!(error, "read the XDP object: it has no setting PROT");
        globals.pop();
        let error = libxdp_object(embedded, "acceptr", &globals, &shapes, &SHARED);
        error.expect_err("there is no such program");
    }
}
