//! From a device to what the sandbox mounts.
//!
//! Root of the host gives a step a node of its own, with the owner and mode that the description says (everybody's, and
//! the step's user's, unless it says otherwise). In a user namespace such a node would not open: there the host's node is
//! mounted, and the step's processes keep the groups of who builds, which may be what lets them open it.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rbuild_frontend::graph::RunOp;
use rbuild_sandbox::{DeviceNode, MountSource, Rung, StepMount};
use rustix::fs::{Access, AtFlags, CWD, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::document::{Edits, HostMount, Node};
use super::registry::Device;
use super::{DeviceError, Devices};

/// What a step gets with its devices.
#[derive(Debug, Default)]
pub struct Lent {
    /// Nodes and files.
    pub mounts: Vec<StepMount>,
    /// Variables.
    pub env: Vec<(String, String)>,
    /// Groups of its processes.
    pub groups: Vec<u32>,
    /// It has nodes of the host, which the groups of who builds may be needed for.
    pub has_host_nodes: bool,
    /// What whoever builds should know.
    pub notes: Vec<String>,
}

impl Devices {
    /// Everything that the devices a step asks for consist of.
    pub fn lend(&self, op: &RunOp, rung: Rung) -> Result<Lent, DeviceError> {
        let mut lent = Lent::default();
        if op.devices.is_empty() {
            return Ok(lent);
        }
        let granted = self.of(&op.devices)?;
        for name in granted.missing {
            lent.notes.push(format!("there is no device {name}: the step runs without it"));
        }
        let makes_nodes = rung == Rung::Root && !rbuild_sandbox::in_user_namespace();
        let mut files: Vec<&Path> = Vec::new();
        for (name, device) in &granted.devices {
            let is_new = !files.contains(&&*device.file);
            let lending = Lending { name, device, makes_nodes };
            for edits in device.edits().into_iter().skip(usize::from(!is_new)) {
                lending.add(edits, &mut lent)?;
            }
            files.push(&device.file);
            let taken = op
                .mounts
                .iter()
                .filter_map(|mount| mount.target())
                .find(|target| lent.mounts.iter().any(|mount| mount.target == *target));
            if let Some(path) = taken {
                return Err(DeviceError::Taken { name: name.clone(), path: path.to_owned() });
            }
        }
        Ok(lent)
    }
}

struct Lending<'a> {
    name: &'a str,
    device: &'a Device,
    makes_nodes: bool,
}

impl Lending<'_> {
    fn add(&self, edits: &Edits, lent: &mut Lent) -> Result<(), DeviceError> {
        if let Some(what) = edits.refused() {
            let file = self.device.file.to_path_buf();
            return Err(DeviceError::Refused { name: self.name.to_owned(), file, what });
        }
        for variable in &edits.env {
            let (name, value) = variable.split_once('=').unwrap_or((variable, ""));
            lent.env.retain(|(known, _)| known != name);
            lent.env.push((name.to_owned(), value.to_owned()));
        }
        for gid in edits.additional_gids.iter().filter(|gid| **gid != 0) {
            if self.makes_nodes {
                lent.groups.push(*gid);
            }
        }
        for node in &edits.device_nodes {
            let source = self.node(node, lent)?;
            // Several devices may share one, as all of a driver's share its control node.
            lent.mounts.retain(|mount| mount.target != node.path);
            lent.mounts.push(StepMount { target: node.path.clone(), source, read_only: false });
        }
        for mount in &edits.mounts {
            let source = self.tree(mount)?;
            let target = mount.container_path.clone();
            lent.mounts.retain(|mount| mount.target != target);
            lent.mounts.push(StepMount { target, source, read_only: mount.has("ro") });
        }
        Ok(())
    }

    fn node(&self, node: &Node, lent: &mut Lent) -> Result<MountSource, DeviceError> {
        let path = PathBuf::from(if node.host_path.is_empty() { &node.path } else { &node.host_path });
        let (reads, writes) = match node.permissions.as_str() {
            "" => (true, true),
            "none" => (false, false),
            given => (given.contains('r'), given.contains('w')),
        };
        if !(reads && writes) {
            let what =
                "there is no control group for devices: what is withheld here, root of the step can do";
            lent.notes.push(format!("permissions `{}` of {}: {what}", node.permissions, node.path));
        }
        let is_described = !node.kind.is_empty() && node.major != 0;
        if is_described && self.makes_nodes {
            let is_block = node.kind == "b";
            return Ok(MountSource::Node(self.own(node, is_block, node.major, node.minor, (reads, writes))));
        }
        let host = self.open(&path)?;
        let stat = rustix::fs::fstat(&host).map_err(|errno| self.host(&path, errno))?;
        let (major, minor) = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
        let is_block = match FileType::from_raw_mode(stat.st_mode) {
            FileType::BlockDevice => true,
            FileType::CharacterDevice => false,
            _ => return Err(self.other(&path)),
        };
        let is_kind = node.kind.is_empty() || (node.kind == "b") == is_block;
        if !is_kind || (node.major != 0 && (node.major, node.minor) != (major, minor)) {
            return Err(self.other(&path));
        }
        if self.makes_nodes {
            return Ok(MountSource::Node(self.own(node, is_block, major, minor, (reads, writes))));
        }
        let wanted = [(reads, Access::READ_OK), (writes, Access::WRITE_OK)];
        let access =
            wanted.into_iter().filter(|(is_wanted, _)| *is_wanted).map(|(_, access)| access).collect();
        rustix::fs::accessat(CWD, &path, access, AtFlags::EACCESS)
            .map_err(|errno| self.host(&path, errno))?;
        lent.has_host_nodes = true;
        Ok(MountSource::Device { node: Arc::new(host) })
    }

    fn own(
        &self,
        node: &Node,
        is_block: bool,
        major: u32,
        minor: u32,
        (reads, writes): (bool, bool),
    ) -> DeviceNode {
        let withheld = if reads { 0 } else { 0o444 } | if writes { 0 } else { 0o222 };
        let mode = node.file_mode.unwrap_or(0o666) & 0o777 & !withheld;
        DeviceNode { is_block, major, minor, mode, uid: node.uid, gid: node.gid }
    }

    fn tree(&self, mount: &HostMount) -> Result<MountSource, DeviceError> {
        let root = Arc::new(self.open(Path::new(&mount.host_path))?);
        Ok(MountSource::Host { root, executable: !mount.has("noexec") })
    }

    /// Paths of a description are the host administrator's own, so links are followed.
    fn open(&self, path: &Path) -> Result<OwnedFd, DeviceError> {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| self.host(path, errno))
    }

    fn host(&self, path: &Path, errno: Errno) -> DeviceError {
        DeviceError::Host { name: self.name.to_owned(), path: path.to_owned(), source: errno.into() }
    }

    fn other(&self, path: &Path) -> DeviceError {
        let file = self.device.file.to_path_buf();
        DeviceError::OtherDevice { name: self.name.to_owned(), path: path.to_owned(), file }
    }
}
