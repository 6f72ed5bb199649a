//! Parsing of the `--device` option.

use framework::burn::tensor::Device;
use framework::error::{Error, Problem, Result};

/// Returns the device called `name`, or the best one present for `None`.
pub fn named(name: Option<&str>) -> Result<Device> {
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
        _ => Err(Error::from(
            Problem::new("--device", format!("unknown device \"{}\"", name.unwrap_or_default()))
                .accepts(format!("{} (others need a build with --features cuda or vulkan)", accepted.join(", "))),
        )),
    }
}

/// Returns the name of a device, as `--device` takes it where this build knows it.
pub fn name(device: &Device) -> String {
    let shown = format!("{device:?}").to_lowercase();
    if shown.contains("flex") { "cpu".to_string() } else { shown }
}
