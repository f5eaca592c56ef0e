//! Files as cameras, scanners and programs send them: each gives the right picture, or is refused with words that say
//! what it is. `TRIBUTARY_FIELD_IMAGES` names another folder of the same layout.

#![allow(clippy::indexing_slicing)]
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::fs;
use std::path::{Path, PathBuf};

use vision::{DecodeSettings, decode};

const WIDTH_PX: u32 = 64;
const HEIGHT_PX: u32 = 48;

fn folder() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../fixtures/images/field");
    std::env::var_os("TRIBUTARY_FIELD_IMAGES").map_or(own, PathBuf::from)
}

/// Fields of a line, some in quotes.
fn fields(line: &str) -> Vec<String> {
    let (mut fields, mut quoted) = (vec![String::new()], false);
    for c in line.chars() {
        match c {
            '"' => quoted = !quoted,
            ',' if !quoted => fields.push(String::new()),
            c => fields.last_mut().unwrap().push(c),
        }
    }
    fields
}

/// What is wrong with a case; `None` if nothing is.
fn wrong(folder: &Path, case: &[String]) -> Option<String> {
    let [name, file, expected, reference, tolerance, words, ..] = case else { return Some(format!("{case:?}")) };
    let reference = fs::read(folder.join(format!("{reference}.rgb"))).unwrap();
    let tolerance_levels: f64 = tolerance.parse().unwrap();
    let outcome = decode(&fs::read(folder.join(file)).unwrap(), &DecodeSettings::default());
    let problem = match (&outcome, expected.as_str()) {
        (Ok(_), "dead") => Some("was read".to_owned()),
        (Ok(pixels), _) => {
            let size = (pixels.width_px, pixels.height_px);
            let off: u64 = pixels.rgb.iter().zip(&reference).map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
            let off_levels = off as f64 / reference.len() as f64;
            let right = size == (WIDTH_PX, HEIGHT_PX) && off_levels <= tolerance_levels;
            (!right).then(|| format!("{size:?}, {off_levels:.1} levels off"))
        }
        (Err(error), "right") => Some(format!("was refused: {error}")),
        (Err(error), _) => {
            let said = format!("{error} {}", error.remedy()).to_lowercase();
            let named = words.split('|').any(|word| said.contains(word));
            (!named).then(|| format!("says {said:?}, none of {words:?}"))
        }
    };
    problem.map(|problem| format!("{name}: {problem}"))
}

#[test]
fn every_field_file_is_decoded_correctly_or_refused_by_name() {
    let folder = folder();
    let cases = fs::read_to_string(folder.join("cases.csv")).unwrap();
    let cases: Vec<Vec<String>> = cases.lines().skip(1).map(fields).collect();
    assert!(cases.len() > 15);
    let wrong: Vec<String> = cases.iter().filter_map(|case| wrong(&folder, case)).collect();
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}
