//! Which files of a folder are policies and which are test cases: their names say so.

use crate::offline;
use anyhow::{Context as _, Result, bail, ensure};
use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
};

/// Folders inside each other that are searched. More is a mistake.
const MAX_DEPTH: usize = 16;

/// How policy files end, in any case. Test files have `.test` before it.
const ENDINGS: [&str; 3] = [".yaml", ".yml", ".json"];

/// The policy files that are meant by `paths`: of a folder those in it and below it.
pub(crate) fn policies(paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for path in paths {
        if !path.is_dir() {
            files.push(path.clone());
            continue;
        }
        let found = search(path, is_policy, MAX_DEPTH)?;
        ensure!(
            !found.is_empty(),
            "no policy file (*.yaml, *.yml, *.json) in `{}` or below it",
            path.display()
        );
        files.extend(found);
    }
    Ok(files)
}

/// The policy files beside a test file.
pub(crate) fn policies_beside(test: &Path) -> Result<Vec<PathBuf>> {
    let dir = parent(test);
    let mut files = search(dir, is_policy, 0)?;
    files.retain(|file| file.file_name() != test.file_name());
    ensure!(
        !files.is_empty(),
        "no policy file (*.yaml, *.yml, *.json) in `{}`",
        dir.display()
    );
    Ok(files)
}

/// The test files in a folder and below it.
pub(crate) fn tests(dir: &Path) -> Result<Vec<PathBuf>> {
    search(dir, is_test, MAX_DEPTH)
}

/// The folder that a file is in.
pub(crate) fn parent(file: &Path) -> &Path {
    match file.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    }
}

fn is_policy(name: &str) -> bool {
    ENDINGS.iter().any(|ending| name.ends_with(ending)) && !is_test(name)
}

fn is_test(name: &str) -> bool {
    let mut stems = ENDINGS
        .iter()
        .filter_map(|ending| name.strip_suffix(ending));
    stems.any(|stem| stem.ends_with(".test"))
}

/// The files of `dir`, and of the folders below it, whose names (in lower case) are `wanted`, in the order of their names.
///
/// Links are followed. No folder is searched twice, so a link that leads back up ends there. A name that begins with a dot is left out: the
/// folders of version control, and those that Kubernetes keeps behind the links of a ConfigMap.
fn search(dir: &Path, wanted: fn(&str) -> bool, depth: usize) -> Result<Vec<PathBuf>> {
    let mut search = Search {
        wanted,
        below: depth > 0,
        seen: HashSet::new(),
        files: Vec::new(),
    };
    search.folder(dir, depth)?;
    search.files.sort();
    Ok(search.files)
}

struct Search {
    wanted: fn(&str) -> bool,
    /// Whether folders below are searched.
    below: bool,
    /// Folders that were searched, by their real paths.
    seen: HashSet<PathBuf>,
    files: Vec<PathBuf>,
}

impl Search {
    fn folder(&mut self, dir: &Path, depth: usize) -> Result<()> {
        let unreadable = || format!("cannot read the folder `{}`", dir.display());
        let real = fs::canonicalize(dir).with_context(unreadable)?;
        if !self.seen.insert(real) {
            return Ok(());
        }
        let entries = fs::read_dir(dir).with_context(unreadable)?;
        let entries: std::io::Result<Vec<_>> = entries.collect();
        let mut entries = entries.with_context(unreadable)?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let name = entry.file_name().to_string_lossy().to_ascii_lowercase();
            if name.starts_with('.') {
                continue;
            }
            let path = entry.path();
            let kind = fs::metadata(&path);
            let kind = kind.with_context(|| offline::cannot_read(&path))?;
            if kind.is_dir() && self.below {
                if depth == 0 {
                    bail!("`{}` is more than {MAX_DEPTH} folders deep", path.display());
                }
                self.folder(&path, depth.saturating_sub(1))?;
            } else if kind.is_file() && (self.wanted)(&name) {
                self.files.push(path);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_what_a_file_is() {
        for name in ["a.yaml", "a.b.yml", "a.json", "test.yaml", "a.tests.yaml"] {
            assert!(is_policy(name) && !is_test(name), "{name}");
        }
        for name in ["a.test.yaml", "a.test.yml", "a.test.json"] {
            assert!(is_test(name) && !is_policy(name), "{name}");
        }
        for name in ["a.yaml.bak", "ayaml", "README", "a.jsonl"] {
            assert!(!is_test(name) && !is_policy(name), "{name}");
        }
    }
}
