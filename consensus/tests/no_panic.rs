//! The step, the codec and the framing compile without `std` and `alloc`, and no panic can be
//! reached from them: a library whose panic handler calls a function that does not exist links
//! only if the linker finds the handler unreachable.
#![cfg(all(not(loom), target_os = "linux"))]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

const MANIFEST: &str = r#"
[package]
name = "bare"
version = "0.0.0"
edition = "2024"

[lib]
crate-type = ["cdylib"]
path = "lib.rs"

[dependencies]
consensus = { package = "nearwire-consensus", path = "CONSENSUS", default-features = false }

[profile.release]
panic = "abort"
lto = "fat"
codegen-units = 1

[workspace]
"#;

const LIBRARY: &str = r#"
#![no_std]
use consensus::acceptor::{Acceptor, Step};
use consensus::memory::Buffers;
use consensus::region::{Region, view, vote};
use consensus::sync::AtomicU64;
use consensus::{GroupId, Slot, auth, frame, wire};

unsafe extern "C" {
    fn a_panic_can_be_reached() -> !;
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    unsafe { a_panic_can_be_reached() }
}

#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

/// A datagram in a frame: parsed, authenticated, stepped, and answered in place.
#[unsafe(no_mangle)]
fn bare_step(
    acceptor: &Acceptor,
    region: &Region<&'static [AtomicU64]>,
    now_ns: u64,
    packet: &mut [u8],
    reply: &mut [u8],
    key: [u64; 2],
) -> usize {
    let frame::Parsed::Ours(path, payload) = frame::parse(packet, wire::DEFAULT_PORT) else {
        return 0;
    };
    if !frame::is_intact(packet, &path, &payload) {
        return 0;
    }
    let Some(datagram) = packet.get(payload.clone()) else { return 0 };
    let limit = acceptor.layout.value_bytes();
    let wire::Parsed::Ours(header, value) = wire::parse(datagram, limit) else {
        return 0;
    };
    if !auth::is_authentic(auth::Key(key), &header, value) {
        return 0;
    }
    let mut buffers = Buffers { request: value, reply };
    let Step::Reply(mut header, _) = acceptor.step(region, now_ns, &header, &mut buffers) else {
        return 0;
    };
    let value = reply.get(..usize::from(header.length)).unwrap_or_default();
    header.tag = auth::tag(auth::Key(key), &header, value);
    let Some(room) = packet.get_mut(payload.start..) else { return 0 };
    let Some((head, body)) = room.split_first_chunk_mut() else { return 0 };
    header.write(head);
    for (to, from) in body.iter_mut().zip(value) {
        *to = *from;
    }
    let Some(back) = path.reversed() else { return 0 };
    back.write(packet, wire::HEADER_BYTES + value.len()).unwrap_or(0)
}

/// What user space reads without locks.
#[unsafe(no_mangle)]
fn bare_read(region: &Region<&'static [AtomicU64]>, slot: u64, out: &mut [u8]) -> u64 {
    let vote = vote(region, GroupId(0), Slot(slot), out.len(), out);
    let vote = vote.map_or(0, |(ballot, _)| ballot.0);
    vote ^ view(region, GroupId(0)).map_or(0, |view| view.promised.0)
}
"#;

/// Shows that the check can fail: an index that nobody bounds.
const PANICKING: &str = r#"
#[unsafe(no_mangle)]
fn bare_index(words: &[u64], index: usize) -> u64 {
    words[index]
}
"#;

fn links(name: &str, library: &str) -> (bool, String) {
    let consensus = Path::new(env!("CARGO_MANIFEST_DIR"));
    let at = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("no_panic");
    let source = at.join(name);
    fs::create_dir_all(&source).expect("a directory for the library");
    let manifest = MANIFEST.replace("CONSENSUS", &consensus.display().to_string());
    fs::write(source.join("Cargo.toml"), manifest).expect("write Cargo.toml");
    fs::write(source.join("lib.rs"), library).expect("write lib.rs");
    // The workspace's versions: nothing is to be looked up.
    fs::copy(consensus.join("../Cargo.lock"), source.join("Cargo.lock")).expect("copy Cargo.lock");
    let output = Command::new(env!("CARGO"))
        .args(["build", "--release", "--offline", "--quiet"])
        .current_dir(&source)
        .env("CARGO_TARGET_DIR", at.join("target"))
        .env(
            "RUSTFLAGS",
            "-Clink-arg=-Wl,-z,defs -Clink-arg=-Wl,--gc-sections -Clink-arg=-lc",
        )
        .output()
        .expect("run cargo");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.success(), said)
}

#[test]
fn no_panic_can_be_reached_from_the_step() {
    let (linked, said) = links("step", LIBRARY);
    assert!(linked, "{said}");
    let (linked, said) = links("index", &[LIBRARY, PANICKING].concat());
    assert!(!linked, "the check notices nothing");
    assert!(said.contains("a_panic_can_be_reached"), "{said}");
}
