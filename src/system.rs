//! Queries what the system provides to this process: processor, memory, disk space and limits. An unknown value is
//! `None`.

use std::fs;
use std::path::Path;

/// Processor features that change which kernels run, by the names of Linux.
const FEATURES: [&str; 18] = [
    "sse4_2",
    "avx",
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512bw",
    "avx512dq",
    "avx512vl",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_tile",
    "amx_bf16",
    "asimd",
    "fphp",
    "bf16",
    "sve",
];

/// Reads a short file of the system, without line breaks at its end.
fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim_end().to_string())
}

/// Returns the first value of a key in lines of the form `key : value`.
fn value<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    let pairs = text.lines().filter_map(|line| line.split_once(':'));
    pairs.map(|(name, value)| (name.trim(), value.trim())).find(|(name, _)| *name == key).map(|(_, value)| value)
}

/// Returns the model of the processor, and its features that change which kernels run.
pub fn processor() -> (Option<String>, Vec<&'static str>) {
    let text = read("/proc/cpuinfo").unwrap_or_default();
    let flags = value(&text, "flags").or(value(&text, "Features")).unwrap_or_default();
    let has = |name: &&str| flags.split_whitespace().any(|flag| flag == *name);
    (value(&text, "model name").map(str::to_string), FEATURES.into_iter().filter(has).collect())
}

/// Returns the release of the kernel.
pub fn kernel() -> Option<String> {
    read("/proc/sys/kernel/osrelease")
}

/// Lowers the priority of the calling thread and of the threads that it will start: work next to them, such as a
/// training, then gets most of the processor. Does nothing where the system has no such priority.
pub fn lower_priority() {
    #[cfg(unix)]
    // SAFETY: the call changes a number of the calling thread and touches no memory. It may fail: the work is then only
    // less considerate.
    unsafe {
        libc::setpriority(libc::PRIO_PROCESS, 0, 10);
    }
}

/// Memory, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Memory of the machine.
    pub total: Option<u64>,
    /// Memory that can be allocated without swapping.
    pub available: Option<u64>,
    /// Limit of the container or the control group.
    pub limit: Option<u64>,
}

/// Returns the memory of the machine and of the control group.
pub fn memory() -> Memory {
    let text = read("/proc/meminfo").unwrap_or_default();
    let bytes = |key: &str| value(&text, key)?.strip_suffix(" kB")?.trim().parse::<u64>().ok()?.checked_mul(1024);
    let limit = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];
    // Control groups of version 1 write a number near 2^63 for no limit.
    let limit = limit.iter().find_map(|path| read(path)?.parse::<u64>().ok()).filter(|limit| *limit < 1 << 60);
    Memory { total: bytes("MemTotal"), available: bytes("MemAvailable"), limit }
}

/// Returns the free space, in bytes, of the file system that contains `folder`.
pub fn free_space(folder: &Path) -> Option<u64> {
    #[cfg(unix)]
    {
        use std::os::unix::ffi::OsStrExt;
        let name = std::ffi::CString::new(folder.as_os_str().as_bytes()).ok()?;
        // SAFETY: the structure is plain data and valid when zeroed; the name is a C string that outlives the call.
        unsafe {
            let mut found: libc::statvfs = std::mem::zeroed();
            if libc::statvfs(name.as_ptr(), &mut found) != 0 {
                return None;
            }
            #[allow(clippy::useless_conversion, reason = "the types differ between systems")]
            u64::from(found.f_bavail).checked_mul(u64::from(found.f_frsize))
        }
    }
    #[cfg(not(unix))]
    {
        let _ = folder;
        None
    }
}

/// Returns the limits of the process by name: the present and the largest value, `None` = unlimited.
pub fn limits() -> Vec<(&'static str, Option<u64>, Option<u64>)> {
    #[cfg(unix)]
    {
        let limit = |name, resource| {
            let mut found = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
            // SAFETY: the structure outlives the call.
            let is_known = unsafe { libc::getrlimit(resource, &mut found) } == 0;
            #[allow(clippy::useless_conversion, reason = "the types differ between systems")]
            let bounded = |value: libc::rlim_t| (value != libc::RLIM_INFINITY).then(|| u64::from(value));
            is_known.then(|| (name, bounded(found.rlim_cur), bounded(found.rlim_max)))
        };
        [
            limit("open files", libc::RLIMIT_NOFILE),
            limit("processes", libc::RLIMIT_NPROC),
            limit("address space in bytes", libc::RLIMIT_AS),
            limit("file size in bytes", libc::RLIMIT_FSIZE),
            limit("locked memory in bytes", libc::RLIMIT_MEMLOCK),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
    #[cfg(not(unix))]
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found_by_their_whole_key() {
        let text = "MemTotal:       16 kB\nSwapTotal: 8 kB\nmodel name\t: A processor: fast\n";
        assert_eq!(value(text, "MemTotal"), Some("16 kB"));
        assert_eq!(value(text, "model name"), Some("A processor: fast"));
        assert_eq!(value(text, "Total"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn linux_tells_memory_disk_and_limits() {
        let memory = memory();
        assert!(memory.total.unwrap() >= memory.available.unwrap());
        assert!(free_space(Path::new(".")).is_some() && free_space(Path::new("/absent")).is_none());
        assert!(limits().iter().any(|(name, now, _)| *name == "open files" && now.is_none_or(|now| now > 2)));
    }
}
