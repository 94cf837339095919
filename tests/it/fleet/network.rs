//! Network namespaces for agents: each has an end of a cable, and the other ends are in one bridge of this host, whose
//! address the manager and the services are reached at. Everything is removed when it is dropped.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU8, Ordering};

use bai_testkit::services::Missing;

pub struct Network {
    /// In the names of everything, which have 15 characters at most.
    tag: String,
    third: u8,
    hosts: u8,
}

impl Network {
    /// A bridge with the address [`Network::host`].
    ///
    /// # Errors
    /// [`Missing`] when this is not root or the kernel or `ip` cannot do it.
    pub fn new() -> Result<Self, Missing> {
        static COUNT: AtomicU8 = AtomicU8::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let id = std::process::id();
        let network = Self {
            tag: format!("bai{:x}{count:x}", id & 0xff_ffff),
            third: u8::try_from(id % 250).unwrap_or_default().wrapping_add(count),
            hosts: 1,
        };
        let (bridge, address) = (network.bridge(), format!("{}/24", network.host()));
        ip(&["link", "add", &bridge, "type", "bridge"])?;
        ip(&["address", "add", &address, "dev", &bridge])?;
        ip(&["link", "set", &bridge, "up"])?;
        Ok(network)
    }

    /// The address of this host.
    pub fn host(&self) -> String {
        self.address(1)
    }

    /// One more namespace with a cable.
    ///
    /// # Errors
    /// As [`Network::new`].
    pub fn join(&mut self) -> Result<Joined, Missing> {
        self.hosts += 1;
        let name = format!("{}n{}", self.tag, self.hosts);
        let (cable, inner) = (format!("{}v{}", self.tag, self.hosts), "eth0");
        ip(&["netns", "add", &name])?;
        let peer = ["peer", "name", inner, "netns", &name];
        ip(&[&["link", "add", &cable, "type", "veth"], &peer[..]].concat())?;
        ip(&["link", "set", &cable, "master", &self.bridge(), "up"])?;
        let address = self.address(self.hosts);
        ip(&[
            "-n",
            &name,
            "address",
            "add",
            &format!("{address}/24"),
            "dev",
            inner,
        ])?;
        ip(&["-n", &name, "link", "set", inner, "up"])?;
        ip(&["-n", &name, "link", "set", "lo", "up"])?;
        Ok(Joined {
            address,
            host: self.host(),
            bridge: self.bridge(),
            path: Path::new("/run/netns").join(&name),
            name,
            cable,
        })
    }

    fn address(&self, last: u8) -> String {
        format!("10.213.{}.{last}", self.third)
    }

    fn bridge(&self) -> String {
        format!("{}b", self.tag)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // What was not made cannot be removed.
        for host in 2..=self.hosts {
            // A namespace lives as long as a process in it; its cable need not.
            _ = ip(&["link", "del", &format!("{}v{host}", self.tag)]);
            _ = ip(&["netns", "del", &format!("{}n{host}", self.tag)]);
        }
        _ = ip(&["link", "del", &self.bridge()]);
    }
}

/// The hardware address of nobody in the network.
const NOBODY: &str = "02:00:00:00:00:01";

/// A namespace in a network.
pub struct Joined {
    pub address: String,
    /// The other address, and where it is.
    host: String,
    bridge: String,
    name: String,
    /// Names it.
    pub path: PathBuf,
    cable: String,
}

impl Joined {
    /// Packets are lost from now on; no connection is told.
    pub fn unplug(&self) {
        ip(&["link", "set", &self.cable, "down"]).unwrap();
    }

    pub fn plug_in(&self) {
        ip(&["link", "set", &self.cable, "up"]).unwrap();
    }

    /// What is said here is lost from now on, and everything that is told to it arrives.
    pub fn mute(&self) {
        let host = ["replace", &self.host, "lladdr", NOBODY, "dev", "eth0"];
        ip(&[&["-n", &self.name, "neigh"], &host[..], &["nud", "permanent"]].concat()).unwrap();
    }

    /// The end of [`Joined::mute`].
    pub fn unmute(&self) {
        ip(&["-n", &self.name, "neigh", "del", &self.host, "dev", "eth0"]).unwrap();
    }

    /// What is told to it is lost from now on, and everything that it says arrives.
    pub fn deafen(&self) {
        let here = ["replace", &self.address, "lladdr", NOBODY, "dev", &self.bridge];
        ip(&[&["neigh"], &here[..], &["nud", "permanent"]].concat()).unwrap();
    }

    /// The end of [`Joined::deafen`].
    pub fn undeafen(&self) {
        ip(&["neigh", "del", &self.address, "dev", &self.bridge]).unwrap();
    }

    /// Whatever comes from this port here is lost from now on, and nothing else.
    ///
    /// # Errors
    /// [`Missing`] when the kernel cannot do it.
    pub fn lose_answers(&self, port: &str) -> Result<(), Missing> {
        self.rule("add", port)
    }

    /// The end of [`Joined::lose_answers`].
    pub fn pass_answers(&self, port: &str) {
        self.rule("del", port).unwrap();
    }

    fn rule(&self, verb: &str, port: &str) -> Result<(), Missing> {
        let those = ["ipproto", "tcp", "sport", port, "blackhole"];
        ip(&[&["-n", &self.name, "rule", verb], &those[..]].concat())
    }
}

fn ip(words: &[&str]) -> Result<(), Missing> {
    let output = Command::new("ip").args(words).output();
    let output = output.map_err(|error| Missing(format!("`ip` (iproute2) cannot be started: {error}")))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Missing(format!("`ip {}` says: {}", words.join(" "), said.trim())))
}
