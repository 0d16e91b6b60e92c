//! Patterns for names of files, as people write them for shells and in `.gitignore`.

use std::path::Path;

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};

/// What is never of interest: what version control keeps for itself, and what editors leave behind while a file is open.
const NEVER: [&str; 9] = [".git", ".hg", ".svn", "*~", ".*.sw?", ".#*", "#*#", "4913", ".goutputstream-*"];

/// A pattern that means nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{pattern:?} is not a pattern: {why}")]
pub struct BadPattern {
    /// The pattern.
    pub pattern: String,
    /// What is wrong with it.
    pub why: String,
}

/// Patterns of names that count, and of names that do not.
#[derive(Clone, Debug)]
pub struct Globs {
    include: Option<GlobSet>,
    exclude: GlobSet,
}

impl Globs {
    /// A name counts if it matches one of `include`, or there is none, and neither it nor a directory that it is in
    /// matches one of `exclude`.
    ///
    /// # Errors
    /// One of them is no pattern.
    pub fn new(include: &[String], exclude: &[String]) -> Result<Self, BadPattern> {
        let never: Vec<String> = NEVER.iter().map(|&pattern| pattern.to_owned()).collect();
        Ok(Self {
            include: (!include.is_empty()).then(|| set(include.iter(), false)).transpose()?,
            exclude: set(never.iter().chain(exclude), true)?,
        })
    }

    /// Whether a name, relative to where the patterns begin, is excluded, itself or with a directory that it is in.
    pub fn excludes(&self, path: &Path) -> bool {
        path.ancestors().filter(|part| !part.as_os_str().is_empty()).any(|part| self.exclude.is_match(part))
    }

    /// Whether a file of this name counts, provided that it is not excluded.
    pub fn includes(&self, path: &Path) -> bool {
        self.include.as_ref().is_none_or(|include| include.is_match(path))
    }
}

fn set<'a>(patterns: impl Iterator<Item = &'a String>, whole: bool) -> Result<GlobSet, BadPattern> {
    let mut set = GlobSetBuilder::new();
    let bad =
        |pattern: &str, why: &globset::Error| BadPattern { pattern: pattern.to_owned(), why: why.kind().to_string() };
    for pattern in patterns {
        let text = pattern.strip_prefix("./").unwrap_or(pattern);
        let text = text.trim_end_matches('/');
        if text.is_empty() || text.starts_with('/') {
            let why = "it begins at each of the watched paths, so it is neither empty nor absolute".to_owned();
            return Err(BadPattern { pattern: pattern.clone(), why });
        }
        let anywhere = if text.contains('/') { text.to_owned() } else { format!("**/{text}") };
        // What excludes everything in a directory excludes the directory.
        let rest = anywhere.strip_suffix("/**").filter(|rest| whole && !rest.is_empty() && *rest != "**");
        let anywhere = rest.unwrap_or(&anywhere);
        let glob = GlobBuilder::new(anywhere).literal_separator(true).build().map_err(|why| bad(pattern, &why))?;
        set.add(glob);
    }
    set.build().map_err(|why| bad("", &why))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn globs(include: &[&str], exclude: &[&str]) -> Globs {
        let owned = |list: &[&str]| list.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
        Globs::new(&owned(include), &owned(exclude)).unwrap()
    }

    #[test]
    fn names_count_at_any_depth_and_paths_where_they_are() {
        let globs = globs(&["*.py", "conf/*.{toml,yaml}"], &["__pycache__", "build/**", "tmp/*.py", "*_test.py"]);
        for (path, counts) in [
            ("app.py", true),
            ("a/b/c.py", true),
            ("notes.txt", false),
            ("conf/a.toml", true),
            ("conf/deep/a.toml", false),
            ("__pycache__/app.py", false),
            ("a/__pycache__/b/app.py", false),
            ("build/out/app.py", false),
            ("a/build/app.py", true),
            ("tmp/x.py", false),
            ("tmp/deep/x.py", true),
            ("a/app_test.py", false),
            (".git/hooks/x.py", false),
            ("a/.app.py.swp", false),
            ("app.py~", false),
        ] {
            let path = Path::new(path);
            assert_eq!(!globs.excludes(path) && globs.includes(path), counts, "{}", path.display());
        }
    }

    #[test]
    fn everything_in_a_directory_can_be_included() {
        let globs = globs(&["src/**"], &[]);
        assert!(globs.includes(Path::new("src/a/b.py")) && !globs.includes(Path::new("lib/a.py")));
    }

    #[test]
    fn what_is_no_pattern_is_refused() {
        for bad in ["", "/etc/*", "a[", "{a,b", "./"] {
            assert!(Globs::new(&[], &[bad.to_owned()]).is_err(), "{bad}");
        }
    }
}
