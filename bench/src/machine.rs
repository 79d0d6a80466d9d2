//! What a number was measured on.

use serde::Serialize;
use std::fmt;
use std::fs;
use std::path::Path;

/// Facts about this machine without which a latency means nothing.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Machine {
    /// Model name of the first CPU.
    pub cpu_model: String,
    /// CPUs that this process may run on.
    pub cpus: usize,
    /// Kernel release.
    pub kernel: String,
    /// The hypervisor, as far as it shows itself; `none` on bare metal.
    pub hypervisor: String,
    /// Mitigations that are switched on, by vulnerability: each makes system calls dearer.
    pub mitigations: Vec<String>,
    /// Bytes of memory.
    pub memory_bytes: u64,
}

impl Machine {
    /// Reads the facts from `/proc` and `/sys`; what cannot be read is `unknown`.
    pub fn read() -> Self {
        let cpu_info = read("/proc/cpuinfo");
        let uname = nix::sys::utsname::uname();
        Self {
            cpu_model: field(&cpu_info, "model name")
                .unwrap_or(std::env::consts::ARCH)
                .into(),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            kernel: uname.map_or("unknown".into(), |name| {
                name.release().to_string_lossy().into()
            }),
            hypervisor: hypervisor(&cpu_info),
            mitigations: mitigations(Path::new("/sys/devices/system/cpu/vulnerabilities")),
            memory_bytes: field(&read("/proc/meminfo"), "MemTotal")
                .and_then(|text| text.strip_suffix(" kB")?.parse::<u64>().ok())
                .map_or(0, |kib| kib * 1024),
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            cpu_model,
            cpus,
            kernel,
            hypervisor,
            ..
        } = self;
        write!(
            f,
            "{cpu_model}, {cpus} CPUs, Linux {kernel}, hypervisor {hypervisor}"
        )
    }
}

fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim())
    })
}

fn hypervisor(cpu_info: &str) -> String {
    let vendor = read("/sys/class/dmi/id/sys_vendor");
    let product = read("/sys/class/dmi/id/product_name");
    let named = format!("{} {}", vendor.trim(), product.trim());
    let virtual_cpu = field(cpu_info, "flags")
        .is_some_and(|flags| flags.split_whitespace().any(|flag| flag == "hypervisor"));
    match (virtual_cpu, named.trim()) {
        (false, _) => "none".into(),
        // Firecracker and other small monitors have no DMI tables.
        (true, "") => match read("/sys/hypervisor/type").trim() {
            "" => "unnamed".into(),
            name => name.into(),
        },
        (true, name) => name.into(),
    }
}

fn mitigations(directory: &Path) -> Vec<String> {
    let mut found: Vec<String> = fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let state = read(entry.path());
            let mitigation = state.trim().strip_prefix("Mitigation: ")?;
            Some(format!(
                "{}: {mitigation}",
                entry.file_name().to_string_lossy()
            ))
        })
        .collect();
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_a_kernel_and_a_cpu() {
        let machine = Machine::read();
        assert!(machine.cpus >= 1);
        assert!(
            machine.kernel.starts_with(|c: char| c.is_ascii_digit()),
            "{}",
            machine.kernel
        );
        assert!(!machine.cpu_model.is_empty() && !machine.hypervisor.is_empty());
    }
}
