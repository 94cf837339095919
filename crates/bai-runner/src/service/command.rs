//! Which program a service is: what the image or the request says, or what is known by the service's name.

use std::process::Command;

use bai_proto::runner::ServiceRequest;

use crate::lang::Runtime;
use crate::scratch::Scratch;
use crate::terminal::login_shell;

/// A service's program.
#[derive(Debug)]
pub enum Program {
    /// It listens on the service's port itself.
    Listening(Command),
    /// Each connection to the service's port has one, on a terminal of its own.
    OnTerminal(Command),
}

/// Scripts by the names that images use. They find the port as `$PORT`, the interpreter as `$PYTHON`, and a folder for
/// their own files as `$SERVICE_DIR`. What listens does so for the session alone: the agent carries connections to it.
const KNOWN: &[(&str, &str)] = &[
    (
        "jupyter",
        r#"exec "$PYTHON" -m notebook --config="$SERVICE_DIR/jupyter_config.py""#,
    ),
    (
        "jupyterlab",
        r#"exec "$PYTHON" -m jupyterlab --config="$SERVICE_DIR/jupyter_config.py""#,
    ),
    (
        "tensorboard",
        r#"mkdir -p logs; exec "$PYTHON" -m tensorboard.main --logdir "$PWD/logs" --host 127.0.0.1 --port "$PORT""#,
    ),
    ("ttyd", r#"exec ttyd -i 127.0.0.1 -p "$PORT" "${SHELL:-/bin/sh}""#),
    (
        // Only for the session's own user, and only by a key that was put into its folder.
        "sshd",
        r#"sshd=$(PATH="$PATH:/usr/sbin:/usr/local/sbin" command -v sshd) || { echo "there is no sshd in this image"; exit 1; }
        [ -s "$HOME/.ssh/authorized_keys" ] || { echo "put a public key into .ssh/authorized_keys first"; exit 1; }
        key="$SERVICE_DIR/host_key"; [ -e "$key" ] || ssh-keygen -q -t ed25519 -N "" -f "$key" || exit 1
        exec "$sshd" -D -e -f /dev/null -h "$key" -p "$PORT" -o ListenAddress=127.0.0.1 -o PidFile=none -o UsePAM=no \
            -o StrictModes=no -o PasswordAuthentication=no -o KbdInteractiveAuthentication=no \
            -o AuthorizedKeysFile="$HOME/.ssh/authorized_keys" -o Subsystem="sftp internal-sftp""#,
    ),
];

/// The same for services whose protocol is a terminal.
const KNOWN_ON_TERMINAL: &[(&str, &str)] = &[
    ("ipython", r#"exec "$PYTHON" -m IPython"#),
    ("python", r#"exec "$PYTHON""#),
    ("node", "exec node"),
    ("julia", "exec julia"),
    ("R", "exec R --no-save"),
];
/// These are the login shell.
const SHELLS: [&str; 4] = ["terminal", "shell", "bash", "sh"];

/// Both generations of Jupyter read it. Who may connect is the gateway's to say, hence no token; connections come by names
/// that only a gateway knows.
const JUPYTER_CONFIG: &str = r#"
import os
c = get_config()
for app in (c.NotebookApp, c.ServerApp):
    app.ip = "127.0.0.1"
    app.port = int(os.environ["PORT"])
    app.port_retries = 0
    app.open_browser = False
    app.allow_root = True
    app.allow_remote_access = True
    app.token = ""
    app.password = ""
c.NotebookApp.notebook_dir = c.ServerApp.root_dir = os.environ["HOME"]
c.IdentityProvider.token = ""
"#;

/// The program of the service that is asked for. The error says that there is none.
pub fn of(request: &ServiceRequest, runtime: &Runtime) -> Result<Program, String> {
    let is_terminal = request.protocol == "pty";
    let known = if is_terminal { KNOWN_ON_TERMINAL } else { KNOWN };
    let known = known.iter().find(|(name, _)| *name == request.name);
    let given = request.command.as_deref();
    let script = match given.or(known.map(|(_, script)| *script)) {
        Some(script) => script,
        None if is_terminal && SHELLS.contains(&request.name.as_str()) => {
            return Ok(Program::OnTerminal(login_shell(runtime)));
        }
        None => {
            return Err(format!(
                "unsupported service: nothing listens on port {} of the session, and no program is known by the name {}; \
                 start one there, or use an image with the label bai.service.{}",
                request.port, request.name, request.name
            ));
        }
    };
    let folder = Scratch::named("services");
    let written = folder.write("jupyter_config.py", JUPYTER_CONFIG);
    written.map_err(|error| format!("a folder for services cannot be made: {error}"))?;
    let python = match runtime.language.name {
        "python" => runtime.path.as_str(),
        _ => "python3",
    };
    let mut command = Command::new("/bin/sh");
    command
        .args(["-c", script])
        .env_clear()
        .envs(&runtime.environ)
        .env("PORT", request.port.to_string())
        .env("PYTHON", python)
        .env("SERVICE_DIR", folder.path());
    Ok(match is_terminal {
        true => Program::OnTerminal(command),
        false => Program::Listening(command),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(name: &str, protocol: &str, command: Option<&str>) -> ServiceRequest {
        ServiceRequest {
            name: name.to_owned(),
            port: 8080,
            protocol: protocol.to_owned(),
            command: command.map(str::to_owned),
            options: serde_json::Value::Null,
        }
    }

    #[test]
    fn services_are_known_by_name_or_given() {
        let runtime = Runtime::new("python", Some("/opt/python"), &Default::default());
        let of = |name, protocol, command| of(&request(name, protocol, command), &runtime);
        let text = |program: Result<Program, String>| format!("{program:?}");
        assert!(text(of("jupyter", "http", None)).contains("notebook"));
        assert!(text(of("jupyter", "http", Some("exec mine"))).contains("exec mine"));
        assert!(text(of("ipython", "pty", None)).starts_with("Ok(OnTerminal"));
        assert!(text(of("terminal", "pty", None)).starts_with("Ok(OnTerminal"));
        for (name, protocol) in [("digits", "http"), ("terminal", "tcp"), ("ipython", "http")] {
            let error = of(name, protocol, None).expect_err("unknown");
            assert!(error.starts_with("unsupported service"), "{error}");
        }
    }
}
