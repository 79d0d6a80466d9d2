//! What this process may do, of what programs in the kernel ask for.

use std::fs;

/// Each capability, its number, and whether CAP_SYS_ADMIN stands for it: `linux/capability.h`.
const WANTED: [(&str, u32, bool); 3] = [
    ("CAP_BPF", 39, true),
    ("CAP_NET_ADMIN", 12, false),
    ("CAP_PERFMON", 38, true),
];
const CAP_SYS_ADMIN: u32 = 21;

/// The capabilities that loading and attaching takes and this thread has not.
pub fn lacking() -> Vec<&'static str> {
    lacking_of(effective())
}

fn lacking_of(effective: u64) -> Vec<&'static str> {
    let has = |number: u32| effective >> number & 1 == 1;
    WANTED
        .iter()
        .filter(|(_, number, by_admin)| !(has(*number) || *by_admin && has(CAP_SYS_ADMIN)))
        .map(|(name, ..)| *name)
        .collect()
}

fn effective() -> u64 {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    u64::from_str_radix(line.unwrap_or_default().trim(), 16).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_administrator_lacks_the_network_alone() {
        assert_eq!(lacking_of(0), ["CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON"]);
        assert_eq!(lacking_of(1 << CAP_SYS_ADMIN), ["CAP_NET_ADMIN"]);
        assert!(lacking_of(1 << 39 | 1 << 12 | 1 << 38).is_empty());
    }
}
