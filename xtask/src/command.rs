//! Runs one child process in a process group of its own: line by line, under a deadline, and
//! leaving nothing of the group behind.

use std::io::{BufRead as _, BufReader, Read};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;

/// How often a silent child is looked at.
const TICK: Duration = Duration::from_millis(100);
/// Time between the polite signal and the final one.
const TERMINATION_GRACE: Duration = Duration::from_secs(5);
/// How long output is awaited once the child is gone: a process that left the group may hold the
/// pipe open for ever.
const DRAIN_GRACE: Duration = Duration::from_secs(2);
/// Lines in flight between the pipe readers and the caller.
const LINES_IN_FLIGHT: usize = 1024;

/// Where a line was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    Out,
    Err,
}

/// What the caller is told while the child runs.
pub(crate) enum Event<'a> {
    Line(Stream, &'a str),
    /// Nothing was written for one tick.
    Quiet,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    Exited(ExitStatus),
    TimedOut,
    Interrupted,
}

/// Runs `command` until it exits, `deadline` passes or `interrupted` is set, and kills what is left
/// of its process group in every case.
pub(crate) fn run(
    command: &mut Command,
    deadline: Instant,
    interrupted: &AtomicBool,
    tell: &mut dyn FnMut(Event<'_>) -> anyhow::Result<()>,
) -> anyhow::Result<Ending> {
    let mut child = command
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {}", command.get_program().to_string_lossy()))?;
    let lines = read_lines(&mut child);
    let outcome = follow(&child, &lines, deadline, interrupted, tell);
    let status = end_group(&mut child)?;
    let stopped = outcome?;
    let drained_by = Instant::now() + DRAIN_GRACE;
    while let Ok((stream, line)) =
        lines.recv_timeout(drained_by.saturating_duration_since(Instant::now()))
    {
        tell(Event::Line(stream, &line))?;
    }
    Ok(stopped.unwrap_or(Ending::Exited(status)))
}

/// Passes lines on until the child exits (`None`) or must be stopped.
fn follow(
    child: &Child,
    lines: &Receiver<(Stream, String)>,
    deadline: Instant,
    interrupted: &AtomicBool,
    tell: &mut dyn FnMut(Event<'_>) -> anyhow::Result<()>,
) -> anyhow::Result<Option<Ending>> {
    loop {
        match lines.recv_timeout(TICK) {
            Ok((stream, line)) => tell(Event::Line(stream, &line))?,
            Err(RecvTimeoutError::Timeout) => tell(Event::Quiet)?,
            Err(RecvTimeoutError::Disconnected) => thread::sleep(TICK),
        }
        if interrupted.load(Ordering::Relaxed) {
            return Ok(Some(Ending::Interrupted));
        }
        if Instant::now() >= deadline {
            return Ok(Some(Ending::TimedOut));
        }
        if has_exited(child)? {
            return Ok(None);
        }
    }
}

/// Ends the child's process group and reaps the child.
///
/// The child is reaped last: as long as it is a zombie its number cannot be given to a stranger, so
/// the group that is signalled is certainly ours.
fn end_group(child: &mut Child) -> anyhow::Result<ExitStatus> {
    let group = pid_of(child);
    if !has_exited(child)? {
        // A group that is gone already is what is wanted.
        let _ = killpg(group, Signal::SIGTERM);
        let killed_at = Instant::now() + TERMINATION_GRACE;
        while !has_exited(child)? && Instant::now() < killed_at {
            thread::sleep(TICK);
        }
    }
    let _ = killpg(group, Signal::SIGKILL);
    child.wait().context("wait for the child process")
}

fn has_exited(child: &Child) -> anyhow::Result<bool> {
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    let status = waitid(Id::Pid(pid_of(child)), flags).context("look at the child process")?;
    Ok(status != WaitStatus::StillAlive)
}

fn pid_of(child: &Child) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).unwrap_or(i32::MAX))
}

fn read_lines(child: &mut Child) -> Receiver<(Stream, String)> {
    let (sender, receiver) = sync_channel(LINES_IN_FLIGHT);
    if let Some(out) = child.stdout.take() {
        spawn_reader(out, Stream::Out, sender.clone());
    }
    if let Some(err) = child.stderr.take() {
        spawn_reader(err, Stream::Err, sender);
    }
    receiver
}

fn spawn_reader(
    pipe: impl Read + Send + 'static,
    stream: Stream,
    sender: SyncSender<(Stream, String)>,
) {
    thread::spawn(move || {
        let mut pipe = BufReader::new(pipe);
        let mut line = Vec::new();
        while matches!(pipe.read_until(b'\n', &mut line), Ok(length) if length > 0) {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            if sender.send((stream, text)).is_err() {
                return;
            }
            line.clear();
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    fn run_for(script: &str, limit: Duration) -> (Ending, Vec<(Stream, String)>) {
        let mut lines = Vec::new();
        let ending = run(
            &mut shell(script),
            Instant::now() + limit,
            &AtomicBool::new(false),
            &mut |event| {
                if let Event::Line(stream, line) = event {
                    lines.push((stream, line.to_owned()));
                }
                Ok(())
            },
        )
        .expect("sh runs");
        (ending, lines)
    }

    #[test]
    fn both_streams_arrive_whole_before_the_end() {
        let (ending, mut lines) = run_for("echo a; echo b >&2; printf c", Duration::from_secs(20));
        lines.sort_by(|left, right| left.1.cmp(&right.1));
        assert!(matches!(ending, Ending::Exited(status) if status.success()));
        assert_eq!(
            lines,
            [
                (Stream::Out, "a".to_owned()),
                (Stream::Err, "b".to_owned()),
                (Stream::Out, "c".to_owned()),
            ]
        );
    }

    #[test]
    fn a_deadline_ends_the_whole_group() {
        let begun = Instant::now();
        let (ending, lines) = run_for("sleep 600 & echo $!; wait", Duration::from_millis(300));
        assert_eq!(ending, Ending::TimedOut);
        assert!(begun.elapsed() < Duration::from_secs(60));
        assert!(
            is_gone(&lines[0].1),
            "process {} outlived its group",
            lines[0].1
        );
    }

    #[test]
    fn a_process_left_behind_is_ended() {
        let (ending, lines) = run_for("sleep 600 & echo $!", Duration::from_secs(20));
        assert!(matches!(ending, Ending::Exited(status) if status.success()));
        assert!(
            is_gone(&lines[0].1),
            "process {} outlived its group",
            lines[0].1
        );
    }

    #[test]
    fn an_interrupt_ends_the_child() {
        let ending = run(
            &mut shell("sleep 600"),
            Instant::now() + Duration::from_secs(60),
            &AtomicBool::new(true),
            &mut |_| Ok(()),
        );
        assert_eq!(ending.expect("sh runs"), Ending::Interrupted);
    }

    /// Whether the process is dead, reaped or not, after a moment for the kernel to end it.
    fn is_gone(pid: &str) -> bool {
        (0..100).any(|_| {
            let state = std::fs::read_to_string(format!("/proc/{pid}/stat"));
            let gone = state.map_or(true, |stat| stat.contains(") Z "));
            if !gone {
                thread::sleep(Duration::from_millis(20));
            }
            gone
        })
    }
}
