//! `bai dbshell`: the database's own shell (`http-api.md` 5.7).

use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail};
use bai_model::image_ref::unquote;

use crate::site::SiteArgs;

/// Of the client in a container; it speaks to newer servers too.
const IMAGE: &str = "postgres:9.6-alpine";

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  bai dbshell                                     psql or sqlite3, whichever the site needs
  bai dbshell -- -c 'select count(*) from kernels'")]
pub struct Args {
    #[command(flatten)]
    site: SiteArgs,
    /// Run psql in a container
    #[arg(short, long)]
    dockerize: bool,
    /// The container's network
    #[arg(long, value_name = "NAME", default_value = "backend_ai_default")]
    docker_network: String,
    /// The database's host in that network
    #[arg(long, value_name = "HOST", default_value = "backendai-db")]
    docker_dbaddr: String,
    /// For the shell
    #[arg(last = true)]
    arguments: Vec<String>,
}

/// Becomes the shell.
///
/// # Errors
/// When it is not installed.
pub fn run(args: &Args) -> Result<ExitCode> {
    let site = args.site.choose()?.site;
    let mut command = command(args, site.database().expose())?;
    let program = command.get_program().to_string_lossy().into_owned();
    let error = command.args(&args.arguments).exec();
    Err(error).with_context(|| format!("cannot run {program}; is it installed?"))
}

/// The password goes by the environment: everybody can read the arguments of a process.
fn command(args: &Args, database: &str) -> Result<Command> {
    if let Some(path) = database.strip_prefix("sqlite://") {
        if args.dockerize {
            bail!("--dockerize is for PostgreSQL, and the database is the file {path}");
        }
        let mut command = Command::new("sqlite3");
        command.arg(path);
        return Ok(command);
    }
    let (_, rest) = database.split_once("://").context("the database has no shell")?;
    let (credentials, place) = rest.rsplit_once('@').unwrap_or(("", rest));
    let (user, password) = credentials.split_once(':').unwrap_or((credentials, ""));
    let at = if user.is_empty() { "" } else { "@" };
    let mut command = if args.dockerize {
        let path = place.find('/').map_or("", |start| &place[start..]);
        let mut command = Command::new("docker");
        command.args(["run", "--rm", "-i", "-t", "-e", "PGPASSWORD"]);
        command.args(["--network", &args.docker_network, IMAGE, "psql"]);
        command.arg(format!("postgres://{user}{at}{}{path}", args.docker_dbaddr));
        command
    } else {
        let mut command = Command::new("psql");
        command.arg(format!("postgres://{user}{at}{place}"));
        command
    };
    if !password.is_empty() {
        command.env("PGPASSWORD", unquote(password).as_str());
    }
    Ok(command)
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Shell {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn the_password_is_not_among_the_arguments() {
        const DATABASE: &str = "postgres://post%20gres:p%40ss@db:5432/backend";
        for (arguments, program, url) in [
            (&["x"][..], "psql", "postgres://post%20gres@db:5432/backend"),
            (
                &["x", "-d"],
                "docker",
                "postgres://post%20gres@backendai-db/backend",
            ),
        ] {
            let command = command(&Shell::parse_from(arguments).args, DATABASE).expect("a command");
            assert_eq!(command.get_program(), program);
            let arguments: Vec<_> = command.get_args().collect();
            assert_eq!(arguments.last().and_then(|last| last.to_str()), Some(url));
            let shown = format!("{arguments:?}");
            assert!(!shown.contains("p%40ss") && !shown.contains("p@ss"), "{shown}");
            let environment: Vec<_> = command.get_envs().collect();
            assert_eq!(environment, [("PGPASSWORD".as_ref(), Some("p@ss".as_ref()))]);
        }
    }
}
