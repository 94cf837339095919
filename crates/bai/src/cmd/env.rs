//! `bai env`: shell settings for clients of this machine's server.

use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::json;

use super::data_dir;
use crate::credentials::{Credentials, load_endpoint};
use crate::output::line;

const EXAMPLES: &str = "\
Examples:
  eval \"$(bai env)\"               as the superadmin
  eval \"$(bai env --user)\"        as the ordinary user
  bai env --json | jq .endpoint";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Data directory of the server
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// The ordinary user's keypair instead of the superadmin's
    #[arg(long)]
    user: bool,
    /// A JSON object instead of shell commands
    #[arg(long)]
    json: bool,
}

/// # Errors
/// When no server was started on the directory.
pub fn run(args: &Args) -> Result<()> {
    let data_dir = data_dir(args.data_dir.clone())?;
    let endpoint = load_endpoint(&data_dir)?;
    let credentials = Credentials::load(&data_dir)?;
    let credentials =
        credentials.with_context(|| format!("{} has no credentials.json", data_dir.display()))?;
    let account = if args.user {
        credentials.user
    } else {
        credentials.superadmin
    };
    if args.json {
        let view = json!({
            "endpoint": endpoint, "access_key": account.access_key, "secret_key": account.secret_key,
        });
        return Ok(line(&view.to_string())?);
    }
    line(&format!("export BACKEND_ENDPOINT='{endpoint}'"))?;
    // Clients from 19.09 on would look for a console server otherwise.
    line("export BACKEND_ENDPOINT_TYPE='api'")?;
    line(&format!("export BACKEND_ACCESS_KEY='{}'", account.access_key))?;
    Ok(line(&format!(
        "export BACKEND_SECRET_KEY='{}'",
        account.secret_key
    ))?)
}
