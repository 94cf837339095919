//! Measures the executable beside this one (`cargo xtask bench`): [`embedded`] alone and beside a bare axum server,
//! [`cluster`] beside the original manager on the same services, [`agents`] with a thousand of them, [`docker`] beside the
//! engine itself.
//!
//! All get the same load from the same client: connections that each send one prepared request after the other. Ratios
//! within a run say something; the absolute numbers say as much about the machine and its load.

mod agents;
mod client;
mod cluster;
mod docker;
mod embedded;
mod table;

use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::{Result, bail, ensure};

#[tokio::main]
async fn main() -> Result<()> {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let names: Vec<&str> = wanted.iter().map(String::as_str).collect();
    match names[..] {
        [] => {
            embedded::measure().await?;
            cluster::measure().await?;
            agents::measure().await?;
            docker::measure().await
        }
        ["agents"] => agents::measure().await,
        ["docker"] => docker::measure().await,
        ["embedded"] => embedded::measure().await,
        ["cluster"] => cluster::measure().await,
        _ => bail!("what is to be measured: nothing for everything, or embedded, cluster, agents or docker"),
    }
}

pub(crate) fn beside_this(name: &str) -> Result<PathBuf> {
    let path = std::env::current_exe()?.with_file_name(name);
    ensure!(
        path.exists(),
        "{} is missing; `cargo xtask bench` builds it",
        path.display()
    );
    Ok(path)
}

pub(crate) fn say(text: &str) -> Result<()> {
    Ok(writeln!(io::stdout(), "{text}")?)
}
