//! Settings: defaults, then `tributary.toml`, then the environment, then flags; the last one wins,
//! and each value knows where it came from.

use std::fmt;
use std::path::{Path, PathBuf};

use figment::providers::{Env, Format, Serialized, Toml};
use figment::{Figment, Metadata, Source};
use serde::de::DeserializeOwned;
use serde::{Serialize, Serializer};

/// Looked for in the working folder when no file is named.
pub const DEFAULT_FILE: &str = "tributary.toml";
/// Environment variables of settings: this, the section, two underscores, the name.
const PREFIX: &str = "TRIBUTARY_";

/// Why settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file that was named is not there.
    #[error("settings file {path} does not exist: create it, or leave --settings away")]
    NoFile {
        /// The file.
        path: PathBuf,
    },
    /// A file that was found, not named, says what to run.
    #[error("{path} names a program to run ({key}), and nobody named that file: if it is yours, say --settings {path}", path = path.display())]
    NamesProgram {
        /// The setting.
        key: String,
        /// The file.
        path: PathBuf,
    },
    /// A value of the wrong type, or a name that no setting has.
    #[error("setting {key}: {why} (from {origin}): `tributary config --show` lists every setting")]
    Bad {
        /// Its path, such as `recognizer.gate.min_confidence_ratio`.
        key: String,
        /// What is wrong with it.
        why: String,
        /// Where it came from.
        origin: String,
    },
}

/// Our name for what stands on the command line.
const FLAG: &str = "flag";

/// One setting as it is used.
#[derive(Debug, Clone, Serialize)]
pub struct ResolvedSetting {
    /// Its path, such as `recognizer.gate.min_confidence_ratio`.
    pub key: String,
    /// Its value, as JSON; secrets are left out.
    pub value: serde_json::Value,
    /// Where it comes from.
    pub origin: SettingOrigin,
}

/// Where a setting comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SettingOrigin {
    /// Nobody set it.
    Default,
    /// This file.
    File(PathBuf),
    /// The environment.
    Environment,
    /// The command line.
    Flag,
}

impl fmt::Display for SettingOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Environment => f.write_str("environment"),
            Self::Flag => f.write_str("flag"),
        }
    }
}

impl Serialize for SettingOrigin {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Settings together with where each came from.
pub struct LoadedSettings<S> {
    /// The settings.
    pub settings: S,
    figment: Figment,
}

/// Loads settings. `flags`: paths and values given on the command line.
pub fn load<S>(file: Option<&Path>, flags: &[(String, serde_json::Value)]) -> Result<LoadedSettings<S>, SettingsError>
where
    S: Default + Serialize + DeserializeOwned,
{
    if let Some(path) = file.filter(|path| !path.is_file()) {
        return Err(SettingsError::NoFile { path: path.to_owned() });
    }
    if file.is_none() {
        check_found(Path::new(DEFAULT_FILE))?;
    }
    let file = file.unwrap_or(Path::new(DEFAULT_FILE));
    let mut figment = Figment::new()
        .merge(Serialized::defaults(S::default()))
        .merge(Toml::file(file))
        .merge(Env::prefixed(PREFIX).filter(|key| key.as_str().contains("__") || key == "site").split("__"));
    for (key, value) in flags {
        figment = figment.merge(FlagValue { key, value });
    }
    let settings = figment.extract().map_err(|error| bad(&error))?;
    Ok(LoadedSettings { settings, figment })
}

/// Settings that name programs and libraries to run: in a folder that came from elsewhere, whoever wrote its file would
/// choose them.
const PROGRAMS: [&str; 2] = ["onnxruntime", "up.nats_server"];

/// A file that nobody named is used as far as it names no program.
fn check_found(path: &Path) -> Result<(), SettingsError> {
    if !path.is_file() {
        return Ok(());
    }
    let found = Figment::new().merge(Toml::file(path));
    match PROGRAMS.into_iter().find(|key| found.find_value(key).is_ok()) {
        Some(key) => Err(SettingsError::NamesProgram { key: key.into(), path: path.into() }),
        None => Ok(()),
    }
}

/// What a file of settings says, whatever it is about, as JSON.
///
/// # Errors
/// A file that is not there, or is no TOML.
pub fn table(path: &Path) -> Result<serde_json::Value, SettingsError> {
    if !path.is_file() {
        return Err(SettingsError::NoFile { path: path.to_owned() });
    }
    Figment::new().merge(Toml::file(path)).extract().map_err(|error| bad(&error))
}

/// Every setting as it is when nobody says anything.
pub fn defaults<S: Default + Serialize>() -> Vec<ResolvedSetting> {
    let figment = Figment::new().merge(Serialized::defaults(S::default()));
    LoadedSettings { settings: S::default(), figment }.list()
}

struct FlagValue<'a> {
    key: &'a str,
    value: &'a serde_json::Value,
}

impl figment::Provider for FlagValue<'_> {
    fn metadata(&self) -> Metadata {
        Metadata::named(FLAG)
    }

    fn data(&self) -> Result<figment::value::Map<figment::Profile, figment::value::Dict>, figment::Error> {
        Serialized::default(self.key, self.value).data()
    }
}

fn bad(error: &figment::Error) -> SettingsError {
    let origin = error.metadata.as_ref().map_or_else(|| "somewhere".into(), |metadata| origin(metadata).to_string());
    let why = error.kind.to_string();
    SettingsError::Bad { key: error.path.join("."), why, origin }
}

fn origin(metadata: &Metadata) -> SettingOrigin {
    match &metadata.source {
        Some(Source::File(path)) => SettingOrigin::File(path.clone()),
        _ if metadata.name.contains("environment") => SettingOrigin::Environment,
        _ if metadata.name == FLAG => SettingOrigin::Flag,
        _ => SettingOrigin::Default,
    }
}

impl<S: Serialize> LoadedSettings<S> {
    /// Every setting as it is used, with its origin.
    pub fn list(&self) -> Vec<ResolvedSetting> {
        let mut all = Vec::new();
        if let Ok(value) = serde_json::to_value(&self.settings) {
            self.collect(String::new(), value, &mut all);
        }
        all
    }

    fn collect(&self, key: String, value: serde_json::Value, all: &mut Vec<ResolvedSetting>) {
        match value {
            serde_json::Value::Object(fields) if !fields.is_empty() => {
                for (name, value) in fields {
                    let key = if key.is_empty() { name } else { format!("{key}.{name}") };
                    self.collect(key, value, all);
                }
            }
            value => {
                let origin = self.figment.find_metadata(&key).map_or(SettingOrigin::Default, origin);
                all.push(ResolvedSetting { key, value, origin });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct AllSettings {
        gate: GateSection,
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct GateSection {
        min_confidence_ratio: f64,
        name: String,
    }

    impl Default for GateSection {
        fn default() -> Self {
            Self { min_confidence_ratio: 0.5, name: "a".into() }
        }
    }

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    }

    #[test]
    fn a_flag_beats_the_file_and_the_file_beats_the_default_and_each_knows_its_origin() {
        let file = file("[gate]\nmin_confidence_ratio = 0.7\nname = \"b\"");
        let flags = [("gate.name".to_owned(), serde_json::json!("c"))];
        let loaded: LoadedSettings<AllSettings> = load(Some(file.path()), &flags).unwrap();
        assert_eq!(loaded.settings.gate, GateSection { min_confidence_ratio: 0.7, name: "c".into() });
        let list = loaded.list();
        let origin = |key: &str| list.iter().find(|setting| setting.key == key).unwrap().origin.clone();
        assert_eq!(origin("gate.min_confidence_ratio"), SettingOrigin::File(file.path().to_owned()));
        assert_eq!(origin("gate.name"), SettingOrigin::Flag);
    }

    #[test]
    fn an_unknown_setting_and_a_wrong_type_are_refused_by_name() {
        let unknown = file("[gate]\nmin_confidnce_ratio = 0.7");
        let error = load::<AllSettings>(Some(unknown.path()), &[]).err().unwrap().to_string();
        assert!(error.contains("min_confidnce_ratio"), "{error}");
        let wrong = file("[gate]\nmin_confidence_ratio = \"high\"");
        let error = load::<AllSettings>(Some(wrong.path()), &[]).err().unwrap().to_string();
        assert!(error.contains("gate.min_confidence_ratio"), "{error}");
    }

    #[test]
    fn a_named_file_must_exist() {
        assert!(matches!(
            load::<AllSettings>(Some(Path::new("/nonexistent.toml")), &[]),
            Err(SettingsError::NoFile { .. })
        ));
    }
}
