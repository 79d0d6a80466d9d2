//! Where a step runs: its log, its deadline, its tally, and what the user sees of it meanwhile.

use std::fs::File;
use std::io::{BufWriter, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};

use crate::command::{self, Ending, Event, Stream};
use crate::libtest::Tally;

/// How often a step whose output is not shown says that it is alive.
const HEARTBEAT: Duration = Duration::from_secs(60);
/// How often the line on a terminal is drawn.
const REDRAW: Duration = Duration::from_millis(200);
/// Characters of output shown in that line.
const SHOWN_CHARACTERS: usize = 70;
/// Lines of a failed step's log that are printed; the rest is in the file.
const TAIL_LINES: usize = 60;

/// What is shown while a step runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Display {
    /// One line on a terminal, drawn again and again.
    Line,
    /// Every line of output.
    Echo,
    /// A sign of life once a minute.
    Heartbeat,
    /// Nothing: the step runs behind another.
    Nothing,
}

impl Display {
    /// Tests are shown in full unless a person is watching; other steps speak when they fail.
    pub(crate) fn choose(tests: bool, verbose: bool) -> Self {
        match (verbose, std::io::stdout().is_terminal(), tests) {
            (true, _, _) | (false, false, true) => Self::Echo,
            (false, true, _) => Self::Line,
            (false, false, false) => Self::Heartbeat,
        }
    }
}

/// One step under way.
pub(crate) struct Stage<'a> {
    label: String,
    display: Display,
    begun: Instant,
    deadline: Instant,
    limit: Duration,
    interrupted: &'a AtomicBool,
    log_path: PathBuf,
    log: BufWriter<File>,
    last_line: String,
    spoken: Instant,
    /// Tests that the step's commands reported.
    pub(crate) tally: Tally,
}

impl<'a> Stage<'a> {
    /// Opens the log and starts the clock.
    pub(crate) fn open(
        label: String,
        log_path: PathBuf,
        display: Display,
        limit: Duration,
        interrupted: &'a AtomicBool,
    ) -> anyhow::Result<Self> {
        let directory = log_path.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(directory)
            .with_context(|| format!("create {}", directory.display()))?;
        let log =
            File::create(&log_path).with_context(|| format!("create {}", log_path.display()))?;
        let begun = Instant::now();
        Ok(Self {
            label,
            display,
            begun,
            deadline: begun + limit,
            limit,
            interrupted,
            log_path,
            log: BufWriter::new(log),
            last_line: String::new(),
            spoken: begun,
            tally: Tally::default(),
        })
    }

    /// Runs a command; anything but success is an error.
    pub(crate) fn run(&mut self, command: &mut Command) -> anyhow::Result<()> {
        let status = self.follow(self.limit, command, None)?;
        succeeded(command, status)
    }

    /// Runs a command and returns what it wrote to standard output, which only the log shows.
    pub(crate) fn read(&mut self, command: &mut Command) -> anyhow::Result<String> {
        self.read_within(self.limit, command)
    }

    /// As [`Stage::read`], with a limit of the command's own inside that of the step.
    pub(crate) fn read_within(
        &mut self,
        limit: Duration,
        command: &mut Command,
    ) -> anyhow::Result<String> {
        let mut output = String::new();
        let status = self.follow(limit, command, Some(&mut output))?;
        succeeded(command, status)?;
        Ok(output)
    }

    /// Runs a command within a limit of its own, and returns how it ended.
    pub(crate) fn status_within(
        &mut self,
        limit: Duration,
        command: &mut Command,
    ) -> anyhow::Result<ExitStatus> {
        self.follow(limit, command, None)
    }

    /// Waits for work that another thread does.
    pub(crate) fn wait_until(&mut self, finished: &dyn Fn() -> bool) -> anyhow::Result<()> {
        while !finished() {
            ensure!(!self.interrupted.load(Ordering::Relaxed), "interrupted");
            ensure!(
                Instant::now() < self.deadline,
                "not done after {} s",
                self.limit.as_secs()
            );
            self.breathe();
            thread::sleep(REDRAW);
        }
        Ok(())
    }

    /// Writes a remark of the step's own where its output goes.
    pub(crate) fn say(&mut self, remark: &str) -> anyhow::Result<()> {
        self.show(remark)
    }

    /// Set when the run is to end.
    pub(crate) fn interrupted(&self) -> &'a AtomicBool {
        self.interrupted
    }

    /// Time since the step began.
    pub(crate) fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Removes the line on a terminal, so that whole lines can follow.
    pub(crate) fn clear(&self) {
        if self.display == Display::Line {
            print!("\r\x1b[2K");
            let _ = std::io::stdout().flush();
        }
    }

    /// The end of the log, for a step that failed.
    pub(crate) fn tail(&mut self) -> anyhow::Result<String> {
        self.log
            .flush()
            .with_context(|| format!("write {}", self.log_path.display()))?;
        let bytes = std::fs::read(&self.log_path)
            .with_context(|| format!("read {}", self.log_path.display()))?;
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<_> = text.lines().collect();
        Ok(lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n"))
    }

    fn follow(
        &mut self,
        limit: Duration,
        command: &mut Command,
        mut output: Option<&mut String>,
    ) -> anyhow::Result<ExitStatus> {
        let written = written_out(command);
        self.show(&format!("$ {written}"))?;
        let deadline = self.deadline.min(Instant::now() + limit);
        let interrupted = self.interrupted;
        let ending = command::run(command, deadline, interrupted, &mut |event| match event {
            Event::Line(stream, line) => {
                self.tally.line(line);
                match &mut output {
                    Some(output) if stream == Stream::Out => {
                        output.push_str(line);
                        output.push('\n');
                        self.write(line)
                    }
                    _ => self.show(line),
                }
            }
            Event::Quiet => {
                self.breathe();
                Ok(())
            }
        })?;
        match ending {
            Ending::Exited(status) => Ok(status),
            Ending::TimedOut => {
                bail!(
                    "`{written}` was stopped at its limit of {} s",
                    limit.as_secs()
                )
            }
            Ending::Interrupted => bail!("`{written}` was interrupted"),
        }
    }

    fn write(&mut self, line: &str) -> anyhow::Result<()> {
        writeln!(self.log, "{line}").with_context(|| format!("write {}", self.log_path.display()))
    }

    fn show(&mut self, line: &str) -> anyhow::Result<()> {
        self.write(line)?;
        if !line.is_empty() {
            self.last_line = line.chars().filter(|c| !c.is_control()).collect();
        }
        if self.display == Display::Echo {
            println!("{line}");
        }
        self.breathe();
        Ok(())
    }

    /// Shows that the step is alive, as seldom as the display allows.
    fn breathe(&mut self) {
        let (pause, shown) = match self.display {
            Display::Echo | Display::Nothing => return,
            Display::Line => (REDRAW, SHOWN_CHARACTERS),
            Display::Heartbeat => (HEARTBEAT, usize::MAX),
        };
        if self.spoken.elapsed() < pause {
            return;
        }
        self.spoken = Instant::now();
        let last: String = self.last_line.chars().take(shown).collect();
        let state = format!(
            "{} {} s  {last}",
            self.label,
            self.begun.elapsed().as_secs()
        );
        if self.display == Display::Line {
            print!("\r\x1b[2K{state}");
            let _ = std::io::stdout().flush();
        } else {
            println!("{state}");
        }
    }
}

fn succeeded(command: &Command, status: ExitStatus) -> anyhow::Result<()> {
    ensure!(
        status.success(),
        "`{}` ended with {status}",
        written_out(command)
    );
    Ok(())
}

/// The command as a person would type it: the program by its bare name, the arguments as they are.
fn written_out(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let mut written = program
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    for argument in command.get_args() {
        written.push(' ');
        written.push_str(&argument.to_string_lossy());
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stage<'a>(name: &str, interrupted: &'a AtomicBool) -> Stage<'a> {
        let log = std::env::temp_dir().join(format!("xtask-{}-{name}.log", std::process::id()));
        let limit = Duration::from_secs(60);
        Stage::open(name.to_owned(), log, Display::Heartbeat, limit, interrupted)
            .expect("the log can be made")
    }

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_failing_command_is_an_error_and_its_output_is_in_the_tail() {
        let interrupted = AtomicBool::new(false);
        let mut stage = stage("failing", &interrupted);
        let error = stage
            .run(&mut shell("echo why >&2; exit 3"))
            .expect_err("it exits with 3");
        assert!(error.to_string().contains("exit status: 3"), "{error}");
        assert!(
            stage
                .tail()
                .expect("the log is readable")
                .ends_with("\nwhy")
        );
        std::fs::remove_file(&stage.log_path).expect("the log is ours");
    }

    #[test]
    fn only_standard_output_is_read() {
        let interrupted = AtomicBool::new(false);
        let mut stage = stage("reading", &interrupted);
        let output = stage.read(&mut shell("echo '{}'; echo noise >&2"));
        assert_eq!(output.expect("sh runs"), "{}\n");
        std::fs::remove_file(&stage.log_path).expect("the log is ours");
    }
}
