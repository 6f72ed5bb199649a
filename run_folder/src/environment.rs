//! The machine and the build that a run is trained with, for its report.

use serde::{Deserialize, Serialize};
use std::fs;

/// Build, machine and device of a training. Unknown values are empty or `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Environment {
    /// Version of the program.
    pub version: String,
    /// Operating system and processor architecture.
    pub system: String,
    /// Model of the processor.
    pub processor: String,
    /// Number of processor cores that the program may use.
    pub cores: Option<usize>,
    /// Device of the training.
    pub device: String,
}

/// Returns the largest resident memory of this process so far, in bytes; `None` where the system does not tell it.
pub fn peak_memory() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    #[cfg(target_os = "linux")]
    #[test]
    fn the_peak_memory_grows_with_what_the_process_touches() {
        let before = super::peak_memory().unwrap();
        let touched = vec![1_u8; 256 << 20];
        assert!(touched.iter().all(|byte| *byte == 1));
        let after = super::peak_memory().unwrap();
        assert!(after >= 256 << 20 && after >= before, "{before} {after}");
    }
}
