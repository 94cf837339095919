//! The command line: parsing, logging, exit codes.

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use crate::cmd;
use crate::output::say;

const EXAMPLES: &str = "\
Examples:
  bai run python -c 'print(6*7)'        run code in a new session and end it
  bai up                                keep a server running on this machine
  eval \"$(bai env)\"                     point this shell's clients at it";

/// A compute-session manager: isolated sessions of Python, shell, C and more, on one machine or many.
#[derive(Debug, Parser)]
#[command(name = "bai", version, after_help = EXAMPLES)]
struct Cli {
    /// Log more to stderr: -v what happens, -vv everything. BAI_LOG takes filters such as `bai_core=debug`
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run code or files in a session
    Run(Box<cmd::run::Args>),
    /// Keep a server running on this machine
    Up(cmd::up::Args),
    /// Serve a site's API, as its manager.toml says
    Gateway(cmd::gateway::Args),
    /// Run sessions of a site on this host, as its agent.toml says
    Agent(cmd::agent::Args),
    /// Let administrators start and stop the agent of this host from afar
    Watcher(cmd::watcher::Args),
    /// Print the settings that point clients at the server of this machine
    Env(cmd::env::Args),
    /// Offer more images to sessions
    Image(cmd::image::Args),
    /// Look at and change what a server is configured with: images, aliases, registries
    Etcd(cmd::etcd::Args),
    /// Show the database's schema and bring it up to date
    Schema(cmd::schema::Args),
    /// Load rows into the database
    Fixture(cmd::fixture::Args),
    /// Open the database in its own shell
    Dbshell(cmd::dbshell::Args),
    /// Look for what is wrong with a site, and repair it
    Doctor(cmd::doctor::Args),
    /// Print a new random keypair
    GenKeypair(cmd::gen_keypair::Args),
    /// Simulate many agents, to measure a manager with them
    SimulateAgents(cmd::simulate_agents::Args),
}

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    // Daemons start their logs themselves, and the manager changes its user before it has threads.
    if let Command::Gateway(args) = cli.command {
        return ended(cmd::gateway::run(&args, cli.verbose));
    }
    if let Command::Agent(args) = cli.command {
        return ended(cmd::agent::run(&args, cli.verbose));
    }
    if let Command::Watcher(args) = cli.command {
        return ended(cmd::watcher::run(&args, cli.verbose));
    }
    start_logging(cli.verbose, matches!(cli.command, Command::Up(_)));
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            say(&format!("bai: cannot start: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(async {
        match cli.command {
            Command::Run(args) => cmd::run::run(*args).await,
            Command::Up(args) => cmd::up::run(args).await.map(|()| ExitCode::SUCCESS),
            Command::Gateway(_) | Command::Agent(_) | Command::Watcher(_) => {
                unreachable!("they have runtimes of their own")
            }
            Command::Env(args) => cmd::env::run(&args).map(|()| ExitCode::SUCCESS),
            Command::Image(args) => cmd::image::run(args).await,
            Command::Etcd(args) => cmd::etcd::run(args).await,
            Command::Schema(args) => cmd::schema::run(args).await,
            Command::Fixture(args) => cmd::fixture::run(args).await,
            Command::Dbshell(args) => cmd::dbshell::run(&args),
            Command::Doctor(args) => cmd::doctor::run(args).await,
            Command::GenKeypair(args) => cmd::gen_keypair::run(&args).map(|()| ExitCode::SUCCESS),
            Command::SimulateAgents(args) => {
                cmd::simulate_agents::run(args).await.map(|()| ExitCode::SUCCESS)
            }
        }
    });
    // What still blocks (a read of the terminal, say) must not hold the exit up.
    runtime.shutdown_background();
    ended(result)
}

fn ended(result: anyhow::Result<ExitCode>) -> ExitCode {
    result.unwrap_or_else(|error| {
        say(&format!("bai: {error:#}"));
        ExitCode::FAILURE
    })
}

fn start_logging(verbose: u8, is_server: bool) {
    let level = match (verbose, is_server) {
        // What the machine refuses is said in one line by the command itself.
        (0, false) => "warn,bai_agent::runtime=error",
        (0, true) => "info",
        (1, _) => "info,bai=debug,bai_core=debug,bai_gateway=debug,bai_agent=debug",
        _ => "trace",
    };
    let filter = EnvFilter::try_from_env("BAI_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    let logging = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false);
    // A program that embeds this one may have its own.
    _ = logging.try_init();
}
