//! Child processes that never outlive us.
//!
//! A [`Process`] leads its own process group. Dropping it kills the group. Beside it runs a tiny shell, the *watcher*, that holds
//! the read end of a pipe whose write end only we own: however we end (Ctrl-C, `kill -9`, a panic that aborts), the pipe closes and
//! the watcher stops the group. The usual alternative, a parent-death signal, needs `unsafe` and exists on Linux only.

use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process_group};

/// How long a stopped process may take to finish what it is doing before it is killed.
const GRACE: Duration = Duration::from_secs(5);

/// How often a condition is looked at again. Short against anything a person notices, long against the cost of a look.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// `kill -s NAME -- -PGID` is the one spelling that dash, bash and the BSDs agree on. `GRACE` again, in tenths of a second.
const WATCHER: &str = r#"
read -r _
kill -s TERM -- "-$1" 2>/dev/null || exit 0
tenths=0
while [ $tenths -lt 50 ] && kill -s 0 -- "-$1" 2>/dev/null; do sleep 0.1; tenths=$((tenths + 1)); done
kill -s KILL -- "-$1" 2>/dev/null
"#;

/// A running child, its output in one log file.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    watcher: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command` with standard output and error both written to `log`, and nothing on standard input. A log of that name from
    /// before is kept as `….old`.
    ///
    /// # Errors
    /// When the log cannot be created or the program cannot be started.
    pub fn spawn(name: &str, mut command: Command, log: &Path) -> Result<Self> {
        let _ = fs::rename(log, format!("{}.old", log.display()));
        let output = File::create(log)
            .with_context(|| format!("cannot create the log `{}`", log.display()))?;
        let mut child = command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .process_group(0)
            .spawn()
            .with_context(|| {
                format!("cannot start {name}: `{}`", command.get_program().display())
            })?;
        match watch(&child) {
            Ok(watcher) => Ok(Self {
                name: name.to_owned(),
                child,
                watcher,
                log: log.to_owned(),
            }),
            Err(error) => {
                let _ = signal_group(&child, Signal::KILL);
                let _ = child.wait();
                Err(error).context("cannot start /bin/sh to watch over a child process")
            }
        }
    }

    /// The operating system's process id, for CPU and memory figures.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Where the output goes.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Everything written so far. Bytes that are not UTF-8 are replaced.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn output(&self) -> Result<String> {
        let bytes = fs::read(&self.log)
            .with_context(|| format!("cannot read the log `{}`", self.log.display()))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The exit status, once the process has ended by itself.
    ///
    /// # Errors
    /// When the operating system refuses to say.
    pub fn exit_status(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Polls `probe` until it gives a value; fails early, with the end of the log, when the process ends first.
    ///
    /// # Errors
    /// When the process ends or `deadline` passes before `probe` gives a value.
    pub fn wait_until<T>(
        &mut self,
        what: &str,
        deadline: Duration,
        mut probe: impl FnMut() -> Option<T>,
    ) -> Result<T> {
        let mut ended = None;
        let found = wait_until(what, deadline, || {
            // The order matters: a process that printed its last line and ended has still printed it.
            ended = self.child.try_wait().ok().flatten();
            match probe() {
                Some(value) => Some(Some(value)),
                None => ended.map(|_| None),
            }
        });
        match found {
            Ok(Some(value)) => Ok(value),
            Ok(None) => {
                let status =
                    ended.map_or_else(|| "unknown".to_owned(), |status| status.to_string());
                bail!(
                    "{} ended ({status}) while waiting for {what}; the end of its log:\n{}",
                    self.name,
                    self.log_tail()
                )
            }
            Err(error) => Err(error.context(format!(
                "{} is not ready; the end of its log:\n{}",
                self.name,
                self.log_tail()
            ))),
        }
    }

    /// Waits for the first output line that `matches` accepts and gives what it made of it.
    ///
    /// # Errors
    /// As [`Process::wait_until`].
    pub fn wait_for_line<T>(
        &mut self,
        what: &str,
        deadline: Duration,
        matches: impl Fn(&str) -> Option<T>,
    ) -> Result<T> {
        let log = self.log.clone();
        self.wait_until(what, deadline, || {
            let text = fs::read(&log).ok()?;
            // A line without its end may still be growing.
            String::from_utf8_lossy(&text)
                .split_inclusive('\n')
                .filter(|line| line.ends_with('\n'))
                .find_map(|line| matches(line.trim_end()))
        })
    }

    /// Asks the group to end (SIGTERM), waits, then kills what is left.
    ///
    /// # Errors
    /// When the process cannot be waited for.
    pub fn stop(mut self) -> Result<ExitStatus> {
        let _ = signal_group(&self.child, Signal::TERM);
        let status = wait_until("the process to end", GRACE, || {
            self.child.try_wait().ok().flatten()
        });
        match status {
            Ok(status) => Ok(status),
            Err(_) => self.kill(),
        }
    }

    /// Kills the group at once (SIGKILL): what a power cut or the out-of-memory killer would do.
    ///
    /// # Errors
    /// When the process cannot be waited for.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        let _ = signal_group(&self.child, Signal::KILL);
        Ok(self.child.wait()?)
    }

    fn log_tail(&self) -> String {
        const LINES: usize = 20;
        let text = self.output().unwrap_or_else(|error| format!("{error:#}"));
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LINES)..].join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.kill();
        // After the group: the watcher is the guarantee until the very end.
        let _ = self.watcher.kill();
        let _ = self.watcher.wait();
    }
}

fn watch(child: &Child) -> io::Result<Child> {
    Command::new("/bin/sh")
        .args(["-c", WATCHER, "tollgate-watcher", &child.id().to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
}

fn signal_group(child: &Child, signal: Signal) -> io::Result<()> {
    Ok(kill_process_group(Pid::from_child(child), signal)?)
}

/// Looks at `probe` until it gives a value.
///
/// # Errors
/// When `deadline` passes first; the message names `what`.
pub fn wait_until<T>(
    what: &str,
    deadline: Duration,
    mut probe: impl FnMut() -> Option<T>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(value) = probe() {
            return Ok(value);
        }
        ensure!(
            start.elapsed() < deadline,
            "waited {} s in vain for {what}",
            deadline.as_secs()
        );
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// Runs a command to its end, its output shown as it comes.
///
/// # Errors
/// When it cannot be started or fails; the message repeats the command line.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| not_started(command))?;
    ensure!(status.success(), "`{}` failed ({status})", line(command));
    Ok(())
}

/// Runs a command to its end and gives its standard output. Standard error is shown as it comes.
///
/// # Errors
/// When it cannot be started, fails, or prints something that is not UTF-8.
pub fn capture(command: &mut Command) -> Result<String> {
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| not_started(command))?;
    ensure!(
        output.status.success(),
        "`{}` failed ({})",
        line(command),
        output.status
    );
    Ok(String::from_utf8(output.stdout)?)
}

fn not_started(command: &Command) -> String {
    format!(
        "cannot start `{}`: is it installed and on PATH?",
        command.get_program().display()
    )
}

fn line(command: &Command) -> String {
    let words: Vec<_> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy())
        .collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEADLINE: Duration = Duration::from_secs(20);

    fn shell(name: &str, script: &str) -> Process {
        let log = std::env::temp_dir().join(format!("xtask-process-{name}-{}", std::process::id()));
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        Process::spawn(name, command, &log).unwrap()
    }

    /// True while any process of the group is left.
    fn group_lives(process: &Process) -> bool {
        rustix::process::test_kill_process_group(Pid::from_child(&process.child)).is_ok()
    }

    #[test]
    fn a_line_is_waited_for_even_from_a_process_that_ends_after_it() {
        let mut process = shell("line", "echo one; echo port 42");
        let port = process
            .wait_for_line("the port", DEADLINE, |line| {
                line.strip_prefix("port ")?.parse::<u16>().ok()
            })
            .unwrap();
        assert_eq!(port, 42);
    }

    #[test]
    fn a_process_that_ends_early_is_reported_with_its_log() {
        let mut process = shell("early", "echo cannot bind >&2; exit 3");
        let error = process
            .wait_for_line("the port", DEADLINE, |_| None::<()>)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("exit status: 3") && error.contains("cannot bind"),
            "{error}"
        );
    }

    #[test]
    fn grandchildren_end_with_the_process() {
        let mut process = shell("drop", "sleep 600 & echo started; wait");
        process
            .wait_for_line("the start", DEADLINE, |line| {
                (line == "started").then_some(())
            })
            .unwrap();
        let group = Pid::from_child(&process.child);
        drop(process);
        wait_until("the group to end", DEADLINE, || {
            rustix::process::test_kill_process_group(group)
                .is_err()
                .then_some(())
        })
        .unwrap();
    }

    #[test]
    fn the_group_ends_when_our_end_of_the_pipe_closes() {
        let mut process = shell("orphan", "sleep 600 & echo started; wait");
        process
            .wait_for_line("the start", DEADLINE, |line| {
                (line == "started").then_some(())
            })
            .unwrap();
        assert!(group_lives(&process));
        // What the operating system does when we are killed.
        drop(process.watcher.stdin.take());
        wait_until("the process to end", DEADLINE, || {
            process.child.try_wait().unwrap()
        })
        .unwrap();
        wait_until("the group to end", DEADLINE, || {
            (!group_lives(&process)).then_some(())
        })
        .unwrap();
    }

    #[test]
    fn a_process_that_ignores_the_request_to_end_is_killed() {
        let mut process = shell(
            "stubborn",
            "trap '' TERM; echo started; while :; do sleep 1; done",
        );
        process
            .wait_for_line("the start", DEADLINE, |line| {
                (line == "started").then_some(())
            })
            .unwrap();
        let status = process.stop().unwrap();
        assert_eq!(status.code(), None, "ended by a signal");
    }
}
