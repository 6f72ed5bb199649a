//! `devices`: lists the devices that are present.

use crate::console::bytes;
use crate::{Outcome, console, device, system};

const UNKNOWN: &str = "unknown";

/// Returns the name of the processor or of the card.
fn model(found: &device::Found) -> String {
    if found.kind == "CPU" {
        return system::processor().0.unwrap_or_else(|| UNKNOWN.to_string());
    }
    identity(found).unwrap_or_else(|| UNKNOWN.to_string())
}

#[cfg(any(feature = "cuda", feature = "vulkan", feature = "webgpu"))]
fn identity(found: &device::Found) -> Option<String> {
    // Reading the name opens the device, which a broken driver may refuse.
    let identity = std::panic::catch_unwind(|| found.device.identity());
    identity.ok().flatten().map(|identity| identity.name)
}

#[cfg(not(any(feature = "cuda", feature = "vulkan", feature = "webgpu")))]
fn identity(_: &device::Found) -> Option<String> {
    None
}

/// Prints name, kind, model and memory of every device, the best first.
pub fn devices() -> Outcome {
    let mut lines = vec![format!("{:<10} {:<15} {:<44} memory", "name", "kind", "model")];
    for found in device::found() {
        let memory = match found.kind {
            "CPU" | "software GPU" => system::memory().total.map(|total| bytes(total as f64)),
            _ => None,
        };
        // The backends do not report the memory of a card.
        let memory = memory.unwrap_or_else(|| UNKNOWN.to_string());
        lines.push(format!("{:<10} {:<15} {:<44} {memory}", found.name, found.kind, model(&found)));
    }
    console::print(&lines.join("\n"))
}
