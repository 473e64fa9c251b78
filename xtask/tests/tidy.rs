//! House rules that a program can check. Each says why it is one; an exception is written here, with its reason, or it is none.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use xtask::{cargo, process, root};

/// Which of our crates each of them may use, whatever the kind of dependency. A gate never reaches policy or control plane: they meet
/// in bytes.
const HOUSE: &[(&str, &[&str])] = &[
    ("tollgate-engine", &[]),
    ("tollgate-policy", &["tollgate-engine"]),
    ("tollgate-checker", &["tollgate-policy"]),
    ("tollgate-filter", &["tollgate-engine"]),
    ("tollgate-component", &["tollgate-engine"]),
    ("tollgate-edge-worker", &["tollgate-engine"]),
    (
        "tollgate-cloudflare",
        &["tollgate-edge-worker", "tollgate-engine"],
    ),
    (
        "tollgate-spin",
        &["tollgate-edge-worker", "tollgate-engine"],
    ),
    (
        "tollgate-control-plane",
        &["tollgate-policy", "tollgate-engine"],
    ),
    (
        "tollgate",
        &[
            "tollgate-control-plane",
            "tollgate-policy",
            "tollgate-engine",
        ],
    ),
    ("tollgate-stand-in", &[]),
    ("tollgate-pass-through", &[]),
    ("xtask", &[]),
    (
        "tollgate-tests",
        &[
            "tollgate-engine",
            "tollgate-policy",
            "tollgate-control-plane",
            "tollgate-stand-in",
            "xtask",
        ],
    ),
];

/// What the engine may use of other people's: each compiles to every gate without `std`.
const ENGINE_DEPENDENCIES: &[&str] = &[
    "serde",
    "serde_json",
    "sha2",
    "siphasher",
    "hmac",
    "ed25519-dalek",
    "base64ct",
    "regex-automata",
];

/// What the engine's source may not say. It takes bytes and instants and gives values, so it reads no clock, writes no line, knows no
/// host and counts no money in binary fractions.
const ENGINE_NEVER: &[&str] = &[
    "std::",
    "println!",
    "eprintln!",
    "print!",
    "dbg!",
    "f32",
    "f64",
    "async",
    "await",
    "SystemTime",
    "Instant::now",
    "getrandom",
    "proxy_wasm",
    "wit_bindgen",
    "envoy",
    "cloudflare",
    "spin",
    "workerd",
];

/// Files that may hold `unsafe`, or speak to a host outside Rust's types.
const HOST_FILES: &[(&str, &str)] = &[
    ("filter/src/host.rs", "the one file that knows Envoy's ABI"),
    (
        "filter/component/src/lib.rs",
        "the one file that knows the component ABI",
    ),
];

/// Files that may let time pass. Everywhere else a test waits for what it wants to see.
const SLEEPERS: &[(&str, &str)] = &[
    (
        "xtask/src/bench/load.rs",
        "a fixed rate is kept by waiting for the next request's time",
    ),
    (
        "xtask/src/process.rs",
        "the one polling loop, between two looks at a condition with a deadline",
    ),
    (
        "tests/stand-in/src/lib.rs",
        "a slow provider is what the caller asked for",
    ),
    (
        "tests/stand-in/src/answer.rs",
        "a slow provider is what the caller asked for",
    ),
];

#[test]
fn dependencies_point_the_way_the_design_says() {
    let metadata = metadata();
    let house: BTreeMap<&str, &[&str]> = HOUSE.iter().copied().collect();
    let mut wrong = Vec::new();
    for package in metadata["packages"].as_array().unwrap() {
        let name = package["name"].as_str().unwrap();
        let Some(allowed) = house.get(name) else {
            wrong.push(format!(
                "`{name}` is not in the table: say what it may depend on"
            ));
            continue;
        };
        for dependency in package["dependencies"].as_array().unwrap() {
            let dependency_name = dependency["name"].as_str().unwrap();
            if house.contains_key(dependency_name) && !allowed.contains(&dependency_name) {
                wrong.push(format!("`{name}` depends on `{dependency_name}`"));
            }
            let shipped = dependency["kind"].is_null();
            if name == "tollgate-engine"
                && shipped
                && !ENGINE_DEPENDENCIES.contains(&dependency_name)
            {
                wrong.push(format!("the engine depends on `{dependency_name}`"));
            }
        }
    }
    assert_none(&wrong);
}

/// What cargo has to say of our crates.
fn metadata() -> Value {
    let options = ["--no-deps", "--format-version", "1", "--offline"];
    let metadata = process::capture(cargo::cargo("metadata").args(options)).unwrap();
    serde_json::from_str(&metadata).unwrap()
}

/// `cargo component` takes long to install and makes what plain cargo does, so nobody here runs it. What it would read has to name what there is.
#[test]
fn what_cargo_component_reads_is_there() {
    let folder = root().join("filter/component");
    let metadata = metadata();
    let mut packages = metadata["packages"].as_array().unwrap().iter();
    let manifest = packages.find(|package| package["name"] == "tollgate-component");
    let component = &manifest.unwrap()["metadata"]["component"];
    let (package, target) = (component["package"].as_str(), &component["target"]);
    let wit = folder.join(target["path"].as_str().unwrap());
    let text = fs::read_to_string(wit.join("gate.wit")).unwrap();
    let has = |line: String| text.lines().any(|known| known.starts_with(&line));
    assert!(has(format!("package {}@", package.unwrap())), "{component}");
    let world = target["world"].as_str().unwrap();
    assert!(has(format!("world {world} ")), "{component}");
}

#[test]
fn the_engine_is_pure() {
    assert_none(&search(&["engine/src"], |line| {
        ENGINE_NEVER
            .iter()
            .filter(|word| has_word(line, word))
            .map(ToString::to_string)
            .collect()
    }));
}

#[test]
fn one_file_per_host_speaks_to_it() {
    const HOST_WORDS: &[&str] = &[
        "unsafe",
        "proxy_wasm::hostcalls",
        "extern \"C\"",
        "no_mangle",
    ];
    let allowed: BTreeSet<&str> = HOST_FILES.iter().map(|(file, _)| *file).collect();
    let members = [
        "engine",
        "policy",
        "filter",
        "edge-worker",
        "control-plane",
        "cli",
        "tests",
        "xtask/src",
    ];
    let found = search(&members, |line| {
        HOST_WORDS
            .iter()
            .filter(|word| has_word(line, word))
            .map(ToString::to_string)
            .collect()
    });
    assert_none(
        &found
            .into_iter()
            .filter(|place| {
                !allowed
                    .iter()
                    .any(|file| place.starts_with(&format!("{file}:")))
            })
            .collect::<Vec<_>>(),
    );
}

#[test]
fn nothing_is_left_to_do_and_nothing_is_called_after_nothing() {
    let mut wrong = search(
        &[
            "engine",
            "policy",
            "filter",
            "edge-worker",
            "control-plane",
            "cli",
            "tests",
            "xtask/src",
        ],
        |line| {
            ["todo!", "unimplemented!", "#[ignore]"]
                .iter()
                .filter(|word| has_word(line, word))
                .map(ToString::to_string)
                .collect()
        },
    );
    for file in files(&[""], &["rs"]) {
        let stem = file
            .file_stem()
            .and_then(|stem| stem.to_str())
            .unwrap_or_default();
        if [
            "util", "utils", "helper", "helpers", "common", "misc", "types", "manager",
        ]
        .contains(&stem)
        {
            wrong.push(format!(
                "{}: a file is named after what is in it",
                relative(&file)
            ));
        }
    }
    assert_none(&wrong);
}

#[test]
fn tests_wait_for_what_they_want_to_see() {
    let allowed: BTreeSet<&str> = SLEEPERS.iter().map(|(file, _)| *file).collect();
    let mut wrong = Vec::new();
    for file in files(
        &[
            "xtask/src",
            "tests",
            "engine/tests",
            "policy/tests",
            "filter",
            "edge-worker",
            "control-plane/tests",
            "cli/tests",
        ],
        &["rs", "py"],
    ) {
        let text = fs::read_to_string(&file).unwrap();
        if !allowed.contains(relative(&file).as_str())
            && (text.contains("sleep(") || text.contains("sleep_ms("))
        {
            wrong.push(format!("{}: sleeps", relative(&file)));
        }
    }
    assert_none(&wrong);
}

/// A reader has the checkout and nothing else: no tracker, and no folder beside it.
#[test]
fn the_project_explains_itself() {
    let mut wrong = Vec::new();
    for file in files(
        &[""],
        &["rs", "md", "toml", "yaml", "yml", "py", "c", "wit", "sql"],
    ) {
        if relative(&file) == "xtask/tests/tidy.rs" {
            continue;
        }
        for (number, line) in fs::read_to_string(&file)
            .unwrap_or_default()
            .lines()
            .enumerate()
        {
            let lower = line.to_lowercase();
            let tracker = ["issue ", "issue #", "ticket "].iter().any(|word| {
                lower.match_indices(word).any(|(at, _)| {
                    lower[at + word.len()..]
                        .trim_start_matches('#')
                        .starts_with(|next: char| next.is_ascii_digit())
                })
            });
            let beside = [
                "/work/shared",
                "../shared",
                " shared/",
                "`shared/",
                "(shared/",
            ]
            .iter()
            .any(|word| lower.contains(word));
            if tracker || beside {
                wrong.push(format!(
                    "{}:{}: {}",
                    relative(&file),
                    number + 1,
                    line.trim()
                ));
            }
        }
    }
    assert_none(&wrong);
}

#[test]
fn links_in_documents_lead_somewhere() {
    let mut wrong = Vec::new();
    for file in files(&[""], &["md"]) {
        let text = fs::read_to_string(&file).unwrap();
        for target in text
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split(')').next())
        {
            let path = target.split('#').next().unwrap_or_default();
            let elsewhere = path.is_empty() || path.contains("://") || path.starts_with("mailto:");
            if !elsewhere && !file.parent().unwrap_or(root()).join(path).exists() {
                wrong.push(format!("{}: `{target}` does not exist", relative(&file)));
            }
        }
    }
    assert_none(&wrong);
}

#[track_caller]
fn assert_none(wrong: &[String]) {
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// `file:line: what` for everything that `look` finds in the code, comments and text in quotes left out, of Rust files below `folders`.
/// Unit tests, which stand last in a file by convention, are no part of the crate and are left out too.
fn search(folders: &[&str], look: impl Fn(&str) -> Vec<String>) -> Vec<String> {
    let mut found = Vec::new();
    for file in files(folders, &["rs"]) {
        let code = code_only(&fs::read_to_string(&file).unwrap());
        let code = code.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
        for (number, line) in code.lines().enumerate() {
            found.extend(
                look(line)
                    .into_iter()
                    .map(|what| format!("{}:{}: `{what}`", relative(&file), number + 1)),
            );
        }
    }
    found
}

/// Whether `line` has `word` with no letter, digit or underscore beside it.
fn has_word(line: &str, word: &str) -> bool {
    let of_a_word = |character: char| character.is_alphanumeric() || character == '_';
    line.match_indices(word).any(|(at, _)| {
        let (before, after) = (
            line[..at].chars().next_back(),
            line[at + word.len()..].chars().next(),
        );
        let open_ended = !word.ends_with(of_a_word);
        !(before.is_some_and(of_a_word)) && (open_ended || !after.is_some_and(of_a_word))
    })
}

/// The source with comments and the insides of string literals blanked, line for line. `extern "C"` keeps its C.
fn code_only(source: &str) -> String {
    let bytes = source.as_bytes();
    let mut code = String::with_capacity(source.len());
    let mut at = 0;
    // Copies only the line ends, so that line numbers stay.
    let skip_to =
        |from: usize, to: usize, code: &mut String| code.extend(source[from..to].matches('\n'));
    while at < bytes.len() {
        let rest = &source[at..];
        if rest.starts_with("//") {
            let end = rest.find('\n').map_or(bytes.len(), |end| at + end);
            skip_to(at, end, &mut code);
            at = end;
        } else if rest.starts_with("/*") {
            let end = rest.find("*/").map_or(bytes.len(), |end| at + end + 2);
            skip_to(at, end, &mut code);
            at = end;
        } else if let Some(quote) = raw_string_start(rest)
            .filter(|_| !code.ends_with(|last: char| last.is_alphanumeric() || last == '_'))
        {
            let closing = format!("\"{}", "#".repeat(quote.matches('#').count()));
            let end = rest[quote.len()..]
                .find(&closing)
                .map_or(bytes.len(), |end| at + quote.len() + end + closing.len());
            skip_to(at, end, &mut code);
            at = end;
        } else if rest.starts_with('"') {
            let mut end = at + 1;
            while end < bytes.len() && bytes[end] != b'"' {
                end += if bytes[end] == b'\\' { 2 } else { 1 };
            }
            let end = (end + 1).min(bytes.len());
            code.push('"');
            if &source[at..end] == "\"C\"" {
                code.push('C');
            }
            skip_to(at, end, &mut code);
            code.push('"');
            at = end;
        } else if let Some(length) = char_literal_length(rest) {
            code.push_str("' '");
            at += length;
        } else {
            let character = rest.chars().next().unwrap_or(' ');
            code.push(character);
            at += character.len_utf8();
        }
    }
    code
}

/// `r"`, `br##"` and the like.
fn raw_string_start(rest: &str) -> Option<&str> {
    let after = rest.strip_prefix("br").or_else(|| rest.strip_prefix('r'))?;
    let hashes = after.len() - after.trim_start_matches('#').len();
    after[hashes..]
        .starts_with('"')
        .then(|| &rest[..rest.len() - after.len() + hashes + 1])
}

/// `'"'` or `'\''`, but not the lifetime `'a`.
fn char_literal_length(rest: &str) -> Option<usize> {
    let mut characters = rest.strip_prefix('\'')?.char_indices();
    let (_, first) = characters.next()?;
    if first == '\\' {
        let escaped = characters
            .next()
            .map_or(0, |(at, character)| at + character.len_utf8());
        return rest[1 + escaped..]
            .find('\'')
            .map(|end| 1 + escaped + end + 1);
    }
    characters
        .next()
        .filter(|(_, next)| *next == '\'')
        .map(|(at, _)| 1 + at + 1)
}

/// Files of the checkout below `folders` with one of `extensions`; nothing built, fetched or hidden.
fn files(folders: &[&str], extensions: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open: Vec<PathBuf> = folders.iter().map(|folder| root().join(folder)).collect();
    while let Some(folder) = open.pop() {
        let Ok(entries) = fs::read_dir(&folder) else {
            continue;
        };
        for entry in entries.map(Result::unwrap) {
            let name = entry.file_name().to_string_lossy().into_owned();
            let path = entry.path();
            if entry.file_type().unwrap().is_dir() {
                if !name.starts_with('.')
                    && !["target", "node_modules", "__pycache__"].contains(&name.as_str())
                {
                    open.push(path);
                }
            } else if path
                .extension()
                .and_then(|extension| extension.to_str())
                .is_some_and(|extension| extensions.contains(&extension))
            {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn relative(path: &Path) -> String {
    path.strip_prefix(root())
        .unwrap_or(path)
        .display()
        .to_string()
}

#[test]
fn the_search_sees_code_and_not_words_about_it() {
    let source = "let a = \"std:: \\\" std::\"; // std::\n/* std::\n */ let b = r#\"std:: \" \"#; let c = '\"'; std::mem::drop(a); fn f<'a>() {}\n";
    assert_eq!(
        code_only(source),
        "let a = \"\"; \n\n let b = ; let c = ' '; std::mem::drop(a); fn f<'a>() {}\n"
    );
    assert!(has_word("use std::mem", "std::") && !has_word("use mystd::mem", "std::"));
    assert!(has_word("x: f64)", "f64") && !has_word("buf64", "f64"));
}
