//! What the kernel must offer for acceptors that vote in it.
//!
//! A replica runs without any of it, in software: nothing here is worse than a warning.

use super::{Check, kernel_version, read};
use crate::cli::offload::scratch;
use consensus::NodeId;
use consensus::region::{Birth, Layout};
use consensus::wire::DEFAULT_PORT;
use nearwire::xdp::{Loaded, OBJECT, Pins, XdpError, capabilities, dispatcher, refuse_other_clock};
use nix::sys::resource::{Resource, getrlimit};
use sha2::{Digest as _, Sha256};
use std::path::Path;

/// Frames in pieces, and test runs of whole frames.
const OLDEST_KERNEL: (u32, u32) = (5, 18);
/// Before, maps were charged to the limit of locked memory.
const MEMORY_BY_CGROUP: (u32, u32) = (5, 11);

/// All of them, with pins in `bpffs`.
pub(in crate::cli) fn checks(bpffs: &Path) -> Vec<Check> {
    let mut checks = vec![
        object(),
        kernel(),
        capable(),
        bpffs_is_mounted(bpffs),
        compiler(),
        clock(),
    ];
    checks.extend(locked_memory());
    checks.push(program());
    checks
}

/// Whether an acceptor can be called beside other programs.
pub(in crate::cli) fn dispatcher() -> Check {
    const CHECK: &str = "libxdp dispatcher";
    match dispatcher::lacking() {
        None => Check::ok(CHECK, "supported", "attach = \"dispatcher\" can be had"),
        Some(lacking) => Check::warn(
            CHECK,
            "unsupported",
            "the acceptor must be alone on its interface",
        )
        .remedy(lacking),
    }
}

fn object() -> Check {
    const CHECK: &str = "xdp object";
    match OBJECT {
        Some(object) => {
            let digest = Sha256::digest(object);
            let digest: String = digest[..8]
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect();
            let found = format!("{} bytes, sha256 {digest}…", object.len());
            Check::ok(CHECK, found, "this build can vote in the kernel")
        }
        None => Check::warn(CHECK, "none", "this build votes in software only")
            .remedy("build it where `cargo xtask ebpf` works"),
    }
}

fn kernel() -> Check {
    const CHECK: &str = "xdp kernel";
    let (release, version) = kernel_version();
    let (major, minor) = OLDEST_KERNEL;
    match version {
        Some(version) if version >= OLDEST_KERNEL => {
            Check::ok(CHECK, release, "it has what the program uses")
        }
        Some(_) => Check::warn(CHECK, release, "too old to vote in")
            .remedy(format!("install Linux {major}.{minor} or later")),
        None => Check::warn(CHECK, "unknown", "/proc does not tell the version")
            .remedy("mount -t proc proc /proc"),
    }
}

fn capable() -> Check {
    const CHECK: &str = "xdp capabilities";
    match &*capabilities::lacking() {
        [] => Check::ok(CHECK, "permitted", "programs can be loaded and attached"),
        lacking => Check::warn(
            CHECK,
            format!("without {}", lacking.join(", ")),
            "programs cannot be loaded or attached",
        )
        .remedy(
            "run it as root, or setcap cap_bpf,cap_net_admin,cap_perfmon+ep $(command -v nearwire)",
        ),
    }
}

fn bpffs_is_mounted(bpffs: &Path) -> Check {
    const CHECK: &str = "bpffs";
    let place = bpffs.display();
    match Pins::all(bpffs) {
        Ok(pins) => Check::ok(
            CHECK,
            format!("{place}, {} regions pinned", pins.len()),
            "votes can outlive processes there",
        ),
        Err(error) => {
            let found = match error {
                XdpError::NoBpffs(_) => format!("none at {place}"),
                error => error.to_string(),
            };
            Check::warn(CHECK, found, "votes cannot be kept in the kernel")
                .remedy(format!("mount -t bpf bpf {place}"))
        }
    }
}

fn compiler() -> Check {
    const CHECK: &str = "bpf jit";
    match &*read("/proc/sys/net/core/bpf_jit_enable") {
        "" => Check::warn(
            CHECK,
            "unknown",
            "shown to root alone, in the first network namespace",
        ),
        "0" => Check::warn(
            CHECK,
            "off",
            "programs are interpreted, and many times slower",
        )
        .remedy("sysctl -w net.core.bpf_jit_enable=1"),
        _ => Check::ok(CHECK, "on", "programs are compiled"),
    }
}

fn clock() -> Check {
    const CHECK: &str = "xdp clock";
    match refuse_other_clock() {
        Ok(()) => Check::ok(
            CHECK,
            "the kernel's",
            "process and program read leases alike",
        ),
        Err(error) => Check::warn(CHECK, "another", &error.to_string())
            .remedy("run nodes outside of the time namespace"),
    }
}

fn locked_memory() -> Option<Check> {
    const CHECK: &str = "xdp memlock";
    kernel_version()
        .1
        .filter(|version| *version < MEMORY_BY_CGROUP)?;
    let limit = getrlimit(Resource::RLIMIT_MEMLOCK).map_or(0, |(soft, _)| soft);
    Some(if limit == u64::MAX {
        Check::ok(CHECK, "unlimited", "regions fit")
    } else {
        let found = format!("{} KiB", limit / 1024);
        Check::warn(CHECK, found, "before Linux 5.11 it limits regions")
            .remedy("ulimit -l unlimited")
    })
}

/// Loads it, over a region of its own, and attaches it nowhere.
fn program() -> Check {
    const CHECK: &str = "xdp program";
    let Some(object) = OBJECT else {
        return Check::warn(CHECK, "unknown", "there is no object");
    };
    let birth = Birth {
        cluster: 0,
        node: NodeId(1),
        nonce: 0,
        boot: 0,
    };
    let layout = Layout::new(1, 2, 64).expect("a layout that is used elsewhere, too");
    let loaded = Loaded::load(object, &scratch(DEFAULT_PORT, layout, birth, None));
    match loaded.and_then(|mut loaded| loaded.verified_instructions()) {
        Ok(instructions) => {
            let found = instructions.map_or_else(
                || "verified".to_owned(),
                |instructions| format!("verified, {instructions} instructions"),
            );
            Check::ok(CHECK, found, "the kernel takes it")
        }
        Err(error) => {
            let said = error.to_string();
            let said = said.lines().next().unwrap_or_default();
            Check::warn(CHECK, said, "the kernel refuses it").remedy(
                "see the rows of xdp above; if they are well, report this with the output of \
                 `nearwire offload test` and uname -a",
            )
        }
    }
}
