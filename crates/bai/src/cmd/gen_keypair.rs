//! `bai gen-keypair`: a new random keypair, printed and stored nowhere.

use anyhow::Result;
use bai_model::{AccessKey, SecretKey};
use serde_json::json;

use crate::output::line;
use crate::system::SystemRandom;

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  bai gen-keypair --json")]
pub struct Args {
    /// A JSON object instead of two lines
    #[arg(long)]
    json: bool,
}

/// # Errors
/// When stdout is gone.
pub fn run(args: &Args) -> Result<()> {
    let access_key = AccessKey::generate(&SystemRandom);
    let secret_key = SecretKey::generate(&SystemRandom);
    if args.json {
        let view = json!({ "access_key": access_key, "secret_key": secret_key.expose() });
        return Ok(line(&view.to_string())?);
    }
    line(&format!(
        "Access Key: {access_key} ({} bytes)",
        access_key.as_str().len()
    ))?;
    Ok(line(&format!(
        "Secret Key: {} ({} bytes)",
        secret_key.expose(),
        secret_key.expose().len()
    ))?)
}
