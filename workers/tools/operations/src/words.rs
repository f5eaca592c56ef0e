//! Counts and lists in errors, in audit notes and on screens. Pure.

/// A number of things, in the plural where needed.
pub fn count(count: u64, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// Names separated by commas, as flags take them.
pub fn list(names: &[impl ToString]) -> String {
    names.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_thing_has_no_plural_and_names_are_separated_by_commas() {
        assert_eq!([0, 1, 2].map(|number| count(number, "label")), ["0 labels", "1 label", "2 labels"]);
        assert_eq!(list(&["reef", "farm"]), "reef,farm");
    }
}
