//! Gets descriptors from inside a session (`bai_proto::descriptor`).

use std::fs::File;
use std::io::{self, IoSliceMut, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bai_proto::descriptor::{Descriptor, HERE, SOCKET};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, UnixAddr, recvmsg};

/// The runner answers at once; this is for machines that are stuck.
const DEADLINE: Duration = Duration::from_secs(10);
/// Bytes of a refusal that are read.
const MAX_REFUSAL: u64 = 4096;

/// Asks the runner whose sockets are in `run_dir`. The descriptor does not block and is closed on exec.
///
/// # Errors
/// When the runner cannot be reached, or refuses; the message is its own.
pub async fn obtain(run_dir: PathBuf, wanted: Descriptor) -> io::Result<OwnedFd> {
    tokio::task::spawn_blocking(move || obtain_now(&run_dir, wanted)).await?
}

fn obtain_now(run_dir: &Path, wanted: Descriptor) -> io::Result<OwnedFd> {
    // By way of the folder, whose path may be longer than a socket's address.
    let dir = File::open(run_dir)?;
    let mut stream = UnixStream::connect(format!("/proc/self/fd/{}/{SOCKET}", dir.as_raw_fd()))?;
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.set_write_timeout(Some(DEADLINE))?;
    stream.write_all(&[wanted.to_byte()])?;
    let mut first = [0];
    match receive(&stream, &mut first)? {
        Some(descriptor) if first[0] == HERE => {
            let flags = OFlag::from_bits_retain(fcntl(&descriptor, FcntlArg::F_GETFL)?);
            fcntl(&descriptor, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
            Ok(descriptor)
        }
        _ => {
            let mut why = Vec::new();
            stream.take(MAX_REFUSAL).read_to_end(&mut why)?;
            let why = String::from_utf8_lossy(&why);
            Err(io::Error::other(match why.trim() {
                "" => "the runner ended the conversation",
                why => why,
            }))
        }
    }
}

/// The next byte, and the descriptor that came beside it.
#[expect(unsafe_code, reason = "a descriptor that was received has to be owned")]
fn receive(stream: &UnixStream, first: &mut [u8; 1]) -> io::Result<Option<OwnedFd>> {
    let mut beside = nix::cmsg_space!([RawFd; 1]);
    let mut parts = [IoSliceMut::new(first)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<UnixAddr>(stream.as_raw_fd(), &mut parts, Some(&mut beside), flags)?;
    let mut received = Vec::new();
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(descriptors) = part {
            // SAFETY: the kernel has just opened them for this process, and nobody else knows of them.
            received.extend(
                descriptors
                    .into_iter()
                    .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }),
            );
        }
    }
    Ok(received.pop())
}
