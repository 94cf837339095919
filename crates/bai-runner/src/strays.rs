//! What background processes print after the one that started them has ended: one thread passes it on.

use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::AsFd;
use std::sync::{Arc, mpsc};
use std::thread;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::output::Output;

/// Takes the pipes that are left over.
#[derive(Clone, Debug)]
pub struct Strays {
    outputs: mpsc::Sender<Output>,
    waker: Arc<PipeWriter>,
}

impl Strays {
    /// Starts the thread. It is there from the beginning, because a session at its limit of processes cannot start one.
    ///
    /// # Errors
    /// When there is no thread or pipe to be had.
    pub fn start() -> io::Result<Self> {
        let (outputs, arrivals) = mpsc::channel();
        let (wake, waker) = io::pipe()?;
        thread::Builder::new().spawn(move || pass_on(&arrivals, wake))?;
        Ok(Self {
            outputs,
            waker: Arc::new(waker),
        })
    }

    pub fn adopt(&self, output: Output) {
        if output.pipes().next().is_some() && self.outputs.send(output).is_ok() {
            _ = (&*self.waker).write_all(&[0]);
        }
    }
}

fn pass_on(arrivals: &mpsc::Receiver<Output>, mut wake: PipeReader) {
    let mut outputs: Vec<Output> = Vec::new();
    loop {
        let watched = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let pipes = outputs.iter().flat_map(Output::pipes).map(File::as_fd);
        let mut polled: Vec<PollFd<'_>> = std::iter::once(wake.as_fd()).chain(pipes).map(watched).collect();
        match poll(&mut polled, PollTimeout::NONE) {
            Ok(_) => {}
            Err(nix::Error::EINTR) => continue,
            Err(_) => return,
        }
        let has_arrived = polled[0].any().unwrap_or(false);
        drop(polled);
        if has_arrived {
            match (wake.read(&mut [0]), arrivals.recv()) {
                (Ok(1..), Ok(output)) => outputs.push(output),
                // Nobody is left who could send one.
                _ => return,
            }
        }
        outputs.retain_mut(|output| {
            output.drain();
            output.pipes().next().is_some()
        });
    }
}
