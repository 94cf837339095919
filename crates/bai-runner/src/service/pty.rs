//! Services whose protocol is `pty`: each connection gets a program on a terminal of its own, and raw bytes both ways.
//!
//! Invariants: a connection that ends ends its program, a program that ends ends its connection; there are at most
//! [`MAX_CONNECTIONS`] of them.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use crate::terminal::Shell;

const MAX_CONNECTIONS: usize = 16;
/// Pause after the system had no descriptor for a connection.
const AFTER_FAILURE: Duration = Duration::from_millis(100);

/// Listens on a port of the session from now on.
///
/// # Errors
/// When the port is taken, or there is no thread to be had.
pub fn serve(port: u16, mut command: Command) -> io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
    let count = Arc::new(AtomicUsize::new(0));
    thread::Builder::new().spawn(move || {
        loop {
            let Ok((stream, _)) = listener.accept() else {
                thread::sleep(AFTER_FAILURE);
                continue;
            };
            let place = Place::take(&count);
            // Whoever gets no program sees the connection end.
            if let Some(place) = place
                && let Ok(shell) = Shell::spawn(&mut command)
            {
                _ = thread::Builder::new().spawn(move || {
                    let _place = place;
                    // How a connection ends is nobody's concern.
                    _ = connect(shell, &stream);
                });
            }
        }
    })?;
    Ok(())
}

/// One of the connections that there may be.
struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(count: &Arc<AtomicUsize>) -> Option<Self> {
        let place = Self(Arc::clone(count));
        (count.fetch_add(1, Ordering::SeqCst) < MAX_CONNECTIONS).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

fn connect(shell: Shell, stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut screen = File::from(shell.master().try_clone_to_owned()?);
    let (mut keyboard, mut viewer) = (screen.try_clone()?, stream.try_clone()?);
    thread::scope(|scope| -> io::Result<()> {
        thread::Builder::new().spawn_scoped(scope, move || {
            // Its error is the hang-up after the program's end.
            _ = io::copy(&mut screen, &mut viewer);
            _ = viewer.shutdown(Shutdown::Both);
        })?;
        let mut typist = stream;
        _ = io::copy(&mut typist, &mut keyboard);
        drop(keyboard);
        shell.bury();
        Ok(())
    })
}
