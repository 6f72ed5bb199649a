//! `doctor`: prints what a bug report needs, and nothing private. It opens no library and no document.

use crate::console::bytes;
use crate::{Outcome, console, libraries, system};
use framework::plugin::BUILD_ID;
use registry::library::Library;
use std::path::{Component, Path, PathBuf};
use std::{env, thread};

/// Prints version, build, processor, devices, limits, memory, disk space and plugin libraries.
pub fn doctor(named: &[PathBuf]) -> Outcome {
    let mut rows = vec![("unguided", env!("CARGO_PKG_VERSION").to_string())];
    let parts = BUILD_ID.trim_end_matches('\0').split("; ");
    rows.extend(parts.enumerate().map(|(i, part)| (if i == 0 { "build" } else { "" }, part.to_string())));
    let shared = if cfg!(feature = "shared") { "loads plugin libraries" } else { "cannot load plugin libraries" };
    rows.push(("", shared.to_string()));
    let kernel = system::kernel().map(|kernel| format!(" {kernel}")).unwrap_or_default();
    rows.push(("system", format!("{} {}{kernel}", env::consts::OS, env::consts::ARCH)));
    let (model, features) = system::processor();
    rows.push(("processor", model.unwrap_or_else(|| UNKNOWN.to_string())));
    rows.push(("", if features.is_empty() { UNKNOWN.to_string() } else { features.join(" ") }));
    let cores = thread::available_parallelism().map_or(UNKNOWN.to_string(), |cores| cores.to_string());
    // Print only a number, because the variable may contain anything.
    let threads = env::var("RAYON_NUM_THREADS").ok().and_then(|threads| threads.parse::<usize>().ok());
    let threads = threads.map(|threads| format!(", RAYON_NUM_THREADS={threads}")).unwrap_or_default();
    rows.push(("cores", cores + &threads));
    for (i, device) in devices().into_iter().enumerate() {
        rows.push((if i == 0 { "devices" } else { "" }, device));
    }
    let memory = system::memory();
    let size = |size: Option<u64>| size.map_or(UNKNOWN.to_string(), |size| bytes(size as f64));
    rows.push(("memory", format!("{} free of {}", size(memory.available), size(memory.total))));
    if let Some(limit) = memory.limit {
        rows.push(("", format!("{} at most for this container", bytes(limit as f64))));
    }
    let free = |folder: &Path| size(system::free_space(folder));
    rows.push(("disk", format!("{} free for the current folder", free(Path::new(".")))));
    rows.push(("", format!("{} free for temporary files", free(&env::temp_dir()))));
    let limit = |value: Option<u64>| value.map_or("unlimited".to_string(), |value| value.to_string());
    for (i, (name, now, most)) in system::limits().into_iter().enumerate() {
        let row = format!("{name}: {} (at most {})", limit(now), limit(most));
        rows.push((if i == 0 { "limits" } else { "" }, row));
    }
    rows.push(("plugins", format!("{} linked", framework::plugin::entries().len())));
    rows.extend(libraries::named(named)?.iter().flat_map(|path| library(path)).map(|row| ("", row)));
    let lines: Vec<String> = rows.iter().map(|(name, value)| format!("{name:<10} {value}")).collect();
    console::print(&lines.join("\n"))
}

const UNKNOWN: &str = "unknown";

/// Returns the devices that this build can use.
fn devices() -> Vec<String> {
    let built = |is_built: bool| if is_built { "in this build" } else { "not in this build" };
    vec![
        "cpu".to_string(),
        format!("cuda: {}", built(cfg!(feature = "cuda"))),
        format!("vulkan: {}", built(cfg!(feature = "vulkan"))),
        format!("webgpu: {}", built(cfg!(feature = "webgpu"))),
        format!("mpi: {}", built(cfg!(feature = "mpi"))),
    ]
}

/// Describes the file of a library without running its code.
fn library(path: &Path) -> Vec<String> {
    let path = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    let shown = without_names(&path);
    match Library::read(&path) {
        Ok(library) => {
            let fits = if library.check().is_ok() { "fits this build" } else { "built for another build" };
            let mut rows = vec![shown, format!("  sha256 {}", library.sha256), format!("  {fits}")];
            let plugins = library.plugins.iter();
            rows.extend(plugins.map(|card| format!("  {} \"{}\" of {}", card.kind.name(), card.name, card.origin)));
            rows
        }
        Err(problem) => vec![shown, format!("  {}", problem.what)],
    }
}

/// Shortens a path in a home folder to `~`, and replaces the user's name elsewhere.
fn without_names(path: &Path) -> String {
    let homes = ["HOME", "USERPROFILE"].map(env::var_os).into_iter().flatten().map(PathBuf::from);
    let users = ["USER", "LOGNAME", "USERNAME"].map(env::var).into_iter().flatten();
    shortened(path, &homes.collect::<Vec<_>>(), &users.filter(|user| !user.is_empty()).collect::<Vec<_>>())
}

fn shortened(path: &Path, homes: &[PathBuf], users: &[String]) -> String {
    let homes = homes.iter().flat_map(|home| [home.canonicalize().ok(), Some(home.clone())]).flatten();
    let own = homes.filter(|home| home.parent().is_some()).find_map(|home| path.strip_prefix(home).ok().map(Path::new));
    // Home folders of other users, and of this user if no variable names it.
    let any = ["/home", "/Users", "C:\\Users", "\\\\?\\C:\\Users"].iter().find_map(|homes| {
        let mut rest = path.strip_prefix(homes).ok()?.components();
        rest.next()?;
        Some(rest.as_path())
    });
    let path = match own.or(any) {
        Some(rest) => Path::new("~").join(rest),
        None => path.to_path_buf(),
    };
    let hidden = |part: Component<'_>| match part {
        Component::Normal(name) if users.iter().any(|user| name == user.as_str()) => PathBuf::from("USER"),
        part => PathBuf::from(part.as_os_str()),
    };
    path.components().map(hidden).collect::<PathBuf>().display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(unix)]
    #[test]
    fn paths_show_neither_homes_nor_names() {
        let (homes, users) = (vec![PathBuf::from("/srv/people/ada")], vec!["ada".to_string()]);
        let show = |path: &str| shortened(Path::new(path), &homes, &users);
        assert_eq!(show("/srv/people/ada/x/my.so"), "~/x/my.so");
        assert_eq!(show("/home/bob/x/my.so"), "~/x/my.so");
        assert_eq!(show("/Users/eve/my.so"), "~/my.so");
        assert_eq!(show("/scratch/ada/my.so"), "/scratch/USER/my.so");
        assert_eq!(show("/scratch/adam/my.so"), "/scratch/adam/my.so");
        assert_eq!(show("/opt/my.so"), "/opt/my.so");
    }

    #[cfg(unix)]
    #[test]
    fn a_home_that_is_the_root_shortens_nothing() {
        assert_eq!(shortened(Path::new("/opt/my.so"), &[PathBuf::from("/")], &[]), "/opt/my.so");
    }
}
