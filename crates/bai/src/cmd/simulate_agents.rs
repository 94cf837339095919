//! `bai simulate-agents`: many agents in one process that run nothing, to see what a manager makes of them.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use bai_model::ResourceSlot;
use bai_proto::zmtp::Endpoint;
use serde_json::json;

use crate::config::HostPort;
use crate::daemon::end::End;
use crate::daemon::limit::raise_open_files;
use crate::output::line;
use crate::simulation::Simulation;

const EXAMPLES: &str = "\
Examples:
  bai simulate-agents --count 1000 --manager 127.0.0.1:5002
  bai simulate-agents --count 3 --manager 127.0.0.1:5002 --image index.docker.io/lablup/python:3.6-ubuntu18.04

MANAGER is where the manager takes events, event-listen-addr in its manager.toml. Sessions that it places on these agents
start at once and run nothing, so never simulate agents of a site that people use. A line is printed when all are
connected; SIGINT and SIGTERM let them leave.";

/// Open files of one agent: where it listens, its call from the manager, its events; and some beside.
const FILES_OF_AN_AGENT: u64 = 3;
const OTHER_FILES: u64 = 100;
/// Characters of an agent's name that may be chosen.
const MAX_PREFIX: usize = 48;

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// How many
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    count: u16,
    /// Where the manager takes events
    #[arg(long, value_name = "HOST:PORT")]
    manager: String,
    /// The address on which the agents are called, each on a port of its own
    #[arg(long, value_name = "ADDR", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    listen: IpAddr,
    /// Let other hosts call them, where ADDR is not this host's own
    #[arg(long)]
    allow_public: bool,
    /// What their names begin with
    #[arg(long, default_value = "i-simulated-")]
    prefix: String,
    #[arg(long, default_value = "local")]
    region: String,
    /// Processors of each
    #[arg(long, default_value_t = 64)]
    cpu: u32,
    /// Memory of each
    #[arg(long, default_value = "256g")]
    mem: bai_model::BinarySize,
    /// An image that they have, by its full name, perhaps with its digest; may be repeated
    #[arg(long = "image", value_name = "NAME[=DIGEST]")]
    images: Vec<String>,
    /// Seconds between heartbeats
    #[arg(long, value_name = "SECONDS", default_value_t = 3.0)]
    beat: f64,
    /// Write down when each session was to be made: microseconds since 1970, a line each
    #[arg(long, value_name = "FILE")]
    creations: Option<PathBuf>,
}

/// Simulates until SIGINT or SIGTERM.
///
/// # Errors
/// When the arguments make no sense or this process may not open enough files.
pub async fn run(args: Args) -> Result<()> {
    let mut end = End::listen()?;
    let count = usize::from(args.count);
    let simulation = simulation(&args)?;
    allow_files(OTHER_FILES + FILES_OF_AN_AGENT * u64::from(args.count))?;
    let agents = simulation.start(count).await?;
    let simulated = async {
        agents.connected().await;
        // Whether anybody reads it or not, the end is waited for.
        _ = line(&format!("{count} agents tell {}", simulation.manager));
        std::future::pending::<()>().await;
    };
    tokio::select! {
        _ = end.received() => {}
        () = simulated => {}
    }
    agents.stop().await;
    Ok(())
}

fn simulation(args: &Args) -> Result<Simulation> {
    if !args.listen.is_loopback() && !args.allow_public {
        bail!(
            "refusing to listen on {}, where other hosts could call these agents: pass --allow-public if they may",
            args.listen
        );
    }
    if args.listen.is_unspecified() {
        bail!(
            "--listen {} is no address that a manager can call: name one of this host",
            args.listen
        );
    }
    let is_name = |text: &str| {
        text.bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
    };
    if args.prefix.is_empty() || args.prefix.len() > MAX_PREFIX || !is_name(&args.prefix) {
        bail!("--prefix must be 1 to {MAX_PREFIX} letters, digits, dashes, dots or underscores");
    }
    if !(0.1..=3600.0).contains(&args.beat) {
        bail!("--beat must be 0.1 to 3600 seconds; it is {}", args.beat);
    }
    let manager = HostPort::parse(&args.manager);
    let manager =
        manager.with_context(|| format!("--manager must be HOST:PORT; it is {:?}", args.manager))?;
    let manager: Endpoint = format!("tcp://{manager}").parse().context("--manager")?;
    if args.mem == bai_model::BinarySize::Infinity {
        bail!("--mem must be a size such as 256g");
    }
    let slots = json!({ "cpu": args.cpu.to_string(), "mem": args.mem.to_string() });
    let image = |text: &String| match text.split_once('=') {
        Some((name, digest)) => (name.to_owned(), digest.to_owned()),
        None => (text.clone(), String::new()),
    };
    let creations = args.creations.as_ref().map(|path| {
        File::create(path).with_context(|| format!("--creations: {} cannot be written", path.display()))
    });
    Ok(Simulation {
        manager,
        listen: args.listen,
        prefix: args.prefix.clone(),
        region: args.region.clone(),
        slots: ResourceSlot::from_stored(&slots).0,
        images: args.images.iter().map(image).collect(),
        beat: Duration::from_secs_f64(args.beat),
        creations: creations.transpose()?.map(Arc::new),
    })
}

/// Lets this process open that many files.
fn allow_files(needed: u64) -> Result<()> {
    let allowed = raise_open_files().context("cannot raise the number of open files")?;
    if allowed < needed {
        bail!(
            "this process may open {allowed} files, but so many agents need {needed}: raise `ulimit -Hn`, or simulate fewer"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn refused(words: &[&str]) -> String {
        let line = Line::try_parse_from([&["x", "--manager", "127.0.0.1:5002"], words].concat());
        match line {
            Ok(line) => format!("{:#}", simulation(&line.args).expect_err("a refusal")),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        for (words, expected) in [
            (&["--count", "0"][..], "0 is not in 1..=10000"),
            (&["--count", "10001"], "10001 is not in 1..=10000"),
            (&["--manager", "nowhere"], "cannot be used multiple times"),
            (&["--listen", "192.0.2.1"], "--allow-public"),
            (
                &["--listen", "0.0.0.0", "--allow-public"],
                "no address that a manager can call",
            ),
            (&["--prefix", "a b"], "--prefix must be"),
            (&["--prefix", ""], "--prefix must be"),
            (&["--beat", "0"], "--beat must be"),
            (&["--beat", "nan"], "--beat must be"),
            (&["--mem", "inf"], "--mem must be a size"),
            (&["--creations", "/nowhere/x"], "/nowhere/x cannot be written"),
        ] {
            let text = refused(words);
            assert!(text.contains(expected), "{words:?}: {text}");
        }
        let line = Line::parse_from(["x", "--manager", "nowhere"]);
        let text = simulation(&line.args).expect_err("a refusal").to_string();
        assert_eq!(text, "--manager must be HOST:PORT; it is \"nowhere\"");
    }
}
