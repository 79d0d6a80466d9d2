//! That this process and the program in the kernel read one clock.
//!
//! Leases and heartbeats in a region are times of CLOCK_MONOTONIC. The program's is
//! `bpf_ktime_get_ns`, which no time namespace shifts; a process in one sees it with the
//! namespace's offset (Linux 5.6, `time_namespaces(7)`), and would take a lease that lasts for one
//! that has ended.

use super::XdpError;
use std::fs;

const OFFSETS: &str = "/proc/self/timens_offsets";

/// Refuses where a time namespace sets this process's clock apart from the program's.
///
/// # Errors
/// It does.
pub fn refuse_other_clock() -> Result<(), XdpError> {
    // Where the kernel has no time namespaces there is no such file.
    match offset(&fs::read_to_string(OFFSETS).unwrap_or_default()) {
        None => Ok(()),
        Some(offset) => Err(XdpError::OtherClock(offset)),
    }
}

/// What CLOCK_MONOTONIC is set off by, as seconds and nanoseconds, unless that is nothing.
fn offset(text: &str) -> Option<String> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("monotonic"))?;
    let numbers: Vec<&str> = line.split_whitespace().collect();
    match *numbers {
        ["0", "0"] => None,
        [seconds, "0"] => Some(format!("{seconds} s")),
        _ => Some(format!("{} s and ns", numbers.join(" "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_clock_that_leases_use_counts() {
        let told = |monotonic: &str, boottime: &str| {
            let text = format!("monotonic {monotonic:>20}\nboottime {boottime:>20}\n");
            offset(&text)
        };
        assert_eq!(told("0 0", "0 0"), None);
        assert_eq!(told("0 0", "77 0"), None);
        assert_eq!(told("-3600 0", "0 0").as_deref(), Some("-3600 s"));
        assert_eq!(told("0 1", "0 0").as_deref(), Some("0 1 s and ns"));
        assert_eq!(offset(""), None);
    }

    #[test]
    fn who_is_in_no_time_namespace_is_not_refused() {
        refuse_other_clock().expect("tests run in the first one");
    }
}
