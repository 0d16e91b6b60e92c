//! The programs under test.

use std::path::{Path, PathBuf};
use std::process::Command;
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
        std::fs::copy(built, &own).expect("there is room for a copy");
        std::fs::rename(&own, &copy).expect("same directory");
    }
    copy
}
