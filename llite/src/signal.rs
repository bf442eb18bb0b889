//! Which signals a process cannot wait out.
//!
//! The kernel tells a FUSE server *that* a waiting process got a signal (FUSE_INTERRUPT), not which, and what the server
//! answers is final: EINTR from stat(2) or open(2) because a timer fired breaks programs that are right. So the process
//! is asked: a signal that ends it, or that a person sends to stop it, interrupts; SIGALRM, SIGCHLD, SIGPROF, SIGURG and
//! the like wait for the call, as they do on a local disk. (A process that waits here cannot run its handlers, so the
//! signal is still pending.)

use std::fs;

/// Whether thread `pid` should get EINTR now. A thread that cannot be seen (another PID namespace, gone) should.
pub fn wants_out(pid: u32) -> bool {
    match fs::read_to_string(format!("/proc/{pid}/status")) {
        Ok(status) => Signals::parse(&status).is_none_or(Signals::interrupts),
        Err(_) => true,
    }
}

/// Supplementary groups of a thread; none when it cannot be seen.
pub fn groups(pid: u32) -> Vec<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("Groups:"));
    line.unwrap_or_default().split_whitespace().filter_map(|group| group.parse().ok()).collect()
}

/// Sets of signals from proc_pid_status(5), signal 1 in bit 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Signals {
    pending: u64,
    blocked: u64,
    ignored: u64,
    caught: u64,
}

impl Signals {
    fn parse(status: &str) -> Option<Signals> {
        let set = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            u64::from_str_radix(line.trim(), 16).ok()
        };
        Some(Signals {
            pending: set("SigPnd:")? | set("ShdPnd:")?,
            blocked: set("SigBlk:")?,
            ignored: set("SigIgn:")?,
            caught: set("SigCgt:")?,
        })
    }

    fn interrupts(self) -> bool {
        let delivered = self.pending & !self.blocked & !self.ignored;
        // Not caught: the default action. For what is fatal the kernel adds SIGKILL by itself; what dumps core stays
        // as it is; what is ignored or stops by default does not end a call.
        let ends = !self.caught & !HARMLESS_BY_DEFAULT;
        self.pending & bit(SIGKILL) != 0 || delivered & (ends | STOP_REQUESTS) != 0
    }
}

const SIGKILL: u32 = 9;
const fn bit(signal: u32) -> u64 {
    1 << (signal - 1)
}
/// SIGHUP, SIGINT, SIGQUIT, SIGTERM: somebody wants it to stop, even if it has a handler.
const STOP_REQUESTS: u64 = bit(1) | bit(2) | bit(3) | bit(15);
/// SIGCHLD, SIGCONT, SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU, SIGURG, SIGWINCH.
const HARMLESS_BY_DEFAULT: u64 = bit(17) | bit(18) | bit(19) | bit(20) | bit(21) | bit(22) | bit(23) | bit(28);

#[cfg(test)]
mod tests {
    use super::*;

    fn signals(pending: u32, caught: bool) -> Signals {
        Signals { pending: bit(pending), caught: if caught { bit(pending) } else { 0 }, ..Signals::default() }
    }

    #[test]
    fn timers_wait_and_people_do_not() {
        for (signal, caught, out) in [
            (9, false, true),
            (2, false, true),
            (2, true, true),
            (15, true, true),
            (14, true, false),
            (14, false, true),
        ] {
            assert_eq!(signals(signal, caught).interrupts(), out, "signal {signal}, caught {caught}");
        }
        for harmless in [17, 23, 28, 20] {
            assert!(!signals(harmless, false).interrupts(), "signal {harmless}");
        }
        let blocked = Signals { blocked: bit(2), ..signals(2, false) };
        assert!(!blocked.interrupts());
    }

    #[test]
    fn reads_this_process() {
        assert!(!wants_out(std::process::id()));
        assert!(wants_out(u32::MAX));
        let text = "SigPnd:\t0000000000000100\nShdPnd:\t0000000000000000\nSigBlk:\t0\nSigIgn:\t0\nSigCgt:\t0\n";
        assert!(Signals::parse(text).unwrap().interrupts());
        assert_eq!(Signals::parse("Name:\tx\n"), None);
    }
}
