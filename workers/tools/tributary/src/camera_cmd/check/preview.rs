//! A small picture in a terminal, two pixels a character.

use vision::thumbnail::{THUMBNAIL_WIDTH, Thumbnail};

/// The darkest of the 24 grays that terminals with 256 colours have.
const DARKEST: usize = 232;
/// Grays.
const GRAYS: usize = 24;

/// Whether the terminal shows colours, and is meant to.
pub(super) fn is_wanted() -> bool {
    let is_set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    !is_set("NO_COLOR") && std::env::var_os("TERM").is_some_and(|terminal| terminal != "dumb")
}

/// The thumbnail in half blocks: the upper pixel in the foreground, the lower one in the background.
pub(super) fn preview(thumbnail: &Thumbnail) -> String {
    let rows: Vec<&[u8]> = thumbnail.gray().chunks(THUMBNAIL_WIDTH).collect();
    let shade = |gray: u8| DARKEST + usize::from(gray) * GRAYS / 256;
    let line = |pair: &[&[u8]]| {
        let [upper, lower] = pair else { return String::new() };
        let cells = upper
            .iter()
            .zip(*lower)
            .map(|(upper, lower)| format!("\u{1b}[38;5;{}m\u{1b}[48;5;{}m\u{2580}", shade(*upper), shade(*lower)));
        cells.collect::<String>() + "\u{1b}[0m"
    };
    rows.chunks(2).map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn black_is_the_darkest_gray_and_white_the_lightest() {
        let half: Vec<u8> = (0..40 * 30).map(|at| if at % 40 < 20 { 0 } else { 255 }).collect();
        let shown = preview(&Thumbnail::from_gray(&half, 40, 40, 30).unwrap());
        assert_eq!(shown.lines().count(), 15);
        let first = shown.lines().next().unwrap();
        assert_eq!(first.matches('\u{2580}').count(), 40);
        assert!(first.starts_with("\u{1b}[38;5;232m\u{1b}[48;5;232m") && first.ends_with("\u{1b}[0m"), "{first:?}");
        assert!(first.contains("[38;5;255m"), "{first:?}");
    }
}
