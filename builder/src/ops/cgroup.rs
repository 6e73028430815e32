//! Control groups that limit what a step uses, on version 2 and version 1 hierarchies.
//!
//! A step's groups are made before it and removed after it; its command joins them by itself. What cannot be limited on this
//! machine is said once: a limit is never dropped in silence.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::cli::{Resources, StepOptions};
use crate::progress::Events;

/// Groups of builders that were killed are removed when they are this old and empty.
const STALE_AGE: Duration = Duration::from_secs(3600);
const PREFIX: &str = "rbuild-";

/// Makes groups; one per build.
#[derive(Debug, Default)]
pub struct Groups {
    was_said: AtomicBool,
    next: AtomicU64,
}

/// Groups of one step, removed when dropped.
#[derive(Debug, Default)]
pub struct StepGroups {
    dirs: Vec<PathBuf>,
    /// File with the count of kills for want of memory.
    oom: Option<PathBuf>,
}

/// Where a controller's groups are.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Hierarchy {
    /// Mount point.
    at: PathBuf,
    /// Path of this process in it, without leading `/`.
    own: String,
    is_v2: bool,
}

/// Files to write in a group, by controller.
type Settings = BTreeMap<&'static str, Vec<(&'static str, String)>>;

impl Groups {
    /// Groups with the limits that were asked for, and their open `cgroup.procs` files.
    pub fn for_step(&self, options: &StepOptions, events: &Events) -> (StepGroups, Vec<OwnedFd>) {
        let (mut groups, mut joined) = (StepGroups::default(), Vec::new());
        if options.resources.is_empty() && options.cgroup_parent.is_none() {
            return (groups, joined);
        }
        let name = format!("{PREFIX}{}-{}", std::process::id(), self.next.fetch_add(1, Ordering::Relaxed));
        let hierarchies = hierarchies();
        let mut missing = Vec::new();
        for is_v2 in [true, false] {
            let wanted = settings(&options.resources, is_v2);
            let place = |controller: &str| hierarchies.get(controller).filter(|found| found.is_v2 == is_v2);
            let mut by_place: BTreeMap<PathBuf, (Hierarchy, Settings)> = BTreeMap::new();
            for (controller, files) in wanted {
                match place(controller) {
                    Some(found) => {
                        let entry = by_place.entry(found.at.clone());
                        let (_, settings) = entry.or_insert_with(|| (found.clone(), Settings::new()));
                        settings.insert(controller, files);
                    }
                    None if !hierarchies.contains_key(controller) && is_v2 => {
                        missing.push(format!("{controller}: this machine has no such control groups"));
                    }
                    None => {}
                }
            }
            if options.resources.is_empty()
                && let Some(found) = hierarchies.values().find(|found| found.is_v2 == is_v2)
            {
                by_place.insert(found.at.clone(), (found.clone(), Settings::new()));
            }
            for (hierarchy, settings) in by_place.into_values() {
                match make(&hierarchy, options.cgroup_parent.as_deref(), &name, &settings) {
                    Ok((dir, procs)) => {
                        if settings.contains_key("memory") {
                            let file = if is_v2 { "memory.events" } else { "memory.oom_control" };
                            groups.oom = Some(dir.join(file));
                        }
                        groups.dirs.push(dir);
                        joined.push(procs);
                    }
                    Err((path, error)) => {
                        let names: Vec<&str> = settings.keys().copied().collect();
                        missing.push(format!("{}: {}: {error}", names.join(", "), path.display()));
                    }
                }
            }
        }
        if !missing.is_empty() && !self.was_said.swap(true, Ordering::Relaxed) {
            events.remark(format!(
                "limits that are not enforced here: {} (run as root, or in a control group that is delegated to you)",
                missing.join("; ")
            ));
        }
        (groups, joined)
    }
}

impl Groups {
    /// Says once that nothing of what was asked for is set, where there are neither control groups nor mounts.
    pub fn not_in_chroot(&self, options: &StepOptions, events: &Events) {
        let mut asked: Vec<&str> = settings(&options.resources, true).into_keys().collect();
        if options.cgroup_parent.is_some() {
            asked.push("--cgroup-parent");
        }
        if options.shm_size_bytes.is_some() {
            asked.push("--shm-size");
        }
        if !asked.is_empty() && !self.was_said.swap(true, Ordering::Relaxed) {
            events.remark(format!(
                "limits that are not enforced here: {} (isolation `chroot` has no control groups and mounts nothing; \
                 --ulimit works)",
                asked.join(", ")
            ));
        }
    }
}

impl StepGroups {
    /// True when the kernel killed something in them for want of memory.
    pub fn ran_out_of_memory(&self) -> bool {
        let text = self.oom.as_ref().and_then(|file| fs::read_to_string(file).ok()).unwrap_or_default();
        let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        count.and_then(|count| count.trim().parse::<u64>().ok()).is_some_and(|count| count > 0)
    }
}

impl Drop for StepGroups {
    fn drop(&mut self) {
        for dir in &self.dirs {
            // The kernel lets go of the dead a moment after they are reaped. What stays is empty, and goes with a later step.
            for _ in 0..50 {
                match fs::remove_dir(dir) {
                    Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                        std::thread::sleep(Duration::from_millis(2));
                    }
                    _ => break,
                }
            }
        }
    }
}

/// Makes a group with its settings, in the first place that has the controllers.
fn make(
    hierarchy: &Hierarchy,
    parent: Option<&str>,
    name: &str,
    settings: &Settings,
) -> Result<(PathBuf, OwnedFd), (PathBuf, io::Error)> {
    let own = hierarchy.at.join(&hierarchy.own);
    let parents: Vec<PathBuf> = match parent {
        Some(path) => vec![hierarchy.at.join(path.trim_start_matches('/'))],
        // A version 2 group has processes or limited children, not both: ours has us.
        None if hierarchy.is_v2 && !hierarchy.own.is_empty() => {
            own.parent().map(Path::to_path_buf).into_iter().chain([own.clone()]).collect()
        }
        None => vec![own],
    };
    let mut worst = None;
    for above in parents {
        if parent.is_some()
            && let Err(error) = fs::create_dir_all(&above)
        {
            return Err((above, error));
        }
        remove_stale(&above);
        let dir = above.join(name);
        match fill(&above, &dir, hierarchy.is_v2, settings) {
            Ok(procs) => return Ok((dir, procs)),
            Err(error) => {
                let _ = fs::remove_dir(&dir);
                worst.get_or_insert((dir, error));
            }
        }
    }
    Err(worst.unwrap_or_else(|| (hierarchy.at.clone(), io::ErrorKind::NotFound.into())))
}

fn fill(above: &Path, dir: &Path, is_v2: bool, settings: &Settings) -> io::Result<OwnedFd> {
    fs::create_dir(dir)?;
    for (controller, files) in settings {
        if is_v2 && files.iter().any(|(file, _)| !dir.join(file).exists()) {
            fs::write(above.join("cgroup.subtree_control"), format!("+{controller}"))?;
        }
        if !is_v2 && *controller == "cpuset" {
            // New version 1 groups have neither, and take nobody in before they do.
            for file in ["cpuset.cpus", "cpuset.mems"] {
                fs::write(dir.join(file), fs::read(above.join(file))?)?;
            }
        }
        for (file, value) in files {
            match fs::write(dir.join(file), value) {
                // A kernel that does not account swap has none of this file.
                Err(error) if file.contains("sw") && error.kind() == io::ErrorKind::NotFound => {}
                other => other?,
            }
        }
    }
    Ok(OpenOptions::new().write(true).open(dir.join("cgroup.procs"))?.into())
}

fn remove_stale(above: &Path) {
    let Ok(entries) = fs::read_dir(above) else { return };
    for entry in entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(PREFIX)) {
        let age = entry.metadata().and_then(|meta| meta.modified()).ok().and_then(|at| at.elapsed().ok());
        if age.is_some_and(|age| age > STALE_AGE) {
            // Refused while somebody is in it.
            let _ = fs::remove_dir(entry.path());
        }
    }
}

/// What the limits are called.
fn settings(resources: &Resources, is_v2: bool) -> Settings {
    let mut settings = Settings::new();
    let mut set = |controller, file, value: Option<String>| {
        if let Some(value) = value {
            settings.entry(controller).or_default().push((file, value));
        }
    };
    let text = |number: Option<u64>| number.map(|number| number.to_string());
    let quota = resources.cpu_quota_us;
    let period = resources.cpu_period_us;
    if is_v2 {
        set("memory", "memory.max", text(resources.memory_bytes));
        // The whole step: what is left of one that lost a process is of no use.
        set("memory", "memory.oom.group", resources.memory_bytes.map(|_| "1".to_owned()));
        let swap = resources.memory_swap_bytes.map(|both| match both {
            Some(both) => both.saturating_sub(resources.memory_bytes.unwrap_or(0)).to_string(),
            None => "max".to_owned(),
        });
        set("memory", "memory.swap.max", swap);
        let max = quota.map_or_else(|| "max".to_owned(), |quota| quota.to_string());
        let cpu =
            (quota.is_some() || period.is_some()).then(|| format!("{max} {}", period.unwrap_or(100_000)));
        set("cpu", "cpu.max", cpu);
        // 2..=262144 shares are 1..=10000 of weight.
        let weight = |shares: u64| 1 + (shares.clamp(2, 262_144) - 2) * 9_999 / 262_142;
        set("cpu", "cpu.weight", resources.cpu_shares.map(|shares| weight(shares).to_string()));
    } else {
        set("memory", "memory.limit_in_bytes", text(resources.memory_bytes));
        let swap = resources
            .memory_swap_bytes
            .map(|both| both.map_or_else(|| "-1".to_owned(), |bytes| bytes.to_string()));
        set("memory", "memory.memsw.limit_in_bytes", swap);
        set("cpu", "cpu.cfs_period_us", text(period));
        set("cpu", "cpu.cfs_quota_us", text(quota));
        set("cpu", "cpu.shares", text(resources.cpu_shares));
    }
    set("pids", "pids.max", text(resources.pids));
    set("cpuset", "cpuset.cpus", resources.cpuset_cpus.clone());
    set("cpuset", "cpuset.mems", resources.cpuset_mems.clone());
    settings
}

/// Controllers of this machine and where they are.
fn hierarchies() -> BTreeMap<String, Hierarchy> {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let mut found = parse_hierarchies(&read("/proc/self/mountinfo"), &read("/proc/self/cgroup"));
    if let Some(unified) = found.remove("") {
        let controllers = fs::read_to_string(unified.at.join("cgroup.controllers")).unwrap_or_default();
        for controller in controllers.split_whitespace() {
            found.entry(controller.to_owned()).or_insert_with(|| unified.clone());
        }
    }
    found
}

/// The version 2 hierarchy is under the empty name.
fn parse_hierarchies(mounts: &str, own: &str) -> BTreeMap<String, Hierarchy> {
    let mut found = BTreeMap::new();
    let own: Vec<(&str, &str)> = own
        .lines()
        .filter_map(|line| {
            let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
            Some((controllers, path))
        })
        .collect();
    for line in mounts.lines() {
        let Some((before, after)) = line.split_once(" - ") else { continue };
        let (before, after): (Vec<&str>, Vec<&str>) =
            (before.split(' ').collect(), after.split(' ').collect());
        let (Some(root), Some(at), Some(kind)) = (before.get(3), before.get(4), after.first()) else {
            continue;
        };
        let mut add = |controller: &str, is_v2| {
            let path = own.iter().find(|(names, _)| match is_v2 {
                true => names.is_empty(),
                false => names.split(',').any(|name| name == controller),
            });
            let Some((_, path)) = path else { return };
            // Outside of what is mounted, as in a container with another root: then the mount's root has to do.
            let below = if *root == "/" { Some(*path) } else { path.strip_prefix(root) };
            let own = below.unwrap_or_default().trim_start_matches('/').to_owned();
            found.entry(controller.to_owned()).or_insert(Hierarchy { at: PathBuf::from(at), own, is_v2 });
        };
        match *kind {
            "cgroup2" => add("", true),
            "cgroup" => {
                let options = after.get(2).copied().unwrap_or_default();
                let known = ["memory", "pids", "cpu", "cpuset"];
                options.split(',').filter(|name| known.contains(name)).for_each(|name| add(name, false));
            }
            _ => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_are_found_in_pure_hybrid_and_nested_layouts() {
        let unified = "30 24 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n";
        let found = parse_hierarchies(unified, "0::/user.slice/a.scope\n");
        let wanted = Hierarchy { at: "/sys/fs/cgroup".into(), own: "user.slice/a.scope".into(), is_v2: true };
        assert_eq!(found[""], wanted);
        let hybrid = "31 24 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
            32 24 0:28 /docker/x /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n\
            33 24 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let own = "4:memory:/m/x\n3:cpu,cpuacct:/docker/x/y\n0::/\n";
        let found = parse_hierarchies(hybrid, own);
        assert_eq!((found["memory"].own.as_str(), found["memory"].is_v2), ("m/x", false));
        assert_eq!(found["cpu"].own, "y");
        assert_eq!(found[""].own, "");
        assert!(parse_hierarchies("nonsense\n - cgroup2\n", "x").is_empty());
    }

    #[test]
    fn limits_have_other_names_in_each_version() {
        let resources = Resources {
            memory_bytes: Some(64),
            memory_swap_bytes: Some(Some(100)),
            pids: Some(5),
            cpu_shares: Some(1024),
            cpu_quota_us: Some(5000),
            ..Resources::default()
        };
        let v2 = settings(&resources, true);
        assert!(v2["memory"].contains(&("memory.swap.max", "36".to_owned())));
        assert_eq!(v2["cpu"], [("cpu.max", "5000 100000".to_owned()), ("cpu.weight", "39".to_owned())]);
        let v1 = settings(&resources, false);
        assert!(v1["memory"].contains(&("memory.memsw.limit_in_bytes", "100".to_owned())));
        assert_eq!(v1["pids"], [("pids.max", "5".to_owned())]);
    }
}
