//! Where ONNX Runtime may be installed, and which version a library has.
//!
//! In: a setting and environment variables. Out: the paths to try, in order. [`crate::session`] decides whether they
//! are usable.

use std::ffi::OsString;
use std::io::Read;
use std::path::{Path, PathBuf};

/// The release that `make setup` puts into the cache.
const CACHED_RUNTIME: &str = "onnxruntime-1.31.1";

#[cfg(target_os = "macos")]
const LIBRARY_NAMES: &[&str] = &["libonnxruntime.dylib"];
#[cfg(not(target_os = "macos"))]
const LIBRARY_NAMES: &[&str] = &["libonnxruntime.so", "libonnxruntime.so.1"];

/// A path to try.
#[derive(Debug, PartialEq)]
pub(crate) struct LookupCandidate {
    pub(crate) path: PathBuf,
    /// What it was derived from, for messages.
    pub(crate) given_by: &'static str,
    /// Named by the operator, so it must be usable.
    pub(crate) explicit: bool,
}

/// All paths, in the order to try them; if one is named explicitly, only that one.
pub(crate) fn candidates(setting: Option<&Path>, variable: &dyn Fn(&str) -> Option<OsString>) -> Vec<LookupCandidate> {
    let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
    let explicit = |path: PathBuf, given_by| vec![LookupCandidate { path, given_by, explicit: true }];
    if let Some(path) = setting {
        return explicit(path.to_owned(), "the setting");
    }
    for name in ["TRIBUTARY_ONNXRUNTIME", "ORT_DYLIB_PATH"] {
        if let Some(path) = variable(name) {
            return explicit(path.into(), name);
        }
    }
    let mut folders: Vec<(PathBuf, &'static str)> = Vec::new();
    if let Some(paths) = variable("LD_LIBRARY_PATH") {
        folders.extend(std::env::split_paths(&paths).map(|path| (path, "LD_LIBRARY_PATH")));
    }
    let triple = format!("/usr/lib/{}-linux-gnu", std::env::consts::ARCH);
    for folder in ["/usr/local/lib", "/usr/lib", &triple, "/opt/homebrew/lib"] {
        folders.push((folder.into(), "the system's library folders"));
    }
    if let Some(cache) = cache(&variable) {
        folders.push((cache.join(CACHED_RUNTIME), "the cache"));
    }
    let named = |(folder, given_by): (PathBuf, &'static str)| {
        LIBRARY_NAMES.iter().map(move |name| LookupCandidate { path: folder.join(name), given_by, explicit: false })
    };
    folders.into_iter().filter(|(folder, _)| !folder.as_os_str().is_empty()).flat_map(named).collect()
}

fn cache(variable: &dyn Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let under = |name: &str| variable(name).map(PathBuf::from);
    under("TRIBUTARY_CACHE")
        .or_else(|| under("XDG_CACHE_HOME").map(|path| path.join("tributary")))
        .or_else(|| under("HOME").map(|path| path.join(".cache").join("tributary")))
}

/// The library's version, from its name, its folder's or, failing both, its symbols: ort has no call for it.
pub(crate) fn version_of(library: &Path) -> String {
    let of_name = |path: &Path| numbers(path.file_name()?.to_str()?).map(str::to_owned);
    let of_folder = || library.parent().and_then(of_name);
    of_name(library).or_else(of_folder).or_else(|| version_inside(library)).unwrap_or_else(|| "unknown".to_owned())
}

/// `1.31.1` from `libonnxruntime.so.1.31.1` or `onnxruntime-1.31.1`.
fn numbers(name: &str) -> Option<&str> {
    let start = name.find(|c: char| c.is_ascii_digit())?;
    let version = name.get(start..)?;
    let all = version.split('.').all(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()));
    (all && version.contains('.')).then_some(version)
}

pub(crate) fn version_inside(library: &Path) -> Option<String> {
    const MARK: &[u8] = b"VERS_";
    const LONGEST: usize = 32;
    let mut file = std::fs::File::open(library).ok()?;
    let mut piece = vec![0; 64 * 1024];
    // Keeps the end of the previous chunk, so that a mark across two chunks is found.
    let mut kept = 0;
    loop {
        let read = file.read(piece.get_mut(kept..)?).ok().filter(|read| *read > 0)?;
        let filled = piece.get(..kept + read)?;
        let tail = filled.len().saturating_sub(LONGEST + MARK.len());
        if let Some(at) = filled.windows(MARK.len()).take(tail).position(|window| window == MARK) {
            let rest = filled.get(at + MARK.len()..)?;
            let text: Vec<u8> = rest.iter().copied().take(LONGEST).take_while(|byte| *byte != 0).collect();
            return numbers(std::str::from_utf8(&text).ok()?).map(str::to_owned);
        }
        kept = filled.len() - tail;
        piece.copy_within(tail..tail + kept, 0);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::collections::HashMap;

    pub(crate) fn places(setting: Option<&str>, variables: &[(&str, &str)]) -> Vec<LookupCandidate> {
        let variables: HashMap<&str, &str> = variables.iter().copied().collect();
        candidates(setting.map(Path::new), &|name| variables.get(name).map(OsString::from))
    }

    #[test]
    fn a_setting_wins_over_variables_and_these_over_the_system() {
        let variables = [("TRIBUTARY_ONNXRUNTIME", "/b.so"), ("ORT_DYLIB_PATH", "/c.so"), ("HOME", "/home/x")];
        let first = |setting, variables| places(setting, variables).swap_remove(0);
        assert_eq!(first(Some("/a.so"), &variables).path, Path::new("/a.so"));
        assert_eq!(first(None, &variables).path, Path::new("/b.so"));
        assert_eq!(first(None, &variables[1..]).path, Path::new("/c.so"));
        assert!(first(None, &variables[1..]).explicit);
        let system = places(None, &variables[2..]);
        assert!(system.iter().all(|place| !place.explicit));
        let last = system.last().unwrap();
        assert_eq!(last.path.parent(), Some(Path::new("/home/x/.cache/tributary/onnxruntime-1.31.1")));
    }

    #[test]
    fn a_cache_named_by_a_variable_replaces_the_usual_one() {
        let place = |variables: &[(&str, &str)]| places(None, variables).pop().unwrap().path;
        let both = [("TRIBUTARY_CACHE", "/cache"), ("XDG_CACHE_HOME", "/xdg"), ("HOME", "/home/x")];
        assert!(place(&both).starts_with("/cache/onnxruntime-1.31.1"));
        assert!(place(&both[1..]).starts_with("/xdg/tributary/onnxruntime-1.31.1"));
    }

    #[test]
    fn versions_are_read_from_names() {
        for (name, version) in [
            ("libonnxruntime.so.1.31.1", Some("1.31.1")),
            ("onnxruntime-1.22.0", Some("1.22.0")),
            ("libonnxruntime.so", None),
            ("libonnxruntime.so.1", None),
            ("lib64", None),
        ] {
            assert_eq!(numbers(name), version, "{name}");
        }
    }
}
