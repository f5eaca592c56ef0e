//! Finds and loads ONNX Runtime's library, once per process.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use ort::environment::Environment;

use super::SessionError;
use crate::lookup::{LookupCandidate, candidates, version_of};

/// Oldest supported ONNX Runtime, as required by ort's feature `api-22`.
pub(super) const OLDEST_RUNTIME: &str = "1.22";

/// The loaded runtime. One per process: later calls return the first.
#[derive(Debug, Clone)]
pub struct OnnxRuntime {
    environment: Environment,
    library: PathBuf,
    version: String,
}

static LOADED: OnceLock<OnnxRuntime> = OnceLock::new();
static LOADING: Mutex<()> = Mutex::new(());

impl OnnxRuntime {
    /// Searches for the library and starts it. Order: `setting`, the variables TRIBUTARY_ONNXRUNTIME and
    /// ORT_DYLIB_PATH, the system's library folders, the cache filled by `make setup`. An explicitly named one must be
    /// usable; an unusable one of the system is skipped with a warning.
    pub fn find_and_load(setting: Option<&Path>) -> Result<OnnxRuntime, SessionError> {
        let _alone = LOADING.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(loaded) = LOADED.get() {
            return Ok(loaded.clone());
        }
        let onnx = Self::first_usable(candidates(setting, &|name| std::env::var_os(name)))?;
        Ok(LOADED.get_or_init(|| onnx).clone())
    }

    fn first_usable(candidates: Vec<LookupCandidate>) -> Result<OnnxRuntime, SessionError> {
        let mut looked_at = Vec::new();
        for LookupCandidate { path, given_by, explicit } in candidates {
            if !explicit && !path.exists() {
                looked_at.push(path);
                continue;
            }
            match Self::load(&path, given_by) {
                Ok(onnx) => {
                    tracing::info!(library = %onnx.library.display(), version = onnx.version, "onnx runtime loaded");
                    return Ok(onnx);
                }
                Err(SessionError::RuntimeUnusable { path, why, .. }) if !explicit => {
                    tracing::warn!(library = %path.display(), fault = why, "onnx runtime skipped");
                    looked_at.push(path);
                }
                Err(error) => return Err(error),
            }
        }
        Err(SessionError::RuntimeMissing { looked_at })
    }

    fn load(path: &Path, given_by: &'static str) -> Result<OnnxRuntime, SessionError> {
        let unusable = |why: String| SessionError::RuntimeUnusable { path: path.to_owned(), given_by, why };
        // A relative path would first be searched beside the executable.
        let library = path.canonicalize().map_err(|error| unusable(error.to_string()))?;
        if !library.is_file() {
            return Err(unusable("it is not a file".to_owned()));
        }
        let builder = ort::init_from(&library).map_err(|error| unusable(load_why(&error)))?;
        let broken = |error: ort::Error| SessionError::RuntimeBroken { path: library.clone(), why: error.to_string() };
        let environment = builder.with_name("tributary").with_telemetry(false).build().map_err(broken)?;
        environment.set_log_level(ort::logging::LogLevel::Error);
        Ok(OnnxRuntime { environment, version: version_of(&library), library })
    }

    pub(crate) fn environment(&self) -> &Environment {
        &self.environment
    }

    /// Path of the library in use.
    pub fn library(&self) -> &Path {
        &self.library
    }

    /// Its version, as it reports itself.
    pub fn version(&self) -> &str {
        &self.version
    }
}

fn load_why(error: &ort::LoadDynamicError) -> String {
    use ort::LoadDynamicError::{BadVersion, Dlopen, InvalidVersionString, MissingApi};
    match error {
        Dlopen { error, .. } => {
            let cause = std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string);
            format!("it is not a library this system can load ({cause})")
        }
        MissingApi { .. } => "it is a library, but not ONNX Runtime".to_owned(),
        InvalidVersionString => "it does not report its version".to_owned(),
        BadVersion { version_str, .. } => format!("it is version {version_str}; {OLDEST_RUNTIME} or newer is needed"),
    }
}

/// Why a graph was not loaded, in plain words if the runtime's are about its own source.
pub(super) fn explain(why: &str, version: &str) -> String {
    let number_after = |text: &str| {
        let rest = why.split(text).nth(1)?.trim_start();
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        (!digits.is_empty()).then_some(digits)
    };
    // As worded in onnxruntime's model.cc, unchanged from 1.10 to 1.31.
    if let (Some(given), Some(most)) =
        (number_after("Unsupported model IR version: "), number_after("max supported IR version: "))
    {
        return format!(
            "its file format (IR {given}) is newer than what ONNX Runtime {version} reads ({most}); export it with an older \
             onnx, or set ir_version to {most} in the file"
        );
    }
    if let (true, Some(most)) =
        (why.contains("under development"), number_after("official support for domain ai.onnx is till opset "))
    {
        return format!(
            "its operators are newer than opset {most}, the newest that ONNX Runtime {version} knows; export it with \
             opset_version={most}"
        );
    }
    if let Some(name) = why.split("Fatal error: ").nth(1).and_then(|rest| rest.split(" is not a registered").next()) {
        return format!(
            "it needs the operator {name}, which ONNX Runtime {version} does not have; export it without that operator"
        );
    }
    let why = why.split("failed:").last().unwrap_or(why);
    why.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lookup::{tests::places, version_inside};
    use crate::session::tests::onnx;

    #[test]
    fn a_missing_runtime_names_every_place_and_the_remedy() {
        let none = places(None, &[("TRIBUTARY_CACHE", "/nowhere"), ("LD_LIBRARY_PATH", "/nowhere/else")]);
        let none: Vec<LookupCandidate> = none.into_iter().filter(|place| place.path.starts_with("/nowhere")).collect();
        let why = OnnxRuntime::first_usable(none).unwrap_err().to_string();
        for part in ["make setup", "/nowhere/onnxruntime-1.31.1/libonnxruntime", "/nowhere/else/libonnxruntime"] {
            assert!(why.contains(part), "{part}: {why}");
        }
    }

    #[test]
    fn a_file_that_is_not_a_library_is_refused_if_named_and_skipped_if_found() {
        // The first library that loads stays for the whole process, so the right one is loaded first.
        let good = onnx();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("libonnxruntime.so");
        std::fs::write(&path, "not a library").unwrap();
        assert!(version_inside(&path).is_none());
        assert_eq!(version_inside(good.library()).as_deref(), Some(good.version()));
        let named = LookupCandidate { path: dir.path().join("absent.so"), given_by: "the setting", explicit: true };
        let why = OnnxRuntime::first_usable(vec![named]).unwrap_err().to_string();
        assert!(why.contains("absent.so") && why.contains("the setting") && why.contains("make setup"), "{why}");
    }

    #[test]
    fn runtime_errors_are_explained_in_plain_words() {
        let ir = "Load model from a.onnx failed:/onnxruntime_src/onnxruntime/core/graph/model.cc:181 onnxruntime::Model::Model(x) \
                  Unsupported model IR version: 14, max supported IR version: 13\n";
        let explained = explain(ir, "1.31.1");
        assert!(
            explained.contains("IR 14") && explained.contains("(13)") && explained.contains("1.31.1"),
            "{explained}"
        );
        let opset = "Load model from a.onnx failed:/onnxruntime_src/x.cc:149 void F() ONNX Runtime only *guarantees* support for \
                     models stamped with official released onnx opset versions. Opset 28 is under development and support for this \
                     is limited. The operator schemas and or other functionality may change before next ONNX release and in this \
                     case ONNX Runtime will not guarantee backward compatibility. Current official support for domain ai.onnx is \
                     till opset 26.";
        let explained = explain(opset, "1.31.1");
        assert!(explained.contains("opset_version=26") && !explained.contains("src"), "{explained}");
        let operator = "Load model from a.onnx failed:Fatal error: ai.onnx.contrib:GaussianBlur(-1) is not a registered function/op";
        assert!(explain(operator, "1.31.1").contains("the operator ai.onnx.contrib:GaussianBlur(-1)"));
        assert_eq!(explain("Load model from a.onnx failed:Protobuf parsing failed.", "1"), "Protobuf parsing failed.");
    }
}
