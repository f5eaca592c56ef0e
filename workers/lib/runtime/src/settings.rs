//! Settings from defaults, `tributary.toml`, the environment and flags, in this order; the last one wins,
//! and each value knows its origin.

use std::fmt;
use std::path::{Path, PathBuf};

use figment::providers::{Data, Env, Format, Serialized};
use figment::{Figment, Metadata, Source};
use serde::de::DeserializeOwned;
use serde::{Serialize, Serializer};

/// Settings file in the working folder that is read when no file is named.
pub const DEFAULT_FILE: &str = "tributary.toml";
/// Prefix of environment variables; then follow the section, two underscores and the name.
const PREFIX: &str = "TRIBUTARY_";

/// Why settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The named file does not exist.
    #[error("settings file {path} does not exist; create it, or omit --settings")]
    NoFile {
        /// Path of the file.
        path: PathBuf,
    },
    /// The file in the working folder names a program to run, but nobody named the file.
    #[error("{path} names a program to run ({key}), which is only accepted from a file you name; if it is yours, use --settings {path}", path = path.display())]
    NamesProgram {
        /// Key of the setting.
        key: String,
        /// Path of the file.
        path: PathBuf,
    },
    /// An unknown setting, or a value of the wrong type.
    #[error("{}: {why} (from {origin}); `tributary config --show` lists every setting", named(key))]
    Bad {
        /// Key of the setting, such as `recognizer.gate.min_confidence_ratio`; empty if the file is no TOML.
        key: String,
        /// What is wrong with the value.
        why: String,
        /// Origin of the value.
        origin: String,
    },
}

fn named(key: &str) -> String {
    if key.is_empty() { "settings cannot be read".into() } else { format!("setting {key}") }
}

/// Our name for what stands on the command line.
const FLAG: &str = "flag";

/// One effective setting.
#[derive(Debug, Clone, Serialize)]
pub struct ResolvedSetting {
    /// Key of the setting, such as `recognizer.gate.min_confidence_ratio`.
    pub key: String,
    /// Value as JSON; secrets are omitted.
    pub value: serde_json::Value,
    /// Where it comes from.
    pub origin: SettingOrigin,
}

/// What a section says of itself, as who holds the section says it: with the section's name before the key.
///
/// # Errors
/// The section's own.
pub fn check_section(section: &str, check: Result<(), String>) -> Result<(), String> {
    check.map_err(|why| format!("{section}.{why}"))
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

/// Settings with the origin of each.
pub struct LoadedSettings<S> {
    /// The effective settings.
    pub settings: S,
    figment: Figment,
}

/// Loads settings. `flags`: keys and values from the command line.
pub fn load<S>(file: Option<&Path>, flags: &[(String, serde_json::Value)]) -> Result<LoadedSettings<S>, SettingsError>
where
    S: Default + Serialize + DeserializeOwned,
{
    if let Some(path) = file.filter(|path| !path.is_file()) {
        return Err(SettingsError::NoFile { path: path.to_owned() });
    }
    if file.is_none() {
        refuse_programs(Path::new(DEFAULT_FILE))?;
    }
    let mut figment = Figment::new()
        .merge(Serialized::defaults(S::default()))
        .merge(read_file(file.unwrap_or(Path::new(DEFAULT_FILE))))
        .merge(Env::prefixed(PREFIX).filter(|key| key.as_str().contains("__") || key == "site").split("__"));
    for (key, value) in flags {
        figment = figment.merge(FlagValue { key, value });
    }
    let settings = figment.extract().map_err(|error| bad(&error))?;
    Ok(LoadedSettings { settings, figment })
}

/// Settings that name programs and libraries to run: in a folder that came from elsewhere, the author of its file would
/// choose them.
const PROGRAMS: [&str; 2] = ["onnxruntime", "up.nats_server"];

/// Refuses a file that nobody named and that names a program to run.
fn refuse_programs(path: &Path) -> Result<(), SettingsError> {
    if !path.is_file() {
        return Ok(());
    }
    let found = Figment::new().merge(read_file(path));
    match PROGRAMS.into_iter().find(|key| found.find_value(key).is_ok()) {
        Some(key) => Err(SettingsError::NamesProgram { key: key.into(), path: path.into() }),
        None => Ok(()),
    }
}

/// The contents of a settings file as JSON, without knowledge of its settings.
///
/// # Errors
/// The file does not exist or is not valid TOML.
pub fn table(path: &Path) -> Result<serde_json::Value, SettingsError> {
    if !path.is_file() {
        return Err(SettingsError::NoFile { path: path.to_owned() });
    }
    Figment::new().merge(read_file(path)).extract().map_err(|error| bad(&error))
}

/// Every setting with its default.
pub fn defaults<S: Default + Serialize>() -> Vec<ResolvedSetting> {
    let figment = Figment::new().merge(Serialized::defaults(S::default()));
    LoadedSettings { settings: S::default(), figment }.list()
}

/// Settings files, read by the parser that reads `model.toml`, too: figment's own is an older version of it.
struct Toml;

impl Format for Toml {
    type Error = toml::de::Error;

    const NAME: &'static str = "TOML";

    fn from_str<T: DeserializeOwned>(text: &str) -> Result<T, Self::Error> {
        toml::from_str(text)
    }
}

/// A file where it is named; nothing if it is not there. Of a relative path figment would look through the folders above,
/// too, and find files that nobody named.
fn read_file(path: &Path) -> Data<Toml> {
    Toml::file(std::path::absolute(path).unwrap_or_else(|_| path.into()))
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
    let origin =
        error.metadata.as_ref().map_or_else(|| "an unknown source".into(), |metadata| origin(metadata).to_string());
    let why = error.kind.to_string().trim_end().to_owned();
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
    /// Every effective setting, with its origin.
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
    fn a_flag_overrides_the_file_and_the_file_the_default_and_each_knows_its_origin() {
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
    fn unknown_settings_and_wrong_types_are_refused_by_name() {
        let unknown = file("[gate]\nmin_confidnce_ratio = 0.7");
        let error = load::<AllSettings>(Some(unknown.path()), &[]).err().unwrap().to_string();
        assert!(error.contains("min_confidnce_ratio"), "{error}");
        let wrong = file("[gate]\nmin_confidence_ratio = \"high\"");
        let error = load::<AllSettings>(Some(wrong.path()), &[]).err().unwrap().to_string();
        assert!(error.contains("gate.min_confidence_ratio"), "{error}");
    }

    #[test]
    fn a_file_in_a_folder_above_is_none_of_ours() {
        let above = Path::new("../../../rustfmt.toml");
        assert!(Figment::new().merge(read_file(above)).find_value("max_width").is_ok());
        assert!(Figment::new().merge(read_file(Path::new("rustfmt.toml"))).find_value("max_width").is_err());
    }

    #[test]
    fn a_named_file_must_exist() {
        assert!(matches!(
            load::<AllSettings>(Some(Path::new("/nonexistent.toml")), &[]),
            Err(SettingsError::NoFile { .. })
        ));
    }
}
