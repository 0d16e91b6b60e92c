//! The programs under test.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::UNIX_EPOCH;

/// The `ostler` binary of the dev profile, built once per run.
///
/// A copy: a build that goes on beside the tests must not change the program under a running daemon.
pub fn ostler_binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let built = Command::new(cargo)
            .args(["build", "--quiet", "--package", "ostler", "--bin", "ostler"])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            // Cargo sets these for test runs; they would make it look like another build and begin anew.
            .env_remove("CARGO_MANIFEST_DIR")
            .status()
            .expect("cargo can be started");
        assert!(built.success(), "ostler does not build");
        copy(&directory().join("ostler"))
    })
}

/// The witness program of this package.
pub fn witness_binary() -> PathBuf {
    directory().join("witness")
}

/// The web server of this package.
pub fn web_binary() -> PathBuf {
    directory().join("web")
}

/// Where Cargo puts the programs: this test is in `deps` below it.
fn directory() -> PathBuf {
    let test = std::env::current_exe().expect("/proc is mounted");
    let deps = test.parent().expect("a program is in a directory");
    if deps.ends_with("deps") { deps.parent().map(Path::to_owned).unwrap_or_default() } else { deps.to_owned() }
}

fn copy(built: &Path) -> PathBuf {
    let metadata = built.metadata().expect("cargo built it");
    let modified = metadata.modified().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
    let copies = directory().join("under-test");
    std::fs::create_dir_all(&copies).expect("the target directory is writable");
    let copy = copies.join(format!("ostler-{}-{}", modified.as_nanos(), metadata.len()));
    if !copy.exists() {
        for old in std::fs::read_dir(&copies).into_iter().flatten().flatten() {
            let age = old.metadata().and_then(|it| it.modified()).ok().and_then(|at| at.elapsed().ok());
            if age.is_some_and(|age| age.as_secs() > 900) {
                let _ = std::fs::remove_file(old.path());
            }
        }
        // Another test program may make the same copy now: each makes its own and renames it.
        let own = copies.join(format!("making-{}", std::process::id()));
        copy_program(built, &own);
        std::fs::rename(&own, &copy).expect("same directory");
    }
    copy
}

/// Copies a program.
///
/// Another program does it: what this one has open for writing, every child that it has just forked for another test has
/// open, too, and what is open for writing cannot be executed.
pub fn copy_program(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg(from).arg(to).status().expect("there is cp");
    assert!(copied.success(), "{} cannot be copied to {}", from.display(), to.display());
}

/// Makes a file of this content and mode that can be executed at once; written by another program, as in
/// [`copy_program`].
pub fn make_program(path: &Path, content: &[u8], mode: u32) {
    let mode = format!("--mode={mode:o}");
    let mut install =
        Command::new("install").args([&mode, "/dev/stdin"]).arg(path).stdin(Stdio::piped()).spawn().expect("install");
    let written = install.stdin.take().map(|mut input| input.write_all(content));
    let made = install.wait().expect("it is our child");
    assert!(made.success() && written.is_some_and(|it| it.is_ok()), "{} cannot be made", path.display());
}
