//! Runs a program under ptrace and kills it at a chosen system call.
//!
//! A call that is killed at its entry does not happen, so a kill point is "so many calls have happened and nothing after". Between two
//! calls that change nothing outside of the process, all points leave the same state; that is why points can be counted by calls with an
//! effect. A call counts as one with an effect unless [`is_harmless`] knows better.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::ops::RangeInclusive;
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::support::Answer;

/// When to kill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum When {
    Never,
    /// At the entry of the call after this many calls.
    AfterCalls(u32),
    /// At the entry of the first call after this many calls with an effect.
    AfterEffects(u32),
}

/// Who is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Victim {
    /// The program with all its children, as when a unit's processes are killed.
    Family,
    /// The program alone; its children run to their end before the trace ends.
    Parent,
}

/// What happened.
#[derive(Debug, Default)]
pub(crate) struct Trace {
    pub(crate) killed: bool,
    pub(crate) success: bool,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    /// Calls seen, of all processes.
    pub(crate) calls: u32,
    /// Those of them that may have an effect outside of the process.
    pub(crate) effects: u32,
    /// Processes seen besides the first; threads are not.
    pub(crate) processes: u32,
    /// The calls before the kill, the last one being that which was kept from happening.
    pub(crate) last: VecDeque<String>,
}

/// Results that the kernel keeps to itself and the tracer (`include/linux/errno.h`, ERESTARTSYS to ERESTART_RESTARTBLOCK): the call has done nothing
/// and begins anew. A write to `forwarding` does so thousands of times while another namespace's change holds the kernel's lock.
const RESTARTED: RangeInclusive<i64> = -516..=-512;

/// A traced process or thread.
#[derive(Debug, Default)]
struct Task {
    /// The call it is in: whether that may have an effect.
    inside: Option<bool>,
}

/// Runs `command` with `stdin` as anybody would.
pub(crate) fn untraced(mut command: Command, stdin: &str) -> Answer {
    let output =
        command.stdin(file_of(stdin)).stdout(Stdio::piped()).stderr(Stdio::piped()).output().unwrap();
    Answer {
        success: output.status.success(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

fn file_of(text: &str) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file.rewind().unwrap();
    file
}

/// Runs `command` with `stdin`. The calling thread becomes the tracer; other threads' children are left alone.
pub(crate) fn run(mut command: Command, stdin: &str, when: When, victim: Victim) -> Trace {
    let (mut out, mut err) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
    command.stdin(file_of(stdin)).stdout(out.try_clone().unwrap()).stderr(err.try_clone().unwrap());
    // SAFETY: the closure makes one system call and allocates nothing.
    unsafe { command.pre_exec(|| Ok(ptrace::traceme()?)) };
    #[expect(clippy::zombie_processes, reason = "the tracer waits for everything of the family")]
    let child = command.spawn().unwrap();
    let main = Pid::from_raw(i32::try_from(child.id()).unwrap());
    let mut tracer = Tracer { main, when, victim, tasks: BTreeMap::new(), trace: Trace::default() };
    tracer.run();
    let mut trace = tracer.trace;
    for (file, text) in [(&mut out, &mut trace.stdout), (&mut err, &mut trace.stderr)] {
        file.rewind().unwrap();
        file.read_to_string(text).unwrap();
    }
    trace
}

struct Tracer {
    main: Pid,
    when: When,
    victim: Victim,
    tasks: BTreeMap<Pid, Task>,
    trace: Trace,
}

impl Tracer {
    fn run(&mut self) {
        let flags = Some(WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD);
        let first = waitpid(self.main, flags).unwrap();
        assert_eq!(first, WaitStatus::Stopped(self.main, Signal::SIGTRAP), "the program stops as it starts");
        let options = Options::PTRACE_O_TRACESYSGOOD
            | Options::PTRACE_O_TRACECLONE
            | Options::PTRACE_O_TRACEFORK
            | Options::PTRACE_O_TRACEVFORK
            | Options::PTRACE_O_TRACEEXEC
            | Options::PTRACE_O_EXITKILL;
        ptrace::setoptions(self.main, options).unwrap();
        self.tasks.insert(self.main, Task::default());
        resume(self.main, None);
        loop {
            match waitpid(None, flags) {
                Err(nix::Error::ECHILD) => return,
                Err(nix::Error::EINTR) => {}
                Err(error) => panic!("waitpid: {error}"),
                Ok(WaitStatus::Exited(pid, code)) => {
                    self.tasks.remove(&pid);
                    if pid == self.main {
                        self.trace.success = code == 0;
                    }
                }
                Ok(WaitStatus::Signaled(pid, ..)) => {
                    self.tasks.remove(&pid);
                }
                Ok(WaitStatus::PtraceSyscall(pid)) => {
                    if self.at_call(pid) {
                        resume(pid, None);
                    }
                }
                Ok(WaitStatus::PtraceEvent(pid, ..)) => resume(pid, None),
                Ok(WaitStatus::Stopped(pid, signal)) => {
                    // A new task of the family begins with a stop of the tracer's.
                    let begins = signal == Signal::SIGSTOP && !self.tasks.contains_key(&pid);
                    if begins {
                        self.trace.processes += u32::from(self.group(pid) == pid);
                        self.tasks.insert(pid, Task::default());
                    }
                    resume(pid, (!begins).then_some(signal));
                }
                Ok(other) => panic!("{other:?}"),
            }
        }
    }

    /// Whether the task may go on.
    fn at_call(&mut self, pid: Pid) -> bool {
        let Ok(info) = ptrace::syscall_info(pid) else { return false };
        let task = self.tasks.entry(pid).or_default();
        if info.op == libc::PTRACE_SYSCALL_INFO_ENTRY {
            // SAFETY: the kernel says by `op` which member of the union it has written.
            let entry = unsafe { info.u.entry };
            let number = i64::try_from(entry.nr).unwrap_or(-1);
            task.inside = Some(!is_harmless(number, &entry.args));
            if !self.trace.killed {
                self.trace.last.push_back(describe(pid, number, &entry.args));
                if self.trace.last.len() > 6 {
                    self.trace.last.pop_front();
                }
                let now = match self.when {
                    When::Never => false,
                    When::AfterCalls(count) => self.trace.calls == count,
                    When::AfterEffects(count) => self.trace.effects == count,
                };
                if now {
                    self.kill();
                    return self.victim == Victim::Parent && self.group(pid) != self.main;
                }
                self.trace.calls += 1;
            }
        } else if info.op == libc::PTRACE_SYSCALL_INFO_EXIT
            && let Some(may_have_effect) = task.inside.take()
            && !self.trace.killed
        {
            // SAFETY: the kernel says by `op` which member of the union it has written.
            let result = unsafe { info.u.exit.sval };
            if RESTARTED.contains(&result) {
                self.trace.calls -= 1;
            } else {
                self.trace.effects += u32::from(may_have_effect);
            }
        }
        true
    }

    fn kill(&mut self) {
        self.trace.killed = true;
        let mut groups: Vec<Pid> = self.tasks.keys().map(|pid| self.group(*pid)).collect();
        if self.victim == Victim::Parent {
            groups.retain(|group| *group == self.main);
        }
        groups.dedup();
        for group in groups {
            // Gone already is as good.
            let _ = kill(group, Signal::SIGKILL);
        }
    }

    /// The process that a task is a thread of.
    fn group(&self, task: Pid) -> Pid {
        let status = std::fs::read_to_string(format!("/proc/{task}/status")).unwrap_or_default();
        let group = status.lines().find_map(|line| line.strip_prefix("Tgid:")?.trim().parse().ok());
        group.map_or(task, Pid::from_raw)
    }
}

/// A task that was killed meanwhile is reported by the next wait.
fn resume(pid: Pid, signal: Option<Signal>) {
    let _ = ptrace::syscall(pid, signal);
}

/// Whether a call changes nothing that another process, or the kernel after this process's end, could see: it reads, waits, or
/// arranges the process's own memory, signals, threads and descriptors. A socket's configuration goes with the socket.
fn is_harmless(number: i64, args: &[u64; 6]) -> bool {
    #[cfg(target_arch = "x86_64")]
    const OLD: [i64; 13] = [
        libc::SYS_access,
        libc::SYS_alarm,
        libc::SYS_arch_prctl,
        libc::SYS_dup2,
        libc::SYS_getdents,
        libc::SYS_getpgrp,
        libc::SYS_lstat,
        libc::SYS_pipe,
        libc::SYS_poll,
        libc::SYS_readlink,
        libc::SYS_select,
        libc::SYS_stat,
        libc::SYS_time,
    ];
    #[cfg(not(target_arch = "x86_64"))]
    const OLD: [i64; 0] = [];
    const HARMLESS: [i64; 59] = [
        libc::SYS_bind,
        libc::SYS_brk,
        libc::SYS_clock_gettime,
        libc::SYS_clock_nanosleep,
        libc::SYS_close,
        libc::SYS_dup,
        libc::SYS_dup3,
        libc::SYS_epoll_create1,
        libc::SYS_epoll_ctl,
        libc::SYS_epoll_pwait,
        libc::SYS_exit,
        libc::SYS_faccessat,
        libc::SYS_faccessat2,
        libc::SYS_fcntl,
        libc::SYS_fstat,
        libc::SYS_fstatfs,
        libc::SYS_futex,
        libc::SYS_getcwd,
        libc::SYS_getdents64,
        libc::SYS_getegid,
        libc::SYS_geteuid,
        libc::SYS_getgid,
        libc::SYS_getpid,
        libc::SYS_getppid,
        libc::SYS_getrandom,
        libc::SYS_getsockname,
        libc::SYS_getsockopt,
        libc::SYS_gettid,
        libc::SYS_getuid,
        libc::SYS_lseek,
        libc::SYS_madvise,
        libc::SYS_mmap,
        libc::SYS_mprotect,
        libc::SYS_mremap,
        libc::SYS_munmap,
        libc::SYS_nanosleep,
        libc::SYS_newfstatat,
        libc::SYS_pipe2,
        libc::SYS_ppoll,
        libc::SYS_pread64,
        libc::SYS_prlimit64,
        libc::SYS_pselect6,
        libc::SYS_read,
        libc::SYS_readlinkat,
        libc::SYS_recvfrom,
        libc::SYS_recvmsg,
        libc::SYS_rseq,
        libc::SYS_rt_sigaction,
        libc::SYS_rt_sigprocmask,
        libc::SYS_rt_sigreturn,
        libc::SYS_sched_getaffinity,
        libc::SYS_sched_yield,
        libc::SYS_set_robust_list,
        libc::SYS_set_tid_address,
        libc::SYS_setns,
        libc::SYS_setsockopt,
        libc::SYS_sigaltstack,
        libc::SYS_socket,
        libc::SYS_statx,
    ];
    match number {
        libc::SYS_openat => {
            let writes = libc::O_CREAT | libc::O_TRUNC;
            args[2] & u64::from(writes.unsigned_abs()) == 0
        }
        _ => HARMLESS.contains(&number) || OLD.contains(&number),
    }
}

/// A call for a person: its name and the first path among its arguments.
fn describe(pid: Pid, number: i64, args: &[u64; 6]) -> String {
    let path = |address: u64| {
        let mut bytes = [0; 120];
        let length = File::open(format!("/proc/{pid}/mem"))
            .and_then(|memory| memory.read_at(&mut bytes, address))
            .unwrap_or_default();
        let text = bytes[..length].split(|byte| *byte == 0).next().unwrap_or_default();
        String::from_utf8_lossy(text).into_owned()
    };
    let message = |address: u64| {
        let mut bytes = [0; 6];
        let read =
            File::open(format!("/proc/{pid}/mem")).and_then(|file| file.read_exact_at(&mut bytes, address));
        read.map_or(0, |()| u16::from_ne_bytes([bytes[4], bytes[5]]))
    };
    match number {
        libc::SYS_openat => format!("openat({:?}, {:#x})", path(args[1]), args[2]),
        libc::SYS_mkdirat => format!("mkdirat({:?})", path(args[1])),
        libc::SYS_unlinkat => format!("unlinkat({:?})", path(args[1])),
        libc::SYS_linkat => format!("linkat({:?}, {:?})", path(args[1]), path(args[3])),
        libc::SYS_renameat2 => format!("renameat2({:?}, {:?})", path(args[1]), path(args[3])),
        libc::SYS_execve => format!("execve({:?})", path(args[0])),
        libc::SYS_write => format!("write({}, {:?})", args[0], path(args[1])),
        libc::SYS_sendto => format!("sendto({}, {} bytes, type {:#x})", args[0], args[2], message(args[1])),
        #[cfg(target_arch = "x86_64")]
        libc::SYS_mkdir => format!("mkdir({:?})", path(args[0])),
        #[cfg(target_arch = "x86_64")]
        libc::SYS_unlink => format!("unlink({:?})", path(args[0])),
        #[cfg(target_arch = "x86_64")]
        libc::SYS_rename => format!("rename({:?}, {:?})", path(args[0]), path(args[1])),
        number => format!("call {number}"),
    }
}
