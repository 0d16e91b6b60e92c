//! The documentation does not lie: every command of the tour in README.md is run against the real binary and its output
//! compared, and every test that docs/guarantees.md names exists.
//!
//! In ```` ```console ```` blocks, lines that begin with `$ ` are commands; what follows is what they print, on both
//! streams. `…` stands for anything within a line, a line that is only `…` for any lines. Runs of blanks count as one:
//! the width of columns depends on what is in them. The commands share one shell.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// No tour takes so long; what hangs is ended.
const PATIENCE: Duration = Duration::from_secs(400);

#[test]
fn every_step_of_the_tour_prints_what_the_readme_says() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ is in the workspace");
    let readme = fs::read_to_string(root.join("README.md")).expect("README.md");
    let steps = tour(&readme);
    assert!(steps.len() >= 15, "the tour has disappeared: {} commands left", steps.len());
    let place = Place::new(root);
    let outputs = place.run(&steps);
    let mut report = String::new();
    for (step, output) in steps.iter().zip(&outputs) {
        if !matches(&step.expected, &lines(output)) {
            let _ = write!(report, "$ {}\nexpected:\n{}\nprinted:\n{output}\n", step.command, step.expected.join("\n"));
        }
    }
    assert!(report.is_empty(), "\n{report}");
    assert_eq!(outputs.len(), steps.len(), "the shell ended early");
}

#[test]
fn the_two_commands_are_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ is in the workspace");
    let readme = fs::read_to_string(root.join("README.md")).expect("README.md");
    for command in ["\ncargo run --release -- up -f manifests/demo", "\ncargo test --workspace\n"] {
        assert!(readme.contains(command), "README.md lacks {command:?}");
    }
}

/// One command and what it prints.
#[derive(Debug, PartialEq, Eq)]
struct Step {
    command: String,
    expected: Vec<String>,
}

fn tour(text: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let mut inside = false;
    for line in text.lines() {
        match (inside, line) {
            (false, "```console") => inside = true,
            (true, "```") => inside = false,
            (true, line) => match (line.strip_prefix("$ "), steps.last_mut()) {
                (Some(command), _) => steps.push(Step { command: command.to_owned(), expected: Vec::new() }),
                (None, Some(step)) => step.expected.extend(lines(line)),
                (None, None) => panic!("a console block begins with {line:?} instead of a command"),
            },
            (false, _) => {}
        }
    }
    steps
}

/// Lines with single blanks and no blank ends.
fn lines(text: &str) -> Vec<String> {
    text.trim_end().lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}

fn matches(expected: &[String], printed: &[String]) -> bool {
    match (expected, printed) {
        ([], []) => true,
        ([anything, rest @ ..], _) if anything == "…" => {
            (0..=printed.len()).any(|skipped| matches(rest, &printed[skipped..]))
        }
        ([], _) | (_, []) => false,
        ([pattern, expected @ ..], [line, printed @ ..]) => line_matches(pattern, line) && matches(expected, printed),
    }
}

fn line_matches(pattern: &str, line: &str) -> bool {
    match pattern.split_once('…') {
        None => pattern == line,
        Some((before, after)) => line.strip_prefix(before).is_some_and(|line| {
            line.char_indices().map(|(at, _)| at).chain([line.len()]).any(|at| line_matches(after, &line[at..]))
        }),
    }
}

/// A copy of the examples with a state directory, and a daemon at the end of which nothing is left.
struct Place {
    directory: tempfile::TempDir,
    path: String,
}

impl Place {
    fn new(root: &Path) -> Self {
        let directory = ostler_tests::directory();
        for entry in fs::read_dir(root.join("manifests")).expect("manifests/") {
            let entry = entry.expect("manifests/");
            if entry.path().is_file() {
                fs::copy(entry.path(), directory.path().join(entry.file_name())).expect("a copy");
            }
        }
        let programs = directory.path().join("bin");
        fs::create_dir(&programs).expect("a directory");
        symlink(ostler_tests::ostler_binary(), programs.join("ostler")).expect("a link");
        let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap_or_default());
        Self { directory, path }
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.current_dir(self.directory.path()).stdin(Stdio::null()).env("PATH", &self.path);
        command.env("OSTLER_STATE_DIR", self.directory.path().join("state")).env_remove("OSTLER_SERVER");
        command
    }

    /// The output of each command. All of them run in one shell, which says where one ends.
    fn run(&self, steps: &[Step]) -> Vec<String> {
        const END: &str = "----8<---- end of a step";
        let mut script = "exec 2>&1\n".to_owned();
        for step in steps {
            let _ = writeln!(script, "{}\necho; echo '{END}'", step.command);
        }
        // A file and no pipe: the daemon that a step leaves behind must not keep the test from seeing the end.
        let transcript = self.directory.path().join("transcript");
        let out = fs::File::create(&transcript).expect("a file");
        let mut shell = self.command("sh").arg("-c").arg(script).stdout(out).spawn().expect("sh");
        let deadline = Instant::now() + PATIENCE;
        while shell.try_wait().expect("wait").is_none() {
            if Instant::now() > deadline {
                shell.kill().expect("kill");
                shell.wait().expect("wait");
                let said = fs::read_to_string(&transcript).unwrap_or_default();
                panic!("the tour does not end within {PATIENCE:?}:\n{said}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let said = fs::read(&transcript).expect("the transcript");
        let said = String::from_utf8_lossy(&said);
        let mut outputs: Vec<String> = said.split(&format!("\n{END}\n")).map(str::to_owned).collect();
        outputs.pop();
        outputs
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Fails when the tour has ended the daemon itself, as it should.
        let _ = self
            .command("sh")
            .args(["-c", "ostler shutdown --stop-instances --deadline 2s"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
    }
}

#[test]
fn wildcards_stand_for_what_differs() {
    let matches = |expected: &str, printed: &str| matches(&lines(expected), &lines(printed));
    assert!(matches("a  b", "a b\n"));
    assert!(matches("web-0 … 5s", "web-0   Running   5s"));
    assert!(matches("a\n…\nz", "a\nb\nc\nz"));
    assert!(matches("a\n…", "a"));
    assert!(!matches("a\n…\nz", "a\nb"));
    assert!(!matches("pid … end", "pid 12"));
    assert!(!matches("", "something"));
    assert!(!matches("something", ""));
}

#[test]
fn steps_are_what_follows_a_dollar() {
    let text = "text\n```console\n$ one\na\nb\n$ two\n```\n```sh\nnot this\n```\n";
    let step = |command: &str, expected: &[&str]| Step {
        command: command.to_owned(),
        expected: expected.iter().map(|line| (*line).to_owned()).collect(),
    };
    assert_eq!(tour(text), [step("one", &["a", "b"]), step("two", &[])]);
}

/// A promise without its test is not in the documentation.
#[test]
fn every_test_that_the_guarantees_name_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ is in the workspace");
    let page = fs::read_to_string(root.join("docs/guarantees.md")).expect("docs/guarantees.md");
    let mut named = 0;
    for item in page.split("\n- `").skip(1) {
        let item = item.split("\n\n").next().unwrap_or_default();
        let Some((path, names)) = item.split_once("`: ") else { continue };
        let source = fs::read_to_string(root.join(path)).unwrap_or_else(|why| panic!("{path}: {why}"));
        // What is in brackets explains a test.
        let names = names.split('(').map(|part| part.split_once(')').map_or(part, |(_, rest)| rest));
        for name in names.flat_map(|part| part.split([',', ' ', '\n'])).filter(|word| word.contains('_')) {
            assert!(source.contains(&format!("fn {name}(")), "docs/guarantees.md names {name}, which {path} lacks");
            named += 1;
        }
    }
    assert!(named >= 40, "only {named} tests are named");
}
