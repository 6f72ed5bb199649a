//! The devices that are present, and the choice of one by `--device`.

use crate::self_test;
use framework::burn::tensor::Device;
#[cfg(any(feature = "cuda", feature = "vulkan", feature = "webgpu"))]
use framework::burn::tensor::DeviceType;
use framework::error::{Error, Problem, Result};

/// A device of this machine that the build can use.
#[derive(Clone, Debug)]
pub struct Found {
    /// The name that `--device` accepts.
    pub name: String,
    /// Kind of device, for example "discrete GPU".
    pub kind: &'static str,
    /// Whether it is hardware, not a program that emulates a GPU.
    is_hardware: bool,
    /// The device itself.
    pub device: Device,
}

const CPU: &str = "cpu";

/// Returns the kind of a GPU from its debug text, which names how the driver reports it.
#[cfg(any(feature = "cuda", feature = "vulkan", feature = "webgpu", test))]
fn kind(api: &str, text: &str) -> (&'static str, bool) {
    match () {
        () if api == "cuda" => ("NVIDIA GPU", true),
        () if text.contains("DiscreteGpu") => ("discrete GPU", true),
        () if text.contains("IntegratedGpu") => ("integrated GPU", true),
        () if text.contains("VirtualGpu") => ("virtual GPU", true),
        () => ("software GPU", false),
    }
}

#[cfg(any(feature = "cuda", feature = "vulkan", feature = "webgpu"))]
fn list(api: &str, of: DeviceType, found: &mut Vec<Found>) {
    // A driver that is missing or broken is a device that is not present.
    let devices = std::panic::catch_unwind(|| Device::enumerate(of).into_vec()).unwrap_or_default();
    for (index, device) in devices.into_iter().enumerate() {
        let (kind, is_hardware) = kind(api, &format!("{device:?}"));
        found.push(Found { name: format!("{api}:{index}"), kind, is_hardware, device });
    }
}

/// Returns the devices that are present, the best first: CUDA, other hardware and software GPUs, the CPU.
pub fn found() -> Vec<Found> {
    let cpu = Found { name: CPU.to_string(), kind: "CPU", is_hardware: true, device: Device::flex() };
    #[cfg_attr(not(any(feature = "cuda", feature = "vulkan", feature = "webgpu")), expect(unused_mut))]
    let mut found = vec![];
    #[cfg(feature = "cuda")]
    list("cuda", DeviceType::Cuda, &mut found);
    #[cfg(feature = "vulkan")]
    list("vulkan", DeviceType::Vulkan, &mut found);
    #[cfg(feature = "webgpu")]
    list("wgpu", DeviceType::Wgpu, &mut found);
    found.into_iter().chain([cpu]).collect()
}

/// Returns the index of the device called `name`, or of the best one for `None`. The processes of a job on one machine
/// take the GPUs of the best kind in turn; `local_rank` is the index of this process on its machine.
fn choice(found: &[Found], name: Option<&str>, local_rank: usize) -> Option<usize> {
    let api = |found: &Found| found.name.split(':').next().unwrap_or_default().to_string();
    if let Some(name) = name {
        let first = format!("{name}:0");
        let is_first_cpu = |found: &Found| found.name == CPU && name == "cpu:0";
        return found.iter().position(|found| found.name == name || found.name == first || is_first_cpu(found));
    }
    let best = found.iter().position(|found| found.is_hardware)?;
    let alike: Vec<usize> =
        (0..found.len()).filter(|i| found[*i].is_hardware && api(&found[*i]) == api(&found[best])).collect();
    Some(alike[local_rank % alike.len()])
}

/// Returns the device called `name`, or the best one present for `None`.
///
/// # Errors
/// If no device has this name, or its gradients are wrong.
pub fn named(name: Option<&str>) -> Result<Device> {
    let found = found();
    let Some(chosen) = choice(&found, name, crate::job::local_rank()) else {
        let names: Vec<String> = found.iter().map(|found| format!("{} ({})", found.name, found.kind)).collect();
        let built = [("cuda", cfg!(feature = "cuda")), ("webgpu", cfg!(feature = "webgpu"))];
        let missing: Vec<&str> = built.iter().filter(|(_, is_built)| !is_built).map(|(name, _)| *name).collect();
        let others = match missing.is_empty() {
            true => String::new(),
            false => format!(" (others need a build with --features {})", missing.join(" or ")),
        };
        let problem = Problem::new("--device", format!("unknown device \"{}\"", name.unwrap_or_default()));
        return Err(Error::from(problem.accepts(names.join(", ") + &others)));
    };
    let Found { name, device, .. } = found[chosen].clone();
    if name != CPU {
        self_test::check(&name, &device)?;
    }
    Ok(device)
}

/// Returns the name of a device, as `--device` takes it where this build knows it.
pub fn name(device: &Device) -> String {
    let shown = format!("{device:?}").to_lowercase();
    if shown.contains("flex") { "cpu".to_string() } else { shown }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn present(all: &[(&str, bool)]) -> Vec<Found> {
        let of = |(name, is_hardware): &(&str, bool)| Found {
            name: name.to_string(),
            kind: "",
            is_hardware: *is_hardware,
            device: Device::flex(),
        };
        all.iter().map(of).collect()
    }

    #[test]
    fn the_default_is_the_best_hardware() {
        let both = present(&[("cuda:0", true), ("cuda:1", true), ("wgpu:0", true), ("cpu", true)]);
        assert_eq!([0, 1, 2].map(|rank| choice(&both, None, rank)), [Some(0), Some(1), Some(0)]);
        let software = present(&[("wgpu:0", false), ("cpu", true)]);
        assert_eq!(choice(&software, None, 0), Some(1));
        assert_eq!(choice(&present(&[("cpu", true)]), None, 3), Some(0));
    }

    #[test]
    fn a_name_selects_its_place_in_the_list_whatever_its_kind() {
        let all = present(&[("vulkan:0", false), ("vulkan:1", true), ("cpu", true)]);
        for (name, index) in [
            ("vulkan", Some(0)),
            ("vulkan:1", Some(1)),
            ("cpu", Some(2)),
            ("cpu:0", Some(2)),
            ("cpu:1", None),
            ("vulkan:2", None),
            ("gpu", None),
            ("", None),
        ] {
            assert_eq!(choice(&all, Some(name), 0), index, "{name}");
        }
    }

    #[test]
    fn kinds_are_those_that_the_driver_reports() {
        assert_eq!(kind("cuda", "CudaDevice(0)"), ("NVIDIA GPU", true));
        assert_eq!(kind("vulkan", "kind: IntegratedGpu(0)"), ("integrated GPU", true));
        assert_eq!(kind("wgpu", "kind: Cpu"), ("software GPU", false));
    }
}
