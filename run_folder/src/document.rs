//! From a file and its overrides to a checked pipeline, and from a device's name to the device.

use crate::{Failure, libraries};
use framework::burn::tensor::Device;
use framework::error::{Problem, Problems};
use framework::pipeline::Pipeline;
use registry::Registry;
use std::path::Path;

/// Reads, overrides, parses and checks a document.
pub fn read(path: &Path, overrides: &[String]) -> Result<Pipeline, Failure> {
    let text = std::fs::read_to_string(path).map_err(|e| Failure::Input(format!("error: {}: {e}", path.display())))?;
    from_text(&text, overrides, &path.display().to_string())
}

/// The same for a document that is already text; `name` says where it came from.
pub fn from_text(text: &str, overrides: &[String], name: &str) -> Result<Pipeline, Failure> {
    let registry = Registry::linked();
    let show = |problems: Problems| {
        Failure::Input(problems.iter().map(|p| p.display(name).to_string()).collect::<Vec<_>>().join("\n"))
    };
    let (mut value, mut problems) = registry::read(text).map_err(|problem| show(vec![problem]))?;
    for change in overrides {
        let Some((pointer, new)) = change.split_once('=') else {
            problems.push(Problem::new("", format!("--set {change} has no `=`")).accepts("--set /POINTER=VALUE"));
            continue;
        };
        if let Err(problem) = registry::set(&mut value, pointer, new) {
            problems.push(problem);
        }
    }
    if !problems.is_empty() {
        return Err(show(problems));
    }
    let missing = libraries::missing(&value);
    if !missing.is_empty() {
        return Err(show(missing));
    }
    let document = registry.parse_value(value).map_err(show)?;
    let problems = registry.check(&document);
    if !problems.is_empty() {
        return Err(show(problems));
    }
    Ok(registry.build(document))
}

/// The device of a name; the best present if none is given.
pub fn device(name: Option<&str>) -> Result<Device, Failure> {
    let mut accepted = vec!["cpu"];
    if cfg!(feature = "cuda") {
        accepted.push("cuda:N");
    }
    if cfg!(feature = "vulkan") {
        accepted.push("vulkan:N");
    }
    let (kind, index) = match name {
        None => return Ok(Device::default()),
        Some(name) => name.split_once(':').unwrap_or((name, "0")),
    };
    let index: Option<usize> = index.parse().ok();
    match (kind, index) {
        ("cpu", Some(0)) => Ok(Device::flex()),
        #[cfg(feature = "cuda")]
        ("cuda", Some(index)) => Ok(Device::cuda(index)),
        #[cfg(feature = "vulkan")]
        ("vulkan", Some(index)) => Ok(Device::vulkan(framework::burn::tensor::DeviceKind::DiscreteGpu(index))),
        _ => Err(Failure::Input(format!(
            "error: unknown device \"{}\"\n  at       --device\n  accepts  {} (others need a build with --features cuda or vulkan)",
            name.unwrap_or_default(),
            accepted.join(", "),
        ))),
    }
}
